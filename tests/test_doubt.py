import math

import pytest
import torch

from faceprior.corrector import Correction
from faceprior.doubt import GAUSSIAN_FACTOR, conformal_factors, error_scale, half_width


def test_the_error_scale_holds_what_is_unknown_and_how_far_the_result_went_beyond():
    """E[(r − x)²] = e + (r − m)² for x ~ N(m, e) and any r made without x."""
    generator = torch.Generator().manual_seed(0)
    m, e, r = 0.2, 0.04, 0.35
    x = m + math.sqrt(e) * torch.randn(200_000, generator=generator)
    expected = Correction(torch.full((1, 3, 4, 4), m), torch.full((1, 1, 4, 4), math.log(e)))
    scale = error_scale(torch.full((3, 4, 4), r), expected, torch.zeros(1, 3, 4, 4))
    assert scale.shape == (4, 4)
    assert scale[0, 0].item() == pytest.approx((x - r).square().mean().sqrt().item(), rel=0.01)


def test_without_a_corrector_the_samples_spread_stands_for_it():
    """A sample of the posterior is as far from the truth as from another sample: √2 standard deviations."""
    generator = torch.Generator().manual_seed(0)
    samples = 0.1 * torch.randn(400, 3, 4, 4, generator=generator)
    scale = error_scale(samples[0], None, samples)
    assert scale.mean().item() == pytest.approx(0.1 * math.sqrt(2), rel=0.03)
    assert error_scale(samples[0], None, samples[:1]) is None
    assert error_scale(samples[0], Correction(samples[:1], None), samples[:1]) is None


def test_intervals_hold_for_nine_pixels_in_ten_whatever_the_distribution_of_the_errors():
    """And in each group of pixels: the worst known ones, whose errors are three times their scale here, as well."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(40, 5000, generator=generator) + 0.1
    errors = scales * torch.rand(40, 5000, generator=generator).pow(3) * torch.where(scales > 0.6, 3, 1)
    factors = {"x8": conformal_factors(errors[:20], scales[:20])}
    assert factors["x8"][0] == (pytest.approx(0.15, abs=0.01), pytest.approx(0.9**3, rel=0.03))
    assert factors["x8"][-1] == (pytest.approx(1.05, abs=0.01), pytest.approx(3 * 0.9**3, rel=0.03))
    inside = (errors[20:] / 2 <= half_width(scales[20:], factors, 8.0)).float()
    assert inside.mean().item() == pytest.approx(0.9, abs=0.01)
    for group in (scales[20:] < 0.5, scales[20:] > 0.7):
        assert inside[group].mean().item() == pytest.approx(0.9, abs=0.02)


def factor(scale, calibration, reduction):
    return 2 * half_width(torch.tensor([[scale]]), calibration, reduction).item() / scale


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [(1.0, 3.0), (1.9, 3.0), (2.0, 1.0), (4.0, 1.0), (math.sqrt(32), 1.5), (8.0, 2.0), (32.0, 2.0)],
)
def test_the_factor_is_the_cards_for_the_faces_scale(reduction, expected):
    calibration = {"x8": [(0.1, 2.0)], "damaged": [(0.1, 3.0)], "x4": [(0.1, 1.0)]}
    assert factor(0.2, calibration, reduction) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scale", "expected"), [(0.01, 1.0), (0.1, 1.0), (0.1 * math.sqrt(2), 1.5), (0.2, 2.0), (0.4, 2.0)]
)
def test_the_factor_is_that_of_pixels_as_little_known(scale, expected):
    assert factor(scale, {"x8": [(0.1, 1.0), (0.2, 2.0)]}, 8.0) == pytest.approx(expected)


def test_a_card_without_calibration_takes_errors_for_gaussian():
    assert factor(0.1, {}, 8.0) == pytest.approx(GAUSSIAN_FACTOR)
    assert factor(0.1, {"damaged": [(0.1, 1.4)]}, 8.0) == pytest.approx(1.4)


def test_a_half_width_is_on_the_scale_of_pixel_values_and_at_most_all_of_it():
    found = half_width(torch.tensor([[0.1, 5.0]]), {"x8": [(0.1, 2.0)]}, 8.0)
    assert found.tolist() == [[pytest.approx(0.1), 1.0]]
