"""Whole photographs and folders of them: what is found, written, noted down, resumed and survived."""

import gc
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import signal
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from albums import SIDES, CornerDetector, save_album, save_photo, tiny_pipeline
from faceprior.errors import CancelledError, DeviceError, OptionError, OutputError
from faceprior.faces import load_detector
from faceprior.folders import run as run_module
from faceprior.folders.inputs import Input, find_inputs
from faceprior.folders.manifest import MANIFEST_NAME, Manifest
from faceprior.folders.run import NoWatcher, restore_files
from faceprior.images import read_metadata, read_picture
from faceprior.methods import find_preset
from faceprior.photographs import Condition, Prepared, RestoreOptions, compose, how_made, prepare, restore
from faceprior.pipeline import FacePriorPipeline, Samples, face_prior
from faceprior.sampling import face_generator

SHORT = find_preset("default").with_options(steps=3, eta=0.5)
OPTIONS = RestoreOptions(preset=SHORT, kind="photo")


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny_pipeline(tiny)


@pytest.fixture
def album(tmp_path):
    return save_album(tmp_path / "album")


class Seen(NoWatcher):
    """Remembers what it is told."""

    def __init__(self):
        self.notices = []

    def on_notice(self, text):
        self.notices.append(text)


def run(pipeline, inputs, output, options=OPTIONS, *, resume=False, watcher=None, **changes):
    options = replace(options, **{"min_face": 8, **changes})
    if isinstance(inputs, Path):
        inputs = find_inputs([inputs], output)
    return list(restore_files(pipeline, inputs, output, options, CornerDetector(), resume=resume, watcher=watcher))


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST_NAME
    }


def read_manifest(output):
    return [json.loads(line) for line in (output / MANIFEST_NAME).read_text("utf-8").splitlines()]


def without_seconds(records):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


# --- which inputs


def found(arguments, output="/nowhere"):
    return [(str(one.path), one.folder) for one in find_inputs([Path(a) for a in arguments], Path(output))]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "sub/c.webp", ".cache/d.png", "sub/deep/e.tif"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in"


def test_a_folder_stands_for_its_pictures_and_their_places(tree):
    everything = [("in/a.png", ""), ("in/b.JPG", ""), ("in/sub/c.webp", "sub"), ("in/sub/deep/e.tif", "sub/deep")]
    assert found(["in"]) == everything
    assert found(["in", "in/a.png", str(tree)]) == everything
    assert found(["in/sub/c.webp"]) == [("in/sub/c.webp", "")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.png", [("in/a.png", "")]),
        ("in/**/[ce].*", [("in/sub/c.webp", "sub"), ("in/sub/deep/e.tif", "sub/deep")]),
        ("in/s*", [("in/sub/c.webp", "sub"), ("in/sub/deep/e.tif", "sub/deep")]),
        ("in/**", [("in/a.png", ""), ("in/b.JPG", ""), ("in/sub/c.webp", "sub"), ("in/sub/deep/e.tif", "sub/deep")]),
    ],
)
def test_a_pattern_that_the_shell_did_not_expand_is_expanded(tree, pattern, expected):
    assert found([pattern]) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree):
    (tree / "[x].png").touch()
    assert found(["in/[x].png"]) == [("in/[x].png", "")]


def test_what_stands_for_no_picture_is_an_input_with_a_problem(tree):
    (tree / "none").mkdir()
    empty, pattern, missing = find_inputs([Path("in/none"), Path("in/*.bmp"), Path("in/no.png")], Path("out"))
    assert empty.problem.startswith("in/none: holds no pictures and no clips (.")
    assert pattern.problem == "in/*.bmp: matches no file; check the pattern"
    assert missing.problem is None  # reading it says so


