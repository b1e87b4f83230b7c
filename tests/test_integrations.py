"""What stands beside the package: ComfyUI's nodes against a stub of its API, the example, the container's files."""

import importlib.util
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image

from faceprior import FacePriorPipeline
from faceprior.images import to_pil
from faceprior.priors import Prior, save_prior
from faceprior.priors.card import TIGHT_TEMPLATE

ROOT = Path(__file__).parents[1]
COMFY = ROOT / "integrations" / "comfyui"


@pytest.fixture
def pipeline(tiny, tmp_path):
    prior = tiny.gaussian_prior()
    card = replace(prior.card, template=TIGHT_TEMPLATE)
    save_prior(Prior(prior.network, card), tmp_path / "prior", half=False)
    loaded = FacePriorPipeline.from_pretrained(tmp_path / "prior", corrector="none")
    return FacePriorPipeline(loaded.prior, tiny.corrector())


@pytest.fixture
def nodes(monkeypatch):
    """ComfyUI's nodes, loaded as it loads them, and what their progress bar counted."""
    counted = SimpleNamespace(total=0, done=0)

    class ProgressBar:
        def __init__(self, total):
            counted.total = total

        def update(self, value):
            counted.done += value

    comfy = ModuleType("comfy")
    comfy.utils = SimpleNamespace(ProgressBar=ProgressBar)
    comfy.model_management = SimpleNamespace(
        get_torch_device=lambda: torch.device("cpu"), throw_exception_if_processing_interrupted=lambda: None
    )
    for name in ("utils", "model_management"):
        monkeypatch.setitem(sys.modules, f"comfy.{name}", getattr(comfy, name))
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    spec = importlib.util.spec_from_file_location(
        "custom_nodes_faceprior", COMFY / "__init__.py", submodule_search_locations=[str(COMFY)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_nodes_faceprior", module)
    spec.loader.exec_module(module)
    yield module.NODE_CLASS_MAPPINGS, counted
    sys.modules.pop("custom_nodes_faceprior.nodes", None)


def test_a_node_restores_aligned_faces_and_counts_its_steps(nodes, pipeline, tiny):
    mappings, counted = nodes
    images = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    [restored] = mappings["RestoreFaces"]().restore(images, pipeline, "default", 0, 1.0, "aligned")
    assert restored.shape == (2, tiny.side, tiny.side, 3)
    assert 0 <= restored.min() < restored.max() <= 1
    assert counted.done == counted.total > 0
    [other] = mappings["RestoreFaces"]().restore(images, pipeline, "default", 1, 1.0, "aligned")
    assert not torch.equal(restored, other)


def test_a_node_leaves_an_image_without_faces_as_it_is(nodes, pipeline):
    mappings, _ = nodes
    images = (torch.linspace(0, 255, 64 * 96 * 3).round() / 255).reshape(1, 64, 96, 3)
    [restored] = mappings["RestoreFaces"]().restore(images, pipeline, "default", 0, 1.0, "photo")
    assert torch.equal(restored, images)


def test_the_loader_takes_a_saved_folder(nodes, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    mappings, _ = nodes
    [loaded] = mappings["LoadFacePrior"]().load(str(tmp_path / "saved"), "auto")
    assert isinstance(loaded, FacePriorPipeline)
    assert loaded.crt is not None


def test_the_workflow_names_nodes_and_their_inputs(nodes):
    mappings, _ = nodes
    workflow = json.loads((COMFY / "workflow.json").read_text(encoding="utf-8"))
    ours = [step for step in workflow.values() if step["class_type"] in mappings]
    assert len(ours) == len(mappings)
    for step in ours:
        node = mappings[step["class_type"]]
        inputs = node.INPUT_TYPES()["required"]
        assert set(step["inputs"]) == set(inputs)
        assert hasattr(node, node.FUNCTION)
        for name, value in step["inputs"].items():
            choices = inputs[name][0]
            assert isinstance(choices, str) or value in choices


def test_the_example_restores_a_folder(pipeline, tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    to_pil(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1).save(tmp_path / "in" / "face.png")
    Image.new("RGB", (64, 96), (90, 120, 200)).save(tmp_path / "in" / "sky.png")
    (tmp_path / "in" / "torn.png").write_bytes(b"torn")
    monkeypatch.setattr(FacePriorPipeline, "from_pretrained", lambda: pipeline)
    monkeypatch.setattr(sys, "argv", ["batch.py", str(tmp_path / "in"), str(tmp_path / "out")])
    runpy.run_path(str(ROOT / "examples" / "batch.py"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"face.png", "sky.png"}
    assert "torn.png" in capsys.readouterr().out
    assert len((ROOT / "examples" / "batch.py").read_text(encoding="utf-8").splitlines()) <= 34


def test_the_container_and_the_space_use_one_port():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    space = (ROOT / "integrations" / "spaces" / "Dockerfile").read_text(encoding="utf-8")
    front, *_ = (ROOT / "integrations" / "spaces" / "README.md").read_text(encoding="utf-8").split("---")[1:]
    assert f"EXPOSE {yaml.safe_load(front)['app_port']}\n" in dockerfile
    assert f"EXPOSE {yaml.safe_load(front)['app_port']}\n" in space
    assert "USER 1000" in dockerfile
    assert "USER 1000" in space
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    prefix = services["services"]["faceprior"]["command"][-1]
    assert f"reverse_proxy {prefix}* faceprior:7860" in services["configs"]["caddyfile"]["content"]
