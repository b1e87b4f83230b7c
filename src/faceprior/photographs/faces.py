"""The faces of one photograph: aligned and measured for the networks, and put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from faceprior.cores import on_cores
from faceprior.errors import ImageError, WeightsError
from faceprior.faces import DetectedFace, FaceDetector
from faceprior.faces.alignment import alignment, cut_out_samples, magnification
from faceprior.faces.paste import Enlarger, FaceMask, enlarge, paste
from faceprior.faces.sharpness import measure_face
from faceprior.images import resize, to_tensor
from faceprior.methods import find_method
from faceprior.photographs.options import RestoreOptions
from faceprior.pipeline.conversions import AUTO_SCALES, low_resolution
from faceprior.priors import ModelCard

_COLOUR_SIDE = 8  # pixels across a face that its colour and lighting are kept at
_CROP_ERROR = 0.15  # how far a corner of an aligned crop may be from where it belongs, as a fraction of the side
_TINY_SIDES = 1.1  # a picture that may be all of a tiny face is at most this oblong, and at most R pixels large
_FULL = 0.5  # share of a square picture's side that a face takes which was cut out for some network
_LOOKED_AT_SIDE, _BORDER = 192, 32  # pixels that it is enlarged to, and of grey around it, to look for the face
_SQUEEZED = 0.25  # share of a restored face's pixels that may be lost before the photograph is enlarged
_ENLARGED_PIXELS = 48_000_000  # largest photograph that is enlarged without being told to
_UNIT_SQUARE = ((0, 0), (1, 0), (1, 1), (0, 1))


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a photograph, ready for the networks.

    Attributes:
        found: where it is.
        transform: 2×3, pixels of the photo to the aligned square of side R.
        effective_side: pixels across the aligned square that carry detail; at most its size in pixels of the photo.
        scale: R / n.
        low_resolution: (3, n, n) in [-1, 1].
        kept_side: pixels across the aligned square up to which the photograph's own detail stays in the result.
        left_alone: why it is not restored; None if it is.
        laid_over: where writing is over it, (m, m) of the aligned square, from 0 to 1; it stays as it is.
    """

    found: DetectedFace
    transform: NDArray[np.float64]
    effective_side: float
    scale: float
    low_resolution: torch.Tensor
    kept_side: int
    left_alone: str | None = None
    laid_over: NDArray[np.float32] | None = None


def find_faces(
    photo: Image.Image,
    detections: Sequence[DetectedFace],
    card: ModelCard,
    options: RestoreOptions = RestoreOptions(),
) -> list[Face]:
    """Align the faces of a photograph to a prior's own template, and measure them.

    Args:
        photo: RGB.
        detections: the faces that a detector found, the largest first.
        card: of the prior.
        options: which faces, and how.

    Returns:
        The faces, the largest first; those that are left alone say why.

    Raises:
        OptionError: the scale is out of its range.
        WeightsError: the card has no template.
    """
    _check_template(card)
    if options.faces != "all":
        detections = detections[: options.faces]
    return on_cores(partial(_prepared, photo, card, options), detections)


def _check_template(card: ModelCard) -> None:
    if not card.template:
        raise WeightsError(
            f"the card of prior {card.name} does not say where a face must stand (template), so faces of"
            " photographs cannot be aligned for it; add the template to its card.json, or give aligned crops"
        )


