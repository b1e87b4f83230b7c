"""Aligning faces: five landmarks onto a template, by a similarity transform."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceprior.errors import ImageError

Points = Sequence[tuple[float, float]]

_LANDMARKS = 5


def similarity_transform(source: Points, target: Points) -> NDArray[np.float64]:
    """Least-squares similarity (rotation, uniform scale, shift) from points to points (Umeyama 1991).

    Args:
        source: N ≥ 2 points (x, y).
        target: N points (x, y).

    Returns:
        2×3 matrix A with target ≈ A · (x, y, 1).

    Raises:
        ImageError: the source points coincide.
    """
    s, t = np.asarray(source, np.float64), np.asarray(target, np.float64)
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
        ImageError: the number of landmarks is wrong, or they coincide.
    """
    if len(landmarks) != _LANDMARKS or len(template) != _LANDMARKS:
        raise ImageError(
            f"{len(landmarks)} landmarks and {len(template)} template points were given; both must be 5"
        )
    forward = similarity_transform(landmarks, [(x * side, y * side) for x, y in template])
    scale = float(np.hypot(*forward[:, 0]))
    oversampling = max(1, round(1 / scale))  # sample densely, then average: no aliasing
    full = np.vstack([forward * oversampling, [0, 0, 1]])
    inverse = np.linalg.inv(full)
    extent = side * oversampling
    corners = inverse[:2] @ np.array([[0, 0, extent, extent], [0, extent, 0, extent], [1, 1, 1, 1]])
    padding = max(0, int(np.ceil(max(-corners.min(), *(corners.max(1) - np.array(photo.size))))) + 2)
    padded = _reflect(photo, padding)
    inverse[:2, 2] += padding
    dense = padded.transform(
        (extent, extent), Image.Transform.AFFINE, tuple(inverse[:2].ravel()), Image.Resampling.BICUBIC
    )
    return dense.resize((side, side), Image.Resampling.BOX) if oversampling > 1 else dense


def _reflect(photo: Image.Image, padding: int) -> Image.Image:
    pixels = np.asarray(photo.convert("RGB"))
    return Image.fromarray(np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)), mode="symmetric"))
