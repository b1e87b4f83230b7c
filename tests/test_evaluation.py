import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from faceprior.benchmark.datasets import group_faces
from faceprior.benchmark.sets import frechet_distance
from faceprior.degradations import bicubic_downscale
from faceprior.errors import DataError, OptionError
from faceprior.evaluation.metrics import lr_consistency, psnr, spread, ssim
from faceprior.images import resize


def normal_set(rng, mean, covariance, count=50):
    """Points whose mean and covariance are exactly these."""
    points = torch.randn(count, len(mean), generator=rng, dtype=torch.float64)
    points -= points.mean(0)
    white = points @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(points.T))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_the_frechet_distance_is_the_closed_form_for_two_gaussians(rng):
    first, second = matrix((2.0, 0.5), (0.5, 1.0)), matrix((1.0, -0.3), (-0.3, 3.0))
    shift = matrix((0.7, -0.2))[0]
    product = first @ second
    # of a 2×2 matrix: tr √A = √(tr A + 2 √det A)
    overlap = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    expected = float(shift.square().sum() + first.trace() + second.trace()) - 2 * overlap
    found = frechet_distance(normal_set(rng, shift, first), normal_set(rng, shift * 0, second, 80))
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_frechet_distance_of_independent_coordinates_is_that_of_their_deviations(rng):
    a, b = matrix((1.0, 4.0, 9.0))[0], matrix((4.0, 4.0, 1.0))[0]
    zero = torch.zeros(3, dtype=torch.float64)
    found = frechet_distance(normal_set(rng, zero, a.diag()), normal_set(rng, zero, b.diag()))
    assert found == pytest.approx(1 + 0 + 4, abs=1e-9)


def test_the_frechet_distance_needs_no_more_points_than_dimensions(rng):
    few = torch.randn(5, 128, generator=rng)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(few + 1, few) == pytest.approx(128, rel=1e-5)


def test_a_frechet_distance_of_a_single_face_is_refused(rng):
    with pytest.raises(DataError, match="two faces"):
        frechet_distance(torch.randn(1, 8, generator=rng), torch.randn(5, 8, generator=rng))


def test_faces_without_the_label_are_in_no_group():
    labels = [{"age": "60+"}, {}, {"age": "0-12"}, {"age": "60+"}]
    assert group_faces(labels, "age") == {"0-12": [2], "60+": [0, 3]}
    with pytest.raises(OptionError, match=r"'gender'.*there are age"):
        group_faces(labels, "gender")


def test_psnr_and_ssim_agree_with_their_definitions():
    a = torch.full((2, 3, 16, 16), 0.0)
    b = a.clone()
    b[1] += 0.2  # 25.5 of 255, rounded to 26 or 25
    assert torch.isinf(psnr(a, b)[0])
    difference = float(((b[1] + 1) * 127.5).round().mean() - ((a[1] + 1) * 127.5).round().mean())
    assert float(psnr(a, b)[1]) == pytest.approx(20 * torch.log10(torch.tensor(255 / difference)).item(), abs=1e-4)
    assert ssim(a, b)[0] == pytest.approx(1.0)
    assert ssim(a, b)[1] < 1.0


def likeness(x, y):
    """Map of luminance times contrast (Wang et al. 2004), on 8 bits.

    Gaussian window of 11×11 and σ 1.5, K1 = 0.01, K2 = 0.03, mirrored at the border.
    """

    def mean(image):
        return gaussian_filter(image, (0, 1.5, 1.5), radius=(0, 5, 5), mode="mirror")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    contrast = (2 * covariance + c2) / (variances + c2)
    return (2 * mean(x) * mean(y) + c1) / (mean(x) ** 2 + mean(y) ** 2 + c1) * contrast


def pictures(side, low=0, high=256):
    """Two pictures that are alike, (3, side, side), 8 bits as floats."""
    draws = np.random.default_rng(0)
    x = draws.integers(low, high, (3, side, side)).astype(float)
    return x, np.clip(x + draws.integers(-60, 61, x.shape), low, high - 1)


def tensors(*images):
    return (torch.tensor(image / 127.5 - 1, dtype=torch.float32)[None] for image in images)


@pytest.mark.parametrize(("low", "high"), [(0, 256), (100, 120)])
def test_ssim_is_that_of_its_authors_on_8_bits(low, high):
    x, y = pictures(40, low, high)
    a, b = tensors(x, y)
    assert ssim(a, b).item() == pytest.approx(likeness(x, y).mean(), abs=1e-5)  # σ 3 is 0.003 off
    assert ssim(torch.cat([a, b]), torch.cat([b, b])).tolist() == pytest.approx([ssim(a, b).item(), 1], abs=1e-6)


def test_the_consistency_is_the_psnr_of_the_reduced_result_to_the_input_of_a_quarter_at_most(rng):
    images = torch.rand(2, 3, 64, 64, generator=rng) * 2 - 1
    low = bicubic_downscale(images, 12)
    low[1] += 0.1
    assert lr_consistency(images, low).tolist() == psnr(bicubic_downscale(images, 12), low).tolist()
    assert torch.isinf(lr_consistency(images, low)[0])
    large = torch.rand(2, 3, 40, 40, generator=rng) * 2 - 1  # more than R/4: reduced to 16 first
    assert torch.equal(lr_consistency(images, large), psnr(bicubic_downscale(images, 16), resize(large, 16)))
    assert not torch.equal(lr_consistency(images, large), psnr(bicubic_downscale(images, 13), resize(large, 13)))


def test_spread_is_zero_where_samples_agree_and_half_the_range_at_most():
    samples = torch.zeros(4, 3, 8, 8)
    samples[:2, :, 0, 0], samples[2:, :, 0, 0] = -1, 1
    found = spread(samples)
    assert found[0, 0] == pytest.approx(0.5)
    assert found.flatten()[1:].abs().max() == 0
