import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from faceprior.cli.demo import ASTRONAUT_LANDMARKS
from faceprior.faces import align
from faceprior.faces.alignment import alignment, cut_out
from faceprior.faces.prints import dot_distance, laid_over, without_dots
from faceprior.faces.sharpness import block_size, measure_face
from faceprior.images import to_tensor
from faceprior.photographs import RestoreOptions, prepare
from faceprior.priors.card import FFHQ_TEMPLATE, TIGHT_TEMPLATE, ModelCard

ASTRONAUT_SIDE = 97  # of its aligned face, in pixels


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture(scope="module")
def old(photo):
    """A photograph of 128 pixels, enlarged: its face has 24 pixels, and 291 in the file."""
    return photo.resize((128, 128), Image.Resampling.BICUBIC).resize((1536, 1536), Image.Resampling.BICUBIC)


def placed(photo):
    """From pixels of a photograph to its aligned face of 128 pixels."""
    factor = photo.width / 512
    return alignment([(x * factor, y * factor) for x, y in ASTRONAUT_LANDMARKS], TIGHT_TEMPLATE, 128)


def measured(photo):
    return measure_face(photo, placed(photo), 128)


def side_of(photo):
    return measured(photo).effective_side


def aligned(photo):
    """The face as large as `measured` has it, as it is."""
    return cut_out(photo, 2 * placed(photo), 256)


def face_in(photo):
    """What a photograph shows around its face."""
    return photo.crop([round(place * photo.width / 512) for place in (170, 65, 275, 170)])


def spectral_side(face):
    return measure_face(face, np.eye(2, 3), face.width).effective_side


def face(photo, template, side):
    return align(photo, ASTRONAUT_LANDMARKS, template, side)


def reduced_and_enlarged(picture, side, enlarged):
    low = picture.resize((side, side), Image.Resampling.BICUBIC)
    return low.resize((enlarged, enlarged), Image.Resampling.BICUBIC)


def with_grain(picture, std, *, radius=0.7, grey=False):
    """Gaussian noise, filtered as film and scanners do."""
    noise = np.random.default_rng(0).normal(0, std, (picture.height, picture.width, 3))
    across, down = (np.exp(-2 * (np.pi * radius * np.fft.fftfreq(side)) ** 2) for side in picture.size)
    kernel = (down[:, None] * across)[..., None]
    noise = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * kernel, axes=(0, 1)).real
    noise = noise[..., :1] if grey else noise
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).round().astype(np.uint8))


def printed(picture, period, degrees=45):
    """A screen of dots."""
    y, x = np.mgrid[: picture.height, : picture.width]
    turn = np.radians(degrees)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    threshold = 0.5 + (np.cos(2 * np.pi * u / period) + np.cos(2 * np.pi * v / period)) / 4
    dots = Image.fromarray(255 * (np.asarray(picture) > 255 * threshold[..., None]).astype(np.uint8))
    return dots.filter(ImageFilter.GaussianBlur(0.6))


def as_jpeg(picture, quality):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def written_over(picture, lines):
    picture, size = picture.copy(), picture.width // 38
    for number in range(lines):
        place = (0.34 * picture.width, 0.22 * picture.height + 2 * number * size)
        ImageDraw.Draw(picture).text(place, "PROOF COPY 1987", "white", ImageFont.load_default(size))
    return picture


@pytest.mark.parametrize("enlarged", [128, 200])
@pytest.mark.parametrize("template", [TIGHT_TEMPLATE, FFHQ_TEMPLATE], ids=["tight", "loose"])
def test_the_size_to_which_a_face_was_reduced_is_found_again(photo, template, enlarged):
    for side in (10, 16, 24, 32, 48, 64):
        found = spectral_side(reduced_and_enlarged(face(photo, template, 96), side, enlarged))
        assert found == pytest.approx(side, rel=0.15)


def test_the_stronger_the_blur_the_less_is_left(photo):
    sharp = face(photo, TIGHT_TEMPLATE, 96)
    sides = [spectral_side(sharp.filter(ImageFilter.GaussianBlur(radius))) for radius in (0.7, 1, 1.5, 2.5, 4, 7)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] > 4 * sides[-1]


