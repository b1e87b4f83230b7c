import numpy as np
import pytest

from faceprior.faces.tracking import MAX_GAP, FaceTracker, Sighting, extent, look, smooth

FACE = np.array([(-10, -12), (10, -12), (0, 0), (-8, 10), (8, 10)], float)
ALICE, BOB = (look(np.random.default_rng(seed).random((16, 16), np.float32)) for seed in (0, 1))
RATE = 25


def sighting(frame, x=100.0, y=100.0, side=30.0, **others):
    return Sighting(frame, frame / RATE, FACE + np.array((x, y)), side, **others)


def followed(frames):
    """Tracks of frames, each a list of (sighting, look)."""
    tracker = FaceTracker()
    for frame, seen in enumerate(frames):
        tracker.update(frame / RATE, seen)
    return tracker.tracks


def smoothed(sightings):
    (track,) = followed([[(own, ALICE)] if own else [] for own in sightings])
    return smooth(track, [frame / RATE for frame in range(len(sightings))])


def test_a_moving_face_is_one_track():
    (track,) = followed([[(sighting(frame, 100 + 4 * frame), ALICE)] for frame in range(20)])
    assert [own.frame for own in track.sightings] == list(range(20))


def test_two_faces_stay_apart_in_whatever_order_they_are_found():
    frames = [[(sighting(frame, 100 + frame), ALICE), (sighting(frame, 160 - frame), BOB)] for frame in range(20)]
    tracks = followed([seen[:: 1 if frame % 3 else -1] for frame, seen in enumerate(frames)])
    assert len(tracks) == 2
    for track in tracks:
        assert np.ptp([own.landmarks[2, 0] for own in track.sightings]) == pytest.approx(19)


def test_a_face_may_go_undetected_for_a_while_and_is_then_still_the_same():
    frames = [[] if 5 <= frame < 12 else [(sighting(frame), ALICE)] for frame in range(20)]
    assert len(followed(frames)) == 1
    gone = round((MAX_GAP + 0.1) * RATE)
    frames = [[(sighting(0), ALICE)], *([[]] * gone), [(sighting(gone + 1), ALICE)]]
    assert len(followed(frames)) == 2


def test_a_cut_to_another_face_in_the_same_place_begins_a_new_track():
    tracks = followed([[(sighting(frame), ALICE if frame < 10 else BOB)] for frame in range(20)])
    assert [len(track.sightings) for track in tracks] == [10, 10]


def test_a_face_somewhere_else_is_another_one():
    assert len(followed([[(sighting(frame, 100 if frame < 10 else 200), ALICE)] for frame in range(20)])) == 2


def test_jitter_of_the_detector_is_smoothed_away():
    random = np.random.default_rng(0)
    sightings = [
        Sighting(frame, frame / RATE, FACE + 100 + random.normal(0, 1, (5, 2)), 30.0) for frame in range(100)
    ]
    places = smoothed(sightings)
    jitter = np.diff([own.landmarks for own in sightings], axis=0).std()
    left = np.diff([places[frame].landmarks for frame in range(100)], axis=0).std()
    assert left < jitter / 5


def test_a_face_that_moves_evenly_is_not_followed_late_not_even_at_the_ends():
    places = smoothed([sighting(frame, 100 + 3 * frame, 50 - 2 * frame) for frame in range(30)])
    for frame, place in places.items():
        assert place.landmarks == pytest.approx(FACE + np.array((100 + 3 * frame, 50 - 2 * frame)))


def test_frames_without_a_detection_get_a_place_in_between():
    sightings = [None if 10 <= frame < 16 else sighting(frame, 100 + 3 * frame) for frame in range(30)]
    places = smoothed(sightings)
    assert places[13].landmarks == pytest.approx(FACE + np.array((139, 100)), abs=1e-6)
    assert sorted(places) == list(range(30))


def test_the_side_does_not_jump_to_and_fro_but_follows_a_real_change():
    random = np.random.default_rng(1)
    wavering = smoothed([sighting(frame, side=30 * random.uniform(0.8, 1.2)) for frame in range(60)])
    assert len({place.effective_side for place in wavering.values()}) == 1
    growing = smoothed([sighting(frame, side=20 + frame) for frame in range(60)])
    sides = [growing[frame].effective_side for frame in range(60)]
    assert 3 <= len(set(sides)) <= 8
    assert max(abs(side / (20 + frame) - 1) for frame, side in enumerate(sides)) < 0.4


def test_whether_a_face_is_left_alone_is_decided_by_most_of_its_sightings_around():
    sightings = [sighting(frame, left_alone="sharp" if frame in (10, 40, 50) else None) for frame in range(60)]
    assert {place.left_alone for place in smoothed(sightings).values()} == {None}
    turned = [sighting(frame, left_alone="sharp" if frame > 40 else None) for frame in range(80)]
    places = smoothed(turned)
    assert (places[20].left_alone, places[70].left_alone) == (None, "sharp")


def test_a_single_sighting_has_a_place():
    places = smoothed([sighting(0)])
    assert places[0].landmarks == pytest.approx(FACE + 100)
    assert extent(places[0].landmarks) == pytest.approx(np.hypot(20, 22))
