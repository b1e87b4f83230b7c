import json
import shlex
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, ModelMixin
from PIL import Image
from typer.testing import CliRunner

from faceprior import FacePriorPipeline
from faceprior.app import ServeOptions, parse_auth, words
from faceprior.app.controls import Controls, acting_controls, default_preset, faithful_to_detailed
from faceprior.app.guard import MAX_CALL_BYTES, Guard
from faceprior.app.studio import Progress, Run, Studio
from faceprior.cli.app import app as command_line
from faceprior.errors import CancelledError, FacePriorError, ImageError, OptionError
from faceprior.faces import DetectedFace
from faceprior.images import read_image
from faceprior.methods import find_preset
from faceprior.methods.registry import OWN

LANDMARKS = ((14.0, 16.0), (26.0, 16.0), (20.0, 22.0), (15.0, 28.0), (25.0, 28.0))
CHANGES = {
    "detailed": 1.0,
    "scale": "8",
    "seed": 7,
    "steps": 3,
    "stride": 4,
    "edge_exponent": 0.0,
    "eta": 0.5,
    "corrector": False,
}


class TwoFaces:
    """Finds two faces at known places of every photograph but small ones."""

    name = "two faces"

    def __call__(self, photo, min_face=24):
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
    config = {name: value for name, value in prior.card.schedule.items() if name != "_class_name"}
    template = ((0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.33, 0.75), (0.67, 0.75))
    return FacePriorPipeline(
        prior.network,
        DDIMScheduler(**config),
        corrector.network,
        card=replace(prior.card, template=template),
        corrector_card=corrector.card,
    )


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


def test_the_faithful_end_is_the_method_as_it_stands():
    assert Controls().preset == find_preset("default")


def test_towards_detailed_less_and_less_is_held():
    places = [faithful_to_detailed(place, find_preset("default")) for place in (0.05, 0.3, 0.6, 1.0)]
    assert all(a["tau"] < b["tau"] and a["late_weight"] > b["late_weight"] for a, b in pairwise(places))
    assert all(place["start"] >= place["tau"] for place in places)  # above the start τ would have no effect


def restored(studio, path, controls):
    return finished(studio.restore(path, controls, [0])).whole(0)[1]


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("control", sorted(CHANGES))
def test_every_live_control_changes_the_result_and_no_dead_one_does(studio, crop, method, control):
    steps = 4 if "steps" in default_preset(method).as_dict() else None
    before = Controls(method=method, steps=steps, detailed=0.5 if control == "edge_exponent" else 0.0)
    live = control in acting_controls(method, before.detailed)
    after = replace(before, **{control: CHANGES[control]})
    assert (restored(studio, crop, before) != restored(studio, crop, after)) is live


@pytest.mark.parametrize("change", [{"strength": 0.4}, {"enlarge": 2}], ids=["strength", "enlarge"])
def test_the_controls_of_a_photograph_change_the_result(studio, photo, change):
    before = Controls(steps=4)
    assert restored(studio, photo, before) != restored(studio, photo, replace(before, **change))