def test_noise_is_not_taken_for_detail(photo):
    clean = np.asarray(reduced_and_enlarged(face(photo, TIGHT_TEMPLATE, 96), 24, 128), float)
    noise = np.random.default_rng(0).normal(0, 10, clean.shape)
    noisy = Image.fromarray((clean + noise).clip(0, 255).astype(np.uint8))
    assert spectral_side(noisy) == pytest.approx(24, rel=0.25)


def test_a_sharp_face_is_sharp_with_grain_and_compressed_too(photo):
    assert side_of(photo) == pytest.approx(ASTRONAUT_SIDE, rel=0.05)
    for spoiled in (with_grain(photo, 4), with_grain(photo, 8), as_jpeg(photo, 40)):
        assert side_of(spoiled) > 0.9 * ASTRONAUT_SIDE
    assert side_of(as_jpeg(photo, 5)) > 0.7 * ASTRONAUT_SIDE  # blocks of 8 pixels, but not of one colour


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("std", [2, 4, 8])
def test_grain_of_film_is_not_taken_for_detail(old, std, grey):
    assert side_of(with_grain(old, std, grey=grey)) == pytest.approx(24, rel=0.15)


def test_coarse_grain_is_not_taken_for_detail(old):
    assert side_of(with_grain(old, 16, radius=1.5, grey=True)) == pytest.approx(24, rel=0.25)


@pytest.mark.parametrize(("period", "side", "within"), [(6, 24, 0.2), (9, 24, 0.15), (12, 17, 0.15), (14, 15, 0.15)])
def test_the_dots_of_a_print_are_not_taken_for_detail(old, period, side, within):
    assert side_of(printed(old, period)) == pytest.approx(side, rel=within)


@pytest.mark.parametrize("degrees", [0, 15, 45])
@pytest.mark.parametrize("period", [4, 6, 9, 14])
def test_the_distance_of_a_prints_dots_is_found(old, period, degrees):
    assert dot_distance(face_in(printed(old, period, degrees))) == pytest.approx(period, rel=0.03)


def test_what_is_not_made_of_dots_has_none_and_stays_itself(photo, old):
    blocks = photo.resize((128, 128)).resize((768, 768), Image.Resampling.NEAREST)
    for picture in (photo, old, as_jpeg(photo, 10), with_grain(old, 8), written_over(old, 2), blocks):
        around = face_in(picture)
        assert without_dots(around) is around
    tiny = photo.resize((20, 20))
    assert without_dots(tiny) is tiny


@pytest.mark.parametrize("period", [6, 14])
def test_the_networks_see_a_printed_face_without_its_dots(old, period):
    dotted, clean = (np.asarray(measured(own).aligned, float) for own in (printed(old, period), old))
    assert (dotted - dotted.mean() - clean + clean.mean()).std() < 15  # of 255; with the dots more than 100


def test_the_networks_see_a_printed_picture_that_is_an_aligned_face_without_its_dots(old):
    def seen(picture):
        file = io.BytesIO()
        picture.save(file, "PNG")
        card = ModelCard(kind="prior", name="some-prior", resolution=128, template=TIGHT_TEMPLATE)
        (condition,) = prepare(file.getvalue(), "a.png", card, RestoreOptions(kind="aligned")).conditions
        return condition.low_resolution

    clean = seen(aligned(old))
    dotted, averaged = (to_tensor(own.resize((128, 128))) for own in (aligned(printed(old, 12)), aligned(old)))
    assert (clean - averaged).std() < 0.02  # the size that the networks see
    assert (seen(aligned(printed(old, 12))) - clean).std() < 0.15
    assert (dotted - clean).std() > 0.5


@pytest.mark.parametrize("lines", [1, 2])
def test_writing_over_a_face_is_not_taken_for_detail(old, lines):
    assert side_of(written_over(old, lines)) == pytest.approx(24, rel=0.2)


