"""From the bytes of a picture to its faces, ready for the networks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from faceprior.errors import ImageError
from faceprior.faces import DetectedFace, FaceDetector
from faceprior.faces.prints import without_dots
from faceprior.images import Picture, decode_picture, square, to_tensor, tone_of
from faceprior.methods import find_method
from faceprior.photographs.faces import Face, detect, find_faces, is_aligned_crop, is_framed_otherwise, is_tiny
from faceprior.photographs.options import RestoreOptions
from faceprior.photographs.restore import Condition
from faceprior.pipeline.conversions import low_resolution
from faceprior.priors import ModelCard


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture whose faces are ready for the networks. Pickled it is hardly larger than its own file.

    Attributes:
        name: of its file.
        content: of its file.
        size: width and height, upright.
        aligned: whether it is an aligned face, rather than a photograph with faces in it.
        detections: the faces that a detector found, the largest first; none where it did not look.
        faces: the faces of a photograph, the largest first; those that are left alone say why. An aligned face has
            none.
        conditions: of the faces that are to be restored; their index is the place in `faces`.
        notes: what had to be given up of the picture, in words.
    """

    name: str
    content: bytes
    size: tuple[int, int]
    aligned: bool
    detections: tuple[DetectedFace, ...]
    faces: tuple[Face, ...]
    conditions: tuple[Condition, ...]
    notes: tuple[str, ...]

    def choose(self, indices: Collection[int]) -> Prepared:
        """Return the same with fewer faces to restore: those at some places in `faces`; an aligned face is at 0."""
        return replace(self, conditions=tuple(own for own in self.conditions if own.index in indices))


def prepare(
    content: bytes,
    name: str,
    card: ModelCard,
    options: RestoreOptions = RestoreOptions(),
    detector: FaceDetector | None = None,
    detections: Sequence[DetectedFace] | None = None,
    picture: Picture | None = None,
) -> Prepared:
    """Find the faces of a picture, align them to a prior's template, and bring them to the size that they hold.

    Args:
        content: of the picture's file.
        name: of the file, for messages and for what the results say about themselves.
        card: of the prior.
        options: how.
        detector: finds faces; None where every picture is an aligned face.
        detections: what it found earlier, the largest first; then it is not asked again.
        picture: what `content` decodes to, where that is known.

    Raises:
        ImageError: the bytes are no picture that can be restored; or it is a photograph and there is no detector.
        OptionError: the scale is out of its range.
        WeightsError: the card does not say how faces are aligned.
    """
    picture = picture or decode_picture(content, name, options.max_pixels)
    looked = detections is not None or detector is not None
    found: tuple[DetectedFace, ...] = ()
    if options.kind == "aligned":
        aligned = True
    else:
        if detections is not None:
            found = tuple(detections)
        elif detector is not None:
            found = tuple(detect(picture.image, detector, card, options.min_face))
        is_crop = is_aligned_crop(picture.image, found, card) if looked else is_tiny(picture.image, card)
        aligned = options.kind == "auto" and is_crop
        if not (aligned or looked):
            raise ImageError(
                f"{name}: looks like a whole photograph, and no face detector was given;"
                " load one, or say --aligned if it is one face that fills the picture"
            )
    if aligned:
        condition, notes = _condition(picture.image, card, options)
        return Prepared(name, content, picture.image.size, aligned, found, (), (condition,), (*picture.notes, *notes))
    tone = tone_of(picture.image)
    faces = tuple(find_faces(picture.image, found, card, options))
    conditions = tuple(
        Condition(face.low_resolution, index, tone)
        for index, face in enumerate(faces)
        if face.left_alone is None and (not options.chosen or index + 1 in options.chosen)
    )
    width, height = picture.image.size
    advice = " (--aligned if the picture is one)" if width == height else ""
    notes = [] if faces else [f"no face found{advice}"]
    if is_framed_otherwise(picture.image, found):
        notes.append("cut out for another network, so treated as a photograph (--only-faces writes the face alone)")
    return Prepared(name, content, (width, height), aligned, found, faces, conditions, (*picture.lost, *notes))


def _condition(image: Image.Image, card: ModelCard, options: RestoreOptions) -> tuple[Condition, list[str]]:
    """What the networks see of an aligned face, of an oblong one its central square; and what was done to it."""
    width, height = image.size
    notes = [f"cropped to the central square of {width}×{height}"] if width != height else []
    face, blind = to_tensor(without_dots(square(image))), find_method(options.preset.method).blind
    small = low_resolution(face, options.scale, card.resolution, blind=blind)
    before, after = face.shape[-1], small.shape[-1]
    if before != after:
        notes.append(f"{'reduced' if after < before else 'enlarged'} from {before}×{before} to {after}×{after}")
    return Condition(small, tone=tone_of(image)), notes
