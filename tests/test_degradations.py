import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from faceprior import degradations
from faceprior.degradations import (
    CHAIN_PRESETS,
    OCCLUSIONS,
    ChainPreset,
    bicubic_downscale,
    check_degradation,
    film_grain,
    gaussian_blur,
    grey,
    halftone,
    jpeg,
    low_light,
    make_input,
    noise_level,
    occlude,
    real_world,
    scratch,
    second_order,
)
from faceprior.errors import OptionError
from faceprior.evaluation.metrics import psnr
from faceprior.images import resize, to_pil, to_tensor, to_uint8
from faceprior.priors.card import TIGHT_TEMPLATE
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
    face, preset = detailed_face(), CHAIN_PRESETS["gfpgan"]
    first, again, other = (real_world(face, preset, seeded(s)) for s in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", CHAIN_PRESETS)
def test_the_chain_keeps_shape_and_range_and_loses_detail(name):
    face = detailed_face()
    for seed in range(4):
        damaged = real_world(face, CHAIN_PRESETS[name], seeded(seed))
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


def test_grain_is_added_and_decided_by_its_generator():
    for size in (0.0, 2.0):
        plain, face = torch.zeros(3, 32, 48), torch.full((3, 32, 48), 0.3)
        grain = film_grain(plain, 0.05, size, seeded(4))
        assert torch.allclose(film_grain(face, 0.05, size, seeded(4)) - face, grain, atol=1e-6)
        assert not torch.equal(film_grain(plain, 0.05, size, seeded(5)), grain)
    # the blur is that of the noise which the generator draws
    noise = torch.randn(1, 1, 32, 48, generator=seeded(4))
    blurred = gaussian_filter(noise[0, 0].numpy(), 2.0, mode="mirror", radius=6)
    assert torch.corrcoef(torch.stack([grain[0].flatten(), torch.tensor(blurred).flatten()]))[0, 1] > 0.999
    assert torch.equal(film_grain(plain, 0.0, 0.0, seeded(0)), plain)


def test_a_halftone_screen_is_a_product_of_two_diagonal_cosines_that_fades_towards_black_and_white():
    print_of = halftone(torch.zeros(3, 60, 80), 6.0, 0.3, seeded(0))
    assert torch.equal(print_of, halftone(torch.zeros(3, 60, 80), 6.0, 0.3, seeded(0)))
    # the product of the cosines of two angles is half the sum of those of their sum and difference: one wave goes
    # along x, one along y
    phases = []
    for seed in range(80):
        spectrum = torch.fft.fft2(halftone(torch.zeros(3, 120, 120), 120 / 28 * 2**0.5, 0.3, seeded(seed))[0])
        along, across = spectrum[0, 28].angle().item(), spectrum[28, 0].angle().item()
        phases.append(((along + across) / 2 % np.pi, (along - across) / 2 % np.pi))
    for phase in zip(*phases, strict=True):
        assert 0.4 * np.pi < np.mean(phase) < 0.6 * np.pi
        assert np.std(phase) == pytest.approx(np.pi / 12**0.5, rel=0.15)  # of a uniform phase
    for value in (0.5, -0.8):
        faded = halftone(torch.full((3, 60, 80), value), 6.0, 0.3, seeded(0)) - value
        assert torch.allclose(faded, (1 - value**2) * print_of, atol=1e-6)
    beyond = halftone(torch.full((3, 60, 80), 1.5), 6.0, 0.3, seeded(0))
    assert torch.equal(beyond, torch.full_like(beyond, 1.5))


def test_grey_is_the_luma_in_every_channel():
    face = detailed_face()
    assert grey(face[None].repeat(2, 1, 1, 1)).shape == (2, 3, 64, 64)
    assert torch.equal(grey(torch.stack([face, -face]))[1], grey(-face))
    found = grey(face)
    assert torch.equal(found[0], found[1])
    expected = np.asarray(to_pil(face).convert("L")).astype(int)
    assert np.abs(to_uint8(found)[0].numpy().astype(int) - expected).max() <= 1


def test_scratches_are_thin_and_leave_the_rest_alone():
    face = to_tensor(to_pil(detailed_face(128)))
    touched = (scratch(face, seeded(3)) - face).abs().amax(0) > 1e-6
    assert 60 < touched.sum() < 4 * 2 * 128
    assert touched.any(1).float().mean() > 0.5  # from the top towards the bottom


def test_one_to_four_scratches_are_light_or_dark_and_decided_by_their_generator():
    counts, colours = [], []
    for seed in range(150):
        lines = scratch(torch.zeros(3, 60, 400), seeded(seed))
        assert torch.equal(lines, scratch(torch.zeros(3, 60, 400), seeded(seed)))
        assert torch.equal(lines[0], lines[1])
        assert torch.equal(lines[0], lines[2])
        touched = lines[0].abs() > 0.1
        colours += lines[0][touched].unique().tolist()
        per_row = touched.sum(1)  # a line of one pixel's width that is nearly upright: one or two pixels in a row
        counts.append(int(per_row.mode().values))
        across = touched.nonzero()[:, 1].float()
        if counts[-1] == 1 and per_row.float().mean() < 2.5:
            assert across.max() - across.min() <= 0.2 * 400 + 1  # from top to bottom it moves a fifth at most
    assert set(counts) >= {1, 2, 3, 4}
    assert max(counts) == 4
    assert set(colours) == {-1.0, 1.0}
    assert 0.5 < np.mean(np.array(colours) > 0) < 0.75  # three of five are light
    first, last = scratch(torch.zeros(3, 60, 400), seeded(0))[0, [0, -1]].abs() > 0.1
    assert first.any()
    assert last.any()


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


# --- names


@pytest.mark.parametrize("name", ["bicubic", "noise-0.05", *CHAIN_PRESETS, "low-light", *OCCLUSIONS])
def test_a_degradation_is_decided_by_its_seed(name):
    face = detailed_face()
    first, again, other = (make_input(face, name, 32, seeded(seed), TIGHT_TEMPLATE) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "bicubic")
    assert first.shape == (3, 32, 32)
    assert first.abs().max() <= 1
    levels = (first + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_each_name_is_its_own_damage_before_the_reduction():
    face = detailed_face()
    for name, damaged in (
        ("bicubic", face),
        ("codeformer", real_world(face, CHAIN_PRESETS["codeformer"], seeded(3))),
        ("low-light", low_light(face, seeded(3))),
        ("occlusion-hand", occlude(face, "occlusion-hand", seeded(3), TIGHT_TEMPLATE)),
    ):
        assert torch.equal(
            make_input(face, name, 16, seeded(3), TIGHT_TEMPLATE), bicubic_downscale(damaged[None], 16)[0]
        )


def test_noise_on_the_input_has_the_named_standard_deviation_and_comes_after_the_reduction():
    small = make_input(torch.zeros(3, 64, 64), "noise-0.1", 32, seeded(0))
    assert float(small.std()) / 2 == pytest.approx(0.1, rel=0.03)
    face = detailed_face()
    added = make_input(face, "noise-0.02", 32, seeded(0)) - make_input(face, "bicubic", 32, seeded(0))
    inside = make_input(face, "bicubic", 32, seeded(0)).abs() < 0.8
    assert float(added[inside].std()) / 2 == pytest.approx(0.02, rel=0.05)
    assert abs(float(added[inside].mean())) < 0.005


def test_the_noise_of_a_name_is_between_0_and_1():
    assert noise_level("noise-0.05") == 0.05
    assert noise_level("noise-.999") == 0.999
    assert noise_level("gfpgan") == 0.0
    assert noise_level("snowy-noise-0.1") == 0.0
    for wrong in ("noise-", "noise-x", "noise-0", "noise-1", "noise--0.1", "noise-nan", "noise-1.5"):
        with pytest.raises(OptionError, match=rf"'{wrong}': write noise-SIGMA.*noise-0\.05"):
            check_degradation(wrong)


def test_an_unknown_degradation_is_refused_with_the_names_of_the_others():
    for name in ("bicubic", "noise-0.5", *CHAIN_PRESETS, "low-light", *OCCLUSIONS):
        check_degradation(name)
    for wrong in ("nope", "", "Bicubic", "low-lights"):
        with pytest.raises(
            OptionError, match=r"not known; choose bicubic, noise-SIGMA .*gfpgan,.*low-light, occlusion"
        ):
            make_input(torch.zeros(3, 16, 16), wrong, 8, seeded(0))


# --- darkness


def linear(srgb):
    """Light of sRGB in [-1, 1] (IEC 61966-2-1)."""
    value = (srgb.double() + 1) / 2
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def test_low_light_is_three_to_five_stops_too_dark_evenly_on_a_scale_of_stops():
    white = torch.ones(3, 24, 24)
    stops = [-np.log2(linear(low_light(white, seeded(seed))).mean().item()) for seed in range(300)]
    assert 2.95 < min(stops) < 3.05
    assert 4.95 < max(stops) < 5.05
    assert np.mean(stops) == pytest.approx(4, abs=0.1)
    assert np.std(stops) == pytest.approx(2 / 12**0.5, rel=0.1)


def test_low_light_darkens_light_not_its_code_values(monkeypatch):
    monkeypatch.setattr(degradations, "_READ_NOISE", 0.0)
    monkeypatch.setattr(degradations, "_FULL_WELL", 1e12)
    face = torch.linspace(-0.99, 1, 3 * 8 * 8).reshape(3, 8, 8)  # both parts of the sRGB curve, both ways
    share = linear(low_light(face, seeded(1))) / linear(face)
    assert 1 / 32 < share.mean() < 1 / 8
    assert share.std() < 1e-4 * share.mean()


@pytest.mark.parametrize("value", [1.0, 0.2, -0.5])
def test_the_noise_of_low_light_is_shot_noise_of_2000_electrons_and_read_noise_of_2_thousandths(value):
    for seed in range(4):
        dark = low_light(torch.full((3, 128, 128), value), seeded(seed))
        light = linear(dark)
        signal = light.mean().item()
        share = signal / linear(torch.tensor(value)).item()
        assert 1 / 33 < share < 1 / 7.5
        if signal > 4 * (signal / 2000 + 0.002**2) ** 0.5:  # else black cuts the noise
            assert light.std().item() == pytest.approx((signal / 2000 + 0.002**2) ** 0.5, rel=0.03)
    black = low_light(torch.full((3, 128, 128), -1.0), seeded(0))
    assert black.min() == -1
    assert (linear(black) ** 2).mean().item() == pytest.approx(0.002**2 / 2, rel=0.05)  # half of it is below black


# --- things in front of a face


LEFT, RIGHT, NOSE, MOUTH_LEFT, MOUTH_RIGHT = (np.array(point) for point in TIGHT_TEMPLATE)
EYES, MOUTH, UNIT = (LEFT + RIGHT) / 2, (MOUTH_LEFT + MOUTH_RIGHT) / 2, 0.43  # the eyes' distance, of the side


def covered_by(kind, seeds=60, side=128):
    """What stands in front of grey faces: where, (seeds, side, side), and its colour, (seeds, 3)."""
    face = torch.full((3, side, side), 0.6)
    drawn = torch.stack([occlude(face, kind, seeded(seed), TIGHT_TEMPLATE) for seed in range(seeds)])
    where = (drawn - face).abs().amax(1) > 1e-3
    whole = [
        own[:, own_where & ((own == own[:, own_where].median(1).values[:, None, None]).all(0))]
        for own, own_where in zip(drawn, where, strict=True)
    ]
    return where.numpy(), np.array([own[:, 0].tolist() for own in whole])


def box(where, origin):
    """Left, top, right and bottom of what is covered and its area, mean over draws, in distances between the eyes."""
    found = []
    for own in where:
        rows, columns = own.any(1).nonzero()[0], own.any(0).nonzero()[0]
        edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / own.shape[0]
        found.append([*(edges - [*origin, *origin]) / UNIT, own.sum() / own.size / UNIT**2])
    return np.array(found)


def test_a_mask_reaches_from_the_bridge_of_the_nose_to_the_edge_of_the_picture():
    where, colours = covered_by("occlusion-mask")
    boxes = box(where, MOUTH)
    bridge = ((EYES + NOSE) / 2 - MOUTH)[1] / UNIT
    assert boxes.mean(0)[:4] == pytest.approx([-0.95, bridge - 0.1, 0.95, (1 - MOUTH[1]) / UNIT], abs=0.03)
    assert np.ptp(boxes[:, 0]) == pytest.approx(0.1, abs=0.03)  # it is shifted by a twentieth each way
    assert colours[:, 1].min() == pytest.approx(0.3, abs=0.05)
    assert colours[:, 1].max() == pytest.approx(0.9, abs=0.05)
    assert colours[:, 0] == pytest.approx(colours[:, 1] - 0.2, abs=1e-5)
    assert colours[:, 2] == pytest.approx(colours[:, 1] + 0.1, abs=1e-5)


def test_sunglasses_are_two_dark_ovals_and_a_bridge():
    where, colours = covered_by("occlusion-glasses")
    boxes = box(where, EYES)
    assert boxes.mean(0)[:4] == pytest.approx([-0.88, -0.28, 0.88, 0.32], abs=0.03)
    ovals, bridge = 2 * np.pi * 0.38 * 0.3, (1 - 2 * 0.38) * 0.08
    assert boxes.mean(0)[4] == pytest.approx(ovals + bridge, rel=0.1)  # pixels that are touched count
    assert np.ptp(boxes[:, 1]) == pytest.approx(0.1, abs=0.03)
    column = round(128 * EYES[0])
    heights = where[:, :, column].sum(1) / 128 / UNIT
    assert heights.mean() == pytest.approx(0.08, abs=0.03)
    middle = [np.flatnonzero(own[:, column]).mean() for own in where]
    assert (np.mean(middle) / 128 - EYES[1]) / UNIT == pytest.approx(-0.05, abs=0.03)
    assert colours.min() == pytest.approx(-0.98, abs=0.03)
    assert colours.max() == pytest.approx(-0.8, abs=0.03)
    assert (np.ptp(colours, 1) < 1e-6).all()


def test_a_hand_reaches_over_the_mouth_from_either_side_in_the_colour_of_the_skin_or_a_little_darker():
    where, colours = covered_by("occlusion-hand")
    from_right = where[:, :, -1].any(1)
    assert (from_right != where[:, :, 0].any(1)).all()
    assert 0.3 < from_right.mean() < 0.7
    right, left = box(where[from_right], MOUTH), box(where[~from_right][:, :, ::-1], (1 - MOUTH[0], MOUTH[1]))
    for boxes in (right, left):
        # four fingers 0.32 thick, the first one's tip 0.45 above the mouth and the last one's 0.45 below, to the edge
        assert boxes.mean(0)[0] == pytest.approx(-0.5 - 0.16, abs=0.04)
        assert boxes.mean(0)[1] == pytest.approx(-0.45 - 0.16, abs=0.05)
    tips = where[from_right][:, :, round(128 * (MOUTH[0] - 0.5 * UNIT)) + 1].sum(1).mean() / 128 / UNIT
    assert tips == pytest.approx(1.2, abs=0.1)
    assert (colours <= 0.6 + 1e-6).all()
    assert colours.min() == pytest.approx(0.35, abs=0.03)
    assert (np.ptp(colours, 1) < 1e-6).all()


def test_a_hand_has_the_median_colour_of_the_middle_of_the_face():
    face = torch.full((3, 100, 100), -0.9)
    face[:, 40:60, 40:60] = torch.tensor([0.5, 0.1, -0.2])[:, None, None]
    drawn = occlude(face, "occlusion-hand", seeded(0), TIGHT_TEMPLATE)
    darker = drawn[:, 76, 50] - face[:, 50, 50]
    assert darker.max() <= 0
    assert darker.min() >= -0.25
    assert np.ptp(darker.numpy()) < 1e-6
    white, black = torch.ones(3, 64, 64), torch.full((3, 64, 64), -1.0)
    assert torch.equal(occlude(black, "occlusion-hand", seeded(0), TIGHT_TEMPLATE), black)
    assert occlude(white, "occlusion-hand", seeded(0), TIGHT_TEMPLATE).max() == 1


def test_the_edge_of_an_occlusion_is_antialiased_and_it_needs_five_landmarks():
    face = torch.full((3, 128, 128), 0.6)
    drawn = occlude(face, "occlusion-glasses", seeded(0), TIGHT_TEMPLATE)
    between = (drawn < 0.55) & (drawn > drawn.min() + 0.05)
    assert 50 < between[0].sum() < 400
    for landmarks in ((), TIGHT_TEMPLATE[:4]):
        with pytest.raises(OptionError, match=r"occlusion-hand needs the place of the landmarks.*no template"):
            make_input(face, "occlusion-hand", 64, seeded(0), landmarks)
