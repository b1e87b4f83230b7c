import errno
import itertools
import json
import os
import pickle
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import skimage
import torch
import typer
import yaml
from PIL import Image
from safetensors.torch import load, save
from typer.testing import CliRunner

from adm_reference import ADMUNet, randomise
from faceprior import __version__
from faceprior.cli.app import app
from faceprior.cli.console import progress_bar
from faceprior.cli.progress import RestoreProgress
from faceprior.faces.detection import MIN_FACE
from faceprior.images import read_image, read_metadata
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.priors import load_prior, save_prior
from tiny_faces import smooth_picture

QUICK = ("--option", "steps=2", "--device", "cpu", "--dtype", "float32", "--aligned")


def faceprior(*arguments):
    """Run a command in this process; its errors must be meant for the user."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def own(**options):
    """Options of a method, as they are given on the command line."""
    return tuple(word for name, value in options.items() for word in ("--option", f"{name}={value}"))


def subprocess_environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def faceprior_process(*arguments, **options):
    """Start a command in a process of its own."""
    command = [sys.executable, "-m", "faceprior", *map(str, arguments)]
    environment = {**subprocess_environment(), **options.pop("env", {})}
    return subprocess.Popen(command, env=environment, text=True, **options)  # noqa: S603


@pytest.fixture(scope="module")
def prior(tiny, tmp_path_factory):
    """A folder with a tiny prior and, inside it, its corrector."""
    folder = tmp_path_factory.mktemp("weights") / "prior"
    save_prior(tiny.gaussian_prior(), folder)
    FacePriorPipeline(load_prior(folder), tiny.corrector()).save_pretrained(folder)
    return folder


@pytest.fixture
def face(tmp_path):
    path = tmp_path / "face.png"
    Image.fromarray(smooth_picture(0, 8)).save(path)
    return path


@pytest.fixture
def restore(prior, tmp_path):
    def run(*arguments):
        quick = QUICK[2:] if any(str(word).startswith("steps=") for word in arguments) else QUICK
        if {"--photo", "--detector"} & set(arguments):
            quick = quick[:-1]
        return faceprior("restore", "--output", tmp_path / "out", "--prior", prior, *quick, *arguments)

    return run


def copies(picture, folder, count):
    """A folder with so many links to one picture."""
    folder.mkdir()
    for number in range(count):
        os.link(picture, folder / f"{number}.png")


def one_line_of(text):
    """The only line of an error."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


# --- restore


def test_a_face_is_restored_and_the_result_is_named(restore, face, tmp_path):
    result = restore(face)
    assert result.exit_code == 0
    assert result.stderr == ""
    line = one_line_of(result.stdout)
    assert line.startswith(f"{face} → {tmp_path / 'out' / 'face.png'}  (×4, agrees with the input to ")
    assert read_image(tmp_path / "out" / "face.png").size == (32, 32)
    assert read_metadata(tmp_path / "out" / "face.png")["options"]["steps"] == 2


def test_what_was_done_to_the_file_is_said(restore, tmp_path):
    Image.fromarray(smooth_picture(0, 40)[:30]).save(tmp_path / "wide.jpg")
    result = restore(tmp_path / "wide.jpg", "--aligned")
    assert ", cropped to the central square of 40×30)" in result.stdout


@pytest.mark.parametrize(
    ("bad", "others", "code", "summary"),
    [
        ("text", 1, 3, "1 of 2 failed; the others are done"),
        ("missing", 2, 3, "1 of 3 failed; the others are done"),
        ("folder", 1, 3, "1 of 2 failed; the others are done"),
        ("text", 0, 3, "1 of 1 failed"),
    ],
)
def test_one_bad_input_does_not_stop_the_others(restore, tmp_path, bad, others, code, summary):
    inputs = [tmp_path / "bad [input].png"]
    if bad == "text":
        inputs[0].write_text("not a picture")
    elif bad == "folder":
        inputs[0].mkdir()
    for number in range(others):
        inputs.append(tmp_path / f"{number}.png")
        Image.fromarray(smooth_picture(number, 8)).save(inputs[-1])
    result = restore(*inputs)
    assert result.exit_code == code
    failed, *_, last = result.stderr.strip().splitlines()
    assert failed.startswith(f"failed {inputs[0]}: ")
    assert last == summary
    assert len(result.stdout.splitlines()) == others
    _, *log = [json.loads(line) for line in (tmp_path / "out" / "restore.jsonl").read_text("utf-8").splitlines()]
    assert [(line["input"], line["status"]) for line in log] == [
        (str(path), "failed" if path == inputs[0] else "done") for path in inputs
    ]


@pytest.mark.parametrize(
    "name", ["[red]x.png", "[bold] [].png", "x\\[.png", ":smile:.png", "a b ü 顔.png", "%s {0}.png"]
)
def test_names_are_printed_as_they_are(restore, name, tmp_path):
    Image.fromarray(smooth_picture(0, 8)).save(tmp_path / name)
    good = restore(tmp_path / name)
    assert good.stdout.startswith(f"{tmp_path / name} → {tmp_path / 'out' / name}  (")
    (tmp_path / name).write_text("not a picture")
    assert restore(tmp_path / name).stderr.startswith(f"failed {tmp_path / name}: is not a picture that can be read")


