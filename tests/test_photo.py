import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from faceprior.cli.demo import ASTRONAUT_LANDMARKS
from faceprior.errors import ImageError, OptionError, WeightsError
from faceprior.faces import DetectedFace, align, load_detector
from faceprior.faces.paste import FaceMask
from faceprior.images import to_tensor
from faceprior.methods import find_preset
from faceprior.photographs import RestoreOptions, find_faces, is_aligned_crop, paste_faces, prepare
from faceprior.priors.card import FFHQ_TEMPLATE, TIGHT_TEMPLATE, ModelCard
from scenes import Head, alignment_error, astronaut, mask_over, nearest, scene, seam_visibility, spoiled

RESOLUTION = 128
CARD = ModelCard(kind="prior", name="some-prior", resolution=RESOLUTION, template=TIGHT_TEMPLATE)


def told(landmarks, side=90.0):
    x, y = np.mean(landmarks, 0)
    return DetectedFace((x - side / 2, y - side / 2, x + side / 2, y + side / 2), landmarks, 1.0)


def faces_of(photo, *landmarks, card=CARD, **options):
    detections = [told(points) for points in landmarks or (ASTRONAUT_LANDMARKS,)]
    return find_faces(photo, detections, card, RestoreOptions(**options))


def mask_of(face, size):
    return mask_over(FaceMask(face.found.landmarks, face.transform / RESOLUTION), size)


def moved(landmarks, right, down=0.0):
    return [(x + right, y + down) for x, y in landmarks]


@pytest.fixture(scope="module")
def detector():
    return load_detector()


@pytest.fixture(scope="module")
def photo():
    pytest.importorskip("skimage")
    return astronaut()


@pytest.fixture(scope="module")
def pixels(photo):
    return np.asarray(photo)


GREY = torch.zeros(3, RESOLUTION, RESOLUTION)


# finding


def test_upright_turned_and_small_faces_of_one_photo_are_found_and_aligned(detector):
    heads = [Head(0.8, 5, (130, 130)), Head(0.7, 80, (390, 150)), Head(0.27, -10, (130, 300))]
    found = detector(scene(heads, (520, 360)))
    assert len(found) == 3
    assert [face.side for face in found] == sorted((face.side for face in found), reverse=True)
    for head in heads:
        assert (
            alignment_error(nearest([face.landmarks for face in found], head.landmarks), head.landmarks, CARD) < 0.06
        )


@pytest.mark.parametrize("centre", [(30, 120), (45, 120), (120, 36)])
def test_landmarks_of_a_face_that_the_frame_cuts_are_not_those_of_its_mirror_image(detector, centre):
    head = Head(1.0, 0, centre)
    cut = scene([head], (260, 260))
    (face,) = detector(cut)
    assert alignment_error(face.landmarks, head.landmarks, CARD) < 0.1


def test_a_face_that_the_frame_cuts_is_found_restored_and_put_back(detector):
    head = Head(1.0, 0, (36, 120))  # the image-left eye is 15 pixels from the frame, the cheek beyond it
    cut = scene([head], (260, 260))
    (face,) = find_faces(cut, detector(cut), CARD)
    assert FaceMask(face.found.landmarks, face.transform / RESOLUTION).corners.min() < -5
    assert alignment_error(face.found.landmarks, head.landmarks, CARD) < 0.1
    result = paste_faces(
        np.asarray(cut), [face], [spoiled(align(cut, head.landmarks, TIGHT_TEMPLATE, RESOLUTION), 16)]
    )
    assert result.shape == (260, 260, 3)
    assert (result[:, 0] != np.asarray(cut)[:, 0]).any()  # the face goes on to the frame, and so does its mask


def test_no_face_is_found_where_there_is_none(detector):
    assert detector(scene([], (300, 200))) == []


# preparing


def test_a_face_stands_on_the_priors_own_template(photo):
    loose = replace(CARD, template=FFHQ_TEMPLATE)
    for card in (CARD, loose):
        (face,) = faces_of(photo, card=card)
        aligned = np.asarray(ASTRONAUT_LANDMARKS) @ face.transform[:, :2].T + face.transform[:, 2]
        assert np.abs(aligned / RESOLUTION - card.template).max() < 0.04