def test_a_walk_says_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.txt", "c.CR2", "d.cr2", "plain", ".hidden.png", "@eaDir/a.png", ".thumbnails/a.png"):
        path = Path("in", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Path("beside").mkdir()
    Path("in/link").symlink_to(tmp_path / "beside")
    said = []
    assert [one.path for one in find_inputs([Path("in")], Path("out"), said.append)] == [Path("in/a.png")]
    ((folder, what),) = (text.split(": left out ") for text in said)
    assert folder == "in"
    assert set(what.split(", ")) == {
        "2 hidden folders",
        "1 linked folder",
        "1 .txt file",
        "2 .cr2 files",
        "1 other file",
        "1 hidden file",
    }
    said.clear()
    assert [one.path for one in find_inputs([Path("in/**/*.png")], Path("out"), said.append)] == [Path("in/a.png")]
    assert said == ["in/**/*.png: left out 1 hidden file"]
    said.clear()
    find_inputs([Path("in/a.png")], Path("out"), said.append)
    assert said == []


def test_a_folder_that_cannot_be_read_is_said(tree, monkeypatch):
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    Path("in/closed").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    said = []
    assert find_inputs([Path("in")], Path("out"), said.append)
    assert any("1 unreadable folder" in text for text in said)


def test_results_inside_the_folder_are_no_inputs_and_it_cannot_be_its_own_output(tree):
    (tree / "sub" / "out").mkdir()
    (tree / "sub" / "out" / "a.png").touch()
    assert ("in/sub/out/a.png", "sub/out") not in found(["in"], "in/sub/out")
    with pytest.raises(OptionError, match="choose another --output"):
        found(["in"], "in/../in")


def test_a_detector_finds_the_same_on_several_threads_at_once():
    photo = Image.fromarray(pytest.importorskip("skimage.data").astronaut()).resize((160, 160))
    detector = load_detector()
    alone = detector(photo, 30)
    assert len(alone) == 1
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: detector(photo, 30), range(6))) == [alone] * 6


def test_reading_on_several_threads_leaves_the_filters_of_warnings_alone(tmp_path):
    photo = save_photo(tmp_path / "x.png", 60, 60)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: read_picture(photo), range(200)))
    assert warnings.filters == before


# --- what is written