@pytest.mark.parametrize("spoil", [lambda own: own, lambda own: as_jpeg(with_grain(own, 4), 60)])
def test_the_networks_see_a_face_without_the_writing_over_it(old, spoil):
    clean = np.asarray(measured(old).aligned, float)
    written, face = np.asarray(aligned(written_over(old, 1)), float), measured(spoil(written_over(old, 1)))
    off, apart = np.abs(np.asarray(face.aligned, float) - clean), np.abs(written - clean)
    there = apart.max(2) > 40
    assert face.laid_over[there].mean() > 0.97
    assert 0.05 < face.laid_over.mean() < 0.2
    assert off[there].mean() < 0.15 * apart[there].mean()


@pytest.mark.parametrize(
    ("place", "size", "colour"), [((0.29, 0.29), 1 / 17, "white"), ((0.29, 0.24), 1 / 26, (250, 220, 40))]
)
def test_broad_letters_at_the_edge_of_a_face_and_small_coloured_ones_are_seen(old, place, size, colour):
    written = old.copy()
    font = ImageFont.load_default(round(size * old.width))
    ImageDraw.Draw(written).text(tuple(share * old.width for share in place), "PROOF COPY", colour, font)
    apart = np.abs(np.asarray(aligned(written), float) - np.asarray(aligned(old), float)).max(2)
    face = measured(written)
    assert face.effective_side == pytest.approx(24, rel=0.2)
    assert face.laid_over[apart > 60].mean() > 0.97


@pytest.mark.parametrize(("width", "stays"), [(1, False), (2, False), (3, True), (6, True)])
def test_a_scratch_is_not_taken_for_detail_and_one_finer_than_the_networks_see_is_left_to_them(old, width, stays):
    scratched = old.copy()
    ImageDraw.Draw(scratched).line([(620, 0), (640, 1536)], fill="white", width=width)
    assert side_of(scratched) == pytest.approx(24, rel=0.2)
    assert (measured(scratched).laid_over is not None) == stays


@pytest.mark.parametrize("side", [12, 20, 40])
def test_letters_may_be_as_fine_as_a_pixel(side):
    face = Image.new("RGB", (side, side))
    face.paste("white", (0, side // 2, side, side // 2 + 1))
    assert laid_over(face, 0.8 * side, broad=False).any()
    assert laid_over(face, 0.8 * side, broad=True) is None


def test_nothing_is_laid_over_a_face_that_is_only_sharp_or_spoiled(photo, old):
    for picture in (photo, old, with_grain(old, 8), as_jpeg(photo, 10), printed(old, 9)):
        assert measured(picture).laid_over is None


NEAREST, BOX = Image.Resampling.NEAREST, Image.Resampling.BOX


@pytest.mark.parametrize(
    ("side", "kernel", "quality"), [(768, NEAREST, None), (678, NEAREST, None), (678, BOX, None), (768, NEAREST, 40)]
)
def test_edges_of_blocks_are_not_taken_for_detail(photo, side, kernel, quality):
    small = photo.resize((128, 128), Image.Resampling.BICUBIC)
    blocks = small.resize((side, side), kernel)
    blocks = blocks if quality is None else as_jpeg(blocks, quality)
    assert block_size(blocks) == pytest.approx(side / 128, rel=0.02)
    assert side_of(blocks) == pytest.approx(24, rel=0.15)


def test_pictures_without_blocks_have_none(photo):
    flat, noise = Image.new("RGB", (64, 64)), np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for picture in (
        photo,
        photo.resize((1000, 1000), Image.Resampling.BICUBIC),
        as_jpeg(photo, 10),
        flat,
        Image.fromarray(noise),
    ):
        assert block_size(picture) == 1


def test_it_is_never_more_than_the_picture_has(photo):
    assert spectral_side(face(photo, TIGHT_TEMPLATE, 40)) <= 40
    assert 0 < spectral_side(Image.new("RGB", (8, 8))) <= 8
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert spectral_side(Image.fromarray(noise)) < 20
    assert side_of(photo.resize((200, 200))) <= ASTRONAUT_SIDE * 200 / 512 + 0.5