def test_control_codes_and_foreign_bytes_in_names_are_printed_escaped(restore, tmp_path):
    for name, shown in (("a\nb\x1b[31m.png", r"a\nb\x1b[31m.png"), (os.fsdecode(b"caf\xe9.png"), r"caf\udce9.png")):
        Image.fromarray(smooth_picture(0, 8)).save(tmp_path / name)
        result = restore(tmp_path / name)
        assert result.exit_code == 0
        assert one_line_of(result.stdout).startswith(f"{tmp_path}/{shown} → {tmp_path}/out/{shown}  (")


USAGE = {
    "scale": (("--scale", "5"), "error --scale: '5' is not one of '4', '8', '16', 'auto'"),
    "scale of this prior": (("--scale", "16"), "scale 16 leaves 2 pixels of a 32-pixel face; choose a smaller one"),
    "tau": (("--option", "tau=1.5"), "tau is 1.5; it must lie in 0 to 1"),
    "tau that is no number": (("--option", "tau=nan"), "tau is nan; it must lie in 0 to 1"),
    "tau of letters": (("--option", "tau=high"), "tau is 'high'; it must be a number"),
    "stride": (("--option", "stride=3"), "stride is 3; choose 1, 2, 4 or 8"),
    "stride of the corrector": (("--option", "stride=1"), "not a multiple of the corrector's stride 2"),
    "edge exponent": (("--option", "edge_exponent=-1"), "edge exponent is -1.0; it must"),
    "late weight": (("--option", "late_weight=-1"), "late weight is -1.0"),
    "eta": (("--option", "eta=-0.1"), "eta is -0.1; it must lie in 0 to 1"),
    "eta of ddpm": (("--option", "solver=ddpm", "--option", "eta=0.5"), "eta belongs to the solver ddim"),
    "no steps": (("--option", "steps=0"), "steps is 0; it must lie in 1 to"),
    "too many steps": (("--option", "steps=1001"), "steps is 1001; it must lie in 1 to"),
    "start": (("--option", "start=0"), "start is 0.0; it must lie above 0"),
    "end": (("--option", "end=-0.1"), "end is -0.1; it must be at least 0"),
    "end that is not below start": (
        ("--option", "start=0.5", "--option", "end=0.5"),
        "end is 0.5; it must be at least 0 and lie",
    ),
    "faces": (("--faces", "none"), "error --faces is 'none'; it must be a whole number"),
    "no faces": (("--faces", "0"), "error --faces is '0'; it must be at least 1"),
    "a detector for aligned faces": (("--aligned", "--detector", "yunet"), "contradict each other"),
    "blend": (("--blend", "1.1"), "error --blend is '1.1'; it must be at most 1"),
    "upscale": (("--upscale", "3"), "error --upscale: '3' is not one of '1', '2', '4'"),
    "smallest face": (("--min-face", "2"), "error --min-face is '2'; it must be at least 8"),
    "detector": (("--detector", "eyes"), "eyes"),
    "two kinds": (("--photo", "--aligned"), "--photo and --aligned contradict each other; leave one out"),
    "said and not": (("--quiet", "--verbose"), "--quiet and --verbose contradict each other; leave one out"),
    "samples": (("--samples", "0"), "error --samples is '0'; it must be at least 1"),
    "too many samples": (("--samples", "1000000"), "error --samples is '1000000'; it must be at most 1000"),
    "seed": (("--seed", "-1"), "error --seed is '-1'; it must be at least 0"),
    "seed beyond 64 bits": (("--seed", str(2**64)), "--seed"),
    "device": (("--device", "tpu"), "error --device: 'tpu' is not one of"),
    "dtype": (("--dtype", "int8"), "error --dtype: 'int8' is not one of"),
    "method": (("--method", "best"), "'best' is neither a preset nor a method; choose one of default"),
    "unknown option": (("--sharpen",), "No such option: --sharpen"),
    "unknown prior": (("--prior", "faces-9000"), "prior 'faces-9000' is neither a name (faces-128, "),
    "unknown corrector": (("--corrector", "best"), "corrector 'best' is neither a name (corrector-128, "),
    "corrector of another resolution": (
        ("--corrector", "corrector-128"),
        "corrector corrector-128 is for 128×128 faces, the prior for 32×32; choose another with --corrector, or none",
    ),
}


@pytest.mark.parametrize("kind", USAGE)
def test_wrong_usage_is_refused_before_anything_is_written(restore, kind, face, tmp_path):
    arguments, message = USAGE[kind]
    result = restore(face, *arguments)
    assert result.exit_code == 2
    assert message in re.sub(r"[\s│]+", " ", result.stderr)
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()
    if "Usage:" not in result.stderr:
        assert one_line_of(result.stderr).startswith("error ")


@pytest.mark.parametrize(
    "option",
    [
        "--only-faces",
        "--detector yunet",
        "--faces 1",
        "--face 1",
        "--min-face 30",
        "--blend 0.5",
        "--upscale 2",
    ],
)
def test_what_is_of_photographs_alone_is_refused_for_aligned_faces(face, option, tmp_path):
    result = faceprior("restore", face, "--output", tmp_path / "out", *option.split(), "--aligned")
    assert result.exit_code == 2
    assert f"{option.split()[0]} and --aligned contradict each other" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_smallest_face_is_the_detectors():
    assert f"[default: ({MIN_FACE})" in faceprior("restore", "--help").stdout


def test_an_input_must_be_named():
    assert faceprior("restore", "--output", "x").exit_code == 2


# --- where results go


@pytest.fixture
def beside(prior, face):
    return lambda *arguments: faceprior("restore", face, "--prior", prior, *QUICK, *arguments)


