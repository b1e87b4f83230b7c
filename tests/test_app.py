import json
import os
import secrets
import shlex
import sys
import threading
import time
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn
from typer.testing import CliRunner

from faceprior import FacePriorPipeline
from faceprior.app import ServeOptions, parse_auth, words
from faceprior.app.controls import Controls, acting_controls
from faceprior.app.guard import MAX_CALL_BYTES, Guard, is_upload
from faceprior.app.memory import give_back_memory
from faceprior.app.pictures import doubt_picture, write_views
from faceprior.app.server import delete_older
from faceprior.app.studio import Progress, Run, Studio
from faceprior.cli.app import app as command_line
from faceprior.errors import CancelledError, FacePriorError, ImageError, OptionError
from faceprior.faces import DetectedFace
from faceprior.images import read_image, read_picture
from faceprior.images.metadata import has_location
from faceprior.methods import find_preset
from faceprior.methods.registry import OWN
from faceprior.photographs.faces import needed_upscale

TEMPLATE = ((0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.33, 0.75), (0.67, 0.75))
LANDMARKS = ((14.0, 16.0), (26.0, 16.0), (20.0, 22.0), (15.0, 28.0), (25.0, 28.0))
CHANGES = {
    "scale": "8",
    "seed": 7,
    "steps": 3,
    "stride": 4,
    "edge_exponent": 0.0,
    "eta": 0.5,
    "corrector": False,
}


class TwoFaces:
    """Finds two faces at known places of every photograph, none in small ones, and one that fills tiny squares.

    They come enlarged to 192 pixels, with a border of 32.
    """

    name = "two faces"

    def __call__(self, photo, min_face=24):
        if photo.size == (256, 256):
            places = tuple((32 + 192 * x, 32 + 192 * y) for x, y in TEMPLATE)
            return [DetectedFace((32, 32, 224, 224), places, 1.0)]
        if photo.width < 60:
            return []
        found = []
        for shift in (0.0, 50.0):
            places = tuple((x + shift, y) for x, y in LANDMARKS)
            found.append(DetectedFace((8 + shift, 6, 32 + shift, 34), places, 1.0))
        return found


@pytest.fixture(scope="module")
def pipeline(tiny):
    prior, corrector = tiny.gaussian_prior(), tiny.corrector()
    prior.card = replace(prior.card, template=TEMPLATE)
    return FacePriorPipeline(prior, corrector)


@pytest.fixture
def studio(pipeline):
    return Studio({"tiny": pipeline}, TwoFaces(), ServeOptions(time_limit=60), "tiny")


