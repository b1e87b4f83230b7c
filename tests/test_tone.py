import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from faceprior.images import resize, to_tensor, to_uint8, tone_of
from faceprior.photographs.restore import Condition
from faceprior.pipeline import Samples

GREYS = torch.linspace(-1, 1, 256).expand(3, 4, 256)


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


def sepia(grey):
    return ImageOps.colorize(grey, (28, 16, 8), (250, 240, 215), (150, 110, 75))


def lab(image):
    """CIE L*a*b* of 8-bit sRGB, (H, W, 3)."""
    skimage = pytest.importorskip("skimage.color")
    return skimage.rgb2lab(np.asarray(image))


def face_of(image, side=24):
    return resize(to_tensor(image.crop((170, 60, 280, 170)))[None], side)[0]


def test_a_grey_photograph_gets_grey_faces(photo):
    grey = ImageOps.grayscale(photo).convert("RGB")
    restored = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    samples = Condition(face_of(grey), tone=tone_of(grey)).toned(Samples(restored, restored.mean(0)))
    toned = to_uint8(torch.cat([samples.images, samples.mean[None]])).int()
    assert (toned.amax(1) - toned.amin(1)).max() <= 1
    restored = torch.cat([restored, restored.mean(0, keepdim=True)])
    luma = (to_uint8(restored).double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    assert (toned[:, 0] - luma).abs().max() <= 1


@pytest.mark.parametrize("quality", [None, 75])
def test_a_sepia_photograph_gets_faces_in_its_sepia(photo, quality, tmp_path):
    grey = ImageOps.grayscale(photo)
    picture = sepia(grey)
    if quality:
        picture.save(tmp_path / "sepia.jpg", quality=quality)
        picture = Image.open(tmp_path / "sepia.jpg").convert("RGB")
    # colours that the scan does not have, at its brightness
    alive = np.asarray(photo).astype(float) - np.asarray(grey)[..., None] + np.asarray(sepia(grey))
    restored = to_tensor(Image.fromarray(alive.clip(0, 255).astype(np.uint8)))
    toned = Condition(face_of(picture), tone=tone_of(picture)).toned(Samples(restored[None], restored)).images[0]
    wanted = lab(sepia(grey))[60:170, 170:280]
    off, before = (
        np.sqrt(((lab(to_uint8(own).permute(1, 2, 0).numpy())[60:170, 170:280] - wanted) ** 2).sum(-1)).mean()
        for own in (toned, restored)
    )
    assert off < (1 if quality is None else 2)
    assert before > 10


def test_colours_that_are_alive_stay(photo):
    restored = Samples(to_tensor(photo)[None], to_tensor(photo))
    tinted = np.array(sepia(ImageOps.grayscale(photo)))
    tinted[60:170, 170:280] = np.asarray(photo)[60:170, 170:280]  # a coloured face in a sepia picture
    for picture in (photo, Image.fromarray(tinted)):
        assert Condition(face_of(picture), tone=tone_of(picture)).toned(restored) is restored


def test_a_tone_is_smooth_where_the_picture_has_no_such_brightness():
    two = Image.fromarray(np.repeat(np.array([[[60, 40, 20], [200, 180, 140]]], np.uint8), 64, axis=0))
    toned = to_uint8(tone_of(two)(GREYS)).int()
    assert (toned.diff(dim=-1) >= 0).all()
    assert (toned.diff(dim=-1) <= 2).all()


def test_a_flat_picture_has_a_tone_and_nothing_breaks():
    flat = Image.new("RGB", (8, 8), (100, 90, 80))
    assert torch.isfinite(tone_of(flat)(GREYS)).all()