def _prepared(photo: Image.Image, card: ModelCard, options: RestoreOptions, face: DetectedFace) -> Face:
    resolution = card.resolution
    transform = alignment(face.landmarks, card.template, resolution)
    measured = measure_face(photo, transform, resolution)
    effective = measured.effective_side
    small = _reduced(measured.aligned, effective, options, resolution)
    left_alone = None
    if options.scale == "auto" and effective >= resolution:
        left_alone = f"already sharper than the {resolution} pixels of the prior (a scale that is set restores it)"
    elif face.side < options.min_face:
        left_alone = f"smaller than {options.min_face} pixels"
    kept = kept_side(options.scale, effective, min(small.shape[-1], resolution // 4))
    return Face(face, transform, effective, resolution / small.shape[-1], small, kept, left_alone, measured.laid_over)


def kept_side(scale: float | Literal["auto"], effective: float, side: int) -> int:
    """Return up to which resolution a photograph's own detail is kept beside what the networks make of it.

    Args:
        scale: what was asked for; a number says itself how little the photograph knows.
        effective: pixels across the aligned face that carry detail.
        side: of what the networks see, n.
    """
    return round(effective) if scale == "auto" and effective > side else _COLOUR_SIDE


def _reduced(aligned: Image.Image, effective: float, options: RestoreOptions, resolution: int) -> torch.Tensor:
    scale, blind = options.scale, find_method(options.preset.method).blind
    if scale == "auto" and not blind:
        scale = float(np.clip(resolution / effective, *AUTO_SCALES))
    return low_resolution(to_tensor(aligned), scale, resolution, blind=blind)


def needed_upscale(faces: Sequence[Face], size: tuple[int, int]) -> Literal[1, 2, 4]:
    """By how much a photograph is to be enlarged to hold what its restored faces have.

    The smallest of them decides, as long as the photograph does not become huge.

    Args:
        faces: those that are restored.
        size: width and height of the photograph.
    """
    pixels_each = [magnification(face.transform) for face in faces]  # of the face, in one of the photo
    if not pixels_each:
        return 1
    needed = max(pixels_each) - _SQUEEZED
    room = (_ENLARGED_PIXELS / (size[0] * size[1])) ** 0.5
    return 4 if needed > 2 and room >= 4 else 2 if needed > 1 and room >= 2 else 1


def paste_faces(
    photo: NDArray[Any],
    faces: Sequence[Face],
    restored: Sequence[torch.Tensor],
    *,
    blend: float = 1.0,
    upscale: int = 1,
    enlarger: Enlarger = enlarge,
) -> NDArray[Any]:
    """Put restored faces back into their photograph.

    The face keeps the photograph's colour and lighting, and whatever detail of the photograph is finer than the
    input that the prior saw.

    Args:
        photo: (H, W, C), uint8 or uint16, C = 1 (grey) or 3, upright, in any colour space.
        faces: those that were restored.
        restored: of each, (3, R, R) in [-1, 1].
        blend: share of the restored face against the photograph, 0 to 1.
        upscale: by how much the photograph is enlarged.
        enlarger: enlarges what is around the faces.

    Returns:
        (H · upscale, W · upscale, C), of the photograph's depth; with upscale 1, bit for bit the photograph
        outside the faces.

    Raises:
        ImageError: the photograph has an unknown shape or depth, or is too large to be enlarged.
    """
    if photo.ndim != 3 or photo.shape[2] not in (1, 3) or photo.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"a photograph of shape {photo.shape} and type {photo.dtype} is not understood;"
            " give (H, W, 1) or (H, W, 3) of uint8 or uint16"
        )
    top = float(np.iinfo(photo.dtype).max)
    pixels, masks = [], []
    for face, image in zip(faces, restored, strict=True):
        side = image.shape[-1]
        mask = FaceMask(face.found.landmarks, face.transform / side, face.laid_over)
        samples = _channels(image, photo.shape[2])
        own = torch.from_numpy(cut_out_samples(photo, face.transform, side)).permute(2, 0, 1) * (2 / top) - 1
        kept = _keep(samples, own, face)
        pixels.append(((kept + 1) * (top / 2)).permute(1, 2, 0).numpy())
        masks.append(mask)
    return paste(photo, pixels, masks, upscale, blend, enlarger)


def _channels(image: torch.Tensor, channels: int) -> torch.Tensor:
    image = image.float().cpu()
    if channels == 3:
        return image
    weights = image.new_tensor([0.299, 0.587, 0.114])  # as Pillow makes grey of RGB
    return (image * weights[:, None, None]).sum(0, keepdim=True)


def _keep(restored: torch.Tensor, own: torch.Tensor, face: Face) -> torch.Tensor:
    """Replace what the photograph knows better: colour and lighting, and detail that the input lacked."""
    side = restored.shape[-1]
    kept = min(face.kept_side, side)
    difference = own - restored
    if face.laid_over is not None:
        difference = difference * (1 - resize(torch.from_numpy(face.laid_over)[None, None], side)[0])
    difference = resize(difference[None], kept)
    return restored + resize(difference, side)[0]


def is_tiny(photo: Image.Image, card: ModelCard) -> bool:
    """Say whether a picture is about square and no larger than the prior's resolution R."""
    return max(photo.size) <= min(card.resolution, _TINY_SIDES * min(photo.size))


def detect(photo: Image.Image, detector: FaceDetector, card: ModelCard, min_face: int) -> list[DetectedFace]:
    """Find the faces of a picture; a tiny one without any is looked at once more, large and framed."""
    found = detector(photo, min_face)
    if found or not is_tiny(photo, card):
        return found
    factor = _LOOKED_AT_SIDE / max(photo.size)
    large = photo.resize([round(side * factor) for side in photo.size], Image.Resampling.BICUBIC)
    framed = ImageOps.expand(large, _BORDER, fill=(128, 128, 128))  # a detector misses faces that meet every edge
    return [face.moved(-_BORDER, 1 / factor) for face in detector(framed, _LOOKED_AT_SIDE // 3)]


def is_framed_otherwise(photo: Image.Image, found: Sequence[DetectedFace]) -> bool:
    """Say whether a picture that is no aligned crop looks like one of another template: a square full of one face."""
    return len(found) == 1 and photo.width == photo.height and found[0].side >= _FULL * photo.width


def is_aligned_crop(photo: Image.Image, found: Sequence[DetectedFace], card: ModelCard) -> bool:
    """Say whether a picture is an aligned crop, as the prior knows them, rather than a photograph.

    It is if the square of its largest face, cut as the card's template says, is the picture's own central square.

    Args:
        photo: the picture.
        found: what a detector finds in it, the largest first.
        card: of the prior.
    """
    width, height = photo.size
    if not found:
        return False
    _check_template(card)
    side = min(width, height)
    fractions = alignment(found[0].landmarks, card.template, 1)
    left, top = (width - side) / 2, (height - side) / 2
    corners = np.array([(left + x * side, top + y * side) for x, y in _UNIT_SQUARE])
    placed = corners @ fractions[:, :2].T + fractions[:, 2]
    return bool(np.abs(placed - _UNIT_SQUARE).max() < _CROP_ERROR)