def test_an_album_is_restored_in_its_own_formats_and_folders(pipeline, album, tmp_path):
    records = run(pipeline, album, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["a.png", "b.jpg", "trip/c.webp", "trip/empty.png"]
    by_name = {Path(record["input"]).name: record for record in records}
    assert [len(by_name[name]["faces"]) for name in ("b.jpg", "a.png", "c.webp", "empty.png")] == [2, 1, 2, 0]
    for name, kind in (("b.jpg", "JPEG"), ("a.png", "PNG"), ("trip/c.webp", "WEBP")):
        with Image.open(tmp_path / "out" / name) as result, Image.open(album / name) as photo:
            assert (result.format, result.size) == (kind, photo.size)
        metadata = read_metadata(tmp_path / "out" / name)
        assert metadata["faces"] == by_name[Path(name).name]["faces"]
        assert (metadata["input"], metadata["seed"], metadata["options"]) == (Path(name).name, 0, SHORT.as_dict())
    before, after = (np.asarray(Image.open(folder / "a.png")).astype(int) for folder in (album, tmp_path / "out"))
    changed = np.abs(before - after).max(-1) > 0
    assert changed[8:16, 8:16].mean() > 0.5
    assert not changed[:, 24:].any()


def test_the_manifest_has_the_settings_and_then_a_line_for_each_input_in_order(pipeline, album, tmp_path):
    records = run(pipeline, album, tmp_path / "out", samples=2, seed=7)
    first, *lines = read_manifest(tmp_path / "out")
    assert lines == records
    assert [Path(line["input"]).name for line in lines] == ["a.png", "b.jpg", "broken.jpg", "c.webp", "empty.png"]
    assert first["settings"]["prior"]["name"] == "tiny"
    assert (first["settings"]["seed"], first["settings"]["detector"], first["settings"]["blend"]) == (7, "corner", 1)
    broken, photo = lines[2], lines[1]
    assert broken == {"input": str(album / "trip/broken.jpg"), "status": "failed", "error": broken["error"]}
    assert broken["error"].startswith(f"{album / 'trip/broken.jpg'}: is not a picture that can be read")
    assert (photo["status"], photo["kind"], photo["seed"], photo["name"]) == ("done", "photo", 7, "b")
    assert photo["file"]["bytes"] == (album / "b.jpg").stat().st_size
    for face, side in zip(photo["faces"], SIDES, strict=True):
        assert face["box"][2] - face["box"][0] == side
        assert np.shape(face["landmarks"]) == (5, 2)
        assert 1 <= face["scale"] <= 8
        assert len(face["lr_consistency"]) == 2
        assert face["doubt"] > 0
    for record in lines:
        for written in record.get("outputs", ()):
            content = (tmp_path / "out" / written["file"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (written["bytes"], written["sha256"])
    assert [written["file"] for written in photo["outputs"]] == ["b.jpg", "b-2.jpg", "b-mean.jpg"]


def test_a_photograph_without_a_face_is_copied_or_only_enlarged(pipeline, album, tmp_path):
    empty = Input(album / "trip" / "empty.png")
    (record,) = run(pipeline, [empty], tmp_path / "out", samples=2)
    assert (record["status"], record["faces"]) == ("done", [])
    assert record["notes"][0].startswith("no face found")
    assert contents(tmp_path / "out") == {"empty.png": empty.path.read_bytes()}
    (record,) = run(pipeline, [empty], tmp_path / "large", samples=2, upscale=2)
    assert list(contents(tmp_path / "large")) == ["empty.png"]
    assert Image.open(tmp_path / "large" / "empty.png").size == (36, 60)
    (record,) = run(pipeline, [empty], tmp_path / "faces", only_faces=True)
    assert (record["outputs"], contents(tmp_path / "faces")) == ([], {})


def test_only_faces_writes_each_face_with_all_that_an_aligned_one_has(pipeline, album, tmp_path):
    (record,) = run(
        pipeline, [Input(album / "b.jpg")], tmp_path / "out", only_faces=True, samples=2, write_sheet=True
    )
    suffixes = ("", "-2", "-mean", "-doubt", "-sheet")
    assert [f["file"] for f in record["outputs"]] == [f"b-face{n}{s}.png" for n in (1, 2) for s in suffixes]
    assert Image.open(tmp_path / "out" / "b-face2.png").size == (32, 32)
    assert read_metadata(tmp_path / "out" / "b-face2.png")["face"] == 2


def test_each_option_of_a_photograph_changes_its_result(pipeline, album, tmp_path):
    changes = {
        "base": {},
        "seed": {"seed": 1},
        "blend": {"blend": 0.5},
        "upscale": {"upscale": 2},
        "faces": {"faces": 1},
        "scale": {"scale": 4.0},
        "min face": {"min_face": 18},
    }
    results = {}
    for name, change in changes.items():
        run(pipeline, [Input(album / "b.jpg")], tmp_path / name, **change)
        results[name] = Image.open(tmp_path / name / "b.jpg").tobytes()
    assert results["faces"] == results["min face"]  # both leave the second face out
    del results["min face"]
    assert len(set(results.values())) == len(results)


def test_a_sheet_shows_every_face(pipeline, album, tmp_path):
    for name in ("a.png", "b.jpg"):
        run(pipeline, [Input(album / name)], tmp_path / "out", write_sheet=True)
    one, two = (Image.open(tmp_path / "out" / f"{stem}-sheet.png") for stem in "ab")
    assert (two.width, two.height > 1.8 * one.height) == (one.width, True)


def test_crops_and_photographs_are_told_apart_unless_it_is_said(pipeline, album, tmp_path):
    crop = tmp_path / "crop.png"
    Image.open(album / "a.png").crop((2, 2, 22, 22)).save(crop)  # the square that the template wants
    kinds = {}
    for kind in ("auto", "aligned", "photo"):
        inputs = [Input(crop), Input(album / "b.jpg")]
        kinds[kind] = [record["kind"] for record in run(pipeline, inputs, tmp_path / kind, kind=kind)]
    assert kinds["aligned"] == ["aligned"] * 2
    assert kinds["photo"] == ["photo"] * 2
    assert kinds["auto"][1] == "photo"


def test_without_a_detector_a_photograph_is_refused_with_the_remedy(pipeline, album, tmp_path):
    inputs = [Input(album / "b.jpg")]
    (record,) = restore_files(pipeline, inputs, tmp_path / "out", replace(OPTIONS, kind="auto"))
    assert record["error"].startswith(f"{album / 'b.jpg'}: looks like a whole photograph")
    assert "no face detector was given" in record["error"]


# --- the same result in every company


def test_a_photograph_has_the_same_result_alone_in_a_folder_and_in_any_batch(pipeline, album, tmp_path):
    expected = {}
    for given in find_inputs([album], tmp_path / "alone"):
        run(pipeline, [given], tmp_path / "alone", samples=2)
        expected = contents(tmp_path / "alone")
    for batch_size in (1, 3, 16):
        records = run(pipeline, album, tmp_path / f"{batch_size}", samples=2, batch_size=batch_size)
        assert contents(tmp_path / f"{batch_size}") == expected
        assert [record["input"] for record in records] == [str(one.path) for one in find_inputs([album], tmp_path)]


def test_two_equal_faces_of_a_photograph_are_sampled_from_their_own_noise(pipeline):
    face = torch.zeros(3, 4, 4)
    first, second = restore(pipeline, [Condition(face, index=0), Condition(face, index=1)], OPTIONS)
    assert not torch.equal(first.images, second.images)
    for index, found in enumerate((first, second)):
        own = face_generator(OPTIONS.seed, index)
        (expected,) = pipeline.restore([face], [own], OPTIONS.samples, OPTIONS.preset, 1)
        assert torch.allclose(found.images, expected.images, atol=1e-5)


def test_faces_of_several_photographs_fill_a_batch(pipeline, album, tmp_path, monkeypatch):
    batches = []
    original = FacePriorPipeline.restore

    def restore(self, faces, *arguments, **options):
        batches.append(len(faces))
        return original(self, faces, *arguments, **options)

    monkeypatch.setattr(FacePriorPipeline, "restore", restore)
    run(pipeline, album, tmp_path / "out", batch_size=4)
    assert batches == [4, 1]


def prepared(pipeline, path, **changes):
    options = replace(OPTIONS, min_face=8, **changes)
    card = pipeline.prior.card
    return prepare(path.read_bytes(), path.name, card, options, CornerDetector()), options


def test_the_three_functions_do_what_a_run_over_a_folder_does(pipeline, album, tmp_path):
    run(pipeline, album, tmp_path / "out", samples=2)
    for record in read_manifest(tmp_path / "out")[1:]:
        if record["status"] == "failed":
            continue
        ready, options = prepared(pipeline, Path(record["input"]), samples=2)
        samples = restore(pipeline, ready.conditions, options)
        low = [each.low_resolution for each in ready.conditions]
        doubt = pipeline.doubt(low, [own.images for own in samples]) if samples else None
        composed = compose(ready, samples, how_made(pipeline, options), options, doubt)
        files = [hashlib.sha256(file.content).hexdigest() for file in composed.files]
        assert files == [written["sha256"] for written in record["outputs"]]
        assert composed.record.items() <= record.items()


def test_the_record_of_an_aligned_face_says_how_sure_it_is(pipeline, tmp_path):
    (record,) = run(pipeline, save_photo(tmp_path / "face.png", 16, 16), tmp_path / "out", samples=2, kind="aligned")
    ready, how = prepared(pipeline, tmp_path / "face.png", samples=2, kind="aligned")
    (samples,) = restore(pipeline, ready.conditions, how)
    doubt = pipeline.doubt([ready.conditions[0].low_resolution], [samples.images])
    assert record["doubt"] == pytest.approx(float(doubt.mean()), abs=1e-4)
    assert len(record["lr_consistency"]) == 2


def test_what_travels_between_the_functions_may_be_pickled_and_is_hardly_larger_than_the_file(pipeline, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    path = tmp_path / "phone.jpg"
    Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
    ready, options = prepared(pipeline, path)
    sent = pickle.dumps(ready)
    assert len(ready.conditions) == 2
    assert len(sent) < path.stat().st_size + 20_000
    made, received = how_made(pipeline, options), pickle.loads(sent)  # noqa: S301
    here, there = (
        compose(own, restore(pipeline, own.conditions, options), made, options) for own in (ready, received)
    )
    assert here == there


def test_faces_that_were_found_before_are_not_looked_for_again(pipeline, album):
    first, options = prepared(pipeline, album / "b.jpg")
    again = prepare(first.content, first.name, pipeline.prior.card, options, None, first.detections)
    assert again.detections == first.detections
    for one, other in zip(again.conditions, first.conditions, strict=True):
        assert torch.equal(one.low_resolution, other.low_resolution)


def test_chosen_faces_alone_are_restored_and_keep_their_noise(pipeline, album):
    both, options = prepared(pipeline, album / "b.jpg")
    second, _ = prepared(pipeline, album / "b.jpg", chosen=(2,))
    assert [one.index for one in second.conditions] == [one.index for one in both.choose([1]).conditions] == [1]
    alone, together = restore(pipeline, second.conditions, options), restore(pipeline, both.conditions, options)
    assert torch.equal(alone[0].images, together[1].images)


def test_restoring_stops_where_whoever_looks_on_says_so(pipeline, album):
    ready, options = prepared(pipeline, album / "b.jpg", samples=3, batch_size=1)
    steps = []

    def stepped(_step, _x0, faces):
        steps.append(faces)
        if len(steps) == 4:
            raise CancelledError("stopped")

    with pytest.raises(CancelledError):
        restore(pipeline, ready.conditions, options, stepped)
    assert steps == [[0]] * 4


# --- resuming


def forked(pipeline, inputs, output, **changes):
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(pipeline, inputs, output), kwargs={"resume": True, **changes}
    )
    process.start()
    return process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runs_that_are_killed_at_any_moment_end_as_the_uninterrupted_one_and_do_nothing_twice(pipeline, tmp_path):
    for number in range(24):
        save_photo(tmp_path / "in" / f"{number:02d}.png", 44 - 14 * (number % 2), seed=number)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    started = time.monotonic()
    expected = run(pipeline, tmp_path / "in", whole, samples=2, batch_size=3)
    usual = time.monotonic() - started
    moments, kept = random.Random(0), {}  # noqa: S311
    for _ in range(8):
        process = forked(pipeline, tmp_path / "in", broken, samples=2, batch_size=3)
        time.sleep(moments.uniform(0.05, 0.5) * usual)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for name, inode in kept.items():
            assert (broken / name).stat().st_ino == inode  # an atomic writer that wrote it again had made a new one
        lines = (broken / MANIFEST_NAME).read_bytes().split(b"\n")[1:-1] if broken.exists() else []
        kept = {
            written["file"]: (broken / written["file"]).stat().st_ino
            for line in lines
            for written in json.loads(line)["outputs"]
        }
    records = run(pipeline, tmp_path / "in", broken, resume=True, samples=2, batch_size=3)
    assert contents(broken) == contents(whole)
    earlier = sum(record.pop("earlier", False) for record in records)
    assert earlier > 0
    assert without_seconds(records) == without_seconds(expected)
    assert without_seconds(read_manifest(broken)[1:]) == without_seconds(expected)


def test_a_resumed_run_tries_again_what_failed_and_leaves_the_rest(pipeline, album, tmp_path):
    run(pipeline, album, tmp_path / "out")
    save_photo(album / "trip" / "broken.jpg", seed=9)
    seen = Seen()
    records = run(pipeline, album, tmp_path / "out", resume=True, watcher=seen)
    assert seen.notices == ["4 of 5 were done before"]
    assert [record["status"] for record in records] == ["done"] * 5
    assert [Path(record["input"]).name for record in records if "earlier" not in record] == ["broken.jpg"]
    assert len(read_manifest(tmp_path / "out")) == 6


@pytest.mark.parametrize("change", ["input", "output", "shortened"])
def test_what_is_no_longer_as_it_was_is_done_again(pipeline, album, tmp_path, change):
    run(pipeline, album, tmp_path / "out")
    before = contents(tmp_path / "out")
    if change == "input":
        save_photo(album / "a.png", 30, seed=20)
    elif change == "output":
        (tmp_path / "out" / "a.png").unlink()
    else:
        (tmp_path / "out" / "a.png").write_bytes(b"")
    records = run(pipeline, album, tmp_path / "out", resume=True)
    again = [Path(record["input"]).name for record in records if "earlier" not in record]
    assert again == ["a.png", "broken.jpg"]
    assert (contents(tmp_path / "out") == before) == (change != "input")


def test_a_new_photograph_gets_no_name_that_an_earlier_one_has(pipeline, tmp_path):
    save_photo(tmp_path / "in" / "x.png", 30, seed=1)
    run(pipeline, tmp_path / "in", tmp_path / "out")
    before = contents(tmp_path / "out")
    save_photo(tmp_path / "in" / "x.jpg", 30, seed=2)  # stands before it, and would be called x
    run(pipeline, tmp_path / "in", tmp_path / "out", resume=True)
    assert contents(tmp_path / "out").items() > before.items()
    assert sorted(contents(tmp_path / "out")) == ["x.png", "x_jpg.jpg"]


def test_half_a_line_and_damaged_ones_are_tolerated(pipeline, album, tmp_path):
    run(pipeline, album, tmp_path / "out")
    path = tmp_path / "out" / MANIFEST_NAME
    first, second, third, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second + b"\x00" * 20 + b"\n[1]\n" + b"".join(others[1:]) + third[:30])
    (tmp_path / "out" / ".faceprior-0123.partial").write_text("half a picture")
    records = run(pipeline, album, tmp_path / "out", resume=True)
    assert [Path(r["input"]).name for r in records if "earlier" not in r] == ["b.jpg", "broken.jpg"]
    assert not list((tmp_path / "out").glob(".faceprior-*"))
    inputs = [Path(record["input"]).name for record in read_manifest(tmp_path / "out")[1:]]
    assert sorted(inputs) == ["a.png", "b.jpg", "broken.jpg", "c.webp", "empty.png"]


@pytest.mark.parametrize("content", [b"", b'{"settings": {"see'])
def test_a_manifest_that_was_hardly_begun_is_begun_again(pipeline, album, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_NAME).write_bytes(content)
    assert len(run(pipeline, album, tmp_path / "out", resume=True)) == 5
    assert len(read_manifest(tmp_path / "out")) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"upscale": 2}, "upscale 1, not 2"),
        ({"preset": SHORT.with_options(steps=4)}, "options.steps 3, not 4"),
    ],
)
def test_other_options_are_not_resumed(pipeline, album, tmp_path, change, said):
    run(pipeline, album, tmp_path / "out")
    before = (tmp_path / "out" / MANIFEST_NAME).read_bytes()
    with pytest.raises(OptionError, match=f"was made with {said}; give the same options"):
        run(pipeline, album, tmp_path / "out", resume=True, **change)
    assert (tmp_path / "out" / MANIFEST_NAME).read_bytes() == before
    run(pipeline, album, tmp_path / "out", resume=True, batch_size=1)  # decides nothing


