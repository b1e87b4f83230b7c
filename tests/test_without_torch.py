"""What computes nothing needs no torch; `make test-pythons` runs this and more without it."""

import subprocess
import sys

import pytest

MODULES = [
    "faceprior",
    "faceprior.cli.app",
    "faceprior.cli.doctor",
    "faceprior.clips.container",
    "faceprior.errors",
    "faceprior.faces",
    "faceprior.folders.inputs",
    "faceprior.folders.manifest",
    "faceprior.folders.outputs",
    "faceprior.images",
    "faceprior.priors.card",
    "faceprior.settings",
    "faceprior.storage",
    "faceprior.training.config",
]

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers", "accelerate", "torchmetrics", "gradio"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Blocked())
"""


def run(code):
    """Run a program in which torch cannot be imported; return what it printed."""
    words = [sys.executable, "-c", BLOCKED + code]
    done = subprocess.run(words, check=False, capture_output=True, text=True, encoding="utf-8")  # noqa: S603
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_needs_no_torch_does_not_import_it():
    run("".join(f"import {module}\n" for module in MODULES))


def test_the_manifest_and_the_names_of_results_work(tmp_path):
    code = f"""
from pathlib import Path
from faceprior.folders.inputs import find_inputs, output_names
from faceprior.folders.manifest import Manifest
folder = Path({str(tmp_path)!r})
(folder / "in").mkdir()
for name in ("a.jpg", "a.png", "notes.txt"):
    (folder / "in" / name).touch()
inputs = find_inputs([folder / "in"], folder / "out")
print(output_names(inputs, folder / "out", [""]))
"""
    assert run(code) == "['a', 'a_png']\n"


def test_options_are_checked(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 0\n")
    code = """
from pydantic import ValidationError
from faceprior.training.config import PriorConfig
try:
    PriorConfig(steps=0)
except ValidationError as error:
    print("greater than or equal to 1" in str(error))
print(PriorConfig(steps=5).learning_rate_factor(0))
"""
    assert run(code) == "True\n0.005\n"


@pytest.mark.parametrize("command", ["", "restore", "serve", "benchmark", "train prior", "data align", "priors list"])
def test_help_is_shown(command):
    words = [*command.split(), "--help"]
    output = run(f"import sys\nsys.argv = ['faceprior', *{words}]\nfrom faceprior.cli.app import main\nmain()\n")
    assert f"faceprior {command}".strip() in output
