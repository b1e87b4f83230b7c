"""How whole photographs are treated, measured on scenes made of one: python -m benchmarks.photographs.

The photograph is scikit-image's `astronaut` (extra "demo"), whose landmarks were marked by hand. docs/photos.md has
the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import typer
from benchmarks.common import show
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from faceprior.cli.demo import ASTRONAUT_LANDMARKS
from faceprior.errors import FacePriorError
from faceprior.faces import FaceDetector, Points, load_detector
from faceprior.faces.alignment import alignment, cut_out
from faceprior.faces.paste import FaceMask
from faceprior.faces.sharpness import spectral_side
from faceprior.images import resize, to_tensor
from faceprior.photographs import find_faces, paste_faces
from faceprior.priors import ModelCard, load_prior

HEAD = (130, 15, 320, 235)
"""Where the head is: left, top, right, bottom."""

SIZES = (1.0, 0.7, 0.5, 0.4, 0.3, 0.26)
TURNS = (0, 20, 45, 70, 90, 120, 180, 270, 315)


def astronaut() -> Image.Image:
    """Return the photograph; raises FacePriorError if the extra "demo" is not installed."""
    try:
        from skimage import data
    except ImportError as error:
        raise FacePriorError("the photograph comes with scikit-image: pip install scikit-image") from error
    return Image.fromarray(data.astronaut())


@dataclass(frozen=True)
class Head:
    """A head in a scene.

    Attributes:
        size: against the photograph.
        turn: clockwise, in degrees.
        centre: of the head, pixels of the scene.
    """

    size: float
    turn: float
    centre: tuple[float, float]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """2×3 similarity, pixels of the photograph to pixels of the scene."""
        left, top, right, bottom = HEAD
        factor = self.size * np.exp(1j * np.radians(self.turn))
        shift = complex(*self.centre) - factor * complex((left + right) / 2, (top + bottom) / 2)
        return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])

    @property
    def landmarks(self) -> list[tuple[float, float]]:
        """Where its landmarks are in the scene."""
        points = np.asarray(ASTRONAUT_LANDMARKS) @ self.matrix[:, :2].T + self.matrix[:, 2]
        return [(float(x), float(y)) for x, y in points]


def scene(heads: Sequence[Head], size: tuple[int, int]) -> Image.Image:
    """Paste heads, cut out as ovals, onto a background of soft shades.

    Args:
        heads: where they go.
        size: width and height of the scene.
    """
    width, height = size
    shades = np.array([[[96, 110, 128], [150, 140, 130]], [[70, 80, 70], [120, 120, 140]]], np.uint8)
    result = Image.fromarray(shades).resize(size, Image.Resampling.BICUBIC)
    photo = astronaut()
    oval = Image.new("L", photo.size)
    ImageDraw.Draw(oval).ellipse(HEAD, fill=255)
    for head in heads:
        # four times as dense, then averaged: reduced heads are antialiased
        inverse = np.linalg.inv(np.vstack([head.matrix * 4, [0, 0, 1]]))[:2]
        placed = (
            part.transform(
                (4 * width, 4 * height), Image.Transform.AFFINE, tuple(inverse.ravel()), Image.Resampling.BICUBIC
            )
            for part in (photo, oval)
        )
        face, mask = (part.resize(size, Image.Resampling.BOX) for part in placed)
        result.paste(face, mask=mask)
    return result


def alignment_error(found: Points, true: Points, card: ModelCard) -> float:
    """Mean distance of the five true landmarks, aligned by the found ones, from where they belong.

    Args:
        found: five landmarks as a detector gives them.
        true: where they are.
        card: whose template is aligned to.

    Returns:
        As a fraction of the distance between the eyes.
    """
    aligned = [
        np.asarray(true) @ transform[:, :2].T + transform[:, 2]
        for transform in (alignment(points, card.template, 1) for points in (found, true))
    ]
    eyes = np.hypot(*np.subtract(aligned[1][0], aligned[1][1]))
    return float(np.hypot(*(aligned[0] - aligned[1]).T).mean() / eyes)


def nearest(faces: Sequence[Points], true: Points) -> Points | None:
    """Return the landmarks whose nose is within half a face of the true one."""
    reach = float(np.hypot(*np.subtract(true[0], true[1])))
    near = [points for points in faces if np.hypot(*np.subtract(points[2], true[2])) < reach]
    return min(near, key=lambda points: float(np.hypot(*np.subtract(points[2], true[2]))), default=None)


def seam_visibility(photo: NDArray[np.uint8], result: NDArray[np.uint8], mask: FaceMask) -> float:
    """Mean gradient where the mask fades, in the result against the photograph; 1 is no seam.

    Args:
        photo: (H, W, 3).
        result: (H, W, 3).
        mask: with which a face was put into it.
    """
    weight = mask.over((photo.shape[1], photo.shape[0]))
    fading = (weight > 0) & (weight < 1)
    steepness = [
        np.hypot(*np.gradient(picture.astype(np.float64).mean(-1)))[fading].mean() for picture in (result, photo)
    ]
    return float(steepness[0] / steepness[1])


def spoiled(face: Image.Image, known: int) -> torch.Tensor:
    """A bad restoration: of another colour, lit from the side, and with `known` pixels of detail; (3, R, R)."""
    sharp = to_tensor(face)
    side = sharp.shape[-1]
    soft = resize(resize(sharp[None], known), side)[0]
    tint = torch.tensor([0.15, -0.05, -0.15])[:, None, None]
    return (soft + tint + torch.linspace(-0.15, 0.15, side)).clamp(-1, 1)


def figures(detector: FaceDetector, card: ModelCard) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Measure; yields a title and rows of what and how much, table after table."""
    yield "Alignment error by size of the face, of the distance between the eyes", list(_by_size(detector, card))
    yield "Alignment error by turn of the head", list(_by_turn(detector, card))
    yield "Effective resolution of a face reduced to n pixels and enlarged again", list(_sharpness(card))
    yield "Pasting a spoiled face", list(_seams(detector, card))