def test_what_is_no_manifest_is_not_resumed(tmp_path):
    (tmp_path / MANIFEST_NAME).write_text('{"input": "x.png"}\n')
    with pytest.raises(OutputError, match="is no manifest of faceprior"):
        Manifest(tmp_path, {}, resume=True)


# --- what goes wrong


class Memory:
    """A device that holds so many samples at once."""

    def __init__(self, pipeline, monkeypatch, room, error):
        monkeypatch.setattr(pipeline, "_fitting", {})
        self.tried, original = [], face_prior.sample_batches

        def sample_batches(batches, *arguments, **options):
            self.tried.append(len(batches))
            if len(batches) > room:
                raise error
            return original(batches, *arguments, **options)

        monkeypatch.setattr(face_prior, "sample_batches", sample_batches)


FULL = {
    "cuda": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("device", FULL)
def test_a_batch_that_does_not_fit_the_memory_is_halved_and_it_is_said(
    pipeline, album, tmp_path, monkeypatch, device
):
    run(pipeline, album, tmp_path / "plenty", samples=2)
    memory, seen = Memory(pipeline, monkeypatch, 2, FULL[device]), Seen()
    run(pipeline, album, tmp_path / "little", samples=2, batch_size=8, watcher=seen)
    assert memory.tried[:3] == [8, 4, 2]
    assert max(memory.tried[2:]) == 2
    assert seen.notices == [
        "8 faces at once do not fit into the memory of cpu; going on with 4",
        "4 faces at once do not fit into the memory of cpu; going on with 2",
    ]
    assert contents(tmp_path / "little") == contents(tmp_path / "plenty")


def test_where_not_even_one_face_fits_each_input_fails_for_itself(pipeline, album, tmp_path, monkeypatch):
    Memory(pipeline, monkeypatch, 0, FULL["cuda"])
    records = run(pipeline, album, tmp_path / "out")
    assert [record["status"] for record in records] == ["failed"] * 4 + ["done"]
    assert records[0]["error"].startswith(f"{album / 'a.png'}: one face does not fit into the memory of cpu; close")
    assert list(contents(tmp_path / "out")) == ["trip/empty.png"]


def test_other_errors_of_the_networks_are_not_taken_for_a_full_memory(pipeline, album, tmp_path, monkeypatch):
    Memory(pipeline, monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        run(pipeline, album, tmp_path / "out")


def test_a_face_that_the_method_refuses_fails_alone(pipeline, monkeypatch):
    original = FacePriorPipeline.restore

    def restore(self, faces, *arguments, **options):
        if any(face.shape[-1] == 5 for face in faces):
            raise OptionError("5 pixels are odd")
        return original(self, faces, *arguments, **options)

    monkeypatch.setattr(FacePriorPipeline, "restore", restore)
    faces = [Condition(torch.zeros(3, side, side)) for side in (4, 5, 6, 7, 8, 8)]
    results = run_module.restore(pipeline, faces, replace(OPTIONS, batch_size=4))
    assert [isinstance(result, OptionError) for result in results] == [False, True] + [False] * 4


def test_a_photograph_that_vanishes_or_breaks_its_reader_fails_alone(pipeline, album, tmp_path, monkeypatch):
    original = run_module.prepare

    def broken(content, name, *arguments):
        if name == "b.jpg":
            raise ZeroDivisionError("division by zero")
        return original(content, name, *arguments)

    monkeypatch.setattr(run_module, "prepare", broken)
    inputs = find_inputs([album], tmp_path / "out")
    (album / "a.png").unlink()
    records = run(pipeline, inputs, tmp_path / "out")
    assert [record["status"] for record in records] == ["failed", "failed", "failed", "done", "done"]
    assert records[0]["error"].startswith(f"{album / 'a.png'}: cannot be opened (No such file")
    assert "ZeroDivisionError: division by zero" in records[1]["error"]
    assert read_manifest(tmp_path / "out")[1:] == records


def test_a_disk_that_fills_fails_what_it_cannot_hold_and_resume_does_the_rest(pipeline, album, tmp_path, monkeypatch):
    run(pipeline, album, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(ENOSPC, "No space left")))
        records = run(pipeline, album, tmp_path / "out")
    assert [record["status"] for record in records] == ["failed"] * 4 + ["done"]
    assert ["No space left" in record.get("error", "") for record in records] == [True, True, False, True, False]
    assert list(contents(tmp_path / "out")) == ["trip/empty.png"]
    run(pipeline, album, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_networks_that_overflow_fail_the_photograph(pipeline, album, tmp_path, monkeypatch):
    nothing = Samples(torch.full((1, 3, 32, 32), float("nan")), torch.zeros(3, 32, 32))
    monkeypatch.setattr(FacePriorPipeline, "restore", lambda _self, faces, *_, **_options: [nothing] * len(faces))
    records = run(pipeline, [Input(album / "a.png")], tmp_path / "out")
    assert records[0]["error"].endswith("the networks overflowed in float32; choose --dtype float32")
    ready, options = prepared(pipeline, album / "a.png")
    with pytest.raises(DeviceError, match="overflowed"):
        compose(ready, [nothing], how_made(pipeline, options), options)


def test_what_is_held_in_memory_does_not_grow_with_the_folder(pipeline, tmp_path, monkeypatch):
    for number in range(40):
        save_photo(tmp_path / "in" / f"{number:02d}.png", seed=number)
    monkeypatch.setattr(run_module, "MAX_BYTES_HELD", 3 * (tmp_path / "in" / "00.png").stat().st_size)
    alive, most = weakref.WeakSet[Prepared](), 0

    def counted(*arguments):
        nonlocal most
        ready = prepare(*arguments)
        alive.add(ready)
        most = max(most, len(alive))
        return ready

    monkeypatch.setattr(run_module, "prepare", counted)
    assert len(run(pipeline, tmp_path / "in", tmp_path / "out", batch_size=4)) == 40
    assert most <= 3 + 2 * run_module._READERS + 2
    gc.collect()
    assert not alive
