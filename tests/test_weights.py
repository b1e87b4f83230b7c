"""The weights are a distribution of their own, with their own licence."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from faceprior import FacePriorPipeline, load_prior
from faceprior.cli import app
from faceprior.errors import WeightsError
from faceprior.priors import store

ROOT = Path(__file__).parent.parent
NOTICE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "packages").glob("*/NOTICE")))
CARDS = {**store.embedded_cards("prior"), **store.embedded_cards("corrector")}


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(store, "find_spec", lambda _name: None)


def test_without_the_weights_one_line_says_what_to_install(not_installed, tiny, tmp_path):
    for load in (load_prior, FacePriorPipeline.from_pretrained):
        with pytest.raises(WeightsError, match=r"faces-128.*pip install faceprior-weights"):
            load()
    store.save_prior(tiny.gaussian_prior(), tmp_path)
    assert FacePriorPipeline.from_pretrained(tmp_path).crt is None


def test_priors_list_says_it_too(not_installed):
    result = CliRunner().invoke(app.app, ["priors", "list"])
    assert result.exit_code == 0
    assert "pip install faceprior-weights," in result.stdout


@pytest.mark.parametrize("name", CARDS)
def test_the_notice_lists_every_source_of_the_embedded_weights(name):
    section = next(part for part in re.split(r"\n(?=\S)", NOTICE) if name in part.splitlines()[0].split(", "))
    lines = [line.strip() for line in section.splitlines()]
    for source in CARDS[name].data:
        start, end = f"{source['source']} ", source["licence"]
        assert any(line.startswith(start) and line.endswith(end) for line in lines), source


def test_weights_inside_the_code_are_free_and_say_so():
    for weights in (ROOT / "src").rglob("*.safetensors"):
        assert "MIT" in (weights.parent / "LICENSE").read_text(encoding="utf-8"), weights
