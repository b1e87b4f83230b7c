import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageDraw

from faceprior.faces import search as searching
from faceprior.faces.search import Candidate, Seen, search, suppress
from faceprior.faces.threads import PerThread, in_parallel

WINDOW = 40


def discs(pixels):
    """A detector of white discs that are larger than the window and no larger than three windows."""
    white = pixels[..., 0] > 200
    if not white.any():
        return []
    y, x = np.nonzero(white)
    across = 2 * np.sqrt(white.sum() / np.pi)
    whole = np.ptp(x) < 1.2 * across and np.ptp(y) < 1.2 * across
    return [Seen(x.mean() + 0.5, y.mean() + 0.5, across, 1.0)] if whole and WINDOW <= across < 3 * WINDOW else []


def photo_of_disc(size, centre, across):
    photo = Image.new("RGB", (4 * size[0], 4 * size[1]))
    box = [4 * (place + sign * across / 2) for sign in (-1, 1) for place in centre]
    ImageDraw.Draw(photo).ellipse(box, fill="white")
    return photo.resize(size, Image.Resampling.BOX)


@pytest.mark.parametrize("across", [14, 40, 90, 200])
def test_a_face_of_any_size_is_found_in_its_place_in_every_turned_copy(across):
    found = search(photo_of_disc((500, 400), (310.3, 190.7), across), discs, WINDOW, 12)
    assert {candidate.turn for candidate in found} == {0.0, *searching.TURNS}
    for candidate in found:
        assert np.hypot(candidate.centre[0] - 310.3, candidate.centre[1] - 190.7) < 0.05 * across
        assert candidate.side == pytest.approx(across, rel=0.1)


def test_a_face_that_the_frame_cuts_is_found():
    (centre, *_) = (one.centre for one in search(photo_of_disc((300, 300), (0.0, 150.0), 100), discs, WINDOW, 24))
    assert abs(centre[0]) < 50
    assert abs(centre[1] - 150) < 10


def test_what_is_searched_at_once_and_in_all_is_bounded(monkeypatch):
    monkeypatch.setattr(searching, "UPRIGHT_PIXELS", 3e6)
    monkeypatch.setattr(searching, "TURNED_PIXELS_ALONE", 1e6)
    looked = []

    def look(pixels):
        looked.append(pixels.shape[:2])
        return []

    assert search(Image.new("RGB", (3000, 2000)), look, WINDOW, 8) == []
    assert max(max(shape) for shape in looked) <= searching.TILE
    # each octave adds a quarter, tiles overlap, turned copies have corners
    assert sum(height * width for height, width in looked) < 2 * (3e6 + len(searching.TURNS) * 1e6) * 1.4


def test_turned_copies_are_searched_more_finely_where_no_upright_face_is_found(monkeypatch):
    monkeypatch.setattr(searching, "TURNED_PIXELS", 1e4)

    def pixels_searched(look):
        looked = []
        photo = photo_of_disc((400, 400), (200, 200), 60)
        search(photo, lambda pixels: looked.append(pixels.size) or look(pixels), WINDOW, 20)
        return sum(looked)

    assert pixels_searched(lambda _: []) > 2 * pixels_searched(discs)


def test_of_candidates_that_show_one_face_the_best_is_kept():
    best, inside, beside = (
        Candidate((100.0, 100.0), 50.0, 0.0, 2.0),
        Candidate((105.0, 98.0), 30.0, 60.0, 1.0),
        Candidate((145.0, 100.0), 50.0, 0.0, 0.5),
    )
    assert suppress([inside, beside, best]) == [best, beside]


def test_each_thread_has_a_detector_of_its_own_made_when_it_first_asks():
    made = []
    detector = PerThread(lambda: made.append(threading.get_ident()) or object())
    assert made == []
    mine = detector.own
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: detector.own).result()
    assert detector.own is mine is not other
    assert len(made) == len(set(made)) == 2


def test_what_is_done_in_parallel_comes_back_in_order_on_other_threads():
    def slow_if_early(number):
        time.sleep(0.02 * (5 - number))
        return number, threading.get_ident()

    numbers, threads = zip(*in_parallel(slow_if_early, range(5)), strict=True)
    assert numbers == (0, 1, 2, 3, 4)
    assert threading.get_ident() not in threads


def test_a_detector_that_fails_on_another_thread_is_heard_of():
    def look(_pixels):
        raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        search(Image.new("RGB", (300, 300)), look, WINDOW, 24)
