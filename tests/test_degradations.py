import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from faceprior import degradations
from faceprior.degradations import (
    CHAIN_PRESETS,
    ChainPreset,
    bicubic_downscale,
    chain_preset,
    film_grain,
    gaussian_blur,
    grey,
    halftone,
    jpeg,
    real_world,
    scratch,
    second_order,
)
from faceprior.errors import OptionError
from faceprior.evaluation.metrics import psnr
from faceprior.images import resize, to_pil, to_tensor, to_uint8
from tiny_faces import smooth_picture


def detailed_face(side=64, seed=0):
    """A smooth picture with fine texture, (3, side, side)."""
    face = to_tensor(Image.fromarray(smooth_picture(seed, side)))
    texture = torch.randn(1, side // 2, side // 2, generator=torch.Generator().manual_seed(seed)).expand(3, -1, -1)
    return (face + 0.15 * resize(texture[None], side)[0]).clamp(-1, 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [32, 16, 10])
def test_bicubic_downscale_is_pillows_bicubic_in_8_bits(side):
    face = to_tensor(to_pil(detailed_face()))
    small = bicubic_downscale(face[None], side)
    levels = (small + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    pillow = np.asarray(to_pil(face).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    ours = to_uint8(small)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - pillow).max() <= 1


def test_the_chain_is_decided_by_its_generator():
    face, preset = detailed_face(), chain_preset("gfpgan")
    first, again, other = (real_world(face, preset, seeded(s)) for s in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", CHAIN_PRESETS)
def test_the_chain_keeps_shape_and_range_and_loses_detail(name):
    face = detailed_face()
    for seed in range(4):
        damaged = real_world(face, chain_preset(name), seeded(seed))
        assert damaged.shape == face.shape
        assert damaged.abs().max() <= 1
        assert psnr(damaged[None], face[None]).item() < 45


def test_a_heavier_preset_loses_more():
    face = detailed_face(128)

    def mean_psnr(preset):
        return np.mean([psnr(real_world(face, preset, seeded(s))[None], face[None]).item() for s in range(12)])

    assert mean_psnr(CHAIN_PRESETS["codeformer"]) < mean_psnr(CHAIN_PRESETS["gfpgan"]) - 1


BENIGN = ChainPreset((0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (100, 100))


@pytest.mark.parametrize(
    ("part", "value"),
    [("blur_sigma", (15.0, 15.0)), ("downscale", (24.0, 24.0)), ("noise", (20.0, 20.0)), ("jpeg_quality", (10, 10))],
)
def test_every_part_of_the_chain_does_damage(part, value):
    face = detailed_face(128)
    harmless = real_world(face, BENIGN, seeded(0))
    damaged = real_world(face, dataclasses.replace(BENIGN, **{part: value}), seeded(0))
    harmless_psnr, damaged_psnr = (psnr(x[None], face[None]).item() for x in (harmless, damaged))
    assert harmless_psnr > 35
    assert damaged_psnr < harmless_psnr - 3


def test_noise_has_the_standard_deviation_that_was_asked_for():
    grey = torch.zeros(3, 128, 128)
    noisy = real_world(grey, dataclasses.replace(BENIGN, noise=(20.0, 20.0)), seeded(0))
    # JPEG at quality 100 keeps luma noise, and halves the resolution of chroma
    luma = 0.299 * noisy[0] + 0.587 * noisy[1] + 0.114 * noisy[2]
    expected = 20 * 2 / 255 * (0.299**2 + 0.587**2 + 0.114**2) ** 0.5
    assert luma.std().item() == pytest.approx(expected, rel=0.1)


def test_jpeg_comes_after_the_noise_and_is_the_last_damage(monkeypatch):
    seen = []
    monkeypatch.setattr(degradations, "jpeg", lambda image, quality: seen.append((image, quality)) or image)
    preset = dataclasses.replace(BENIGN, noise=(20.0, 20.0), jpeg_quality=(30, 30))
    damaged = real_world(torch.zeros(3, 64, 64), preset, seeded(0))
    ((compressed, quality),) = seen
    assert quality == 30
    assert compressed.std().item() == pytest.approx(20 * 2 / 255, rel=0.05)
    assert torch.equal(damaged, compressed.clamp(-1, 1))


def test_half_of_the_blurs_of_the_chain_are_isotropic(monkeypatch):
    widths = []
    monkeypatch.setattr(
        degradations, "gaussian_blur", lambda images, along, across, _: widths.append((along, across)) or images
    )
    for seed in range(200):
        real_world(torch.zeros(3, 16, 16), CHAIN_PRESETS["codeformer"], seeded(seed))
    isotropic = sum(along == across for along, across in widths)
    assert 70 <= isotropic <= 130  # four standard deviations about 100
    assert all(1 <= width * 512 / 16 <= 15 for pair in widths for width in pair)


def test_the_chain_takes_the_same_share_of_the_face_at_every_resolution():
    preset = ChainPreset((12.0, 12.0), (24.0, 24.0), (0.0, 0.0), (95, 95))
    small = detailed_face(64)
    large = resize(small[None], 128)[0].clamp(-1, 1)
    loss_small, loss_large = (psnr(real_world(f, preset, seeded(3))[None], f[None]).item() for f in (small, large))
    assert abs(loss_small - loss_large) < 1.5


def test_blur_leaves_a_constant_image_alone():
    constant = torch.full((1, 3, 20, 20), 0.37)
    assert torch.allclose(gaussian_blur(constant, 2.5, 0.7, 0.4), constant, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.6, 1.5, 3.0])
def test_isotropic_blur_is_scipys_gaussian_filter(sigma):
    image = detailed_face()
    radius = int(np.ceil(3 * sigma))
    expected = gaussian_filter(image.numpy(), (0, sigma, sigma), mode="mirror", radius=(0, radius, radius))
    assert np.abs(gaussian_blur(image[None], sigma, sigma, 0.8)[0].numpy() - expected).max() < 2e-3


def test_anisotropic_blur_is_widest_along_its_angle():
    dot = torch.zeros(1, 1, 41, 41)
    dot[..., 20, 20] = 1
    axis = torch.arange(41) - 20.0
    level = gaussian_blur(dot, 3.0, 1.0, 0.0)[0, 0]
    assert (level.sum(0) * axis**2).sum().sqrt().item() == pytest.approx(3.0, rel=0.05)
    assert (level.sum(1) * axis**2).sum().sqrt().item() == pytest.approx(1.0, rel=0.05)
    upright = gaussian_blur(dot, 3.0, 1.0, np.pi / 2)[0, 0]
    assert torch.allclose(upright, level.T, atol=1e-5)


def test_no_blur_is_no_change_and_a_wide_one_fits_an_oblong_image():
    image = detailed_face()[None]
    assert torch.equal(gaussian_blur(image, 0.0, 0.0, 1.0), image)
    assert gaussian_blur(image[..., :10, :], 8.0, 8.0, 0.0).shape == (1, 3, 10, 64)


def test_jpeg_loses_more_at_lower_quality():
    face = detailed_face()
    at = {q: psnr(jpeg(face, q)[None], face[None]).item() for q in (95, 60, 20)}
    assert jpeg(face, 95).shape == face.shape
    assert at[95] > at[60] > at[20]


def test_an_unknown_chain_is_refused_with_the_names_of_the_others():
    with pytest.raises(OptionError, match="gfpgan, codeformer, difface, diffbir"):
        chain_preset("nope")


# --- old photographs


def test_grain_has_the_strength_and_the_size_that_are_asked_for_and_no_colour():
    plain = torch.zeros(3, 128, 128)
    for sigma, size in ((0.02, 0.0), (0.08, 1.0)):
        grain = film_grain(plain, sigma, size, seeded(0))
        assert grain.std().item() == pytest.approx(2 * sigma, rel=0.02)  # of [0, 1], in [-1, 1]
        assert torch.equal(grain[0], grain[2])
        neighbours = torch.corrcoef(torch.stack([grain[0, :, :-1].flatten(), grain[0, :, 1:].flatten()]))[0, 1].item()
        # a Gaussian blur of σ correlates pixels a distance d apart by exp(−d² / 4σ²)
        assert neighbours == pytest.approx(np.exp(-1 / (4 * size**2)) if size else 0.0, abs=0.05)


def test_a_halftone_screen_stands_at_45_degrees_with_the_period_that_is_asked_for():
    printed = halftone(torch.zeros(3, 120, 120), 6.0, 0.3, seeded(0))
    assert printed.abs().max().item() == pytest.approx(0.3, rel=0.1)
    power = torch.fft.fft2(printed[0]).abs()
    top = int(power.flatten().argmax())
    row, column = (min(index, 120 - index) for index in divmod(top, 120))
    assert {row, column} == {0, round(120 * 2**0.5 / 6)}  # cos · cos has its peaks on the axes, √2 further out


def test_grey_is_the_luma_in_every_channel():
    face = detailed_face()
    found = grey(face)
    assert torch.equal(found[0], found[1])
    expected = np.asarray(to_pil(face).convert("L")).astype(int)
    assert np.abs(to_uint8(found)[0].numpy().astype(int) - expected).max() <= 1


def test_scratches_are_thin_and_leave_the_rest_alone():
    face = to_tensor(to_pil(detailed_face(128)))
    touched = (scratch(face, seeded(3)) - face).abs().amax(0) > 1e-6
    assert 60 < touched.sum() < 4 * 2 * 128
    assert touched.any(1).float().mean() > 0.5  # from the top towards the bottom


def test_damage_of_the_second_order_is_worse_than_either_round_and_decided_by_its_generator():
    face = detailed_face(128)
    twice = [psnr(second_order(face, seeded(s))[None], face[None]).item() for s in range(8)]
    once = [psnr(real_world(face, CHAIN_PRESETS["gfpgan"], seeded(s))[None], face[None]).item() for s in range(8)]
    assert np.mean(twice) < np.mean(once)
    assert torch.equal(second_order(face, seeded(1)), second_order(face, seeded(1)))


def test_gfpgans_colours_are_shifted_for_three_faces_in_ten():
    face = torch.zeros(3, 32, 32)
    quiet = dataclasses.replace(CHAIN_PRESETS["gfpgan"], noise=(0.0, 0.0), jpeg_quality=(100, 100))
    shifts = torch.stack([real_world(face, quiet, seeded(seed)).mean((1, 2)) for seed in range(200)])
    moved = shifts.abs().amax(1) > 0.01
    assert moved.float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert 0.1 < shifts.abs().max().item() < 2 * 20 / 255 + 0.01
