"""Following faces through a clip: which detections are one face, and where it stands, without the jitter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MAX_GAP = 0.5
"""How long a face may go undetected and still be the same, in seconds."""

SMOOTHING = 0.1
"""Standard deviation of the window over which landmarks are smoothed, in seconds."""

MIN_SIGHTINGS = 3
"""A face that is detected less often in a row is taken for a mistake of the detector."""

_STEADY = 0.5  # half the window over which size and sharpness of a face are judged, in seconds
_HYSTERESIS = 1.25  # by what factor its resolution must change before it is restored at another scale
_MAX_DISTANCE, _MAX_SPEED = 0.4, 5.0  # how far landmarks may move, and how far more a second, in extents of the face
_MIN_LIKENESS = 0.4  # correlation of two looks of one face; below it there was a cut


@dataclass(frozen=True)
class Sighting:
    """One detection of a face.

    Attributes:
        frame: index of the frame.
        time: of the frame, in seconds.
        landmarks: (5, 2), pixels of the frame.
        effective_side: resolvable pixels across the aligned face.
        left_alone: why the face is not to be restored, or None.
    """

    frame: int
    time: float
    landmarks: NDArray[np.float64]
    effective_side: float
    left_alone: str | None = None


@dataclass(frozen=True)
class TrackedFace:
    """Where a face of a track stands in one frame; as `Sighting`, but smooth in time."""

    track: int
    landmarks: NDArray[np.float64]
    effective_side: float
    left_alone: str | None = None


@dataclass
class Track:
    """One face, from when it appears to when it disappears.

    Attributes:
        number: 0 for the first that appeared.
        sightings: by frame; where the detector missed the face there is none.
    """

    number: int
    sightings: list[Sighting] = field(default_factory=list)


class FaceTracker:
    """Puts the detections of one frame after the other into tracks."""

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self._looks: dict[int, NDArray[np.float32]] = {}  # of the tracks that may go on

    def live(self, time: float) -> list[Sighting]:
        """Last sightings of the faces that may be seen again at a time, in seconds."""
        for number in [n for n in self._looks if time - self.tracks[n].sightings[-1].time > MAX_GAP]:
            del self._looks[number]
        return [self.tracks[number].sightings[-1] for number in self._looks]

    def update(self, time: float, seen: Sequence[tuple[Sighting, NDArray[np.float32]]]) -> None:
        """Add a frame.

        A face goes on with the track whose last landmarks are nearest, in units of the face's size, unless they are
        too far, or it looks like somebody else: then there was a cut, and a new track begins.

        Args:
            time: of the frame, in seconds.
            seen: its faces, each with its look (`look`).
        """
        self.live(time)
        pairs = [
            (apart, index, number)
            for index, (sighting, _) in enumerate(seen)
            for number in self._looks
            if (apart := distance(last := self.tracks[number].sightings[-1], sighting))
            < _MAX_DISTANCE + _MAX_SPEED * (time - last.time)
            and float((self._looks[number] * seen[index][1]).sum()) > _MIN_LIKENESS
        ]
        continued: dict[int, int] = {}
        for _, index, number in sorted(pairs):
            if index not in continued and number not in continued.values():
                continued[index] = number
        for index, (sighting, seen_look) in enumerate(seen):
            number = continued.get(index, len(self.tracks))
            if number == len(self.tracks):
                self.tracks.append(Track(number))
            self.tracks[number].sightings.append(sighting)
            self._looks[number] = seen_look


def look(face: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a face looks like, for comparison: the grey aligned face with mean 0 and norm 1.

    Args:
        face: (n, n), small.
    """
    centred = face - face.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), np.float32)


def smooth(track: Track, times: Sequence[float]) -> dict[int, TrackedFace]:
    """Where the face stands in each frame from its first sighting to its last, those without a sighting too.

    Landmarks come from a straight line through the sightings around, weighted by a Gaussian of their distance in
    time (local linear regression): no lag behind a face that moves evenly, no bend at the ends. The effective side
    is the median around, kept until it has changed by a quarter, so that the scale does not jump to and fro.

    Args:
        track: of a clip.
        times: of all frames of the clip, in seconds.

    Returns:
        Places by index of the frame.
    """
    seen = np.array([sighting.time for sighting in track.sightings])
    landmarks = np.stack([sighting.landmarks for sighting in track.sightings])
    sides = np.array([sighting.effective_side for sighting in track.sightings])
    places: dict[int, TrackedFace] = {}
    side = 0.0
    for frame in range(track.sightings[0].frame, track.sightings[-1].frame + 1):
        window = np.searchsorted(seen, (times[frame] - _STEADY, times[frame] + _STEADY))
        around = slice(int(window[0]), max(int(window[1]), int(window[0]) + 1))
        median = float(np.median(sides[around]))
        if not side / _HYSTERESIS < median < side * _HYSTERESIS:
            side = median
        (reason, _), *_ = Counter(sighting.left_alone for sighting in track.sightings[around]).most_common(1)
        line = _local_line(seen[around] - times[frame], landmarks[around])
        places[frame] = TrackedFace(track.number, line, side, reason)
    return places


def _local_line(distance: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value at distance 0 of the weighted least-squares line through values at the distances."""
    weights = np.exp(-0.5 * (distance / SMOOTHING) ** 2) + 1e-12
    weights /= weights.sum()
    centre = float(weights @ distance)
    offsets = distance - centre
    spread = float(weights @ offsets**2)
    mean = np.tensordot(weights, values, 1)
    if spread < 1e-9:  # one sighting
        return mean
    slope = np.tensordot(weights * offsets, values, 1) / spread
    return np.asarray(mean - slope * centre)


def extent(landmarks: NDArray[np.float64]) -> float:
    """Size of a face: diagonal of the rectangle around its landmarks."""
    return float(np.linalg.norm(np.ptp(landmarks, axis=0)))


def distance(sighting: Sighting, other: Sighting) -> float:
    """How far the landmarks of two sightings are apart, mean over the five, in extents of the larger face."""
    size = max(extent(sighting.landmarks), extent(other.landmarks), 1e-6)
    return float(np.linalg.norm(sighting.landmarks - other.landmarks, axis=1).mean() / size)
