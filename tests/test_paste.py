"""Putting a face back, pixel for pixel: where the mask stands, what is mixed there, and that nothing else moves."""

import numpy as np
import pytest
from PIL import Image

from faceprior.errors import ImageError
from faceprior.faces import paste as module
from faceprior.faces.alignment import cut_out_samples
from faceprior.faces.paste import FaceMask, check_enlarged, enlarge, paste, resized
from scenes import mask_over

EYES = ((30.0, 40.0), (70.0, 40.0))  # 40 pixels apart: the unit of the oval
REST = ((50.0, 60.0), (35.0, 80.0), (65.0, 80.0))
MIDDLE = (50.0, 40 + 0.45 * 40)  # of the oval, 0.45 of the eyes' distance below them
ACROSS, DOWN = 0.88 * 40, 1.08 * 40  # its half axes


def mask_of(eyes=EYES, *, left=0.0, top=0.0, side=100.0):
    """A mask whose aligned square stands upright from (left, top) on."""
    return FaceMask((*eyes, *REST), np.array([[1 / side, 0, -left / side], [0, 1 / side, -top / side]]))


def at(mask, x, y):
    return float(mask(np.array([x]), np.array([y]))[0])


def ramp(side, across=100.0, down=60.0, start=20.0):
    """A face (R, R, 3) whose value at the fractions u, v of its side is start + across · u + down · v."""
    place = (np.arange(side) + 0.5) / side
    value = start + across * place + down * place[:, None]
    return np.stack([value, value / 2, 200 - value], -1)


@pytest.fixture
def photo(draws):
    return draws.integers(0, 256, (90, 110, 3), np.uint8)


@pytest.fixture
def draws():
    return np.random.default_rng(0)


# the mask