def test_the_scale_follows_the_detail_of_the_face_and_not_its_size(photo):
    scales, reduced = [], find_preset("ddnm")
    for radius in (0, 3, 5, 12):
        (face,) = faces_of(photo.filter(ImageFilter.GaussianBlur(radius)), preset=reduced)
        assert face.scale == RESOLUTION / face.low_resolution.shape[-1]
        scales.append(face.scale)
    assert scales[0] == 4  # the finest that correctors are trained for
    assert scales == sorted(scales)
    assert scales[1] < scales[2] <= scales[3] == 16


@pytest.mark.parametrize("preset", ["default", "corrector"])
def test_what_is_blind_sees_the_face_at_its_own_resolution(photo, preset):
    for picture in (photo, photo.filter(ImageFilter.GaussianBlur(5))):
        (face,) = faces_of(picture, preset=find_preset(preset))
        own = RESOLUTION / np.hypot(*face.transform[:, 0])  # pixels of the photograph across the aligned face
        assert face.low_resolution.shape[-1] == min(round(own), RESOLUTION)


def test_a_scale_that_is_asked_for_is_kept(photo):
    (face,) = faces_of(photo, scale=8.0)
    assert face.low_resolution.shape == (3, 16, 16)
    with pytest.raises(OptionError, match="scale is 64"):
        faces_of(photo, scale=64)


def test_a_face_sharper_than_the_prior_is_left_alone_and_a_blurred_one_of_the_same_size_is_not(photo):
    small_prior = replace(CARD, resolution=48)
    (sharp,) = faces_of(photo, card=small_prior)
    (soft,) = faces_of(photo.filter(ImageFilter.GaussianBlur(3)), card=small_prior)
    assert sharp.left_alone == "already sharper than the 48 pixels of the prior (a scale that is set restores it)"
    assert soft.left_alone is None


def test_a_scale_that_is_set_wins_over_what_the_photograph_seems_to_hold(photo, pixels):
    small_prior = replace(CARD, resolution=48)
    (face,) = faces_of(photo, card=small_prior, scale=4.0)
    assert face.left_alone is None
    assert face.low_resolution.shape == (3, 12, 12)
    (sharp,) = faces_of(photo)
    (asked,) = faces_of(photo, scale=8.0)
    assert sharp.kept_side == round(sharp.effective_side) > 80  # the photograph's own detail stays
    restored = spoiled(align(photo, ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, RESOLUTION), 16)
    inside = mask_of(asked, photo.size) == 1

    def detail(samples):
        grey = samples.astype(float).mean(-1)
        return np.abs(np.diff(grey, axis=0))[inside[1:]].mean()

    kept, replaced = (detail(paste_faces(pixels, [face], [restored])) for face in (sharp, asked))
    assert kept > 0.9 * detail(pixels)
    assert replaced < 0.6 * detail(pixels)


def test_noise_is_not_put_back_as_detail(photo):
    noise = np.random.default_rng(0).normal(0, 12, (512, 512, 3))
    blurred = np.asarray(photo.filter(ImageFilter.GaussianBlur(4)))
    noisy = (blurred + noise).clip(0, 255).astype(np.uint8)
    (face,) = faces_of(Image.fromarray(noisy))
    clean = spoiled(align(Image.fromarray(blurred), ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, RESOLUTION), 128)
    result = paste_faces(noisy, [face], [clean])
    inside = mask_of(face, photo.size) == 1
    left, before = (np.abs(own.astype(float) - blurred)[inside].std() for own in (result, noisy))
    assert left < 0.2 * before


