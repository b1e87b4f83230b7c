import numpy as np
import pytest
from PIL import Image, ImageFilter

from faceprior.benchmark.photos import ASTRONAUT_LANDMARKS
from faceprior.faces import align
from faceprior.faces.sharpness import effective_side
from faceprior.priors.card import FFHQ_TEMPLATE, TIGHT_TEMPLATE


def face(template, side):
    photo = Image.fromarray(pytest.importorskip("skimage.data").astronaut())
    return align(photo, ASTRONAUT_LANDMARKS, template, side)


def reduced_and_enlarged(picture, side, enlarged):
    low = picture.resize((side, side), Image.Resampling.BICUBIC)
    return low.resize((enlarged, enlarged), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("enlarged", [128, 200])
@pytest.mark.parametrize("template", [TIGHT_TEMPLATE, FFHQ_TEMPLATE], ids=["tight", "loose"])
def test_the_size_to_which_a_face_was_reduced_is_found_again(template, enlarged):
    for side in (10, 16, 24, 32, 48, 64):
        found = effective_side(reduced_and_enlarged(face(template, 96), side, enlarged))
        assert found == pytest.approx(side, rel=0.15)


def test_the_stronger_the_blur_the_less_is_left():
    sharp = face(TIGHT_TEMPLATE, 96)
    sides = [effective_side(sharp.filter(ImageFilter.GaussianBlur(radius))) for radius in (0.7, 1, 1.5, 2.5, 4, 7)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] > 4 * sides[-1]


def test_noise_is_not_taken_for_detail():
    clean = np.asarray(reduced_and_enlarged(face(TIGHT_TEMPLATE, 96), 24, 128), float)
    noise = np.random.default_rng(0).normal(0, 10, clean.shape)
    noisy = Image.fromarray((clean + noise).clip(0, 255).astype(np.uint8))
    assert effective_side(noisy) == pytest.approx(24, rel=0.25)


def test_it_is_never_more_than_the_picture_has():
    assert effective_side(face(TIGHT_TEMPLATE, 40)) <= 40
    assert 0 < effective_side(Image.new("RGB", (8, 8))) <= 8
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert effective_side(Image.fromarray(noise)) < 20
