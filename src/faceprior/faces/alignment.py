"""Aligning faces: five landmarks onto a template, by a similarity transform.

Points are (x, y) in pixels from the outer corner of the top left pixel, so that pixel (i, j) has its centre at
(i + 0.5, j + 0.5), and a template's fraction of the side is the same place at every resolution. Detectors that
count pixel centres from 0 (dlib) need + 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    if len(landmarks) != _LANDMARKS or len(template) != _LANDMARKS:
        raise ImageError(f"{len(landmarks)} landmarks and {len(template)} template points were given; both must be 5")
    forward = similarity_transform(landmarks, [(x * side, y * side) for x, y in template])
    reduction = 1 / max(float(np.hypot(*forward[:, 0])), 1e-12)
    if (reduction * side) ** 2 > MAX_PIXELS:
        raise ImageError("the landmarks are too far apart for a face; check their order and unit (pixels)")
    oversampling = max(1, int(np.ceil(reduction - 0.05)))  # sample densely, then average: no aliasing
    extent = side * oversampling
    inverse = np.linalg.inv(np.vstack([forward * oversampling, [0, 0, 1]]))[:2]
    corners = inverse @ np.array([[0, 0, extent, extent], [0, extent, 0, extent], [1, 1, 1, 1]])
    low, high = np.floor(corners.min(1)) - _BORDER, np.ceil(corners.max(1)) + _BORDER
    if (high <= 0).any() or (low >= photo.size).any():
        raise ImageError(f"the landmarks describe a face outside the photo ({photo.width}×{photo.height} pixels)")
    inverse[:, 2] -= low
    dense = _reflected(photo, low.astype(int), high.astype(int)).transform(
        (extent, extent), Image.Transform.AFFINE, tuple(inverse.ravel()), Image.Resampling.BICUBIC
    )
    return dense.resize((side, side), Image.Resampling.BOX) if oversampling > 1 else dense


def _reflected(photo: Image.Image, low: NDArray[np.int_], high: NDArray[np.int_]) -> Image.Image:
    """Crop from `low` to `high` (x, y), which may lie outside; the photo goes on as in a mirror, again and again."""
    pixels = np.asarray(photo.convert("RGB"))
    columns, rows = (
        np.minimum(position % (2 * count), 2 * count - 1 - position % (2 * count))
        for position, count in ((np.arange(low[axis], high[axis]), photo.size[axis]) for axis in (0, 1))
    )
    return Image.fromarray(pixels[rows[:, None], columns])
