"""One photograph: its faces are found, restored and put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from faceprior.errors import CancelledError, FacePriorError
from faceprior.faces import FaceDetector
from faceprior.images import Picture, to_rgb
from faceprior.pipeline.batches import BatchSampler, FaceInput, OnFacesStep
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.pipeline.outputs import Outputs, sample_suffix
from faceprior.pipeline.photo import PhotoFace, find_faces, paste_faces
from faceprior.pipeline.recipe import RestoreOptions, check_finite, describe
from faceprior.pipeline.results import Restored, sheet
from faceprior.sampling import Step


@dataclass(frozen=True, eq=False)
class RestoredPhoto:
    """A photograph whose faces are restored; the whole picture is composed when it is asked for.

    Attributes:
        picture: the photograph.
        faces: all that were found, largest first.
        results: of each face; None where it was left alone.
        options: how it was restored.
    """

    picture: Picture
    faces: tuple[PhotoFace, ...]
    results: tuple[Restored | None, ...]
    options: RestoreOptions

    def pixels(self, sample: int | None = 0) -> NDArray[Any]:
        """Compose the photograph in its file's own depth, channels and colour space.

        Args:
            sample: which of the samples of each face, from 0; None is their mean.

        Returns:
            (H·upscale, W·upscale, C), uint8 or uint16.
        """
        faces, images = self._restored(sample)
        own = [self.picture.from_srgb(image) for image in images]
        return paste_faces(self.picture.pixels, faces, own, self.options.photo)

    def image(self, sample: int | None = 0) -> Image.Image:
        """Compose the photograph as 8-bit sRGB for a screen; arguments as for `pixels`."""
        faces, images = self._restored(sample)
        return Image.fromarray(paste_faces(np.asarray(self.picture.image), faces, images, self.options.photo))

    def _restored(self, sample: int | None) -> tuple[list[PhotoFace], list[torch.Tensor]]:
        pairs = [(face, own) for face, own in zip(self.faces, self.results, strict=True) if own is not None]
        images = [own.mean if sample is None else own.images[sample] for _, own in pairs]
        return [face for face, _ in pairs], images

    def records(self) -> list[dict[str, Any]]:
        """What there is to say of each face, as the manifest has it."""
        return [_record(face, own) for face, own in zip(self.faces, self.results, strict=True)]


def restore_photo(
    pipeline: FacePriorPipeline,
    photo: Picture | Image.Image,
    detector: FaceDetector,
    options: RestoreOptions | None = None,
    *,
    found: Sequence[PhotoFace] | None = None,
    on_step: OnFacesStep | None = None,
    on_notice: Callable[[str], object] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> RestoredPhoto:
    """Restore the faces of a photograph.

    Args:
        pipeline: prior and corrector.
        photo: what `read_picture` returns, or any Pillow image.
        detector: finds the faces.
        options: how; the same photograph in a folder gets the same result.
        found: the faces, if they were found before with the same options.
        on_step: called after every step with the corrected x0 of a batch; the positions count the faces that are
            restored, without those left alone.
        on_notice: called with a sentence for the user when a batch did not fit into memory.
        cancel: asked after every step; when it says True the work stops.

    Raises:
        CancelledError: `cancel` said so.
        FacePriorError: a face cannot be restored; the message says why.
    """
    options = options or RestoreOptions()
    picture = photo if isinstance(photo, Picture) else _as_picture(photo)
    if found is None:
        found = find_faces(picture.image, detector, pipeline.prior.card, options.photo)
    faces = tuple(found)
    wanted = [index for index, face in enumerate(faces) if options.restores(index, face)]

    def stepped(step: Step, x0: torch.Tensor, positions: Sequence[int]) -> None:
        if cancel is not None and cancel():
            raise CancelledError("stopped before the faces were restored")
        if on_step is not None:
            on_step(step, x0, positions)

    sampler = BatchSampler(pipeline, options.preset, options.samples, options.batch_size, stepped, on_notice)
    inputs = [FaceInput(faces[index].low_resolution, options.seed, index) for index in wanted]
    results: list[Restored | None] = [None] * len(faces)
    for index, samples in zip(wanted, sampler(inputs), strict=True):
        if isinstance(samples, FacePriorError):
            raise samples
        check_finite(samples, pipeline)
        results[index] = Restored(faces[index].low_resolution, None, samples)
    return RestoredPhoto(picture, faces, tuple(results), options)


class Photo:
    """A photograph whose faces are found, ready for the networks.

    Args:
        pipeline: prior and corrector.
        path: the file.
        picture: what was read from it.
        found: its faces.
        options: how it is restored.
    """

    def __init__(
        self,
        pipeline: FacePriorPipeline,
        path: Path,
        picture: Picture,
        found: Sequence[PhotoFace],
        options: RestoreOptions,
    ) -> None:
        self._pipeline, self._path, self._picture, self._options = pipeline, path, picture, options
        self._found = tuple(found)
        self._wanted = [index for index, face in enumerate(found) if options.restores(index, face)]

    @property
    def faces(self) -> list[FaceInput]:
        """The faces that are to be restored."""
        return [FaceInput(self._found[i].low_resolution, self._options.seed, i) for i in self._wanted]

    @property
    def pixels(self) -> int:
        """Pixels that are held in memory."""
        return self._picture.image.width * self._picture.image.height

    def write(self, samples: Sequence[torch.Tensor], outputs: Outputs) -> dict[str, Any]:
        """Write the results; returns what the manifest says of them.

        Args:
            samples: of each of `faces`, (N, 3, R, R) in [-1, 1].
            outputs: where to.

        Raises:
            DeviceError: the networks overflowed.
            OutputError: a file cannot be written.
        """
        results: list[Restored | None] = [None] * len(self._found)
        for index, images in zip(self._wanted, samples, strict=True):
            check_finite(images, self._pipeline)
            results[index] = Restored(self._found[index].low_resolution, None, images)
        restored = RestoredPhoto(self._picture, self._found, tuple(results), self._options)
        notes = [*self._picture.lost]
        if not self._found:
            width, height = self._picture.image.size
            notes.append("no face found" + (" (--aligned if the picture is one)" if width == height else ""))
        made = {**describe(self._pipeline, self._options), "input": self._path.name, "notes": notes}
        records = restored.records()
        if self._options.only_faces:
            self._write_faces(restored, records, made, outputs)
        else:
            self._write_photo(restored, records, made, outputs)
        return {"kind": "photo", "seed": self._options.seed, "notes": notes, "faces": records}

    def _write_faces(
        self, restored: RestoredPhoto, records: Sequence[dict[str, Any]], made: dict[str, Any], outputs: Outputs
    ) -> None:
        for number, (record, result) in enumerate(zip(records, restored.results, strict=True), 1):
            if result is not None:
                own = {**made, "scale": record["scale"], "face": number, "box": record["box"]}
                outputs.face(f"-face{number}", result, own, with_sheet=self._options.write_sheet)

    def _write_photo(
        self, restored: RestoredPhoto, records: Sequence[dict[str, Any]], made: dict[str, Any], outputs: Outputs
    ) -> None:
        options, picture = self._options, self._picture
        shown = [result for result in restored.results if result is not None]
        if not shown and options.upscale == 1:
            outputs.copy(self._path)
            return
        made = {**made, "upscale": options.upscale, "blend": options.blend, "faces": records}
        kinds: list[tuple[str, int | None, dict[str, Any]]] = [
            (sample_suffix(number), number - 1, {"content": "photo", "sample": number})
            for number in range(1, options.samples + 1 if shown else 2)
        ]
        if shown and options.samples > 1:
            kinds.append(("-mean", None, {"content": "photo of the mean", "samples": options.samples}))
        for suffix, sample, content in kinds:
            outputs.picture(suffix, restored.pixels(sample), picture, self._path, {**made, **content})
        if shown and options.write_sheet:
            pictures = [result.pictures() for result in shown]
            labelled = [
                (f"face {number}: {label}" if len(shown) > 1 else label, image)
                for number, own in enumerate(pictures, 1)
                for label, image in own
            ]
            outputs.png("-sheet", sheet(labelled, columns=len(pictures[0])), {**made, "content": "sheet"})


def _record(face: PhotoFace, result: Restored | None) -> dict[str, Any]:
    left, top, right, bottom = (round(value, 1) for value in face.found.box)
    record: dict[str, Any] = {
        "box": [left, top, right, bottom],
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in face.found.landmarks],
        "score": round(face.found.score, 3),
        "effective_side": round(face.effective_side, 1),
        "scale": face.scale,
    }
    if face.left_alone is not None:
        record["left_alone"] = face.left_alone
    if result is not None:
        record["lr_consistency"] = [round(value, 3) for value in result.lr_consistency]
        if len(result.images) > 1:
            record["spread"] = round(float(result.spread.mean()), 4)
    return record


def _as_picture(image: Image.Image) -> Picture:
    rgb = to_rgb(image)
    return Picture(image=rgb, notes=(), pixels=np.array(rgb), alpha=None, format=image.format or "PNG")
