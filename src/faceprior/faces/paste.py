"""Putting restored faces back into their photograph: place, mask and colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceprior.errors import ImageError
from faceprior.faces.alignment import Points, corners, magnification, warp

MAX_RESULT_PIXELS = 400_000_000
"""Largest enlarged photograph, in pixels."""

# the oval from hairline to chin, in distances between the eyes, from the point between them
_OVAL_BELOW, _OVAL_ACROSS, _OVAL_DOWN = 0.45, 0.88, 1.08
_FADE = 1.3  # the mask is 0 from this multiple of the oval on
_EDGE = 0.12  # share of the aligned square, from its edge, in which the mask falls to 0


@dataclass(frozen=True)
class FaceMask:
    """How much of a restored face is taken, place by place: 1 on the face, smoothly 0 before the square ends.

    Attributes:
        landmarks: the face's five, in pixels of the photo.
        transform: 2×3 similarity, pixels of the photo to fractions of the aligned side.
        laid_over: where something stands before the face, (m, m) of the aligned square, from 0 to 1: it stays.
    """

    landmarks: Points
    transform: NDArray[np.float64]
    laid_over: NDArray[np.float32] | None = None

    def __call__(self, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the mask, in [0, 1], at places of the photo, pixels from the outer corner; x and y broadcast."""
        left, right = (complex(*eye) for eye in self.landmarks[:2])
        own = (x + 1j * y - (left + right) / 2) / (right - left)  # unit: the eyes' distance; y points to the chin
        radius = np.hypot(own.real / _OVAL_ACROSS, (own.imag - _OVAL_BELOW) / _OVAL_DOWN)
        u, v = (a * x + b * y + shift for a, b, shift in self.transform)
        to_edge = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
        return _smooth((_FADE - radius) / (_FADE - 1)) * _smooth(to_edge / _EDGE)

    @property
    def corners(self) -> NDArray[np.float64]:
        """Corners of the aligned square in the photo, (4, 2)."""
        return corners(self.transform, 1)


def _smooth(rise: NDArray[np.float64]) -> NDArray[np.float64]:
    rise = np.clip(rise, 0, 1)
    return rise * rise * (3 - 2 * rise)


def enlarge(photo: NDArray[Any], factor: int) -> NDArray[Any]:
    """Enlarge a photograph by the Lanczos kernel; its depth and channels are kept.

    Args:
        photo: (H, W, C), uint8 or uint16.
        factor: whole number; 1 returns the photograph itself.

    Raises:
        ImageError: the result is larger than `MAX_RESULT_PIXELS`.
    """
    check_enlarged(photo, factor)
    return resized(photo, (photo.shape[1] * factor, photo.shape[0] * factor))


Enlarger = Callable[[NDArray[Any], int], NDArray[Any]]
"""Enlarges a photograph (H, W, C) by a whole number, as `enlarge` does."""


def check_enlarged(photo: NDArray[Any], factor: int) -> None:
    """Check the size of the result; raises ImageError."""
    height, width = (side * factor for side in photo.shape[:2])
    if height * width > MAX_RESULT_PIXELS:
        limit = MAX_RESULT_PIXELS // 1_000_000
        raise ImageError(f"{factor} times enlarged it has {width}×{height} pixels, more than {limit} million")


def resized(photo: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Bring a photograph (H, W, C) to a width and height by the Lanczos kernel; it is itself where it has them."""
    width, height = size
    if photo.shape[:2] == (height, width):
        return photo
    result = np.empty((height, width, photo.shape[2]), photo.dtype)
    for index in range(photo.shape[2]):  # Pillow has no picture of several 16-bit channels
        channel = np.ascontiguousarray(photo[..., index])
        picture = Image.fromarray(channel if photo.dtype == np.uint8 else channel.astype(np.float32))
        large = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
        result[..., index] = large if photo.dtype == np.uint8 else _rounded(large, photo.dtype)
    return result


def paste(
    photo: NDArray[Any],
    faces: Sequence[NDArray[Any]],
    masks: Sequence[FaceMask],
    factor: int = 1,
    blend: float = 1.0,
    enlarger: Enlarger = enlarge,
) -> NDArray[Any]:
    """Put faces into a photograph that is enlarged first.

    Args:
        photo: (H, W, C), uint8 or uint16.
        faces: of each face, (R, R, C), in the photograph's own units.
        masks: of each face.
        factor: by which the photograph is enlarged.
        blend: share of the face against the photograph, 0 to 1.
        enlarger: enlarges it.

    Returns:
        (H · factor, W · factor, C), the photograph's depth; bit for bit the (enlarged) photograph where no mask is.
    """
    base = enlarger(photo, factor)
    result = base.copy()
    height, width = base.shape[:2]
    for face, mask in zip(faces, masks, strict=True):
        low = np.floor(mask.corners.min(0) * factor).astype(int).clip(0, (width, height))
        high = np.ceil(mask.corners.max(0) * factor).astype(int).clip(0, (width, height))
        if (high <= low).any():
            continue
        part = (slice(low[1], high[1]), slice(low[0], high[0]))
        x, y = ((np.arange(low[axis], high[axis]) + 0.5) / factor for axis in (0, 1))
        own = mask(x, y[:, None])
        # where masks meet, each face has most of the place that is most its own
        total = sum((other(x, y[:, None]) for other in masks), np.zeros_like(own))
        share = (blend * own**2 / np.maximum(total, 1e-12))[..., None]
        if mask.laid_over is not None:
            before = _in_photo(mask.laid_over[..., None], mask, low, high - low, factor)
            share *= 1 - before.clip(0, 1)
        # within the range of the samples, so that every mixture is, too
        inside = np.clip(_in_photo(face, mask, low, high - low, factor), 0, np.iinfo(base.dtype).max)
        mixed = result[part] + share * (inside - base[part])
        result[part] = np.where(share > 0, _rounded(mixed, base.dtype), result[part])
    return result


def _in_photo(
    face: NDArray[Any], mask: FaceMask, low: NDArray[np.int_], size: NDArray[np.int_], factor: int
) -> NDArray[np.float32]:
    """Resample a face to the pixels of the (enlarged) photograph from `low` on."""
    to_face = mask.transform * len(face)
    density = magnification(to_face) / factor  # pixels of the face in one of the result
    oversampling = max(1, int(np.ceil(density - 0.05)))
    inverse = to_face.copy()
    inverse[:, 2] += to_face[:, :2] @ low / factor
    inverse[:, :2] /= factor * oversampling
    return warp(face, tuple(inverse.ravel()), (int(size[0]), int(size[1])), oversampling)


def _rounded(samples: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.clip(np.rint(samples), 0, np.iinfo(dtype).max).astype(dtype)