def test_the_edge_exponent_is_dead_where_all_of_the_grid_is_held():
    assert "edge_exponent" not in acting_controls("dpi", 0.0)
    assert "edge_exponent" in acting_controls("dpi", 0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"detailed": 1.5}, {"strength": -0.1}, {"scale": "5"}, {"enlarge": 3}, {"samples": 0}, {"seed": -1}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_control_out_of_its_range_is_refused(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        Controls(**wrong)


# ------------------------------------------------------------------ the command line of a run


@pytest.mark.parametrize(
    ("name", "chosen", "controls"),
    [
        ("photo", [0], Controls(samples=2, seed=5, strength=0.7, enlarge=2, detailed=0.5, edge_exponent=0.7)),
        ("photo", None, Controls(method="ddnm", steps=3, scale="8", eta=0.25)),
        ("crop", None, Controls(steps=4, stride=4, corrector=False, eta=0.5)),
        ("crop", None, Controls(method="bicubic")),
    ],
    ids=["one face of a photograph", "another method", "an aligned face", "no prior"],
)
def test_the_command_line_makes_the_same_files(
    studio, pipeline, photo, crop, tmp_path, monkeypatch, name, chosen, controls
):
    path = {"photo": photo, "crop": crop}[name]
    run = finished(studio.restore(path, controls, chosen))
    (tmp_path / "page").mkdir()
    ours = studio.write(run, tmp_path / "page")

    def load(_prior, _config, corrector, *_rest):
        return pipeline if corrector == "auto" else pipeline.without_corrector()

    monkeypatch.setattr("faceprior.cli.options.load_pipeline", load)
    monkeypatch.setattr("faceprior.faces.load_detector", lambda *_: TwoFaces())
    monkeypatch.chdir(path.parent)
    program, *arguments = shlex.split(run.command)
    result = CliRunner().invoke(command_line, arguments)
    assert program == "faceprior"
    assert result.exit_code == 0, result.output
    assert {file.name for file in ours} == {file.name for file in Path("restored").iterdir() if file.suffix == ".png"}
    for file in ours:
        assert file.read_bytes() == (Path("restored") / file.name).read_bytes(), file.name


# ------------------------------------------------------------------ the studio


def test_a_photograph_and_an_aligned_face_are_told_apart(studio, photo, crop):
    assert [studio.look(path, Controls()).aligned for path in (photo, crop)] == [False, True]
    assert studio.look(photo, Controls()).restorable == (0, 1)


def test_only_the_chosen_face_changes(studio, photo):
    run = finished(studio.restore(photo, Controls(steps=4), [1]))
    changed = np.abs(np.asarray(run.whole(0)[1], int) - np.asarray(read_image(photo), int)).max(-1).any(0)
    assert [number for number, _ in run.restored] == [2]
    assert not changed[:45].any()
    assert changed[50:].any()


def test_a_face_emerges_step_by_step(studio, crop):
    *steps, run = studio.restore(crop, Controls(steps=6, samples=2))
    assert isinstance(run, Run)
    assert all(isinstance(step, Progress) and len(step.emerging) == 2 for step in steps)
    assert [step.done for step in steps] == sorted({step.done for step in steps})
    assert all(step.done <= step.total == 12 for step in steps)


class Counting(ModelMixin):
    """A network that counts its evaluations, and is slow enough to be stopped."""

    def __init__(self, network):
        super().__init__()
        self.network, self.config, self.count = network, network.config, 0

    def forward(self, *values, **named):
        self.count += 1
        time.sleep(0.02)
        return self.network(*values, **named)


@pytest.fixture
def counted(pipeline):
    counting = Counting(pipeline.unet)
    slow = FacePriorPipeline(counting, pipeline.scheduler, None, card=pipeline.prior.card)
    return counting, slow


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
    alone = finished(studio.restore(crop, Controls(steps=10, seed=1))).results[0].images
    first = studio.restore(crop, Controls(steps=30))
    next(first)
    others = []
    second = threading.Thread(target=lambda: others.extend(studio.restore(crop, Controls(steps=10, seed=1))))
    second.start()
    finished(first)
    second.join(20)
    assert torch.equal(finished(others).results[0].images, alone)


@pytest.mark.parametrize(
    ("controls", "chosen", "message"),
    [
        (Controls(samples=9), None, "this server makes 8"),
        (Controls(prior="/etc/passwd"), None, "not served here"),
        (Controls(method="alchemy"), None, "neither a preset nor a method"),
        (Controls(stride=1), None, "stride"),
        (Controls(), [], "no face is chosen"),
        (Controls(), [4], "no face 5"),
    ],
    ids=["samples", "prior", "method", "stride", "no face", "no such face"],
)
def test_what_cannot_be_done_is_said_before_any_work(studio, photo, controls, chosen, message):
    with pytest.raises(FacePriorError, match=message):
        list(studio.restore(photo, controls, chosen))


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
    async def join(request: Request):
        return await request.json()

    return TestClient(Guard(server, ServeOptions(max_upload_mb=1, max_megapixels=0.01), tmp_path))


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
        (b"#!/bin/sh\n", 415, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not an image"),
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
        {"path": "{folder}/../secret.png"},
        {"path": "{folder}/face.png", "url": "data:image/png;base64,AAAA"},
        {"path": "\0"},
    ],
    ids=["an address", "no scheme", "another file", "out of the folder", "a picture in the request", "no name"],
)
def test_a_call_can_name_uploads_alone(guarded, tmp_path, photo):
    photo = {
        name: value.replace("{folder}", str(tmp_path)) if name == "path" else value for name, value in photo.items()
    }
    answer = guarded.post("/gradio_api/queue/join", json={"data": [[{"deep": photo}]]})
    assert answer.status_code == 400


def test_a_call_comes_through_unchanged(guarded, tmp_path):
    place = str(tmp_path / "face.png")
    call = {"data": [{"path": place, "url": f"http://testserver/gradio_api/file={place}"}, 1]}
    assert guarded.post("/gradio_api/queue/join", json=call).json() == call


def test_a_call_that_is_too_large_is_refused(guarded):
    answer = guarded.post("/gradio_api/queue/join", content=json.dumps("x" * MAX_CALL_BYTES))
    assert answer.status_code == 413


def test_files_of_other_sites_are_not_passed_on(guarded):
    for path in ("/gradio_api/file=https://example.com/", "/gradio_api/proxy=https://example.com/"):
        assert guarded.get(path).status_code == 403


def test_every_answer_forbids_the_browser_to_load_from_elsewhere(guarded):
    for answer in (guarded.get("/nothing"), guarded.get("/gradio_api/file=http://example.com/")):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