def test_writing_over_a_blurred_face_stays_and_the_face_around_it_is_restored(photo):
    small = photo.resize((128, 128), Image.Resampling.BICUBIC)
    blurred = small.resize((1536, 1536), Image.Resampling.BICUBIC)
    written = blurred.copy()
    ImageDraw.Draw(written).text((560, 340), "PROOF COPY", "white", ImageFont.load_default(40))
    (face,) = faces_of(written, [(3 * x, 3 * y) for x, y in ASTRONAUT_LANDMARKS])
    sharp = to_tensor(align(photo, ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, RESOLUTION))
    before, after = np.asarray(written), paste_faces(np.asarray(written), [face], [sharp])
    letters = np.abs(before.astype(float) - np.asarray(blurred)).max(-1) > 60
    inside = mask_of(face, written.size) == 1
    assert (letters & inside).sum() > 1000
    assert np.abs(after.astype(float) - before)[letters].mean() < 1
    clean = paste_faces(np.asarray(blurred), [replace(face, laid_over=None)], [sharp])
    far = inside & (np.asarray(Image.fromarray(letters).convert("L").filter(ImageFilter.BoxBlur(30))) == 0)
    assert np.abs(after.astype(float) - clean)[far].mean() < 2  # restored, and not tinted by the letters


def test_a_face_below_the_smallest_is_left_alone(photo):
    (face,) = faces_of(photo, min_face=100)
    assert face.left_alone == "smaller than 100 pixels"


def test_as_many_faces_are_taken_as_were_asked_for(photo):
    places = [moved(ASTRONAUT_LANDMARKS, right) for right in (0, 40, 80)]
    assert len(faces_of(photo, *places)) == 3
    assert len(faces_of(photo, *places, faces=1)) == 1
    assert len(faces_of(photo, *places, faces=2)) == 2


def test_a_prior_without_template_is_named(photo):
    with pytest.raises(WeightsError, match=r"prior some-prior does not say where a face must stand \(template\)"):
        faces_of(photo, card=replace(CARD, template=()))


WRONG = [{"faces": 0}, {"faces": "some"}, {"min_face": 2}, {"blend": 1.5}, {"blend": float("nan")}, {"upscale": 3}]


@pytest.mark.parametrize("wrong", WRONG)
def test_options_out_of_their_range_are_refused(wrong):
    with pytest.raises(OptionError, match="choose"):
        RestoreOptions(**wrong)


# putting back


def test_pixels_outside_the_faces_stay_as_they_are_bit_for_bit(photo, pixels):
    (face,) = faces_of(photo)
    outside = mask_of(face, photo.size) == 0
    result = paste_faces(pixels, [face], [GREY])
    assert 0.9 < outside.mean() < 1
    assert (result[outside] == pixels[outside]).all()
    assert (result != pixels).any()


def test_blend_mixes_and_none_of_it_is_the_photograph(photo, pixels):
    (face,) = faces_of(photo)
    restored = [spoiled(align(photo, ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, RESOLUTION), 16)]
    none, half, all_of_it = (
        paste_faces(pixels, [face], restored, blend=blend).astype(float) for blend in (0, 0.5, 1)
    )
    assert (none == pixels).all()
    assert np.abs(half - (none + all_of_it) / 2).max() <= 1


def test_a_face_that_was_not_changed_leaves_the_photograph_as_it_was(photo, pixels):
    (face,) = faces_of(photo)
    same = to_tensor(align(photo, ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, RESOLUTION))
    result = paste_faces(pixels, [face], [same])
    assert np.abs(result.astype(float) - pixels).mean() < 0.1
    assert np.abs(result.astype(float) - pixels)[mask_of(face, photo.size) > 0].mean() < 2


def test_no_seam_and_no_tint_come_from_a_face_of_another_colour_and_light(photo, pixels):
    (face,) = faces_of(photo.filter(ImageFilter.GaussianBlur(4)))
    restored = spoiled(align(photo, ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, RESOLUTION), 64)
    result = paste_faces(pixels, [face], [restored])
    inside = mask_of(face, photo.size) == 1
    mask = FaceMask(face.found.landmarks, face.transform / RESOLUTION)
    assert np.abs(result[inside].mean(0) - pixels[inside].mean(0)).max() < 1  # of 255; the tint was 19
    assert 0.9 < seam_visibility(pixels, result, mask) < 1.05


