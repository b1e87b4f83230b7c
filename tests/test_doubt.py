import math

import pytest
import torch

from faceprior.corrector import Correction
from faceprior.doubt import GAUSSIAN_FACTOR, conformal_factor, error_scale, factor_of, half_width


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


def test_a_conformal_factor_holds_for_nine_pixels_in_ten_whatever_their_distribution():
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(40, 500, generator=generator) + 0.1
    errors = scales * torch.rand(40, 500, generator=generator).pow(3) * 2
    factor = conformal_factor(errors[:20], scales[:20])
    inside = (errors[20:] <= factor * scales[20:]).float().mean().item()
    assert inside == pytest.approx(0.9, abs=0.01)
    assert factor == pytest.approx(2 * 0.9**3, rel=0.03)


@pytest.mark.parametrize(
    ("reduction", "factor"),
    [(1.0, 3.0), (1.9, 3.0), (2.0, 1.0), (4.0, 1.0), (math.sqrt(32), 1.5), (8.0, 2.0), (32.0, 2.0)],
)
def test_the_factor_is_the_cards_for_the_faces_scale(reduction, factor):
    assert factor_of({"x8": 2.0, "damaged": 3.0, "x4": 1.0}, reduction) == pytest.approx(factor)


def test_a_card_without_calibration_takes_errors_for_gaussian():
    assert factor_of({}, 8.0) == GAUSSIAN_FACTOR
    assert factor_of({"damaged": 1.4}, 8.0) == 1.4


def test_a_half_width_is_on_the_scale_of_pixel_values_and_at_most_all_of_it():
    found = half_width(torch.tensor([[0.1, 5.0]]), {"x8": 2.0}, 8.0)
    assert found.tolist() == [[pytest.approx(0.1), 1.0]]
