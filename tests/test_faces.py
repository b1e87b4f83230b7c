import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from faceprior.errors import ImageError
from faceprior.faces import align, similarity_transform
from faceprior.priors.card import TIGHT_TEMPLATE

SIDE = 64


def placed(scale, angle=0.0, left=0.0, top=0.0):
    """The template's landmarks in a photo: `scale` pixels a side, turned, its corner at (left, top)."""
    points = np.array(TIGHT_TEMPLATE) @ (1, 1j) * scale * np.exp(1j * angle) + complex(left, top)
    return [(point.real, point.imag) for point in points]


def photo_of_dots(points, width, height, radius):
    """A black photo with a soft white dot at each point."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    grey = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2)) for px, py in points)
    return Image.fromarray((255 * grey.clip(0, 1)).astype(np.uint8)).convert("RGB")


def centroid(face, near):
    """Centre of the light within a tenth of the side around a point, in pixels."""
    grey = np.asarray(face)[..., 0].astype(float)
    y, x = np.mgrid[0 : face.height, 0 : face.width] + 0.5
    weight = grey * (np.hypot(x - near[0], y - near[1]) < face.width / 10)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


points = st.lists(st.tuples(*[st.floats(-500, 500)] * 2), min_size=2, max_size=8).filter(
    lambda found: np.ptp(np.array(found), axis=0).max() > 1
)


@given(points, st.floats(0.05, 20), st.floats(-3.1, 3.1), st.floats(-1000, 1000), st.floats(-1000, 1000))
@settings(max_examples=60, deadline=None)
def test_the_similarity_between_points_is_recovered(source, scale, angle, right, down):
    known = np.array(
        [
            [scale * np.cos(angle), -scale * np.sin(angle), right],
            [scale * np.sin(angle), scale * np.cos(angle), down],
        ]
    )
    target = [tuple(known @ (x, y, 1)) for x, y in source]
    found = similarity_transform(source, target)
    assert np.allclose(np.array(source) @ found[:, :2].T + found[:, 2], target, atol=1e-5 * max(1, scale))


def test_the_best_similarity_of_points_that_do_not_fit_has_the_least_error():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    found = similarity_transform(source, target)

    def error(matrix):
        return ((source @ matrix[:, :2].T + matrix[:, 2] - target) ** 2).sum()

    for _ in range(50):
        a, b, right, down = rng.normal(scale=0.05, size=4)
        assert error(found) <= error(found + np.array([[a, -b, right], [b, a, down]]))


PLACES = {
    "as it is": (SIDE, 0.0, 0, 0),
    "half a pixel off": (SIDE, 0.0, 30.5, 20.5),
    "enlarged": (25, 0.2, 40, 40),
    "slightly reduced": (1.4 * SIDE, 0.1, 10, 10),
    "reduced 5×": (5 * SIDE, 0.0, 20.3, 11.8),
    "reduced 5× and turned": (5 * SIDE, -0.3, 20, 130),
    "on its side": (100, np.pi / 2, 200, 60),
    "partly outside the frame": (2 * SIDE, 0.0, -25, -30),
}


@pytest.mark.parametrize("place", PLACES)
def test_landmarks_come_to_stand_on_the_template(place):
    scale, *where = PLACES[place]
    landmarks = placed(scale, *where)
    photo = photo_of_dots(landmarks, 400, 420, radius=max(0.8, 0.03 * scale))
    face = align(photo, landmarks, TIGHT_TEMPLATE, SIDE)
    assert face.size == (SIDE, SIDE)
    assert face.mode == "RGB"
    for x, y in TIGHT_TEMPLATE:
        expected = np.array([x * SIDE, y * SIDE])
        assert np.hypot(*(centroid(face, expected) - expected)) < 0.2


def equal_to_one_level(face, pixels):
    return abs(np.asarray(face).astype(int) - pixels).max() <= 1  # Pillow's transform does not round


def test_a_face_that_is_already_aligned_is_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    face = align(Image.fromarray(pixels), placed(SIDE), TIGHT_TEMPLATE, SIDE)
    assert equal_to_one_level(face, pixels)


@pytest.mark.parametrize("reduction", [1.5, 3.3, 5])
def test_fine_stripes_average_out_where_the_photo_is_reduced(reduction):
    pixels = np.zeros((400, 400, 3), np.uint8)
    pixels[:, ::2] = 255
    face = np.asarray(align(Image.fromarray(pixels), placed(reduction * SIDE, 0, 20, 20), TIGHT_TEMPLATE, SIDE))
    assert abs(face.astype(float) - 127.5).max() < 48  # without antialiasing they beat from 0 to 255


def test_what_lies_outside_the_photo_is_its_reflection():
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    face = np.asarray(align(Image.fromarray(pixels), placed(SIDE, 0, -10, 0), TIGHT_TEMPLATE, SIDE))
    assert equal_to_one_level(face[:, 10:], pixels[:, :-10])
    assert equal_to_one_level(face[:, :10], pixels[:, 9::-1])


def test_a_photo_much_smaller_than_the_face_is_reflected_again_and_again():
    photo = Image.new("RGB", (4, 4), (10, 20, 30))
    face = np.asarray(align(photo, placed(SIDE, 0, -SIDE / 2, -SIDE / 2), TIGHT_TEMPLATE, SIDE))
    assert (face == (10, 20, 30)).all()


FAR = {
    "far outside": ([(x + 1e6, y) for x, y in placed(SIDE)], "outside the photo"),
    "just outside": (placed(SIDE, 0, -SIDE - 5, 0), "outside the photo"),
    "far apart": (placed(1e7), "too far apart"),
    "mirrored into nothing": ([(0, 0), (1e-5, 0), (1e5, 1), (0, 1e5), (-1e5, 7)], "far apart|outside"),
    "coinciding": ([(5.0, 5.0)] * 5, "coincide"),
    "not numbers": ([(float("nan"), 1.0)] * 5, "not a number"),
    "infinite": ([(float("inf"), 1.0)] * 5, "not a number"),
    "four": (placed(SIDE)[:4], "4 landmarks.*must be 5"),
}


@pytest.mark.parametrize("kind", FAR)
def test_absurd_landmarks_are_refused_without_filling_the_memory(kind):
    landmarks, message = FAR[kind]
    photo = Image.new("RGB", (SIDE, SIDE))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=message):
            align(photo, landmarks, TIGHT_TEMPLATE, SIDE)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
