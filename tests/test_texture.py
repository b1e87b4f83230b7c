"""Texture, the two-pixel grid and the two-sample test, on pictures whose spectrum is known."""

import math

import pytest
import torch

from faceprior.errors import DataError
from faceprior.evaluation.intervals import bootstrap_pairs
from faceprior.evaluation.texture import grid_excess, octave_power, texture_power
from faceprior.evaluation.two_sample import two_sample_auc

SIDE = 64


def wave(cycles, amplitude, side=SIDE):
    x = torch.arange(side) / side
    return (amplitude * torch.cos(2 * math.pi * cycles * x)).expand(1, 3, side, side)


def pictures(count, seed, side=SIDE):
    """Grey noise whose amplitude falls with the frequency, as that of pictures does."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft2(torch.randn(count, 1, side, side, generator=generator))
    radius = (torch.fft.fftfreq(side, 1 / side)[:, None] ** 2 + torch.fft.rfftfreq(side, 1 / side) ** 2).sqrt()
    noise = torch.fft.irfft2(spectrum / (1 + radius))
    return (0.3 * noise / noise.std()).expand(-1, 3, -1, -1).clamp(-1, 1)


def test_a_wave_is_power_in_its_own_octave_alone():
    found = octave_power(wave(12, 0.2))[0]
    assert found.shape == (3,)  # 4-8, 8-16, 16-32 cycles in 64 pixels
    assert found[1] - max(found[0], found[2]) > 40


def test_white_noise_has_its_variance_in_every_octave():
    noise = 0.1 * torch.randn(200, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    found = 10 * torch.log10((10 ** (octave_power(noise) / 10)).mean(0))
    torch.testing.assert_close(found, torch.full((3,), -20.0, dtype=torch.float64), atol=0.15, rtol=0)


def test_texture_of_half_the_amplitude_is_6_db_below_the_reference():
    sharp = pictures(4, 0)
    torch.testing.assert_close(texture_power(sharp, sharp).mean(0), torch.zeros(3, dtype=torch.float64))
    half = torch.full((4, 3), 20 * math.log10(0.5), dtype=torch.float64)
    torch.testing.assert_close(texture_power(sharp / 2, sharp) - texture_power(sharp, sharp), half, atol=1e-6, rtol=0)


def test_faces_of_256_pixels_have_one_octave_more():
    assert octave_power(wave(100, 0.2, 256)).argmax() == 4


def test_white_noise_stands_out_at_the_nyquist_frequency_as_much_as_it_does_below():
    noise = 0.3 * torch.randn(200, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    assert grid_excess(noise).mean() == pytest.approx(1 / 0.683, rel=0.1)


@pytest.mark.parametrize("pattern", ["lattice", "stripes", "checkerboard"])
def test_a_grid_of_two_pixels_stands_out(pattern):
    faces = pictures(4, 1)
    grid = torch.zeros(SIDE, SIDE)
    if pattern == "lattice":
        grid[::2, ::2] = 1
    elif pattern == "stripes":
        grid[:, ::2] = 1
    else:
        grid[::2, ::2] = grid[1::2, 1::2] = 1
    with_grid = faces + 0.08 * grid
    assert (grid_excess(with_grid) > 1.5 * grid_excess(faces)).all()
    of_three = torch.zeros(SIDE, SIDE)
    of_three[::3, ::3] = 1  # no grid of two
    assert (grid_excess(faces + 0.08 * of_three) < 1.2 * grid_excess(faces)).all()


def test_what_cannot_be_seen_is_no_grid():
    flat = torch.zeros(1, 3, SIDE, SIDE)
    flat[..., ::2, ::2] += 1e-4
    assert grid_excess(flat) == pytest.approx(1, abs=0.05)


def test_real_faces_cannot_be_told_from_others_of_their_kind():
    found = two_sample_auc(pictures(40, 0), pictures(40, 1))
    assert found.mean == pytest.approx(0.5, abs=0.06)
    assert found.low < found.mean < found.high < found.low + 0.1


def test_smooth_and_grainy_faces_are_told_from_real_ones():
    real = pictures(20, 0)
    smooth = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
    grainy = real + 0.2 * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    assert two_sample_auc(smooth, real).low > 0.8
    assert two_sample_auc(grainy, real).low > 0.8
    slightly = two_sample_auc(0.8 * real + 0.2 * smooth, real).mean
    assert 0.5 < slightly < two_sample_auc(smooth, real).mean


def test_what_differs_by_less_than_can_be_seen_tells_little():
    real = pictures(20, 0)
    dither = real + (1 / 127.5) * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    assert two_sample_auc(dither, real).mean < 0.65


def test_a_two_sample_test_of_few_faces_says_so():
    with pytest.raises(DataError, match="10 or more faces"):
        two_sample_auc(pictures(4, 0), pictures(4, 1))


def test_the_bootstrap_over_pairs_draws_whole_faces():
    assert bootstrap_pairs(torch.full((5, 5), 0.7).double().numpy()).low == pytest.approx(0.7)
    own = torch.arange(400).double() / 400
    found = bootstrap_pairs((own[:, None] + own).numpy())
    error = 2 * 1.96 * float(own.std(correction=0)) / 20
    assert found.high - found.mean == pytest.approx(error, rel=0.1)