def test_without_an_output_the_result_stands_beside_the_input(beside, face):
    assert beside("--samples", "2").exit_code == 0
    names = ["face-restored-2.png", "face-restored-mean.png", "face-restored-doubt.png", "face-restored.png"]
    assert sorted(path.name for path in face.parent.iterdir()) == sorted([face.name, *names])


def test_two_inputs_of_one_stem_stay_apart_beside_each_other(prior, face):
    Image.open(face).save(face.with_suffix(".webp"), lossless=True)
    result = faceprior("restore", face, face.with_suffix(".webp"), "--prior", prior, *QUICK)
    assert result.exit_code == 0
    written = sorted(path.name for path in face.parent.glob("*restored*"))
    assert written == ["face-restored.png", "face_webp-restored.png"]


@pytest.mark.parametrize(
    ("name", "kind"), [("new/result.jpg", "JPEG"), ("result.PNG", "PNG"), ("result.tif", "TIFF")]
)
def test_a_file_as_output_is_written_in_its_format(beside, face, tmp_path, name, kind):
    assert beside("--output", tmp_path / name, "--sheet").exit_code == 0
    with Image.open(tmp_path / name) as result:
        assert (result.format, result.size) == (kind, (32, 32))
    assert read_metadata(tmp_path / name)["options"]["steps"] == 2
    sheet = Path(name).with_name("result-sheet.png")
    assert (tmp_path / sheet).exists()
    assert not (tmp_path / sheet).with_name("restore.jsonl").exists()


def test_a_photograph_changes_its_format_with_the_name_of_the_output(tmp_path):
    photo = tmp_path / "sky.png"
    Image.fromarray(smooth_picture(0, 200)[:150]).save(photo)
    result = faceprior("restore", photo, "--output", tmp_path / "sky.webp", *EMBEDDED)
    assert result.exit_code == 0
    with Image.open(tmp_path / "sky.webp") as copy:
        assert (copy.format, copy.size) == ("WEBP", (200, 150))


def test_jpeg_is_for_every_picture_photograph_or_face(prior, face, tmp_path):
    photo = tmp_path / "sky.png"
    Image.fromarray(smooth_picture(0, 200)[:150]).save(photo)
    assert faceprior("restore", photo, "--jpeg", "--output", tmp_path / "out", *EMBEDDED).exit_code == 0
    own = ("--prior", prior, "--jpeg", *QUICK)
    assert faceprior("restore", face, "--output", tmp_path / "out", *own).exit_code == 0
    for name in ("sky.jpg", face.with_suffix(".jpg").name):
        with Image.open(tmp_path / "out" / name) as result:
            assert result.format == "JPEG"
    refused = faceprior("restore", face, "--output", tmp_path / "better.png", *own)
    assert refused.exit_code == 2
    assert "--jpeg and --output" in refused.output


def test_an_output_that_cannot_be_meant_is_refused(prior, face, tmp_path):
    copies(face, tmp_path / "faces", 2)
    link = tmp_path / "link.png"
    os.link(face, link)
    cases = {
        (
            face,
            "--output",
            tmp_path / "x.gif",
        ): "x.gif: cannot be written, for face.png is a picture by its name; choose one of .avif, .heic",
        (
            face,
            "--output",
            tmp_path / "x.mkv",
        ): "x.mkv: cannot be written, for face.png is a picture by its name; choose one of .avif, .heic",
        (
            face,
            tmp_path / "faces" / "0.png",
            "--output",
            tmp_path / "x.png",
        ): "x.png: is a file, but 2 inputs are given",
        (
            tmp_path / "faces",
            "--output",
            tmp_path / "x.png",
        ): "x.png: is a file, which holds one result; give a folder",
        (face, "--output", face): "face.png: is the input, which is never written over",
        (face, "--output", link): "link.png: is the input, which is never written over",
        (tmp_path / "faces",): "faces: is a folder; say where its results go, with --output",
        (face, "--resume"): "--resume goes by the restore.jsonl of an output folder; name it with --output",
    }
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in cases.items():
        result = faceprior("restore", *arguments, "--prior", prior, *QUICK)
        assert result.exit_code == 2
        assert message in one_line_of(result.stderr)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_run_adds_to_the_manifest_and_keeps_names_apart(restore, face, tmp_path):
    (tmp_path / "other").mkdir()
    other = shutil.copy(face, tmp_path / "other" / "face.png")
    for arguments in ((face,), (other, "--seed", "1"), (face, "--seed", "1")):
        assert restore(*arguments).exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "restore.jsonl").read_text("utf-8").splitlines()]
    assert lines[0]["settings"]["seed"] == 1
    assert [(line["input"], line["name"]) for line in lines[1:]] == [(str(other), "face_png"), (str(face), "face")]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["face.png", "face_png.png"]


# --- how much is said


def test_the_largest_picture_is_an_option(restore, tmp_path):
    Image.fromarray(smooth_picture(0, 64)).save(tmp_path / "scan.png")
    result = restore(tmp_path / "scan.png", "--max-pixels", "0.004")
    assert result.exit_code == 3
    assert "scan.png: 64×64 is more than 0.004 megapixels" in result.stderr
    assert restore(tmp_path / "scan.png", "--max-pixels", "0.005").exit_code == 0