def _error(head: Head, size: tuple[int, int], detector: FaceDetector, card: ModelCard) -> str:
    found = nearest([face.landmarks for face in detector(scene([head], size))], head.landmarks)
    return "not found" if found is None else f"{alignment_error(found, head.landmarks, card):.3f}"


def _by_size(detector: FaceDetector, card: ModelCard) -> Iterator[tuple[str, str]]:
    for size in SIZES:
        eyes = size * float(np.hypot(*np.subtract(ASTRONAUT_LANDMARKS[1], ASTRONAUT_LANDMARKS[0])))
        yield f"eyes {eyes:.0f} pixels apart", _error(Head(size, 0, (250, 200)), (520, 400), detector, card)


def _by_turn(detector: FaceDetector, card: ModelCard) -> Iterator[tuple[str, str]]:
    for turn in TURNS:
        yield f"{turn}°", _error(Head(0.8, turn, (250, 200)), (520, 400), detector, card)


def _sharpness(card: ModelCard) -> Iterator[tuple[str, str]]:
    # the photograph has 98 pixels across the aligned face
    face = cut_out(astronaut(), alignment(ASTRONAUT_LANDMARKS, card.template, 96), 96)
    for side in (8, 12, 16, 24, 32, 48, 64):
        low = face.resize((side, side), Image.Resampling.BICUBIC)
        enlarged = low.resize((128, 128), Image.Resampling.BICUBIC)
        yield f"n = {side}", f"{spectral_side(enlarged):.1f}"


def _seams(detector: FaceDetector, card: ModelCard) -> Iterator[tuple[str, str]]:
    photo = astronaut()
    (face,) = find_faces(photo, detector(photo)[:1], card)
    restored = spoiled(cut_out(photo, face.transform, card.resolution), 16)
    pixels = np.asarray(photo)
    result = paste_faces(pixels, [face], [restored])
    mask = FaceMask(face.found.landmarks, face.transform / card.resolution)
    outside = mask.over(photo.size) == 0
    yield "gradient where the mask fades, against the photograph's", f"{seam_visibility(pixels, result, mask):.3f}"
    yield "pixels that changed outside the mask", str(int((result != pixels).any(-1)[outside].sum()))


def main() -> None:
    """Print the tables."""
    for title, rows in figures(load_detector(), load_prior().card):
        show(title, ("", "measured"), rows)


if __name__ == "__main__":
    typer.run(main)
