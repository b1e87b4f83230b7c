"""Every command in the documents exists, and those of the laboratory run at toy size."""

import pkgutil
import re
import shlex
from pathlib import Path

import click
import pytest
import typer
import yaml
from typer.testing import CliRunner

from faceprior.benchmark.config import load_benchmark
from faceprior.cli.app import app
from faceprior.pipeline import FacePriorPipeline
from tiny_faces import pack_faces

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CONFIGS = sorted(
    path for path in (ROOT / "configs").rglob("*.yaml") if "methods:" in path.read_text(encoding="utf-8")
)

_LINE = re.compile(r"^(?:    |\$ )?((?:faceprior|python -m benchmarks\.)\S*(?: .*)?)$")
_INLINE = re.compile(r"`((?:faceprior|python -m benchmarks\.)[^`]+)`", re.DOTALL)


def commands(path):
    """Command lines of a document: lines of their own, and those between backticks that have options."""
    text = re.sub(r" *\\\n\s*", " ", path.read_text(encoding="utf-8"))
    found = [match[1].split("  #")[0].split(" # ")[0] for line in text.splitlines() if (match := _LINE.match(line))]
    found += [" ".join(match.split()) for match in _INLINE.findall(text) if " --" in match]
    return [line for line in dict.fromkeys(found) if "…" not in line and not re.search(r"\.\.\.|[|<>]", line)]


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
    and path.stem in ("benchmark", "studies", "reproduce")
    and "paper/" not in line
]


@pytest.mark.parametrize(("path", "line"), MEASURED, ids=names(MEASURED))
def test_a_comparison_of_the_documents_runs_at_toy_size(path, line, toy, tmp_path, monkeypatch):
    prior, shards = toy
    words = shlex.split(line)[1:]
    config = words[words.index("--config") + 1] if "--config" in words else None
    if config:
        words[words.index("--config") + 1] = str(ROOT / config)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").symlink_to(shards)
    toy_size = ["--prior", prior, "--faces", "2", "--samples", "1", "--dtype", "float32", "--scales", "4"]
    toy_size += ["--methods", "dpi,steps=2", "--metrics", "psnr,texture_8,grid", "--set", "confidence_draws=20"]
    toy_size += ["--degradations", "bicubic", "--seeds", "0", "--set", "baseline="]
    result = CliRunner().invoke(app, [*words, *map(str, toy_size)])
    assert result.exit_code == 0, result.output
    for method in ("bicubic", "corrector", "dpi steps=2"):
        assert method in result.output
    assert list(tmp_path.rglob("report.html"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_loads_with_all_its_methods_and_names_its_command(path):
    assert load_benchmark(path, {}).chosen_methods()
    assert f"faceprior benchmark --config {path.relative_to(ROOT)}" in path.read_text(encoding="utf-8")


def test_the_toy_of_the_documents_is_trained_from_photographs_that_packages_bring(tmp_path, monkeypatch):
    skimage, matplotlib = pytest.importorskip("skimage"), pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    places = {"$data": f"{Path(skimage.__file__).parent}/data", "$more": f"{matplotlib.get_data_path()}/sample_data"}
    every = commands(ROOT / "docs" / "training.md")
    first = next(number for number, line in enumerate(every) if "$data" in line)
    toy = every[first : first + 5]
    assert [line.split()[1] for line in toy] == ["data", "data", "train", "train", "restore"]
    for line in toy:
        words = [re.sub(r"\$\w+", lambda match: places[match[0]], word) for word in shlex.split(line)[1:]]
        if words[0] == "train":
            words += ["--steps", "2", "--evaluate-every", "2"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    assert list((tmp_path / "out").glob("*-sheet.png"))


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
