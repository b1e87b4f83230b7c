"""Every command in the documents exists and is run, at toy size; or it is said why not."""

import pkgutil
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from faceprior.benchmark.config import load_benchmark
from faceprior.cli.app import app
from faceprior.cli.demo import ASTRONAUT_LANDMARKS
from faceprior.faces import align
from faceprior.pipeline import FacePriorPipeline
from faceprior.priors.card import TIGHT_TEMPLATE
from test_house import FLOOR
from tiny_faces import pack_faces

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CONFIGS = sorted(
    path for path in (ROOT / "configs").rglob("*.yaml") if "methods:" in path.read_text(encoding="utf-8")
)

_COMMAND = re.compile(r"(?:\$ )?((?:faceprior|python -m benchmarks\.)\S*(?: .*)?)")
_INLINE = re.compile(r"`((?:faceprior|python -m benchmarks\.)[^`]+)`", re.DOTALL)


def blocks(text):
    """Lines of code of a document: between fences, or indented by four spaces; comments are cut off."""
    fenced = False
    for line in re.sub(r" *\\\n\s*", " ", text).splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip().split("  #")[0].split(" # ")[0].strip()


def written_out(path):
    """Command lines of a document that stand in code, for a reader to type or copy."""
    found = [match[1] for line in blocks(path.read_text(encoding="utf-8")) if (match := _COMMAND.fullmatch(line))]
    return [line for line in dict.fromkeys(found) if not re.search(r"…|\.\.\.|[|<>]", line)]


def commands(path):
    """Those, and the ones between backticks that have options."""
    found = [" ".join(match.split()) for match in _INLINE.findall(path.read_text(encoding="utf-8")) if " --" in match]
    inline = [line for line in found if not re.search(r"…|\.\.\.|[|<>]", line)]
    return list(dict.fromkeys([*written_out(path), *inline]))


def parse(arguments):
    """Let the command line read arguments, without running what they ask for."""
    command, context = typer.main.get_command(app), click.Context(click.Command("faceprior"))
    name = "faceprior"
    while isinstance(command, click.Group):
        name, *arguments = arguments
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    with command.make_context(name, list(arguments), parent=context):
        pass


def names(found):
    return [f"{path.stem}-{number}" for number, (path, _) in enumerate(found)]


EVERY = [(path, line) for path in DOCUMENTS for line in commands(path)]


@pytest.mark.parametrize(
    ("path", "line"), EVERY, ids=[f"{path.stem}-{index}" for index, (path, _) in enumerate(EVERY)]
)
def test_a_command_of_a_document_exists_with_its_options(path, line):
    words = shlex.split(line)
    if words[0] == "faceprior":
        parse(words[1:])
        return
    module = words[2].removeprefix("benchmarks.")
    assert (ROOT / "benchmarks" / f"{module}.py").is_file()
    script = typer.Typer()
    script.command()(__import__(f"benchmarks.{module}", fromlist=["main"]).main)
    typer.main.get_command(script).make_context(module, words[3:])


@pytest.fixture(scope="module")
def toy(tiny, tmp_path_factory):
    """A prior with a corrector, and packed faces for it."""
    root = tmp_path_factory.mktemp("toy")
    FacePriorPipeline(tiny.gaussian_prior(), tiny.corrector()).save_pretrained(root / "prior")
    return root / "prior", pack_faces(root)


MEASURED = [
    (path, line)
    for path, line in EVERY
    if line.startswith("faceprior benchmark")
    and ("paper/" not in line or "--data" in line)
    and "runs/prior" not in line  # weights of a run that the reader has made
]


@pytest.mark.parametrize(("path", "line"), MEASURED, ids=names(MEASURED))
def test_a_comparison_of_the_documents_runs_at_toy_size(path, line, toy, tmp_path, monkeypatch):
    prior, shards = toy
    words = shlex.split(line)[1:]
    config = words[words.index("--config") + 1] if "--config" in words else None
    if config:
        words[words.index("--config") + 1] = str(ROOT / config)
    if "--corrector" in words:  # of 256×256; the toy prior brings its own
        at = words.index("--corrector")
        del words[at : at + 2]
    monkeypatch.chdir(tmp_path)
    for name in ("shards", "shards-256"):
        (tmp_path / name).symlink_to(shards)
    toy_size = ["--prior", prior, "--faces", "2", "--samples", "1", "--dtype", "float32", "--scales", "4"]
    toy_size += ["--methods", "dpi,steps=2", "--metrics", "psnr,texture_8,grid"]
    toy_size += ["--degradations", "bicubic", "--seeds", "0", "--set", "baseline="]
    result = CliRunner().invoke(app, [*words, *map(str, toy_size)])
    assert result.exit_code == 0, result.output
    for method in ("bicubic", "corrector", "dpi steps=2"):
        assert method in result.output
    assert list(tmp_path.rglob("report.html"))


