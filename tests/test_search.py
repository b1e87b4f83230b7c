from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from faceprior.errors import OptionError
from faceprior.faces import DetectedFace
from faceprior.faces import search as searching
from faceprior.faces.search import Candidate, find, suppress

SPOTS = {(255, 0, 0): -0.2, (0, 0, 255): 0.2}
"""A "face" is a white disc with a red spot above its middle and a blue one below it: how far, in sides."""

POINTS = np.array([-0.2 - 0.2j, 0.2 - 0.2j, 0, -0.15 + 0.2j, 0.15 + 0.2j])
"""Where its landmarks are said to be."""


def draw(photo, centre, side, turn=0.0):
    """Draw a face this large, turned clockwise by degrees, into a photo."""
    draw, fine = ImageDraw.Draw(photo), np.exp(1j * np.radians(turn))

    def dot(place, radius, colour):
        x, y = place.real, place.imag
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    dot(complex(*centre), side / 2, "white")
    for colour, down in SPOTS.items():
        dot(complex(*centre) + fine * 1j * down * side, 0.12 * side, colour)


def photo_of(size, *faces):
    photo = Image.new("RGB", (3 * size[0], 3 * size[1]))
    for centre, side, turn in faces:
        draw(photo, (3 * centre[0], 3 * centre[1]), 3 * side, turn)
    return photo.resize(size, Image.Resampling.BOX)


def look(pictures):
    """A network that sees drawn faces of 10 pixels and more that are turned by less than 50 degrees."""
    return [seen_in(picture.astype(int)) for picture in pictures]


def seen_in(pixels):
    spots = []
    for colour in SPOTS:
        others = [channel for channel in range(3) if colour[channel] == 0]
        strong = pixels[..., colour.index(255)] - pixels[..., others].max(-1)
        if strong.max(initial=0) < 90:
            return []
        y, x = np.nonzero(strong > 60)
        if np.ptp(x) > 0.5 * len(x) + 8:  # of several faces
            return []
        weight = strong[y, x]
        spots.append(complex((weight * (x + 0.5)).sum(), (weight * (y + 0.5)).sum()) / weight.sum())
    brow, chin = spots
    across = (chin - brow) / 0.4j
    if abs(across) < 10 or abs(np.degrees(np.angle(across))) > 50:
        return []
    centre, half = (brow + chin) / 2, abs(across) / 2
    box = (centre.real - half, centre.imag - half, centre.real + half, centre.imag + half)
    return [DetectedFace(box, [(p.real, p.imag) for p in centre + across * POINTS], 0.9)]


@pytest.mark.parametrize("turn", [0, 40, 90, 130, 180, 265, 310])
@pytest.mark.parametrize("side", [30, 110, 350])
def test_a_face_of_any_size_and_turn_is_found_in_its_place(side, turn):
    photo = photo_of((640, 500), ((310.3, 230.7), side, turn))
    (face,) = find(look, photo, 24)
    assert face.side == pytest.approx(side, rel=0.06)
    true = complex(310.3, 230.7) + np.exp(1j * np.radians(turn)) * side * POINTS
    found = np.array(face.landmarks) @ (1, 1j)
    assert np.abs(np.subtract(found, true)).max() < 0.03 * side
    assert (face.box[0] + face.box[2]) / 2 == pytest.approx(310.3, abs=0.03 * side)


def test_each_face_is_found_once_the_largest_first():
    photo = photo_of((900, 500), ((200, 240), 60, 0), ((650, 240), 90, 0))
    found = find(look_in_halves, photo, 24)
    assert [round(face.side, -1) for face in found] == [90, 60]


def look_in_halves(pictures):
    """See a face in the left and one in the right half of a wide picture, or one in a square one."""
    if pictures.shape[2] <= pictures.shape[1]:
        return look(pictures)
    half = pictures.shape[2] // 2
    lefts, rights = look(pictures[:, :, :half]), look(pictures[:, :, half:])
    return [left + [shifted(face, half) for face in right] for left, right in zip(lefts, rights, strict=True)]


def shifted(face, right):
    box = tuple(side + right * (1 - index % 2) for index, side in enumerate(face.box))
    return DetectedFace(box, [(x + right, y) for x, y in face.landmarks], face.score)


def test_landmarks_of_a_mirrored_photo_are_the_mirrored_landmarks():
    photo = photo_of((400, 300), ((150, 140), 100, 12))
    (face,), (mirrored,) = (
        find(look, photo, 24),
        find(look, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 24),
    )
    expected = [(400 - x, y) for x, y in np.array(face.landmarks)[[1, 0, 2, 4, 3]]]
    assert np.abs(np.subtract(mirrored.landmarks, expected)).max() < 0.5


