"""Who is seen in a clip: its faces, found and followed from the first frame to the last."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceprior.clips.container import Frame
from faceprior.faces import FaceDetector
from faceprior.faces.tracking import MIN_SIGHTINGS, FaceTracker, Sighting, TrackedFace, distance, extent, look, smooth
from faceprior.images import MIN_SIDE, resize
from faceprior.photographs import RestoreOptions, find_faces
from faceprior.priors import ModelCard

SEARCH_EVERY = 0.2
"""How often a whole frame is searched for faces, in seconds; in between, known faces are sought where they were."""

_AROUND = 2.5  # half the side of the part of the frame where a known face is looked for, in extents of its landmarks
_SMALLEST = 1.0  # side of the smallest box that is taken for it, in the same extents: at rest it is about 1.5
_LOOK = 16  # side at which faces are compared from frame to frame


@dataclass(frozen=True)
class Cast:
    """Who is seen in a clip, and where."""

    places: Mapping[int, Sequence[TrackedFace]]  # of the faces in each frame; a frame without any is missing
    frames: int  # of the clip
    tracks: int  # faces that were followed


def find_cast(
    frames: Iterable[Frame],
    detector: FaceDetector,
    card: ModelCard,
    options: RestoreOptions,
    on_frame: Callable[[int], object] = lambda _frames: None,
) -> Cast:
    """Follow the faces of a clip from its first frame to its last.

    Args:
        frames: of the clip, in order; only one is held at a time.
        detector: finds the faces of a frame.
        card: of the prior, which says how faces are aligned.
        options: which faces are wanted.
        on_frame: called after every frame with their number so far.
    """
    tracker, times, searched = FaceTracker(), list[float](), -math.inf
    for frame in frames:
        known = tracker.live(frame.time)
        photo = Image.fromarray(frame.pixels)
        found = [face for last in known for face in _near(photo, frame, last, detector, card, options)]
        if len(found) < len(known) or frame.time >= searched + SEARCH_EVERY:
            found, searched = _seen(photo, frame, detector, card, options), frame.time
        tracker.update(frame.time, found)
        times.append(frame.time)
        on_frame(len(times))
    enough = min(MIN_SIGHTINGS, len(times))
    tracks = [track for track in tracker.tracks if len(track.sightings) >= enough]
    places = _wanted([smooth(track, times) for track in tracks], options.faces)
    by_frame = defaultdict[int, list[TrackedFace]](list)
    for own in places:
        for index, place in own.items():
            by_frame[index].append(place)
    return Cast(dict(by_frame), len(times), len(places))


Seen = tuple[Sighting, NDArray[np.float32]]


def _seen(
    photo: Image.Image,
    frame: Frame,
    detector: FaceDetector,
    card: ModelCard,
    options: RestoreOptions,
    corner: Any = (0, 0),
) -> list[Seen]:
    """All faces of a frame, or of the part of it that begins at a corner."""
    seen = []
    for face in find_faces(photo, detector(photo, options.min_face), card, replace(options, faces="all")):
        landmarks = np.asarray(face.found.landmarks, np.float64) + corner
        small = face.low_resolution[None]
        coarse = resize(resize(small, min(small.shape[-1], card.resolution // 4)), _LOOK)
        sighting = Sighting(frame.index, frame.time, landmarks, face.effective_side, face.left_alone)
        seen.append((sighting, look(coarse[0].mean(0).numpy())))
    return seen


def _near(
    photo: Image.Image, frame: Frame, last: Sighting, detector: FaceDetector, card: ModelCard, options: RestoreOptions
) -> list[Seen]:
    """The face that is nearest to where a known one was, if there is any: much cheaper than a search."""
    size, middle = extent(last.landmarks), last.landmarks.mean(0)
    low = np.clip(np.floor(middle - _AROUND * size), 0, photo.size).astype(int)
    high = np.clip(np.ceil(middle + _AROUND * size), 0, photo.size).astype(int)
    if (high - low < MIN_SIDE).any():
        return []
    part = photo.crop((*low.tolist(), *high.tolist()))
    here = replace(options, min_face=max(options.min_face, round(_SMALLEST * size)))
    return sorted(_seen(part, frame, detector, card, here, low), key=lambda own: distance(last, own[0]))[:1]


def _wanted(tracks: list[dict[int, TrackedFace]], faces: int | Literal["all"]) -> list[dict[int, TrackedFace]]:
    """Those tracks that are among the `faces` largest in at least half of their frames."""
    if faces == "all":
        return tracks
    sizes = defaultdict[int, list[float]](list)
    for track in tracks:
        for index, place in track.items():
            sizes[index].append(extent(place.landmarks))
    limits = {index: sorted(own, reverse=True)[:faces][-1] for index, own in sizes.items()}
    return [
        track
        for track in tracks
        if 2 * sum(extent(place.landmarks) >= limits[index] for index, place in track.items()) >= len(track)
    ]