def test_quiet_tells_of_failures_only(restore, face, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    result = restore("--quiet", face, tmp_path / "bad.png")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["failed", "1"]


def test_several_agreements_are_summed_up_by_the_worst(restore, face, tmp_path):
    line = one_line_of(restore(face, "--samples", "3").stdout)
    record = json.loads((tmp_path / "out" / "restore.jsonl").read_text("utf-8").splitlines()[1])
    assert len(set(record["lr_consistency"])) > 1
    assert f"agrees with the input to at least {min(record['lr_consistency']):.1f} dB" in line


def test_without_a_terminal_progress_is_plain_lines(capsys):
    now = itertools.count(0, 25)
    with progress_bar() as bar:
        assert bar.disable
        watcher = RestoreProgress(bar, 3, 10, quiet=False, clock=lambda: next(now))
        for _ in range(3):
            watcher.on_faces(1)
            watcher.on_step(1)
            watcher.on_input()
    assert capsys.readouterr().err.splitlines() == ["1 of 3 done", "3 of 3 done"]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_in_one_line(restore, device, face, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    result = restore(face, "--device", device)
    assert result.exit_code == 2
    assert one_line_of(result.stderr) == (
        f"error device {device} was asked for, but torch finds none on this machine; use --device cpu"
    )


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/faceprior"])
def test_an_output_that_cannot_be_written_is_refused_in_one_line(prior, face, place, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = faceprior("restore", face, "--output", tmp_path / place, "--prior", prior, *QUICK)
    assert result.exit_code == 2
    assert one_line_of(result.stderr).startswith(f"error {tmp_path / place}: cannot be written to (")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_one_line_for_each_file(restore, face, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = restore(face)
    assert result.exit_code == 3
    assert "face.png: cannot be written (No space left on device)" in result.stderr.splitlines()[0]


class Exploit:
    """Runs code when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("kind", ["pickle with code", "torch file with code", "picture", "text", "empty", "folder"])
def test_what_is_no_prior_is_refused_in_one_line_and_never_executed(restore, kind, face, tmp_path):
    path = tmp_path / "prior.pt"
    if kind == "pickle with code":
        path.write_bytes(pickle.dumps(Exploit(tmp_path / "executed"), protocol=2))
    elif kind == "torch file with code":
        torch.save({"state": Exploit(tmp_path / "executed")}, path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"picture": face.read_bytes(), "text": b"weights", "empty": b""}[kind])
    result = restore(face, "--prior", path)
    assert result.exit_code == 2
    assert one_line_of(result.stderr).startswith(f"error {path}: ")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def without_first_convolution(content):
    state = load(content)
    del state["unet.conv_in.weight"]
    return save(state, metadata={"format": "pt"})


def with_wrong_sha256(content):
    return json.dumps({**json.loads(content), "sha256": "0" * 64}).encode()


WEIGHTS, CARD = "unet/diffusion_pytorch_model.safetensors", "card.json"
SPOILED = {
    # what is wrong with a prior's folder: (in which file, how it comes about, the message)
    "wrong sha256": (CARD, with_wrong_sha256, "is not the card's 000000000000…"),
    "broken card": (CARD, lambda content: content[:20], "card.json: cannot be read"),
    "weights cut short": (WEIGHTS, lambda content: content[:-1000], "the weights cannot be loaded"),
    "missing keys": (WEIGHTS, without_first_convolution, "missing keys: unet.conv_in.weight"),
    "no weights": (WEIGHTS, None, "holds no diffusion_pytorch_model.safetensors"),
    "no schedule": ("scheduler/scheduler_config.json", None, "holds no scheduler_config.json"),
    "broken configuration": ("unet/config.json", lambda _: b"{", "config.json: cannot be read"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_weights_that_cannot_be_trusted_are_refused_in_one_line_that_names_them(restore, prior, kind, face, tmp_path):
    name, change, message = SPOILED[kind]
    folder = shutil.copytree(prior, tmp_path / "spoiled")
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if change is not None:
        (folder / name).write_bytes(change(content))
    if name != CARD:
        (folder / CARD).unlink()
    result = restore(face, "--prior", folder)
    assert result.exit_code == 2
    line = one_line_of(result.stderr)
    assert line.startswith(f"error {folder}")
    assert message in line
    assert not (tmp_path / "out").exists()


# --- every option reaches the work

OPTIONS = {
    "nothing": (),
    "scale": ("--scale", "8"),
    "corrector": ("--corrector", "none"),
    "preset": ("--method", "paper-ddim"),
    "solver": ("--option", "solver=ddpm"),
    "steps": ("--option", "steps=7"),
    "start": ("--option", "start=0.9"),
    "end": ("--option", "end=0.2"),
    "tau": ("--option", "tau=0.45"),
    "stride": ("--option", "stride=4"),
    "edge exponent": ("--option", "edge_exponent=0.2"),
    "late weight": ("--option", "late_weight=0.1"),
    "eta": ("--option", "eta=0.4"),
    "seed": ("--seed", "1"),
    "dtype": ("--dtype", "bfloat16"),
}


def test_every_option_changes_the_result(restore, face, tmp_path):
    base = {"steps": "6", "start": "0.5", "end": "0.02", "tau": "0.3"}  # levels on both sides of tau
    pixels = {}
    for name, arguments in OPTIONS.items():
        others = {key: value for key, value in base.items() if not arguments or f"{key}=" not in arguments[-1]}
        assert restore(face, *own(**others), *arguments).exit_code == 0
        pixels[name] = read_image(tmp_path / "out" / "face.png").tobytes()
    for name, found in pixels.items():
        assert [other for other in pixels if pixels[other] == found] == [name]


def test_every_option_is_written_into_the_metadata(restore, face, tmp_path):
    sampling = {"solver": "ddim", "steps": 5, "start": 0.7, "end": 0.06, "eta": 0.2, "shift": 0.1}
    dpi = {"tau": 0.3, "stride": 4, "edge_exponent": 1.1, "late_weight": 0.9, "placement": "resized", "crt": "after"}
    dpi |= {"detail": 1.0, "detail_above": 4, "smooth": False, "rederived": 0.0, "deviation": 0.9, "texture": 0.5}
    others = "--scale 8 --seed 12 --corrector none --method paper-ddim --dtype bfloat16"
    assert restore(face, "--samples", "2", *others.split(), *own(**sampling, **dpi)).exit_code == 0
    metadata = read_metadata(tmp_path / "out" / "face-2.png")
    assert metadata["options"] == {**sampling, **dpi}
    assert (metadata["scale"], metadata["seed"], metadata["sample"]) == (8.0, 12, 2)
    assert (metadata["preset"], metadata["corrector"], metadata["dtype"]) == ("paper-ddim", None, "bfloat16")
    assert (metadata["faceprior"], metadata["method"]) == (__version__, "dpi")


def test_an_end_of_nothing_replaces_that_of_the_preset(restore, face, tmp_path):
    restore(face, "--option", "end=0")
    assert read_metadata(tmp_path / "out" / "face.png")["options"]["end"] == 0


def test_the_same_command_line_writes_the_same_bytes(restore, face, tmp_path):
    written = []
    for _ in range(2):
        restore(face, "--samples", "2", "--sheet", "--seed", "3")
        written.append({path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")})
    assert written[0] == written[1]
    assert len(written[0]) == 5


# --- photographs and folders


@pytest.fixture(scope="module")
def astronaut(tmp_path_factory):
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("photo") / "astronaut.jpg"
    Image.fromarray(data.astronaut()).resize((256, 256)).save(path, quality=90)
    return path


EMBEDDED = ("--option", "steps=1", "--device", "cpu", "--dtype", "float32", "--min-face", "40")


def test_a_photograph_is_restored_without_a_word_about_what_it_is(astronaut, tmp_path):
    result = faceprior("restore", astronaut, "--output", tmp_path, *EMBEDDED)
    assert result.exit_code == 0
    assert one_line_of(result.stdout).startswith(
        f"{astronaut} → {tmp_path / 'astronaut.jpg'}  (1 face restored, agrees with the input to "
    )
    with Image.open(tmp_path / "astronaut.jpg") as restored:
        assert (restored.format, restored.size) == ("JPEG", (256, 256))
    (face,) = json.loads(faceprior("explain", tmp_path / "astronaut.jpg").stdout)["faces"]
    left, top, right, bottom = face["box"]
    assert 80 < left < 120 < right < 150
    assert 25 < top < 60 < bottom < 100


def test_the_options_of_photographs_reach_the_work(astronaut, tmp_path):
    options = ("--upscale", "2", "--blend", "0.5", "--faces", "1", "--detector", "centerface", "--photo", "--sheet")
    assert faceprior("restore", astronaut, "--output", tmp_path, *EMBEDDED, *options).exit_code == 0
    manifest = (tmp_path / "restore.jsonl").read_text("utf-8").splitlines()
    settings, record = json.loads(manifest[0])["settings"], json.loads(manifest[1])
    assert Image.open(tmp_path / "astronaut.jpg").size == (512, 512)
    assert [written["file"] for written in record["outputs"]] == ["astronaut.jpg", "astronaut-sheet.png"]
    expected = {"upscale": 2, "blend": 0.5, "faces": 1, "min_face": 40, "detector": "centerface", "kind": "photo"}
    assert expected.items() <= settings.items()
    assert faceprior("restore", astronaut, "--output", tmp_path / "only", *EMBEDDED, "--only-faces").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "only").iterdir()) == ["astronaut-face1.png", "restore.jsonl"]


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--strict",), 3)])
def test_no_face_is_said_and_fails_only_when_that_is_wanted(arguments, code, tmp_path):
    photo = tmp_path / "sky.png"
    Image.fromarray(smooth_picture(0, 200)[:150]).save(photo)
    result = faceprior("restore", photo, "--output", tmp_path / "out", *EMBEDDED, *arguments)
    assert result.exit_code == code
    assert one_line_of(result.stdout) == f"{photo} → {tmp_path / 'out' / 'sky.png'}  (no face found)"
    assert (tmp_path / "out" / "sky.png").read_bytes() == photo.read_bytes()
    assert not arguments or one_line_of(result.stderr) == "no face found in 1 of 1 (--strict)"


def test_a_folder_that_would_hold_its_own_results_is_refused(prior, face):
    result = faceprior("restore", face.parent, "--output", face.parent, "--prior", prior, *QUICK)
    assert result.exit_code == 2
    assert "choose another --output" in one_line_of(result.stderr)


def test_a_killed_command_goes_on_with_resume_and_redoes_nothing(prior, face, tmp_path):
    copies(face, tmp_path / "faces", 40)
    output = tmp_path / "out"
    arguments = ("restore", tmp_path / "faces", "--prior", prior, *QUICK)
    process = faceprior_process(*arguments, "--output", output, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 600
    manifest = output / "restore.jsonl"
    lines = 0  # the first says the settings
    while lines < 3 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
        lines = manifest.read_text("utf-8").count("\n") if manifest.exists() else 0
    process.kill()
    assert process.wait() == -signal.SIGKILL
    whole = manifest.read_text("utf-8").splitlines(keepends=True)[1:]
    done = [json.loads(line)["outputs"][0]["file"] for line in whole if line.endswith("\n")]
    assert 1 <= len(done) < 40
    inodes = {name: (output / name).stat().st_ino for name in done}
    result = faceprior(*arguments, "--output", output, "--resume")
    assert result.exit_code == 0
    assert one_line_of(result.stderr) == f"{len(done)} of 40 were done before"
    assert len(result.stdout.splitlines()) == 40 - len(done)
    assert {name: (output / name).stat().st_ino for name in done} == inodes
    assert faceprior(*arguments, "--output", tmp_path / "whole").exit_code == 0
    assert len(list(output.iterdir())) == 41
    for path in output.glob("*.png"):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_a_prior_that_does_not_say_where_faces_stand_restores_aligned_ones_only(prior, astronaut, face, tmp_path):
    arguments = ("--output", tmp_path / "out", "--prior", prior, *QUICK)
    result = faceprior("restore", astronaut, *arguments[:-1])
    assert result.exit_code == 3
    assert result.stderr.startswith(
        f"failed {astronaut}: the card of prior tiny does not say where a face must stand"
    )
    assert faceprior("restore", face, *arguments).exit_code == 0
    assert (tmp_path / "out" / "face.png").exists()


# --- explain


def test_explain_prints_how_a_result_was_made(restore, face, tmp_path):
    restore(face, "--seed", "7")
    result = faceprior("explain", tmp_path / "out" / "face.png")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == read_metadata(tmp_path / "out" / "face.png")
    assert json.loads(result.stdout)["seed"] == 7


@pytest.mark.parametrize("kind", ["png", "jpeg", "text", "missing", "folder"])
def test_explain_refuses_other_files_in_one_line(kind, face, tmp_path):
    path = tmp_path / f"[x].{kind}"
    if kind in ("png", "jpeg"):
        Image.open(face).save(path, kind)
    elif kind == "text":
        path.write_text("text")
    elif kind == "folder":
        path.mkdir()
    result = faceprior("explain", path)
    assert result.exit_code == 2
    assert one_line_of(result.stderr).startswith(f"error {path}: ")
    assert result.stdout == ""


# --- priors


def test_the_embedded_priors_are_listed_and_shown():
    listed = faceprior("priors", "list").stdout
    assert "faces-128" in listed
    assert "corrector-128" in listed
    for name, kind in (("faces-128", "prior"), ("corrector-128", "corrector")):
        card = json.loads(faceprior("priors", "show", name).stdout)
        assert (card["name"], card["kind"], card["resolution"]) == (name, kind, 128)
        assert len(card["sha256"]) == 64


def test_a_folder_is_shown_and_an_unknown_name_refused(prior):
    assert json.loads(faceprior("priors", "show", prior).stdout)["resolution"] == 32
    assert json.loads(faceprior("priors", "show", prior / "corrector").stdout)["kind"] == "corrector"
    result = faceprior("priors", "show", "nothing")
    assert result.exit_code == 2
    assert "neither a name (faces-128, " in one_line_of(result.stderr)


@pytest.fixture
def checkpoint(tmp_path):
    flags = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2"}
    flags |= {"attention_resolutions": "16", "num_head_channels": 32}
    network = randomise(ADMUNet(32, 32, 1, (1, 2), (16,), 32), 0)
    torch.save(network.state_dict(), tmp_path / "adm.pt")
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    return tmp_path / "adm.pt", ("--adm-config", tmp_path / "flags.json")


def test_a_converted_adm_checkpoint_restores(checkpoint, face, tmp_path):
    path, flags = checkpoint
    result = faceprior("priors", "convert", path, "--output", tmp_path / "converted", *flags)
    assert result.exit_code == 0
    assert one_line_of(result.stdout).startswith(f"{path} → {tmp_path / 'converted'} (32×32, sha256 ")
    arguments = ("--output", tmp_path / "out", "--prior", tmp_path / "converted")
    assert faceprior("restore", face, *arguments, *QUICK).exit_code == 0


def test_a_checkpoint_that_does_not_fit_its_flags_is_refused(checkpoint, tmp_path):
    path, _ = checkpoint
    for arguments, message in (
        ((path,), "adm.pt"),
        ((tmp_path / "missing.pt",), "missing.pt: is not a file"),
        ((path, "--adm-config", tmp_path / "missing.json"), "missing.json"),
    ):
        result = faceprior("priors", "convert", *arguments, "--output", tmp_path / "converted")
        assert result.exit_code == 2
        assert message in one_line_of(result.stderr)
        assert not (tmp_path / "converted").exists()


def test_a_conversion_that_cannot_be_written_is_one_line(checkpoint, tmp_path):
    path, flags = checkpoint
    result = faceprior("priors", "convert", path, *flags, "--output", path / "below")
    assert result.exit_code == 2
    assert str(path) in one_line_of(result.stderr)


# --- data and training

TINY_CONFIG = {
    "prior": {"network_options": {"rank": 4, "widths": [8, 16], "blocks": [1, 1]}},
    "corrector": {"network_options": {"widths": [8, 16], "blocks": [1, 1]}, "damaged": 0.0},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "faces").mkdir()
    for number in range(12):
        Image.fromarray(smooth_picture(number)).save(folder / "faces" / f"{number}.png")
    (folder / "faces" / "broken [x].png").write_text("no picture")
    result = faceprior(
        "data", "pack", folder / "faces", "--output", folder / "shards", "--size", 32, "--held-out", 0.3
    )
    assert result.exit_code == 3
    assert one_line_of(result.stderr).startswith(
        f"skipped {folder / 'faces' / 'broken [x].png'}: is not a picture that can be read"
    )
    assert re.search(r"shards: \d+ train, \d+ val$", one_line_of(result.stdout))
    return folder / "shards"


@pytest.fixture
def train(shards, tmp_path):
    def start(kind, *arguments, **options):
        config = {"batch_size": 2, "evaluate_faces": 2, "mixed_precision": "no", **TINY_CONFIG[kind], **options}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        paths = ("--data", shards, "--output", tmp_path / "run", "--config", tmp_path / "config.yaml")
        return faceprior("train", kind, *paths, *arguments)

    return start


@pytest.mark.parametrize("kind", ["prior", "corrector"])
def test_training_writes_weights_that_restore_and_goes_on_only_when_asked(train, kind, face, tmp_path):
    result = train(kind, "--steps", 2)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"weights are in {tmp_path / 'run' / 'weights'}"
    assert "step 2: " in result.stdout

    refused = train(kind, "--steps", 3)
    assert refused.exit_code == 2
    assert "add --resume or choose another --output" in one_line_of(refused.stderr)

    assert train(kind, "--steps", 3, "--resume").exit_code == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3]

    card = json.loads(faceprior("priors", "show", tmp_path / "run" / "weights").stdout)
    assert (card["kind"], card["resolution"], card["training"]["steps"]) == (kind, 32, 3)
    if kind == "prior":
        arguments = ("--prior", tmp_path / "run" / "weights")
        assert faceprior("restore", face, "--output", tmp_path / "out", *QUICK, *arguments).exit_code == 0


def test_any_option_of_a_configuration_is_set_by_its_name(train, tmp_path):
    assert train("prior", "--steps", 1, "--set", "learning-rate=3e-4", "--set", "seed=5", seed=4).exit_code == 0
    used = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (used["learning_rate"], used["seed"], used["steps"]) == (3e-4, 5, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "seed"), "--set seed: write NAME=VALUE"),
        (("--set", "seed=1", "--set", "seed=2"), "option seed is given twice"),
        (("--steps", "1", "--set", "steps=2"), "option steps is given twice"),
        (("--set", "decay=3"), "decay is 3; it must be at most 1"),
    ],
)
def test_what_is_set_wrongly_is_a_usage_error(train, words, message, tmp_path):
    result = train("prior", *words)
    assert result.exit_code == 2
    assert message in one_line_of(result.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepps": 3}, "unknown option stepps"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
@pytest.mark.parametrize("kind", ["prior", "corrector"])
def test_a_wrong_training_option_is_a_usage_error(train, kind, options, message, tmp_path):
    result = train(kind, **options)
    assert result.exit_code == 2
    assert message in one_line_of(result.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "pack", "{tmp}/missing", "-o", "{tmp}/s"), "missing"),
        (("data", "pack", "{tmp}", "-o", "{tmp}/s"), "no face was found"),
        (("train", "prior", "--data", "{tmp}", "-o", "{tmp}/run"), "faceprior data pack"),
        (("train", "prior", "--data", "{tmp}", "-o", "{tmp}/run", "--config", "{tmp}/no.yaml"), "no.yaml"),
    ],
)
def test_missing_data_is_refused_in_one_line(arguments, message, tmp_path):
    result = faceprior(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert message in one_line_of(result.stderr)


def test_shards_and_runs_that_cannot_be_written_are_one_line(train, shards, tmp_path):
    Image.fromarray(smooth_picture(0)).save(tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    for result in (
        faceprior("data", "pack", tmp_path, "--output", tmp_path / "file"),
        faceprior("data", "pack", tmp_path, "--output", tmp_path / "file" / "below"),
        train("prior", "--steps", 1, "--output", tmp_path / "file"),
    ):
        assert result.exit_code == 2
        assert str(tmp_path / "file") in one_line_of(result.stderr)


# --- the demonstration


def test_the_demo_writes_its_pictures_and_its_mean_beats_bicubic(tmp_path):
    output = tmp_path / "de[mo]"
    result = faceprior("demo", "--output", output)
    assert result.exit_code == 0
    sizes = {path.stem: Image.open(path).size for path in output.glob("*.png")}
    assert sizes.pop("restored-sheet")[0] > 4 * 256
    assert sizes.pop("input") == (16, 16)
    names = ("original", "bicubic", *(f"restored{suffix}" for suffix in ("", "-2", "-3", "-4", "-mean", "-doubt")))
    assert sizes == dict.fromkeys(names, (128, 128))
    rows = re.findall(
        r"│ (bicubic|restored|mean of 4 samples) +│ +([\d.]+) +│ +([\d.]+) +│ +([\d.]+) +│", result.stdout
    )
    assert [row[0] for row in rows] == ["bicubic", "restored", "mean of 4 samples"]
    psnr = {name: float(value) for name, value, *_ in rows}
    assert psnr["mean of 4 samples"] > psnr["bicubic"]
    assert f"Look at {output / 'restored-sheet.png'}" in result.stdout
    metadata = read_metadata(output / "restored.png")
    assert (metadata["prior"]["name"], metadata["scale"]) == ("faces-128", 8)


# --- the terminal


def test_help_and_version_answer_without_importing_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from faceprior.cli.app import app\n"
        "import faceprior\n"
        "for arguments in (['--help'], ['--version'], ['restore', '--help'], ['train', 'prior', '--help']):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'PIL', 'accelerate', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=subprocess_environment())  # noqa: S603


def test_a_photograph_is_restored_without_importing_what_it_does_not_need(tmp_path):
    photo = tmp_path / "astronaut.jpg"
    Image.fromarray(skimage.data.astronaut()[::2, ::2]).save(photo)
    heavy = (
        "accelerate av cv2 diffusers fsspec gradio huggingface_hub matplotlib onnxruntime pandas ray scipy skimage"
        " sympy torch._dynamo torchmetrics torchvision transformers"
    )
    code = (
        "import sys; from typer.testing import CliRunner; from faceprior.cli.app import app\n"
        "import faceprior; faceprior.FacePriorPipeline.from_pretrained()\n"
        f"ran = CliRunner().invoke(app, ['restore', {str(photo)!r}, '--option', 'steps=1'])\n"
        "assert ran.exit_code == 0, ran.output\n"
        f"heavy = set({heavy!r}.split()) & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=subprocess_environment())  # noqa: S603
    assert (tmp_path / "astronaut-restored.jpg").exists()


def test_the_version_is_printed():
    assert faceprior("--version").stdout == f"faceprior {__version__}\n"


def test_the_help_of_restore_names_every_option():
    text = CliRunner().invoke(app, ["restore", "--help"], env={"COLUMNS": "200"}).stdout
    for arguments in OPTIONS.values():
        for option in arguments:
            assert not option.startswith("--") or option in text
    for option in ("--prior", "--samples", "--device", "--sheet", "--output"):
        assert option in text


def test_pipes_get_results_on_one_side_and_errors_on_the_other(prior, face, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    arguments = ("restore", face, tmp_path / "bad.png", "--output", tmp_path / "out", "--prior", prior, *QUICK)
    process = faceprior_process(
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONIOENCODING": "ascii"},  # a terminal that knows no arrow
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert one_line_of(out).startswith(rf"{face} \u2192 {tmp_path / 'out' / 'face.png'}  (\xd74, ")
    assert [line.split()[0] for line in err.splitlines()] == ["failed", "1"]
    assert "\x1b" not in out + err


def test_a_reader_that_leaves_early_causes_no_traceback(prior, face, tmp_path):
    arguments = ("restore", face, "--output", tmp_path / "out", "--prior", prior, *QUICK)
    process = faceprior_process(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)


def read_terminal(descriptor, until, timeout=60):
    """What a process writes to a pseudo-terminal, until some text appears or the terminal is closed."""
    text, end = "", time.monotonic() + timeout
    while until not in text and time.monotonic() < end:
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                text += os.read(descriptor, 65536).decode()
            except OSError:  # closed at the other end
                break
    return text


def on_a_terminal(*arguments, results):
    """Run a command with errors, and results too or not, on a pseudo-terminal; returns (terminal, pipe)."""
    leader, follower = pty.openpty()
    stdout = follower if results else subprocess.PIPE
    process = faceprior_process(*arguments, stdout=stdout, stderr=follower, env={"TERM": "xterm"})
    os.close(follower)
    terminal = read_terminal(leader, until="no such text")
    piped, _ = process.communicate(timeout=60)
    os.close(leader)
    assert process.returncode == 0
    return terminal, piped


def test_a_bar_is_drawn_on_the_terminal_while_results_go_to_the_pipe(prior, face, tmp_path):
    arguments = ("restore", face, "--output", tmp_path / "out", "--prior", prior, *QUICK)
    terminal, piped = on_a_terminal(*arguments, results=False)
    assert one_line_of(piped).startswith(f"{face} → ")
    assert "restoring" in terminal
    assert str(face) not in terminal


def test_on_a_terminal_results_stand_above_the_bar(prior, face, tmp_path):
    folder = tmp_path / "faces"
    copies(face, folder, 3)
    arguments = ("restore", folder, "--output", tmp_path / "out", "--prior", prior, *QUICK)
    terminal, _ = on_a_terminal(*arguments, results=True)
    before = re.findall(r"(.{4})" + re.escape(f"{folder}/") + r"\d+.png → ", terminal, re.DOTALL)
    assert before == ["\x1b[2K"] * 3  # the bar's line was erased first


@pytest.fixture
def heeding_ctrl_c():
    """A process that was started in the background ignores Ctrl-C, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_ctrl_c_prints_one_line_leaves_whole_files_and_exits_130(prior, face, tmp_path):
    output = tmp_path / "out"
    copies(face, tmp_path / "faces", 3000)
    process = faceprior_process(
        *("restore", tmp_path / "faces", "--output", output, "--prior", prior, *QUICK),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 60
    while len(list(output.glob("*.png"))) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"stopped; \d+ of 3000 are done, the same command with --resume goes on", one_line_of(err))
    assert {path.suffix for path in output.iterdir()} == {".png", ".jsonl"}
    for path in output.glob("*.png"):
        read_image(path)
    for line in (output / "restore.jsonl").read_text("utf-8").splitlines()[1:]:
        assert json.loads(line)["status"] == "done"


def test_an_option_that_the_code_speaks_of_exists():
    known, todo = {"--help", "--no-deps", "--upgrade"}, [typer.main.get_command(app)]  # of click and of pip
    while todo:
        command = todo.pop()
        known.update(*(parameter.opts + parameter.secondary_opts for parameter in command.params))
        todo += getattr(command, "commands", {}).values()
    for path in (Path(__file__).parents[1] / "src").rglob("*.py"):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", path.read_text(encoding="utf-8"))) <= known, path