NOT_RUN = {  # what starts so is only parsed, and why
    "faceprior serve": "serves until it is stopped; test_serve.py starts it",
    "faceprior priors fetch": "downloads; test_public.py fetches from a hub in memory",
    "faceprior priors convert": "wants a checkpoint of 374 MB; test_adm.py converts a small one",
    "faceprior benchmark": "run above at toy size, or wants published sets that are not ours to keep here",
    "faceprior train": "the training commands below run for two steps",
}
NOT_REACHED = r"s3://|gs://|https://|--ray"  # stores and clusters: test_storage.py and test_scale.py have their own
TRAINING = ROOT / "docs" / "training.md"

TYPED = [
    (path, line)
    for path in DOCUMENTS
    for line in written_out(path)
    if not line.startswith(tuple(NOT_RUN)) and not re.search(NOT_REACHED, line) and path != TRAINING
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The files that the documents speak of: small photographs and aligned faces, and a clip of two frames."""
    skimage = pytest.importorskip("skimage")
    photo = Image.fromarray(skimage.data.astronaut())
    root = tmp_path_factory.mktemp("pictures")
    small = photo.crop((60, 0, 400, 340)).resize((200, 200), Image.Resampling.BICUBIC)
    for name in ("photo.jpg", "party.jpg", "portrait.jpg", "album/1931/a.jpg", "scans/box/b.tif"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        small.save(root / name)
    face = align(photo, ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, 128)
    for name, side in (("sharp.png", 128), ("face.png", 64), ("one.png", 16), ("two.png", 32), ("album/c.png", 64)):
        face.resize((side, side), Image.Resampling.BICUBIC).save(root / name)
    return root


@pytest.mark.parametrize(("path", "line"), TYPED, ids=names(TYPED))
def test_a_command_that_is_written_out_does_what_it_says(path, line, pictures, tmp_path, monkeypatch):
    words = shlex.split(line)[1:]
    monkeypatch.chdir(shutil.copytree(pictures, tmp_path / "here"))
    if "photo.heic" in words:
        pytest.importorskip("pillow_heif").register_heif_opener()
        Image.open("photo.jpg").save("photo.heic")
    if "clip.mp4" in words:
        frame = np.asarray(Image.open("photo.jpg"))
        pytest.importorskip("synthetic_clips").write_clip("clip.mp4", [frame, frame])
    before = set(Path().rglob("*"))
    if words[0] == "restore":
        words = [re.sub(r"^steps=\d+$", "steps=1", word) for word in words]
        words += [] if "steps=1" in words else ["--option", "steps=1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    made = sorted(str(path) for path in set(Path().rglob("*")) - before if path.is_file())
    if words[0] in ("restore", "demo"):
        assert any(Path(name).suffix in (".jpg", ".png", ".tif", ".heic", ".mp4") for name in made), result.output
    else:
        assert result.output.strip()


PYTHON = [ROOT / "README.md", ROOT / "docs" / "python.md"]
WRITTEN = [
    (path, code) for path in PYTHON for code in re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
]


@pytest.mark.parametrize(("path", "code"), WRITTEN, ids=names(WRITTEN))
def test_an_example_in_python_runs(path, code, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(pictures, tmp_path / "here"))
    exec(code, {})  # noqa: S102 - our own documentation


def test_every_reason_not_to_run_a_command_is_still_needed():
    every = [line for path in DOCUMENTS for line in written_out(path)]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in every), start
    assert any(re.search(NOT_REACHED, line) for line in every)
    assert len(TYPED) > 10


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_loads_with_all_its_methods_and_names_its_command(path):
    assert load_benchmark(path, {}).chosen_methods()
    [command] = re.findall(r"^# (faceprior benchmark .*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert f"--config {path.relative_to(ROOT)} " in command
    parse(shlex.split(command)[1:])


def test_the_toy_of_the_documents_is_trained_from_photographs_that_packages_bring(tmp_path, monkeypatch):
    skimage, matplotlib = pytest.importorskip("skimage"), pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    places = {"$data": f"{Path(skimage.__file__).parent}/data", "$more": f"{matplotlib.get_data_path()}/sample_data"}
    every = written_out(TRAINING)
    first = next(number for number, line in enumerate(every) if "$data" in line)
    toy = every[first : first + 5]
    assert [line.split()[1] for line in toy] == ["data", "data", "train", "train", "benchmark"]
    for line in toy:
        words = [re.sub(r"\$\w+", lambda match: places[match[0]], word) for word in shlex.split(line)[1:]]
        if words[0] == "train":
            words += ["--steps", "2", "--set", "evaluate_every=2"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "measured" / "report.html").is_file()


def test_the_rooms_of_contributing_are_those_of_the_house():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = [re.findall(r"`(\w+)`", cell) for cell in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, re.MULTILINE)]
    drawn = [row for row in rows if FLOOR.keys() & set(row)]
    assert sorted(room for row in drawn for room in row) == sorted(FLOOR.keys() - {"errors", "__main__"})
    floors = [[FLOOR[room] for room in row] for row in drawn]
    assert all(min(upper) >= max(lower) for upper, lower in pairwise(floors))


def test_the_site_leads_to_every_page():
    def pages(entry):
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from [inner] if isinstance(inner, str) else pages(inner)

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(pages(site["nav"])) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    )


def test_the_site_shows_what_exists():
    for path in (ROOT / "docs" / "api").glob("*.md"):
        for name in re.findall(r"^::: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert pkgutil.resolve_name(name).__doc__, name