def test_detail_that_the_input_of_the_prior_lacked_is_taken_from_the_photograph(photo, pixels):
    (face,) = faces_of(photo)
    inside = mask_of(face, photo.size) == 1
    assert face.kept_side == round(face.effective_side) > RESOLUTION / 2

    def loss(own):
        result = paste_faces(pixels, [own], [GREY])
        return np.abs(result.astype(float) - pixels)[inside].mean()

    assert loss(face) < 0.3 * loss(replace(face, kept_side=8))


@pytest.mark.parametrize("upscale", [2, 4])
def test_the_rest_of_an_enlarged_photograph_is_its_lanczos_enlargement(photo, upscale):
    part = photo.crop((150, 50, 310, 190))
    (face,) = faces_of(part, moved(ASTRONAUT_LANDMARKS, -150, -50))
    result = paste_faces(np.asarray(part), [face], [GREY], upscale=upscale)
    size = (part.width * upscale, part.height * upscale)
    enlarged = np.asarray(part.resize(size, Image.Resampling.LANCZOS))
    outside = np.asarray(Image.fromarray(mask_of(face, part.size) == 0).resize(size, Image.Resampling.NEAREST))
    outside = outside & np.roll(outside, 4, 0) & np.roll(outside, -4, 0) & np.roll(outside, 4, 1)
    assert result.shape == enlarged.shape
    assert (result[outside] == enlarged[outside]).all()
    assert (result != enlarged).any()


def test_sixteen_bits_stay_sixteen_bits(photo, pixels):
    (face,) = faces_of(photo)
    deep = pixels.astype(np.uint16) * 257
    deep += np.random.default_rng(0).integers(0, 200, deep.shape, dtype=np.uint16) // 2 * (deep < 65000)
    restored = [spoiled(align(photo, ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, RESOLUTION), 16)]
    for upscale in (1, 2):
        result = paste_faces(deep, [face], restored, upscale=upscale)
        shallow = paste_faces(pixels, [face], restored, upscale=upscale)
        assert result.dtype == np.uint16
        assert np.abs(result / 257 - shallow).mean() < 0.6
    outside = mask_of(face, photo.size) == 0
    same = paste_faces(deep, [face], restored)
    assert (same[outside] == deep[outside]).all()
    assert len(np.unique(same[~outside])) > 256


def test_grey_stays_grey(photo):
    grey = np.asarray(photo.convert("L"))[..., None]
    (face,) = faces_of(photo)
    result = paste_faces(grey, [face], [spoiled(align(photo, ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, RESOLUTION), 16)])
    assert result.shape == grey.shape
    assert (result != grey).any()


def test_a_face_is_reduced_without_aliasing_where_it_is_small_in_the_photograph():
    photo = Image.new("RGB", (90, 90), (128, 128, 128))
    (face,) = faces_of(photo, [(x * 32 + 30, y * 32 + 30) for x, y in TIGHT_TEMPLATE])
    fine = torch.ones(3, RESOLUTION, RESOLUTION)
    fine[:, ::2] = -1  # stripes of one pixel
    result = paste_faces(np.asarray(photo), [face], [fine]).astype(int)
    assert np.abs(result - 128).max() < 8


def test_overlapping_faces_do_not_depend_on_their_order_and_each_keeps_its_own_middle(pixels, photo):
    places = [ASTRONAUT_LANDMARKS, moved(ASTRONAUT_LANDMARKS, 60)]
    faces = [replace(face, kept_side=8) for face in faces_of(photo, *places)]
    wave = torch.linspace(0, 60, RESOLUTION).sin().expand(3, RESOLUTION, -1)  # no colour match takes it away
    restored = [wave, wave.mT]
    one_way = paste_faces(pixels, faces, restored).astype(int)
    other_way = paste_faces(pixels, faces[::-1], restored[::-1]).astype(int)
    assert np.abs(one_way - other_way).max() <= 1
    for face, own in zip(faces, restored, strict=True):
        alone = paste_faces(pixels, [face], [own]).astype(int)
        x, y = np.mean(face.found.landmarks, 0).astype(int)
        middle = (slice(y - 5, y + 5), slice(x - 5, x + 5))
        assert np.abs(one_way[middle] - alone[middle]).mean() < 12


