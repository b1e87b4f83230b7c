import errno
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from faceprior.errors import OptionError, OutputError
from faceprior.evaluation.metrics import EXACT
from faceprior.folders import run as run_module
from faceprior.folders.inputs import Input, output_names
from faceprior.folders.manifest import MANIFEST_NAME
from faceprior.folders.run import NoWatcher, restore_files
from faceprior.images import read_image, read_metadata, to_tensor
from faceprior.methods import PRESETS, find_preset
from faceprior.photographs import RestoredFace, RestoreOptions
from faceprior.photographs.results import doubt_picture
from faceprior.pipeline.face_prior import FacePriorPipeline, Samples
from faceprior.priors import save_prior

SHORT = find_preset("default").with_options(steps=3, eta=0.5)
OPTIONS = RestoreOptions(preset=SHORT, kind="aligned")


@pytest.fixture(scope="module")
def pipeline(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    save_prior(tiny.gaussian_prior(), folder)
    loaded = FacePriorPipeline.from_pretrained(folder, corrector=None)
    corrector = tiny.corrector()
    return FacePriorPipeline(loaded.prior, replace(corrector, card=replace(corrector.card, sha256="c0ffee")))


def picture(width=8, height=8, seed=0):
    """A smooth random picture."""
    pixels = np.random.default_rng(seed).integers(30, 226, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def face(tmp_path):
    path = tmp_path / "face.png"
    picture().save(path)
    return path


def run(pipeline, inputs, output, options=OPTIONS, **changes):
    return list(restore_files(pipeline, [Input(path) for path in inputs], output, replace(options, **changes)))


class Seen(NoWatcher):
    """Remembers what it sees."""

    def __init__(self):
        self.faces, self.steps, self.notices = [], 0, []

    def on_faces(self, faces):
        self.faces.append(faces)

    def on_step(self, samples):
        self.steps += samples

    def on_notice(self, text):
        self.notices.append(text)


def read_log(output):
    """The records of the manifest, without its first line."""
    return [json.loads(line) for line in (output / MANIFEST_NAME).read_text("utf-8").splitlines()[1:]]


def files_of(record):
    return [written["file"] for written in record["outputs"]]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST_NAME}


# --- what is written


def test_every_file_that_was_promised_is_there_with_its_size_and_metadata(pipeline, face, tmp_path):
    (record,) = run(pipeline, [face], tmp_path / "out", samples=3, write_sheet=True, seed=5)
    names = ["face.png", "face-2.png", "face-3.png", "face-mean.png", "face-doubt.png", "face-sheet.png"]
    assert record["status"] == "done"
    assert files_of(record) == names
    assert sorted(contents(tmp_path / "out")) == sorted(names)
    for name, content in zip(names, ("sample",) * 3 + ("mean", "doubt", "sheet"), strict=True):
        image = Image.open(tmp_path / "out" / name)
        assert content == "sheet" or image.size == (pipeline.resolution,) * 2
        metadata = read_metadata(tmp_path / "out" / name)
        assert metadata["content"] == content
        assert metadata["prior"] == {"name": "tiny", "sha256": pipeline.prior.card.sha256}
        assert len(metadata["prior"]["sha256"]) == 64
        assert metadata["corrector"] == {"name": "tiny-corrector", "sha256": "c0ffee"}
        assert metadata["options"] == SHORT.as_dict()
        assert (metadata["seed"], metadata["method"], metadata["preset"]) == (5, "dpi", "default")
        assert (metadata["device"], metadata["dtype"], metadata["input"]) == ("cpu", "float32", "face.png")
        assert metadata["scale"] == 4.0
        assert metadata["faceprior"]
    assert [read_metadata(tmp_path / "out" / name)["sample"] for name in names[:3]] == [1, 2, 3]


def test_the_mean_is_that_of_the_samples_before_they_are_finished(pipeline, face, tmp_path):
    options = replace(OPTIONS, samples=3, preset=SHORT.with_options(texture=0.0))
    run(pipeline, [face], tmp_path / "out", options)
    run(pipeline, [face], tmp_path / "finished", samples=3)
    plain, finished = contents(tmp_path / "out"), contents(tmp_path / "finished")
    assert plain["face.png"] != finished["face.png"]
    means = [np.asarray(Image.open(tmp_path / folder / "face-mean.png")) for folder in ("out", "finished")]
    assert np.array_equal(*means)


def test_the_mean_is_that_of_the_written_samples_and_the_doubt_is_drawn(pipeline, face, tmp_path):
    options = replace(OPTIONS, samples=3, preset=SHORT.with_options(texture=0.0))
    run(pipeline, [face], tmp_path / "out", options)

    def pixels(name):
        return np.asarray(Image.open(tmp_path / "out" / name)).astype(float)

    samples = np.stack([pixels(name) for name in ("face.png", "face-2.png", "face-3.png")])
    assert abs(pixels("face-mean.png") - samples.mean(0)).max() <= 1
    low = to_tensor(Image.open(face))
    images = torch.stack([to_tensor(Image.fromarray(sample.astype(np.uint8))) for sample in samples])
    drawn = np.asarray(doubt_picture(pipeline.doubt([low], images[None])[0])).astype(float)
    assert drawn.std() > 1
    assert abs(pixels("face-doubt.png") - drawn).max() <= 12  # samples are written in 8 bits


def test_one_sample_of_several_is_the_same_as_alone(pipeline, face, tmp_path):
    run(pipeline, [face], tmp_path / "one")
    run(pipeline, [face], tmp_path / "three", samples=3)
    assert contents(tmp_path / "one")["face.png"] == contents(tmp_path / "three")["face.png"]
    assert len(set(contents(tmp_path / "three").values())) == 5


def test_the_same_run_gives_the_same_bytes_and_another_seed_others(pipeline, face, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(pipeline, [face], tmp_path / name, samples=2, write_sheet=True, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    for name, content in contents(tmp_path / "c").items():
        assert content != contents(tmp_path / "a")[name]
    pixels = [np.asarray(read_image(tmp_path / name / "face.png")) for name in "ac"]
    assert not np.array_equal(*pixels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_result_depends_on_the_other_inputs_their_order_or_the_batch_size(pipeline, dtype, tmp_path):
    paths = []
    for seed, side in enumerate((8, 8, 6, 7, 8)):
        paths.append(tmp_path / f"{seed}.png")
        picture(side, side, seed).save(paths[-1])
    pipeline.to(dtype)
    try:
        expected = {}
        for path in paths:
            run(pipeline, [path], tmp_path / "alone", samples=2)
            expected.update(contents(tmp_path / "alone"))
        for number, (order, batch_size) in enumerate(((paths, 8), (paths[::-1], 3), (paths[2:] + paths[:2], 1))):
            output = tmp_path / f"together-{number}"
            records = run(pipeline, order, output, samples=2, batch_size=batch_size)
            assert contents(output) == expected
            assert [record["input"] for record in records] == [str(path) for path in order]
    finally:
        pipeline.to(torch.float32)


# --- options

CHANGES = {
    "solver": {"solver": "ddpm", "eta": 0.0},
    "steps": {"steps": 4},
    "start": {"start": 0.4},
    "end": {"end": 0.2},
    "tau": {"tau": 0.5},
    "stride": {"stride": 4},
    "edge exponent": {"edge_exponent": 0.2},
    "late weight": {"late_weight": 0.3},
    "eta": {"eta": 0.0},
    "placement": {"placement": "resized"},
    "corrector first": {"crt": "first"},
    "corrector always": {"crt": "always"},
    "detail": {"detail": 0.5},
    "detail above": {"detail_above": 4},
    "shift": {"shift": 0.3},
    "smooth": {"smooth": True},
    "rederived": {"rederived": 0.5},
}


def test_every_option_changes_the_result(pipeline, face, tmp_path):
    options = {"steps": 6, "start": 0.5, "end": 0.02, "tau": 0.3}  # levels on both sides of tau
    preset = SHORT.with_options(**options, crt="after", smooth=False, rederived=0.0, detail_above=0)
    base = replace(OPTIONS, preset=preset)
    runs = {"base": base}
    runs |= {name: replace(base, preset=preset.with_options(**change)) for name, change in CHANGES.items()}
    runs |= {
        "seed": replace(base, seed=1),
        "scale": replace(base, scale=8.0),
        "preset": replace(base, preset=PRESETS["paper-ddim"]),
    }
    pixels = {}
    for name, options in runs.items():
        run(pipeline, [face], tmp_path / name, options)
        pixels[name] = read_image(tmp_path / name / "face.png").tobytes()
    run(pipeline.without_corrector(), [face], tmp_path / "no corrector", base)
    pixels["no corrector"] = read_image(tmp_path / "no corrector" / "face.png").tobytes()
    assert read_metadata(tmp_path / "no corrector" / "face.png")["corrector"] is None
    for (name, one), (other, two) in itertools.combinations(pixels.items(), 2):
        assert one != two, f"{name} and {other} give the same face"


@pytest.mark.parametrize(
    ("scale", "size", "expected", "note"),
    [
        ("auto", 8, 4.0, None),
        ("auto", 5, 6.4, None),
        ("auto", 4, 8.0, None),
        ("auto", 20, 1.6, None),
        ("auto", 40, 1.0, "reduced from 40×40 to 32×32"),
        (4.0, 8, 4.0, None),
        (4.0, 6, 4.0, "enlarged from 6×6 to 8×8"),
        (8.0, 8, 8.0, "reduced from 8×8 to 4×4"),
    ],
)
def test_the_scale_says_what_size_a_face_is_taken_to_have(pipeline, scale, size, expected, note, tmp_path):
    picture(size, size).save(tmp_path / "x.png")
    (record,) = run(pipeline, [tmp_path / "x.png"], tmp_path / "out", scale=scale)
    assert record["scale"] == expected
    assert record["notes"] == ([] if note is None else [note])
    assert read_metadata(tmp_path / "out" / "x.png")["notes"] == record["notes"]


def test_what_was_done_to_a_file_first_is_said(pipeline, tmp_path):
    frames = [picture(30, 20, seed).convert("RGBA") for seed in (0, 1)]
    frames[0].putalpha(128)
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    (record,) = run(pipeline, [tmp_path / "x.png"], tmp_path / "out")
    assert record["notes"] == [
        "first of 2 frames",
        "transparency laid over white",
        "cropped to the central square of 30×20",
    ]


def test_an_oblong_face_is_restored_as_its_central_square(pipeline, tmp_path):
    wide = picture(12, 8)
    wide.save(tmp_path / "x.png")
    wide.crop((2, 0, 10, 8)).save(tmp_path / "y.png")
    run(pipeline, [tmp_path / "x.png", tmp_path / "y.png"], tmp_path / "out")
    assert read_image(tmp_path / "out" / "x.png").tobytes() == read_image(tmp_path / "out" / "y.png").tobytes()


@pytest.mark.parametrize("scale", [16.0, 1.0, 64.0, -4.0, float("nan")])
def test_a_scale_that_does_not_fit_the_prior_is_refused_before_any_work(pipeline, face, scale, tmp_path):
    with pytest.raises(OptionError, match="scale"):
        run(pipeline, [face], tmp_path / "out", scale=scale)
    assert not (tmp_path / "out").exists()


def test_identical_pictures_have_a_finite_figure():
    flat = torch.zeros(3, 32, 32)
    assert RestoredFace(torch.zeros(3, 8, 8), flat[None], flat).lr_consistency == [EXACT]


# --- what goes wrong


def test_inputs_that_fail_do_so_alone_and_the_log_has_a_line_for_each(pipeline, tmp_path):
    good = [tmp_path / "1.png", tmp_path / "3.png", tmp_path / "6.png"]
    for seed, path in enumerate(good):
        picture(8, 8, seed).save(path)
    (tmp_path / "2.png").write_text("no picture")
    inputs = [good[0], tmp_path / "2.png", good[1], tmp_path / "missing.png", tmp_path, good[2]]
    for batch_size in (1, 2, 8):
        output = tmp_path / f"out-{batch_size}"
        records = run(pipeline, inputs, output, batch_size=batch_size)
        assert [record["status"] for record in records] == ["done", "failed", "done", "failed", "failed", "done"]
        assert read_log(output) == records
        assert sorted(contents(output)) == ["1.png", "3.png", "6.png"]
        for record in records:
            assert record["status"] == "done" or record["error"].startswith(record["input"])


def test_all_inputs_may_fail(pipeline, tmp_path):
    (record,) = run(pipeline, [tmp_path / "missing.png"], tmp_path / "out")
    assert record["status"] == "failed"
    assert contents(tmp_path / "out") == {}


def test_a_result_that_cannot_be_written_fails_alone(pipeline, tmp_path):
    for name in ("a.png", "b.png"):
        picture().save(tmp_path / name)
    output = tmp_path / "out"
    (output / "a.png").mkdir(parents=True)
    records = run(pipeline, [tmp_path / "a.png", tmp_path / "b.png"], output)
    assert [record["status"] for record in records] == ["failed", "done"]
    assert "a.png: cannot be written" in records[0]["error"]
    assert sorted(path.name for path in output.iterdir()) == ["a.png", "b.png", MANIFEST_NAME]


def test_a_full_disk_leaves_no_partial_picture(pipeline, face, tmp_path, monkeypatch):
    def full(_image, file, **_options):
        file.write(b"\x89PNG half of a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    (record,) = run(pipeline, [face], tmp_path / "out")
    assert record["status"] == "failed"
    assert "No space left on device" in record["error"]
    assert contents(tmp_path / "out") == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_that_cannot_be_written_is_one_error(pipeline, face, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_NAME).symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"restore.jsonl: cannot be written \(No space left on device\)"):
        run(pipeline, [face], tmp_path / "out")


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/nothing"])
def test_an_output_that_cannot_be_a_folder_is_refused(pipeline, face, output, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --output"):
        run(pipeline, [face], tmp_path / output)


def test_a_run_that_is_killed_leaves_only_whole_pictures_and_lines(pipeline, tmp_path):
    paths = []
    for seed in range(4):
        paths.append(tmp_path / f"{seed}.png")
        picture(8, 8, seed).save(paths[-1])
    running = restore_files(pipeline, [Input(p) for p in paths], tmp_path / "out", replace(OPTIONS, batch_size=1))
    next(running), next(running)
    running.close()
    assert 2 <= len(read_log(tmp_path / "out")) <= len(paths)
    for name in contents(tmp_path / "out"):
        read_image(tmp_path / "out" / name)


def test_networks_that_overflow_fail_with_the_remedy(pipeline, face, tmp_path, monkeypatch):
    def restore(_self, faces, *_args, **_options):
        return [Samples(torch.full((1, 3, 32, 32), float("nan")), torch.zeros(3, 32, 32))] * len(faces)

    monkeypatch.setattr(FacePriorPipeline, "restore", restore)
    (record,) = run(pipeline, [face], tmp_path / "out")
    assert record["error"] == f"{face}: the networks overflowed in float32; choose --dtype float32"
    assert contents(tmp_path / "out") == {}


def test_names_of_any_bytes_are_restored_and_logged(pipeline, tmp_path):
    names = ["ü 顔 face.png", "[red]x[bold].png", ":smile:.png", "two\nlines.png", "-2.png", ".png"]
    names.append(os.fsdecode(b"caf\xe9.png"))
    paths = [tmp_path / name for name in names]
    for path in paths:
        picture().save(path, "PNG")
    records = run(pipeline, paths, tmp_path / "out")
    assert [record["status"] for record in records] == ["done"] * len(names)
    assert read_log(tmp_path / "out") == records
    assert [read_metadata(tmp_path / "out" / files_of(r)[0])["input"] for r in records] == names


def test_progress_counts_the_steps_of_every_sample(pipeline, face, tmp_path):
    seen = Seen()
    options = replace(OPTIONS, samples=3, batch_size=2)
    inputs = [Input(face), Input(tmp_path / "missing.png"), Input(face)]
    list(restore_files(pipeline, inputs, tmp_path / "out", options, watcher=seen))
    assert seen.steps == 2 * 3 * 3
    assert seen.faces == [1, 0, 1]


# --- names


def names_of(*inputs, output="out", **options):
    return output_names([Input(Path(path)) for path in inputs], Path(output), replace(OPTIONS, **options).suffixes)


@pytest.mark.parametrize(
    ("inputs", "options", "expected"),
    [
        (["a/x.png"], {}, ["x"]),
        (["a/x.png", "b/x.png"], {}, ["x", "x_png"]),
        (["b/x.png", "a/x.png"], {}, ["x_png", "x"]),
        (["x.jpg", "x.png"], {}, ["x", "x_png"]),
        (["a/x.png", "b/x.png", "c/x.png", "d/x.png"], {}, ["x", "x_png", "c_x", "d_x"]),
        (["x.png", "X.png"], {}, ["x_png", "X"]),
        (["x.png", "x.png"], {}, ["x", "x_png"]),
        (["x.png", "x-2.png"], {"samples": 2}, ["x_png", "x-2"]),
        (["x.png", "x-2.png"], {"samples": 1}, ["x", "x-2"]),
        (["x.png", "out/x-face3-2.png"], {}, ["x_png", "x-face3-2_png"]),
        (["x.png", "x-mean.png"], {"samples": 2}, ["x_png", "x-mean"]),
        (["x.png", "x-sheet.jpg"], {"write_sheet": True}, ["x_png", "x-sheet"]),
        (["caf\u00e9.png", "cafe\u0301.png"], {}, ["caf\u00e9_png", "cafe\u0301"]),
        (["out/x.png"], {}, ["x_png"]),
        (["out/x.jpg"], {}, ["x_jpg"]),
        (["out/../out/x.png"], {}, ["x_png"]),
        (["y.png", "out/y-2.png"], {"samples": 2}, ["y_png", "y-2_png"]),
    ],
)
def test_names_are_kept_apart_and_never_meet_an_input(inputs, options, expected):
    assert names_of(*inputs, **options) == expected


some_names = st.lists(
    st.builds(
        lambda folder, stem, kind: f"{folder}/{stem}{kind}",
        st.sampled_from(["a", "b", "out"]),
        st.sampled_from(["x", "X", "x-2", "x-mean", "x_png", "a_x", "x_png_2", "x-2-2"]),
        st.sampled_from([".png", ".jpg", ""]),
    ),
    min_size=1,
    max_size=8,
)


@given(some_names, st.integers(1, 3), st.booleans(), st.randoms())
@settings(max_examples=100, deadline=None)
def test_no_two_outputs_meet_whatever_the_order_of_the_inputs(inputs, samples, write_sheet, random):
    names = names_of(*inputs, samples=samples, write_sheet=write_sheet)
    suffixes = ["", "-2", "-3"][:samples] + (["-mean", "-doubt"] if samples > 1 else []) + ["-sheet"] * write_sheet
    written = [f"out/{name}{suffix}.png".casefold() for name in names for suffix in suffixes]
    assert len(set(written)) == len(written)
    assert not set(written) & {path.casefold() for path in inputs}
    shuffled = list(range(len(inputs)))
    random.shuffle(shuffled)
    again = names_of(*(inputs[i] for i in shuffled), samples=samples, write_sheet=write_sheet)
    assert sorted(zip((inputs[i] for i in shuffled), again, strict=True)) == sorted(zip(inputs, names, strict=True))


def test_an_input_in_the_output_folder_is_not_written_over(pipeline, tmp_path):
    picture().save(tmp_path / "x.png")
    before = (tmp_path / "x.png").read_bytes()
    (record,) = run(pipeline, [tmp_path / "x.png"], tmp_path)
    assert files_of(record) == ["x_png.png"]
    assert (tmp_path / "x.png").read_bytes() == before


def test_an_input_behind_a_link_in_the_output_folder_is_not_written_over(pipeline, face, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "face.png").symlink_to(face)
    before = face.read_bytes()
    run(pipeline, [face], tmp_path / "out")
    assert face.read_bytes() == before


def test_a_second_run_replaces_the_first(pipeline, face, tmp_path):
    run(pipeline, [face], tmp_path / "out", seed=1)
    run(pipeline, [face], tmp_path / "out", seed=2)
    assert sorted(contents(tmp_path / "out")) == ["face.png"]
    assert read_metadata(tmp_path / "out" / "face.png")["seed"] == 2
    assert len(read_log(tmp_path / "out")) == 1


def test_a_large_folder_is_read_a_few_batches_ahead(pipeline, face, tmp_path, monkeypatch):
    read = []
    original = run_module.read
    monkeypatch.setattr(run_module, "read", lambda path: (read.append(path), original(path))[1])
    running = restore_files(pipeline, [Input(face)] * 60, tmp_path / "out", replace(OPTIONS, batch_size=2))
    next(running)
    assert len(read) < 20
    running.close()