def noise_picture(path, width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photo(tmp_path):
    return noise_picture(tmp_path / "two people.png", 100, 60)


@pytest.fixture
def crop(tmp_path):
    return noise_picture(tmp_path / "crop.png", 8, 8)


def finished(updates):
    *_, last = updates
    assert isinstance(last, Run)
    return last


# ------------------------------------------------------------------ controls


def test_untouched_controls_are_the_default_preset():
    assert Controls().recipe.preset == find_preset("default")


def restored(studio, path, controls, tmp_path, chosen=(1,)):
    """The pictures that a restoration writes, and how it was made."""
    run = finished(studio.restore(path, controls, chosen))
    folder = tmp_path / secrets.token_hex(8)
    folder.mkdir()
    return [read_image(file) for file in run.write(folder)[0]], run


@pytest.mark.parametrize("preset", [*OWN, "paper-ddim"])
@pytest.mark.parametrize("control", sorted(CHANGES))
def test_every_live_control_changes_the_result_and_no_dead_one_does(studio, crop, tmp_path, preset, control):
    steps = 4 if "steps" in find_preset(preset).as_dict() else None
    before = Controls(preset=preset, steps=steps)
    live = control in acting_controls(preset)
    after = replace(before, **{control: CHANGES[control]})
    pictures = [restored(studio, crop, each, tmp_path)[0] for each in (before, after)]
    assert (pictures[0] != pictures[1]) is live


@pytest.mark.parametrize("change", [{"strength": 0.4}, {"upscale": "2"}], ids=["strength", "upscale"])
def test_the_controls_of_a_photograph_change_the_result(studio, photo, tmp_path, change):
    before = Controls(steps=4, upscale="1")
    pictures = [restored(studio, photo, each, tmp_path)[0] for each in (before, replace(before, **change))]
    assert pictures[0] != pictures[1]


def test_the_edge_exponent_is_dead_where_all_of_the_grid_is_held():
    assert find_preset("default").as_dict()["tau"] == 0
    assert "edge_exponent" not in acting_controls("default")
    assert "edge_exponent" in acting_controls("paper-ddim")


def near(side):
    """A face whose aligned square of 128 pixels is so many pixels of the photograph wide."""
    return SimpleNamespace(transform=np.array([[128 / side, 0.0, 0.0], [0.0, 128 / side, 0.0]]))


@pytest.mark.parametrize(
    ("sides", "photo_side", "factor"),
    [
        ([200], 1000, 1),
        ([110], 1000, 1),
        ([96], 1000, 2),
        ([50], 1000, 4),
        ([200, 50], 1000, 4),
        ([50], 3000, 2),
        ([50], 6000, 1),
        ([], 100, 1),
    ],
    ids=["large", "nearly whole", "small", "tiny", "large and tiny", "in a large photo", "in a huge one", "none"],
)
def test_a_photo_is_enlarged_as_much_as_its_smallest_restored_face_needs(sides, photo_side, factor):
    assert needed_upscale([near(side) for side in sides], (photo_side, photo_side)) == factor


def test_only_restored_faces_count_for_the_enlargement(studio, photo, tmp_path):
    size = read_image(photo).size
    seen = studio.look(photo, Controls())
    faces = (replace(seen.faces[0], transform=np.eye(2, 3)), replace(seen.faces[1], transform=1.5 * np.eye(2, 3)))
    for number, factor in ((1, 1), (2, 2)):
        run = finished(studio.restore(photo, Controls(steps=2), [number]))
        run = replace(run, prepared=replace(run.prepared, faces=faces))
        (file,), composed = run.write(tmp_path)
        assert composed.record["upscale"] == factor
        assert read_image(file).size == (factor * size[0], factor * size[1])


@pytest.mark.parametrize(
    "wrong",
    [{"strength": -0.1}, {"scale": "5"}, {"upscale": "3"}, {"samples": 0}, {"seed": -1}, {"preset": "x"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_control_out_of_its_range_is_refused(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        Controls(**wrong)


def test_controls_of_json_may_write_one_as_a_fraction_but_not_as_a_text():
    assert Controls.of({"samples": 2.0, "strength": 1}) == Controls(samples=2, strength=1.0)
    for wrong in ({"samples": "2"}, {"samples": 1.5}, {"corrector": 1}, {"scale": 4}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            Controls.of(wrong)


# ------------------------------------------------------------------ the command line of a run


@pytest.mark.parametrize(
    ("name", "chosen", "controls"),
    [
        ("photo", [1], Controls("paper-ddim", samples=2, seed=5, strength=0.7, upscale="2", edge_exponent=0.7)),
        ("photo", None, Controls(preset="ddnm", steps=3, scale="8", eta=0.25, with_location=False)),
        ("photo", [2], Controls(steps=3, as_jpeg=True)),
        ("crop", None, Controls(steps=4, stride=4, corrector=False, eta=0.5)),
        ("crop", None, Controls(preset="bicubic")),
    ],
    ids=["one face of a photograph", "another method", "as a JPEG", "an aligned face", "no prior"],
)
def test_the_command_line_makes_the_same_files(
    studio, pipeline, photo, crop, tmp_path, monkeypatch, name, chosen, controls
):
    path = {"photo": photo, "crop": crop}[name]
    run = finished(studio.restore(path, controls, chosen))
    (tmp_path / "page").mkdir()
    ours, _ = run.write(tmp_path / "page")

    def load(_prior, corrector, *_rest):
        return pipeline if corrector == "auto" else pipeline.without_corrector()

    monkeypatch.setattr("faceprior.cli.options.load_pipeline", load)
    monkeypatch.setattr("faceprior.faces.load_detector", lambda *_: TwoFaces())
    monkeypatch.chdir(path.parent)
    program, *arguments = shlex.split(run.command)
    result = CliRunner().invoke(command_line, arguments)
    assert program == "faceprior"
    assert result.exit_code == 0, result.output
    theirs = {file.name: file.read_bytes() for file in Path("restored").iterdir() if file.suffix != ".jsonl"}
    assert {file.name.replace("-restored", "", 1): file.read_bytes() for file in ours} == theirs


# ------------------------------------------------------------------ the studio


def test_a_photograph_and_an_aligned_face_are_told_apart(studio, photo, crop):
    assert [studio.look(path, Controls()).aligned for path in (photo, crop)] == [False, True]
    assert [condition.index for condition in studio.look(photo, Controls()).conditions] == [0, 1]


def test_only_the_chosen_face_changes(studio, photo, tmp_path):
    (picture,), run = restored(studio, photo, Controls(steps=4, upscale="1"), tmp_path, [2])
    changed = np.abs(np.asarray(picture, int) - np.asarray(read_image(photo), int)).max(-1).any(0)
    assert [condition.index for condition in run.prepared.conditions] == [1]
    assert not changed[:45].any()
    assert changed[50:].any()


def test_the_page_looks_at_each_restored_face_and_then_at_the_whole(studio, photo, tmp_path):
    run = finished(studio.restore(photo, Controls(steps=4, samples=2)))
    views = write_views(run, run.write(tmp_path)[0], tmp_path)
    assert [view["name"] for view in views] == ["Face 1", "Face 2", "Whole photo"]
    for view in views:
        before, *after = (read_image(Path(path)) for path in (view["before"], *view["after"]))
        assert len(after) == 2
        assert {picture.size for picture in after} == {before.size}
        assert before not in after
        assert (view["doubt"] is not None) is (view["name"] != "Whole photo")


def test_the_map_of_doubt_is_brighter_where_less_is_known():
    widths = torch.linspace(0, 0.5, 50).expand(50, 50)
    colours = np.asarray(doubt_picture(widths), float) @ (0.3, 0.59, 0.11)
    assert (np.diff(colours[0]) >= 0).all()
    assert colours[0, 0] < 20
    assert colours[0, -1] > 200
    assert "within ±64 of 255" in words.doubt(widths)
    assert "±115 and more away" in words.doubt(widths)


def test_a_result_keeps_the_photographers_place_or_not(studio, photo, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 0.0)
    Image.open(photo).save(tmp_path / "placed.jpg", exif=exif)
    picture = read_picture(tmp_path / "placed.jpg")
    assert has_location(picture.exif, picture.xmp)
    for kept in (True, False):
        (tmp_path / str(kept)).mkdir()
        run = finished(studio.restore(tmp_path / "placed.jpg", Controls(steps=2, with_location=kept)))
        (file,), _ = run.write(tmp_path / str(kept))
        assert file.name == "placed-restored.jpg"
        written = Image.open(file).getexif()
        assert (ExifTags.IFD.GPSInfo in written) is kept
        assert written[ExifTags.Base.Make] == "Camera"


def test_a_result_can_be_a_jpeg_whatever_the_photo_is(studio, photo, tmp_path):
    run = finished(studio.restore(photo, Controls(steps=2, as_jpeg=True)))
    (file,), _ = run.write(tmp_path)
    assert (file.name, Image.open(file).format) == ("two people-restored.jpg", "JPEG")


def test_a_face_emerges_step_by_step(studio, crop):
    *steps, run = studio.restore(crop, Controls(steps=6, samples=2))
    assert isinstance(run, Run)
    assert all(isinstance(step, Progress) and len(step.emerging) == 2 for step in steps)
    assert [step.done for step in steps] == sorted({step.done for step in steps})
    assert all(step.done <= step.total == 12 for step in steps)


class Counting(nn.Module):
    """A network that counts its evaluations, and is slow enough to be stopped."""

    def __init__(self, network):
        super().__init__()
        self.network, self.count = network, 0

    def forward(self, *values, **named):
        self.count += 1
        time.sleep(0.02)
        return self.network(*values, **named)


@pytest.fixture
def counted(pipeline):
    prior = copy(pipeline.prior)
    prior.network = Counting(prior.network)
    return prior.network, FacePriorPipeline(prior)


def no_sampler_left():
    return not any(thread.name == "faceprior-sampler" for thread in threading.enumerate())


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_closing_a_restoration_stops_the_sampler(counted, crop):
    counting, slow = counted
    updates = Studio({"tiny": slow}, None, ServeOptions(), "tiny").restore(crop, Controls(steps=100))
    next(updates)
    updates.close()
    wait_until(no_sampler_left)
    assert counting.count < 20


def test_a_restoration_that_takes_too_long_is_stopped(counted, crop):
    counting, slow = counted
    studio = Studio({"tiny": slow}, None, ServeOptions(time_limit=0.1), "tiny")
    with pytest.raises(CancelledError, match=r"longer than 0\.1 seconds"):
        list(studio.restore(crop, Controls(steps=100)))
    wait_until(no_sampler_left)
    assert counting.count < 50


def test_two_restorations_take_turns(counted, crop):
    _, slow = counted
    studio = Studio({"tiny": slow}, None, ServeOptions(), "tiny")
    alone = finished(studio.restore(crop, Controls(steps=10, seed=1))).samples[0].images
    first = studio.restore(crop, Controls(steps=30))
    next(first)
    others = []
    second = threading.Thread(target=lambda: others.extend(studio.restore(crop, Controls(steps=10, seed=1))))
    second.start()
    finished(first)
    second.join(20)
    assert torch.equal(finished(others).samples[0].images, alone)


@pytest.mark.parametrize(
    ("controls", "chosen", "message"),
    [
        (Controls(samples=9), None, "this server makes 8"),
        (Controls(prior="/etc/passwd"), None, "not served here"),
        (Controls(stride=1), None, "stride"),
        (Controls(), [], "no face is chosen"),
        (Controls(), [5], "no face 5"),
        (Controls(), [0], "no face 0"),
    ],
    ids=["samples", "prior", "stride", "no face", "no such face", "counted from 0"],
)
def test_what_cannot_be_done_is_said_before_any_work(studio, photo, controls, chosen, message):
    with pytest.raises(FacePriorError, match=message):
        list(studio.restore(photo, controls, chosen))


def test_what_cannot_be_improved_is_said(studio, photo):
    prepared = studio.look(photo, Controls())
    sharp = replace(prepared.faces[0], left_alone="already sharper than the 16 pixels of the prior")

    def said(*faces):
        return words.found(replace(prepared, faces=faces))

    assert said().startswith("No face was found.")
    assert said(sharp) == "This face is already sharper than the 16 pixels of the prior: there is nothing to restore."
    assert said(sharp, sharp).startswith("All 2 faces are already sharper")
    assert said(sharp, *prepared.faces) == "3 faces were found; 1 of them stay as they are."


def test_a_file_that_is_no_picture_is_refused(studio, tmp_path):
    (tmp_path / "letter.png").write_text("Dear all")
    with pytest.raises(ImageError, match=r"letter\.png"):
        list(studio.restore(tmp_path / "letter.png", Controls()))


# ------------------------------------------------------------------ what an operator decides


def test_user_and_password_are_taken_apart_at_the_first_colon():
    assert parse_auth("anna:se:cret") == ("anna", "se:cret")
    for wrong in ("anna", "anna:", ":secret"):
        with pytest.raises(OptionError, match="user:password"):
            parse_auth(wrong)


@pytest.mark.parametrize(
    "name", ["port", "max_upload_mb", "max_samples", "time_limit", "queue_limit", "keep_minutes"]
)
def test_limits_below_their_range_are_refused(name):
    with pytest.raises(OptionError, match=name.replace("_", " ")):
        ServeOptions(**{name: 0})


def test_agreement_in_words_gets_worse_with_the_figure():
    sentences = [words.agreement(value).split(": ")[1] for value in (45.0, 36.0, 30.0, 20.0)]
    assert len(set(sentences)) == 4
    assert "about 26 of 255" in words.agreement(20.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone keeps what was freed")
def test_freed_memory_goes_back_to_the_system():
    process, parts = psutil.Process(), [bytes(8000) for _ in range(20_000)]
    del parts[::2]  # holes, which glibc keeps
    parts, held = parts[::50], process.memory_info().rss
    give_back_memory()
    assert len(parts) == 200
    assert process.memory_info().rss < held - 100e6


# ------------------------------------------------------------------ the guard


@pytest.fixture
def guarded(tmp_path):
    """A guard with 1 MB and 0.01 megapixels in front of a server that keeps uploads and repeats calls."""
    from fastapi import FastAPI, Request
    from fastapi.testclient import TestClient

    server = FastAPI()

    @server.post("/gradio_api/upload")
    async def upload(request: Request):
        form = await request.form()
        kept = []
        for number, file in enumerate(form.getlist("files")):
            kept.append(tmp_path / f"{number}-{file.filename}")
            kept[-1].write_bytes(await file.read())
        return [str(path) for path in kept]

    @server.post("/gradio_api/queue/join")
    @server.post("/gradio_api/call/v2/restore")
    async def join(request: Request):
        return await request.json()

    @server.get("/config")
    async def config(request: Request):
        return {"root": request.scope["root_path"], "path": request.url.path}

    def check_call(name, values):
        if name != "restore":
            raise LookupError("there is /restore")
        if values.keys() - {"photo"}:
            raise OptionError("unknown")

    guard = Guard(server, ServeOptions(max_upload_mb=1, max_megapixels=0.01, root_path="/own"), tmp_path, check_call)
    return TestClient(guard)


@pytest.fixture
def uploaded(tmp_path):
    """A path as Gradio gives it to an upload."""
    folder = tmp_path / ("a" * 64)
    folder.mkdir()
    (folder / "face.png").write_bytes(png(50, 50))
    return folder / "face.png"


def png(width, height):
    import io

    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_a_small_picture_comes_through(guarded, tmp_path):
    answer = guarded.post("/gradio_api/upload", files={"files": ("face.png", png(50, 50))})
    assert answer.status_code == 200
    assert Path(answer.json()[0]).is_file()


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"#!/bin/sh\n", 415, "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not a picture"),
        (png(200, 200), 415, "megapixels"),
        (b"\0" * 1_100_000, 413, "larger than 1 MB"),
    ],
    ids=["a script", "a drawing", "too many pixels", "too many bytes"],
)
def test_an_upload_that_is_no_small_picture_is_refused_and_deleted(guarded, tmp_path, content, status, reason):
    answer = guarded.post("/gradio_api/upload", files={"files": ("face.png", content)})
    assert answer.status_code == status
    assert reason in answer.json()["error"]
    assert str(tmp_path) not in answer.text
    assert not list(tmp_path.iterdir())


def test_the_limit_holds_for_an_upload_that_does_not_say_its_length(guarded):
    def endless():
        for _ in range(40):
            yield b"\0" * 100_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert guarded.post("/gradio_api/upload", content=endless(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    "photo",
    [
        {"path": "https://example.com/face.png"},
        {"path": "//example.com/face.png"},
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "{folder}/../../secret.png"},
        {"path": "{folder}/../{name}/face.png"},
        {"path": "{folder}"},
        {"path": "{folder}/.."},
        {"path": "{folder}/link.png"},
        {"path": "{folder}/pipe.png"},
        {"path": "{folder}/gone.png"},
        {"path": "{folder}/../results/face.png"},
        {"path": "{folder}/face.png", "url": "data:image/png;base64,AAAA"},
        {"path": "\0"},
        {"path": ""},
    ],
    ids=[
        "an address",
        "no scheme",
        "another file",
        "out of the folder",
        "a way around",
        "the folder",
        "all folders",
        "a link",
        "a pipe",
        "a file that is gone",
        "a result",
        "a picture in the request",
        "no name",
        "nothing",
    ],
)
def test_a_call_can_name_uploads_alone(guarded, uploaded, photo):
    (uploaded.parent / "link.png").symlink_to(uploaded)
    os.mkfifo(uploaded.parent / "pipe.png")
    (uploaded.parents[1] / "results").mkdir()
    (uploaded.parents[1] / "results" / "face.png").write_bytes(png(50, 50))
    places = {"{folder}": str(uploaded.parent), "{name}": uploaded.parent.name}
    for name, value in places.items():
        photo = {**photo, "path": photo["path"].replace(name, value)}
    assert not is_upload(Path(photo["path"]), uploaded.parents[1]) or "url" in photo
    answer = guarded.post("/gradio_api/queue/join", json={"data": [[{"deep": photo}]]})
    assert answer.status_code == 400


def test_a_call_comes_through_unchanged(guarded, uploaded):
    place = str(uploaded)
    call = {"data": [{"path": place, "url": f"http://testserver/gradio_api/file={place}"}, 1]}
    assert guarded.post("/gradio_api/queue/join", json=call).json() == call


def test_a_call_that_is_too_large_is_refused(guarded):
    answer = guarded.post("/gradio_api/queue/join", content=json.dumps("x" * MAX_CALL_BYTES))
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "door",
    [
        "/gradio_api/file=https://example.com/",
        "/gradio_api/proxy=https://example.com/",
        "/gradio_api/stream/1/1/1/playlist.m3u8",
        "/gradio_api/run/restore",
        "/gradio_api/vibe-code/",
        "/monitoring",
        "/docs",
    ],
)
def test_only_the_doors_that_are_used_are_there(guarded, door):
    for answer in (guarded.get(door), guarded.post(door, json={})):
        assert answer.status_code == 404
        assert "there is nothing at" in answer.json()["error"]


def test_an_unknown_endpoint_is_a_404_and_an_unknown_parameter_a_422(guarded):
    assert guarded.post("/gradio_api/call/v2/restore", json={}).status_code == 200
    wrong = guarded.post("/gradio_api/call/v2/restore", json={"strenth": 1})
    assert (wrong.status_code, wrong.json()["error"]) == (422, "unknown")
    for place in ("/gradio_api/call/v2/restor", "/gradio_api/call/restor"):
        assert guarded.post(place, json={}).status_code == 404


@pytest.mark.parametrize(
    ("path", "headers", "root"),
    [
        ("/config", {}, "/own"),
        ("/own/config", {}, "/own"),
        ("/config", {"x-forwarded-prefix": "/faces/"}, "/faces"),
        ("/faces/config", {"x-forwarded-prefix": "/faces"}, "/faces"),
        ("/config", {"x-forwarded-prefix": "//example.com/<script>"}, "/own"),
    ],
    ids=["prefix taken away", "prefix left", "as the proxy says", "and left", "nonsense"],
)
def test_behind_a_proxy_the_prefix_may_be_left_or_taken_away(guarded, path, headers, root):
    answer = guarded.get(path, headers=headers)
    assert (answer.status_code, answer.json()["root"]) == (200, root)


def test_only_uploads_and_results_are_handed_out(guarded, uploaded, tmp_path):
    for place in (uploaded.parent, tmp_path.parent / "x.png", "/etc/passwd", "pyproject.toml"):
        assert guarded.get(f"/gradio_api/file={place}").status_code == 404


def test_what_is_old_is_deleted_and_nothing_stops_that(uploaded, tmp_path):
    (uploaded.parent / "link.png").symlink_to("/etc/hostname")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "face.png").write_bytes(png(50, 50))
    for path in (uploaded, uploaded.parent):
        os.utime(path, (0, 0))
    os.utime(uploaded.parent / "link.png", (0, 0), follow_symlinks=False)
    delete_older(tmp_path, 60)
    assert not list(uploaded.parent.iterdir())
    os.utime(uploaded.parent, (0, 0))
    delete_older(tmp_path, 60)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["new", "face.png"]
    assert Path("/etc/hostname").exists()


def test_every_answer_forbids_the_browser_to_load_from_elsewhere(guarded):
    for answer in (guarded.get("/nothing"), guarded.get("/gradio_api/file=http://example.com/")):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
