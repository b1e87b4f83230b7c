import json

import pytest
import torch
from typer.testing import CliRunner

from faceprior.cli.app import app
from faceprior.degradations import bicubic_downscale
from faceprior.evaluation import lr_consistency, psnr, spread, ssim
from faceprior.images import resize
from faceprior.methods import find_preset
from faceprior.pipeline import FacePriorPipeline
from faceprior.pipeline.held_out import evaluate_held_out
from faceprior.priors import save_prior
from tiny_faces import pack_faces, splits


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_faces(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "prior"
    save_prior(tiny.gaussian_prior(), folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return FacePriorPipeline.from_pretrained(folder, corrector=None)


@pytest.fixture(scope="module")
def faces(packed):
    return splits(packed)[1].batch([0, 1])


def measure(pipeline, faces, scale=4.0, steps=2, **options):
    return evaluate_held_out(pipeline, faces, scale, find_preset("default").with_options(steps=steps), **options)


def test_the_bicubic_row_is_what_the_metrics_say_of_bicubic(pipeline, faces):
    figures = measure(pipeline, faces, samples=2)
    small = bicubic_downscale(faces, 8)
    large = resize(small, 32).clamp(-1, 1)
    assert figures["psnr"]["bicubic"] == pytest.approx(float(psnr(large, faces).mean()), abs=1e-3)
    assert figures["ssim"]["bicubic"] == pytest.approx(float(ssim(large, faces).mean()), abs=1e-3)
    assert figures["consistency"]["bicubic"] == pytest.approx(float(lr_consistency(large, small).mean()), abs=1e-3)


def test_the_mean_of_one_sample_is_the_sample_and_of_several_is_not(pipeline, faces):
    one, three = measure(pipeline, faces, samples=1), measure(pipeline, faces, samples=3)
    assert one["psnr"]["restored"] == one["psnr"]["mean"]
    assert three["psnr"]["restored"] == one["psnr"]["restored"]
    assert three["psnr"]["mean"] != three["psnr"]["restored"]


def test_scale_degradation_seed_and_steps_change_the_figures(pipeline, faces):
    base = measure(pipeline, faces, samples=1)
    for options in ({"scale": 8.0}, {"degradation": "codeformer"}, {"seed": 1}, {"steps": 3}):
        assert measure(pipeline, faces, **{"samples": 1, **options}) != base, options


def test_psnr_and_ssim_agree_with_their_definitions():
    a = torch.full((2, 3, 16, 16), 0.0)
    b = a.clone()
    b[1] += 0.2  # 25.5 of 255, rounded to 26 or 25
    assert torch.isinf(psnr(a, b)[0])
    difference = float(((b[1] + 1) * 127.5).round().mean() - ((a[1] + 1) * 127.5).round().mean())
    assert float(psnr(a, b)[1]) == pytest.approx(20 * torch.log10(torch.tensor(255 / difference)).item(), abs=1e-4)
    assert ssim(a, b)[0] == pytest.approx(1.0)
    assert ssim(a, b)[1] < 1.0


def test_spread_is_zero_where_samples_agree_and_half_the_range_at_most():
    samples = torch.zeros(4, 3, 8, 8)
    samples[:2, :, 0, 0], samples[2:, :, 0, 0] = -1, 1
    found = spread(samples)
    assert found[0, 0] == pytest.approx(0.5)
    assert found.flatten()[1:].abs().max() == 0


def test_the_command_prints_the_table_and_writes_the_figures(folder, packed, tmp_path):
    output = tmp_path / "figures" / "x4.json"
    arguments = ["evaluate", "--data", packed, "--prior", folder, "--corrector", "none", "--scale", "4"]
    arguments += ["--faces", "2", "--samples", "2", "--steps", "2", "--dtype", "float32", "--output", output]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "2 held-out faces, ×4 bicubic" in result.stdout
    figures = json.loads(output.read_text())
    assert f"{figures['psnr']['mean']:.2f}" in result.stdout
    assert set(figures) == {"psnr", "ssim", "consistency"}


def test_data_that_was_not_packed_is_a_usage_error(tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert "faceprior data pack" in result.output