@pytest.mark.parametrize(
    ("radius", "share"),
    [(0.0, 1.0), (0.99, 1.0), (1.0, 1.0), (1.075, 27 / 32), (1.15, 0.5), (1.225, 5 / 32), (1.3, 0.0), (2.0, 0.0)],
)
@pytest.mark.parametrize("direction", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_the_mask_is_whole_on_the_oval_and_fades_by_a_smooth_step_to_1_3_of_it(radius, share, direction):
    mask = mask_of(left=-400, top=-400, side=1000)  # the square's edges are far away
    x = MIDDLE[0] + direction[0] * radius * ACROSS
    y = MIDDLE[1] + direction[1] * radius * DOWN
    assert at(mask, x, y) == pytest.approx(share, abs=1e-9)


def test_the_oval_turns_with_the_eyes():
    turned = mask_of(((50.0, 30.0), (50.0, 70.0)), left=-400, top=-400, side=1000)  # the chin points to the left
    middle = (50 - 0.45 * 40, 50)
    assert at(turned, middle[0] - 1.15 * DOWN, middle[1]) == pytest.approx(0.5)
    assert at(turned, middle[0] + 1.15 * DOWN, middle[1]) == pytest.approx(0.5)
    assert at(turned, middle[0], middle[1] + 1.15 * ACROSS) == pytest.approx(0.5)


@pytest.mark.parametrize(("inside", "share"), [(-0.1, 0), (0, 0), (0.03, 5 / 32), (0.06, 0.5), (0.12, 1), (0.3, 1)])
def test_the_mask_fades_in_0_12_of_the_square_from_each_of_its_edges(inside, share):
    wide = mask_of(((-450.0, -400.0), (550.0, -400.0)))  # an oval that holds all of the square
    pixels = 100 * inside
    for x, y in ((pixels, 50), (100 - pixels, 50), (50, pixels), (50, 100 - pixels)):
        assert at(wide, x, y) == pytest.approx(share)


def test_the_corners_are_those_of_the_aligned_square():
    assert np.allclose(mask_of(left=7, top=-3, side=50).corners, [(7, -3), (57, -3), (57, 47), (7, 47)])


# enlarging


@pytest.mark.parametrize("factor", [2, 3])
def test_a_photograph_is_enlarged_by_the_lanczos_kernel(photo, factor):
    expected = Image.fromarray(photo).resize((110 * factor, 90 * factor), Image.Resampling.LANCZOS)
    assert (enlarge(photo, factor) == np.asarray(expected)).all()


def test_sixteen_bits_are_enlarged_in_sixteen_bits(draws):
    deep = draws.integers(0, 65536, (9, 11, 1), np.uint16)
    expected = Image.fromarray(deep[..., 0].astype(np.float32)).resize((22, 18), Image.Resampling.LANCZOS)
    large = enlarge(deep, 2)
    assert large.dtype == np.uint16
    assert (large[..., 0] == np.clip(np.rint(np.asarray(expected)), 0, 65535)).all()
    assert large.min() == 0
    assert large.max() == 65535  # the kernel overshoots both ends, and is cut there


def test_what_has_its_size_is_returned_itself(photo):
    assert enlarge(photo, 1) is photo
    assert resized(photo, (110, 90)) is photo
    for size in ((90, 110), (110, 91), (111, 90)):
        assert resized(photo, size).shape == (size[1], size[0], 3)


def test_as_many_pixels_as_the_limit_are_enlarged_and_one_more_is_refused(monkeypatch):
    photo = np.zeros((20, 30, 3), np.uint8)
    monkeypatch.setattr(module, "MAX_RESULT_PIXELS", 2400)
    check_enlarged(photo, 2)
    monkeypatch.setattr(module, "MAX_RESULT_PIXELS", 2_000_000)
    with pytest.raises(ImageError, match="100 times enlarged it has 3000×2000 pixels, more than 2 million"):
        enlarge(photo, 100)


# pasting


@pytest.mark.parametrize("side", [16, 100, 700])  # of the face: coarser than the photograph, as fine, and finer
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("blend", [1.0, 0.4])
def test_each_pixel_is_the_photograph_and_the_faces_value_there_as_the_mask_shares_them(photo, side, factor, blend):
    mask = mask_of(left=8.3, top=-11.6, side=99)
    result = paste(photo, [ramp(side)], [mask], factor, blend)
    x = ((np.arange(110 * factor) + 0.5) / factor)[None]
    y = ((np.arange(90 * factor) + 0.5) / factor)[:, None]
    value = 20 + 100 * (x - 8.3) / 99 + 60 * (y + 11.6) / 99
    face = np.stack([value, value / 2, 200 - value], -1)
    base = enlarge(photo, factor).astype(float)
    share = blend * mask(x, y)[..., None]
    assert result.dtype == np.uint8
    ripple = 0.1 * 160 / side  # Pillow's cubic (a = −1) turns a ramp into one with ripples of a tenth of a pixel
    assert np.abs(result - (base + share * (face - base))).max() <= 0.51 + ripple
    outside = mask(x, y) == 0
    assert outside.any()
    assert (result[outside] == base[outside]).all()


def test_a_turned_and_smaller_face_lands_in_its_place(draws):
    photo = draws.integers(0, 65536, (80, 80, 1), np.uint16)
    turn = 0.02 * np.exp(0.5j)  # 50 pixels a side, turned by half a radian
    transform = np.array([[turn.real, -turn.imag, 0.1], [turn.imag, turn.real, -0.6]])
    eyes = np.linalg.inv(transform[:, :2]) @ (np.array([[0.3, 0.7], [0.4, 0.4]]) - transform[:, 2:])
    mask = FaceMask((*map(tuple, eyes.T), *REST), transform)
    result = paste(photo, [ramp(64, 20_000, 10_000, 3000)[..., :1]], [mask])
    x, y = np.arange(80)[None] + 0.5, np.arange(80)[:, None] + 0.5
    u, v = (row[0] * x + row[1] * y + row[2] for row in transform)
    expected = photo[..., 0] + mask(x, y) * (3000 + 20_000 * u + 10_000 * v - photo[..., 0])
    assert result.dtype == np.uint16
    assert (mask(x, y) > 0).sum() > 1000
    assert np.abs(result[..., 0] - expected).max() < 0.5 + 0.1 * 30_000 / 64  # see above


def test_samples_beyond_the_range_are_cut_before_they_are_mixed():
    photo = np.full((100, 100, 3), 100, np.uint8)
    bright, dark = np.full((50, 50, 3), 400.0), np.full((50, 50, 3), -200.0)
    assert paste(photo, [bright], [mask_of()], blend=0.5)[50, 50, 0] == 178  # (100 + 255) / 2
    assert paste(photo, [dark], [mask_of()], blend=0.5)[50, 50, 0] == 50


def test_where_faces_meet_each_has_the_square_of_its_mask_over_the_sum_of_both():
    photo = np.full((100, 140, 1), 100, np.uint8)
    first, second = mask_of(), mask_of(((70.0, 40.0), (110.0, 40.0)), left=40)
    faces = [np.full((50, 50, 1), 200.0), np.full((50, 50, 1), 0.0)]
    result = paste(photo, faces, [first, second])
    own, other = mask_over(first, (140, 100)), mask_over(second, (140, 100))
    both = (own > 0) & (other > 0)
    assert both.sum() > 500
    total = np.maximum(own + other, 1e-12)
    expected = 100 + own**2 / total * (200 - 100) + other**2 / total * (0 - 100)
    assert np.abs(result[..., 0] - expected).max() <= 1  # each face is rounded
    other_way = paste(photo, faces[::-1], [second, first])
    assert np.abs(result.astype(int) - other_way).max() <= 1


def test_a_face_outside_the_photograph_changes_nothing_and_the_next_one_is_still_put_in(photo):
    away = mask_of(((-370.0, 40.0), (-330.0, 40.0)), left=-400)
    assert (paste(photo, [ramp(50)], [away]) == photo).all()
    both = paste(photo, [ramp(50), ramp(50)], [away, mask_of()])
    assert (both == paste(photo, [ramp(50)], [mask_of()])).all()
    assert (both != photo).any()


def test_the_photograph_is_left_as_it_was_and_the_given_enlarger_is_used(photo):
    before = photo.copy()
    paste(photo, [ramp(50)], [mask_of()])
    assert (photo == before).all()
    asked = []

    def nearest(own, factor):
        asked.append(factor)
        return own.repeat(factor, 0).repeat(factor, 1)

    result = paste(photo, [ramp(50)], [mask_of()], 2, enlarger=nearest)
    assert asked == [2]
    outside = mask_over(mask_of(), (110, 90)).repeat(2, 0).repeat(2, 1) == 0
    assert (result[0, :10] == photo[0, :5].repeat(2, 0)).all()
    assert outside[0, :10].all()


def test_faces_and_masks_of_another_number_are_refused(photo):
    with pytest.raises(ValueError, match="zip"):
        paste(photo, [ramp(50)], [mask_of(), mask_of()])


@pytest.mark.parametrize("side", [25, 100])
def test_the_aligned_face_of_a_photograph_is_what_stands_in_its_square(side):
    x, y = np.arange(110) + 0.5, np.arange(90)[:, None] + 0.5
    photo = np.stack([100 * x + 50 * y, 300 * y + 0 * x], -1).astype(np.uint16)
    cut = cut_out_samples(photo, side * mask_of(left=20, top=10, side=50).transform, side)
    place = 50 * (np.arange(side) + 0.5) / side
    expected = np.stack(
        [100 * (20 + place) + 50 * (10 + place[:, None]), 300 * (10 + place[:, None]) + 0 * place], -1
    )
    assert cut.shape == (side, side, 2)
    assert np.abs(cut - expected).max() < 0.1 * 300