def test_photographs_of_an_unknown_kind_are_refused(pixels, monkeypatch):
    with pytest.raises(ImageError, match=r"\(H, W, 1\) or \(H, W, 3\) of uint8 or uint16"):
        paste_faces(pixels.astype(float), [], [])
    with pytest.raises(ImageError, match="is not understood"):
        paste_faces(pixels[..., 0], [], [])
    monkeypatch.setattr("faceprior.faces.paste.MAX_RESULT_PIXELS", 1_000_000)
    with pytest.raises(ImageError, match="2048×2048 pixels, more than 1 million"):
        paste_faces(pixels, [], [], upscale=4)


# crop or photograph?


def test_a_photograph_is_told_from_an_aligned_crop(photo):
    crop = align(photo, ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, 64)
    inside = [told([(x * 64, y * 64) for x, y in TIGHT_TEMPLATE])]
    assert is_aligned_crop(crop, inside, CARD)
    assert not is_aligned_crop(photo, [told(ASTRONAUT_LANDMARKS)], CARD)
    of_another_template = replace(CARD, template=FFHQ_TEMPLATE)
    assert not is_aligned_crop(crop, inside, of_another_template)


class Finds:
    """A detector that finds a face in pictures that are wide enough."""

    name = "finds"

    def __init__(self, least_width, landmarks=()):
        self.least_width, self.landmarks = least_width, landmarks

    def __call__(self, photo, min_face=24):
        return [told(self.landmarks)] if photo.width >= self.least_width else []


def file_of(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_small_square_without_a_face_is_no_face():
    for size in ((16, 16), (128, 128)):
        logo = file_of(Image.new("RGB", size, "red"))
        prepared = prepare(logo, "logo.png", CARD, detector=Finds(10_000))
        assert (prepared.aligned, prepared.conditions) == (False, ())
        assert prepared.notes == ("no face found (--aligned if the picture is one)",)
        assert prepare(logo, "logo.png", CARD, RestoreOptions(kind="aligned"), Finds(10_000)).aligned


@pytest.mark.parametrize(("template", "side", "noted"), [(FFHQ_TEMPLATE, 200, True), (FFHQ_TEMPLATE, 300, False)])
def test_a_crop_in_another_framing_is_realigned_and_said(photo, template, side, noted):
    crop = Image.new("RGB", (side, side))
    crop.paste(align(photo, ASTRONAUT_LANDMARKS, template, 200))
    found = DetectedFace((40, 50, 160, 170), [(x * 200, y * 200) for x, y in template], 1.0)
    prepared = prepare(file_of(crop), "face.png", CARD, RestoreOptions(scale=8), detections=[found])
    assert not prepared.aligned
    assert len(prepared.conditions) == 1
    placed = np.array(found.landmarks) @ prepared.faces[0].transform[:, :2].T + prepared.faces[0].transform[:, 2]
    assert np.abs(placed / RESOLUTION - TIGHT_TEMPLATE).max() < 0.03
    assert any("another network" in note for note in prepared.notes) is noted


def test_the_face_of_a_tiny_aligned_picture_is_seen_in_its_enlargement(photo):
    detector = Finds(200, [(32 + x * 192, 32 + y * 192) for x, y in TIGHT_TEMPLATE])
    crop = align(photo, ASTRONAUT_LANDMARKS, TIGHT_TEMPLATE, 16)
    prepared = prepare(file_of(crop), "face.png", CARD, detector=detector)
    assert prepared.aligned
    assert np.allclose(prepared.detections[0].landmarks, np.array(TIGHT_TEMPLATE) * 16)
    assert prepared.conditions[0].low_resolution.shape == (3, 16, 16)
