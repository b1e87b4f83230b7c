"""Aligning faces: five landmarks onto a template, by a similarity transform.

Points are (x, y) in pixels from the outer corner of the top left pixel, so that pixel (i, j) has its centre at
(i + 0.5, j + 0.5), and a template's fraction of the side is the same place at every resolution. Detectors that
count pixel centres from 0 (dlib) need + 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceprior.errors import ImageError
from faceprior.images import MAX_PIXELS

Points = Sequence[tuple[float, float]]

_LANDMARKS = 5
_BORDER = 2  # pixels around the face that the bicubic kernel reaches


def similarity_transform(source: Points, target: Points) -> NDArray[np.float64]:
    """Least-squares similarity (rotation, uniform scale, shift) from points to points (Umeyama 1991).

    Args:
        source: N ≥ 2 points (x, y).
        target: N points (x, y).

    Returns:
        2×3 matrix A with target ≈ A · (x, y, 1).

    Raises:
        ImageError: the source points coincide, or a coordinate is not a number.
    """
    s, t = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if not (np.isfinite(s).all() and np.isfinite(t).all()):
        raise ImageError("a landmark is not a number; a face cannot be aligned from it")
    s_mean, t_mean = s.mean(0), t.mean(0)
    # complex numbers: a similarity of the plane without reflection is a multiplication and a shift
    sc, tc = (s - s_mean) @ (1, 1j), (t - t_mean) @ (1, 1j)
    power = float((abs(sc) ** 2).sum())
    if power < 1e-12:
        raise ImageError("all landmarks coincide; a face cannot be aligned from them")
    factor = (tc * sc.conj()).sum() / power
    rotation = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([rotation, t_mean - rotation @ s_mean])


def align(photo: Image.Image, landmarks: Points, template: Points, side: int) -> Image.Image:
    """Cut out a face so that its landmarks stand on the template; what lies outside the photo is reflected.

    Args:
        photo: RGB.
        landmarks: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner, in pixels.
        template: the same five as fractions of the side.
        side: of the aligned face, in pixels.

    Returns:
        RGB, side × side. Antialiased where the photo is reduced.

    Raises:
        ImageError: the number of landmarks is wrong, they coincide, or the face that they describe lies outside
            the photo or is larger than `MAX_PIXELS`.
    """
    return cut_out(photo, alignment(landmarks, template, side), side)


def alignment(landmarks: Points, template: Points, side: int) -> NDArray[np.float64]:
    """Return the 2×3 similarity that takes pixels of the photo to pixels of the aligned face; see `align`."""
    if len(landmarks) != _LANDMARKS or len(template) != _LANDMARKS:
        raise ImageError(f"{len(landmarks)} landmarks and {len(template)} template points were given; both must be 5")
    return similarity_transform(landmarks, [(x * side, y * side) for x, y in template])


def cut_out(photo: Image.Image, transform: NDArray[np.float64], side: int) -> Image.Image:
    """Cut a square out of a photo; what lies outside the photo is reflected.

    Args:
        photo: RGB.
        transform: 2×3 similarity, pixels of the photo to pixels of the square.
        side: of the square, in pixels.

    Returns:
        RGB, side × side. Antialiased where the photo is reduced.

    Raises:
        ImageError: the square lies outside the photo or is larger than `MAX_PIXELS` of it.
    """
    cut = _placed(photo.size, transform, side)
    corner = _reflected(photo, cut.low, cut.high)
    dense = corner.transform((cut.extent, cut.extent), Image.Transform.AFFINE, cut.inverse, Image.Resampling.BICUBIC)
    return dense.resize((side, side), Image.Resampling.BOX) if cut.extent > side else dense


def cut_out_samples(photo: NDArray[Any], transform: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Do what `cut_out` does for samples of any depth and number, (H, W, C) → (side, side, C)."""
    height, width = photo.shape[:2]
    cut = _placed((width, height), transform, side)
    columns, rows = _mirrored((width, height), cut.low, cut.high)
    return warp(photo[rows[:, None], columns], cut.inverse, (side, side), cut.extent // side)


def warp(
    samples: NDArray[Any], inverse: Sequence[float], size: tuple[int, int], oversampling: int = 1
) -> NDArray[np.float32]:
    """Resample bicubically.

    Args:
        samples: (H, W, C).
        inverse: six numbers, pixels of the result, `oversampling` times as dense, to pixels of the samples.
        size: width and height of the result.
        oversampling: samples averaged along each side of a pixel, against aliasing where the picture is reduced.

    Returns:
        (height, width, C); 0 where the samples end.
    """
    width, height = size
    dense = (width * oversampling, height * oversampling)
    channels = []
    for channel in np.moveaxis(samples.astype(np.float32), -1, 0):
        picture = Image.fromarray(np.ascontiguousarray(channel))
        picture = picture.transform(dense, Image.Transform.AFFINE, tuple(inverse), Image.Resampling.BICUBIC)
        channels.append(np.asarray(picture.resize(size, Image.Resampling.BOX) if oversampling > 1 else picture))
    return np.stack(channels, -1)


def inverted(transform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 2×3 matrix of the way back."""
    return np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]


def corners(transform: NDArray[np.float64], side: float) -> NDArray[np.float64]:
    """Return the corners of an aligned square in the photo, clockwise from the top left of the face, (4, 2)."""
    return (inverted(transform) @ np.array([[0, side, side, 0], [0, 0, side, side], [1] * 4])).T


def magnification(transform: NDArray[np.float64]) -> float:
    """Return how many pixels of the aligned face are in one of the photo."""
    return float(np.hypot(*transform[:, 0]))


class _Cut(NamedTuple):
    """A square in a photo: where it lies, and how its pixels, densely, go to those of the part from low to high."""

    low: NDArray[np.int_]
    high: NDArray[np.int_]
    extent: int
    inverse: tuple[float, ...]


def _placed(size: tuple[int, int], transform: NDArray[np.float64], side: int) -> _Cut:
    reduction = 1 / max(magnification(transform), 1e-12)
    if (reduction * side) ** 2 > MAX_PIXELS:
        raise ImageError("the landmarks are too far apart for a face; check their order and unit (pixels)")
    oversampling = max(1, int(np.ceil(reduction - 0.05)))  # sample densely, then average: no aliasing
    extent = side * oversampling
    inverse, places = inverted(transform * oversampling), corners(transform * oversampling, extent)
    low, high = np.floor(places.min(0)) - _BORDER, np.ceil(places.max(0)) + _BORDER
    if (high <= 0).any() or (low >= size).any():
        raise ImageError(f"the landmarks describe a face outside the photo ({size[0]}×{size[1]} pixels)")
    inverse[:, 2] -= low
    return _Cut(low.astype(int), high.astype(int), extent, tuple(inverse.ravel()))


def _mirrored(
    size: tuple[int, int], low: NDArray[np.int_], high: NDArray[np.int_]
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Columns and rows from `low` to `high`; beyond its edges the photo goes on as in a mirror, again and again."""
    columns, rows = (
        np.minimum(position % (2 * count), 2 * count - 1 - position % (2 * count))
        for position, count in ((np.arange(low[axis], high[axis]), size[axis]) for axis in (0, 1))
    )
    return columns, rows


def _reflected(photo: Image.Image, low: NDArray[np.int_], high: NDArray[np.int_]) -> Image.Image:
    """Crop from `low` to `high` (x, y), which may lie outside."""
    columns, rows = _mirrored(photo.size, low, high)
    left, top = int(columns.min()), int(rows.min())
    part = photo.crop((left, top, int(columns.max()) + 1, int(rows.max()) + 1)).convert("RGB")
    return Image.fromarray(np.asarray(part)[rows[:, None] - top, columns - left])
