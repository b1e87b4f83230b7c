"""Scenes made of scikit-image's astronaut, and how well faces are found and pasted in them."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from faceprior.cli.demo import ASTRONAUT_LANDMARKS
from faceprior.faces.alignment import alignment
from faceprior.images import resize, to_tensor

HEAD = (130, 15, 320, 235)
"""Where the head is: left, top, right, bottom."""


def astronaut():
    from skimage import data

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
    def matrix(self):
        """2×3 similarity, pixels of the photograph to pixels of the scene."""
        left, top, right, bottom = HEAD
        factor = self.size * np.exp(1j * np.radians(self.turn))
        shift = complex(*self.centre) - factor * complex((left + right) / 2, (top + bottom) / 2)
        return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])

    @property
    def landmarks(self):
        """Where its landmarks are in the scene."""
        points = np.asarray(ASTRONAUT_LANDMARKS) @ self.matrix[:, :2].T + self.matrix[:, 2]
        return [(float(x), float(y)) for x, y in points]


def scene(heads, size):
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


def alignment_error(found, true, card):
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


def nearest(faces, true):
    """Return the landmarks whose nose is within half a face of the true one."""
    reach = float(np.hypot(*np.subtract(true[0], true[1])))
    near = [points for points in faces if np.hypot(*np.subtract(points[2], true[2])) < reach]
    return min(near, key=lambda points: float(np.hypot(*np.subtract(points[2], true[2]))), default=None)


def mask_over(mask, size):
    """A mask at the pixels of a photograph of this width and height, (height, width)."""
    width, height = size
    return mask(np.arange(width) + 0.5, (np.arange(height) + 0.5)[:, None])


def seam_visibility(photo, result, mask):
    """Mean gradient where the mask fades, in the result against the photograph; 1 is no seam.

    Args:
        photo: (H, W, 3).
        result: (H, W, 3).
        mask: with which a face was put into it.
    """
    weight = mask_over(mask, (photo.shape[1], photo.shape[0]))
    fading = (weight > 0) & (weight < 1)
    steepness = [
        np.hypot(*np.gradient(picture.astype(np.float64).mean(-1)))[fading].mean() for picture in (result, photo)
    ]
    return float(steepness[0] / steepness[1])


def spoiled(face, known):
    """A bad restoration: of another colour, lit from the side, and with `known` pixels of detail; (3, R, R)."""
    sharp = to_tensor(face)
    side = sharp.shape[-1]
    soft = resize(resize(sharp[None], known), side)[0]
    tint = torch.tensor([0.15, -0.05, -0.15])[:, None, None]
    return (soft + tint + torch.linspace(-0.15, 0.15, side)).clamp(-1, 1)
