import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from faceprior.benchmark.datasets import group_faces, labels_of, utk_labels
from faceprior.benchmark.sets import frechet_distance
from faceprior.degradations import bicubic_downscale
from faceprior.errors import DataError, OptionError
from faceprior.evaluation.metrics import diversity, lr_consistency, ms_ssim, ms_ssim_scales, psnr, spread, ssim
from faceprior.images import resize
from faceprior.training.shards import PackedFace


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


@pytest.mark.parametrize(
    ("original", "labels"),
    [
        ("12_0_4_20170117125958451.jpg.chip.jpg", {"age": "0-12", "gender": "male", "group": "other"}),
        ("13_1_0_20170117.jpg", {"age": "13-29", "gender": "female", "group": "White"}),
        ("59_0_1_20170117.jpg", {"age": "30-59", "gender": "male", "group": "Black"}),
        ("116_1_2_20170117.jpg", {"age": "60+", "gender": "female", "group": "Asian"}),
        ("26_1_3_20170117.jpg", {"age": "13-29", "gender": "female", "group": "Indian"}),
        ("61_1_20170109142408075.jpg", {}),  # lacks the group
        ("24_0_1", {}),
        ("portrait.jpg", {}),
        ("", {}),
    ],
)
def test_names_of_utkface_give_age_gender_and_group(original, labels):
    assert utk_labels(original) == labels


def test_only_utkface_names_are_read_so_and_labels_of_the_index_win():
    original = {"original": "13_1_0_20170117.jpg"}
    lfw = PackedFace("a.jpg", "val", "lfw", "research", "", original)
    assert labels_of(lfw) == {"source": "lfw", "terms": "research", **original}
    utk = replace(lfw, source="utk")
    assert labels_of(utk)["gender"] == "female"
    assert labels_of(replace(utk, labels={**original, "age": "young"}))["age"] == "young"


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
    """Maps of luminance times contrast, and of contrast (Wang et al. 2004), on 8 bits.

    Gaussian window of 11×11 and σ 1.5, K1 = 0.01, K2 = 0.03, mirrored at the border.
    """

    def mean(image):
        return gaussian_filter(image, (0, 1.5, 1.5), radius=(0, 5, 5), mode="mirror")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    contrast = (2 * covariance + c2) / (variances + c2)
    return (2 * mean(x) * mean(y) + c1) / (mean(x) ** 2 + mean(y) ** 2 + c1) * contrast, contrast


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
    assert ssim(a, b).item() == pytest.approx(likeness(x, y)[0].mean(), abs=1e-5)  # σ 3 is 0.003 off
    assert ssim(torch.cat([a, b]), torch.cat([b, b])).tolist() == pytest.approx([ssim(a, b).item(), 1], abs=1e-6)


@pytest.mark.parametrize(
    ("side", "scales"), [(20, 1), (22, 2), (43, 2), (44, 3), (98, 3), (99, 4), (175, 4), (176, 5)]
)
def test_ms_ssim_has_as_many_scales_as_fit_each_with_its_published_weight(side, scales):
    """Wang et al. 2003: each scale's contrast, and the luminance of the coarsest, to the power of its weight."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    assert ms_ssim_scales(side) == scales
    x, y = pictures(side, 60, 160)
    a, b = tensors(x, y)
    expected = 1.0
    for scale, weight in enumerate(weights / weights.sum()):
        both, contrast = likeness(x, y)
        inside = contrast[:, 5:-5, 5:-5]  # where the window lies in the picture
        expected *= (both if scale == scales - 1 else inside).mean() ** weight
        even = 2 * (x.shape[-1] // 2)
        x, y = (own[:, :even, :even].reshape(3, even // 2, 2, even // 2, 2).mean((2, 4)) for own in (x, y))
    assert ms_ssim(a, b).item() == pytest.approx(expected, abs=2e-4)
    assert ms_ssim(torch.cat([a, b]), torch.cat([b, b]))[1] == pytest.approx(1)


def test_ms_ssim_of_an_oblong_picture_goes_by_its_shorter_side(rng):
    a = torch.rand(1, 3, 200, 48, generator=rng) * 2 - 1
    assert ms_ssim(a, a).item() == pytest.approx(1)


def test_the_consistency_is_the_psnr_of_the_reduced_result_to_the_input_of_a_quarter_at_most(rng):
    images = torch.rand(2, 3, 64, 64, generator=rng) * 2 - 1
    low = bicubic_downscale(images, 12)
    low[1] += 0.1
    assert lr_consistency(images, low).tolist() == psnr(bicubic_downscale(images, 12), low).tolist()
    assert torch.isinf(lr_consistency(images, low)[0])
    large = torch.rand(2, 3, 40, 40, generator=rng) * 2 - 1  # more than R/4: reduced to 16 first
    assert torch.equal(lr_consistency(images, large), psnr(bicubic_downscale(images, 16), resize(large, 16)))
    assert not torch.equal(lr_consistency(images, large), psnr(bicubic_downscale(images, 13), resize(large, 13)))


def test_diversity_is_the_mean_distance_of_pairs():
    samples = torch.zeros(3, 3, 8, 8)
    samples[0] = 1  # distances 0.5, 0.5 and 0 of [0, 1]
    assert diversity(samples) == pytest.approx(1 / 3)
    assert diversity(samples[1:]) == 0
    one_pixel = torch.zeros(2, 3, 8, 8)
    one_pixel[0, 1, 4, 5] = 2  # the whole range in one value of 192
    assert diversity(one_pixel.double()) == pytest.approx(192**-0.5)


def test_spread_is_zero_where_samples_agree_and_half_the_range_at_most():
    samples = torch.zeros(4, 3, 8, 8)
    samples[:2, :, 0, 0], samples[2:, :, 0, 0] = -1, 1
    found = spread(samples)
    assert found[0, 0] == pytest.approx(0.5)
    assert found.flatten()[1:].abs().max() == 0