def test_what_is_not_seen_again_when_looked_at_closely_is_no_face():
    calls = []

    def fickle(pictures):
        calls.append(len(pictures))
        return look(pictures) if pictures.shape[1:3] != (128, 128) else [[] for _ in pictures]

    assert find(fickle, photo_of((300, 260), ((150, 130), 80, 0)), 24) == []
    assert calls


def test_what_is_searched_at_once_and_in_all_is_bounded(monkeypatch):
    monkeypatch.setattr(searching, "UPRIGHT_PIXELS", 6e5)
    monkeypatch.setattr(searching, "TURNED_PIXELS_ALONE", 2e5)
    looked = []

    def blind(pictures):
        looked.append(pictures.shape[:3])
        return [[] for _ in pictures]

    assert find(blind, Image.new("RGB", (3000, 2000)), 8) == []
    assert max(max(shape) for shape in looked) <= searching.TILE
    # the coarser scales add an eighth, tiles overlap
    assert sum(np.prod(shape) for shape in looked) < (6e5 + 3 * 2e5) * 1.125 * 1.4


def test_turned_copies_are_searched_more_finely_where_no_upright_face_is_seen():
    def pixels_searched(turn):
        looked = []
        find(
            lambda pictures: looked.append(pictures.size) or look(pictures),
            photo_of((700, 600), ((350, 300), 90, turn)),
            24,
        )
        return sum(looked)

    assert pixels_searched(180) > 2 * pixels_searched(0)


def test_a_face_that_is_seen_more_surely_while_it_is_misread_keeps_its_turn():
    def misled(pictures):
        """See what `look` sees and, more surely, the same turned to its side, with landmarks too close together."""
        return [faces + [misread(face) for face in faces] for faces in look(pictures)]

    (face,) = find(misled, photo_of((300, 260), ((150, 130), 80, 0)), 24)
    true = 150 + 130j + 80 * POINTS
    assert np.abs(np.array(face.landmarks) @ (1, 1j) - true).max() < 0.03 * 80


def test_a_face_that_seemed_upright_from_afar_is_looked_at_as_turned_where_it_is_not():
    def misled(pictures):
        """See what `look` sees, and from afar take a face on its head for an upright one."""
        found = look(pictures)
        if pictures.shape[1:3] != (128, 128):
            found = [
                own or [DetectedFace(face.box, upright(face), 0.9) for face in turned_back]
                for own, turned_back in zip(found, seen_on_their_heads(pictures), strict=True)
            ]
        return found

    (face,) = find(misled, photo_of((300, 260), ((150, 130), 80, 180)), 24)
    true = 150 + 130j - 80 * POINTS
    assert np.abs(np.array(face.landmarks) @ (1, 1j) - true).max() < 0.03 * 80


def seen_on_their_heads(pictures):
    height, width = pictures.shape[1:3]
    return [
        [replace(face, box=tuple(np.subtract((width, height) * 2, np.roll(face.box, 2)))) for face in faces]
        for faces in look(pictures[:, ::-1, ::-1])
    ]


def upright(face):
    left, top, right, bottom = face.box
    points = complex(left + right, top + bottom) / 2 + face.side * POINTS
    return [(p.real, p.imag) for p in points]


def misread(face):
    middle = np.mean(face.landmarks, 0) @ (1, 1j)
    points = middle + 0.4 * np.exp(1j * np.radians(80)) * (np.array(face.landmarks) @ (1, 1j) - middle)
    return DetectedFace(face.box, [(p.real, p.imag) for p in points], 0.95)


def test_a_photo_without_candidates_has_no_faces():
    assert find(look, Image.new("RGB", (33, 500)), 24) == []


def test_faces_too_small_to_look_for_are_refused():
    with pytest.raises(OptionError, match="choose 8 or more"):
        find(look, Image.new("RGB", (100, 100)), 7)


def test_of_candidates_that_show_one_face_the_best_is_kept():
    best, inside, beside = (
        Candidate(100 + 100j, 50 + 0j, 0.9),
        Candidate(105 + 98j, 30j, 0.8),
        Candidate(145 + 100j, 50 + 0j, 0.5),
    )
    assert suppress([inside, beside, best]) == [best, beside]
    assert suppress([inside, beside, best], turn=np.radians(45)) == [best, inside, beside]


def test_what_is_found_does_not_depend_on_how_many_look_at_once():
    photo = photo_of((1300, 600), ((310, 230), 60, 0), ((1000, 300), 160, 0))
    with ThreadPoolExecutor(3) as pool:
        assert find(look_in_halves, photo, 24, pool.map) == find(look_in_halves, photo, 24)
