"""Aligned faces: a picture that is a face and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from faceprior.degradations import make_input
from faceprior.images import Picture, resize, square, to_tensor
from faceprior.pipeline.batches import FaceInput
from faceprior.pipeline.face_prior import FacePriorPipeline, low_resolution
from faceprior.pipeline.outputs import Outputs
from faceprior.pipeline.recipe import RestoreOptions, check_finite, describe
from faceprior.pipeline.results import Restored

DEFAULT_DEGRADED_SCALE = 8.0


class Crop:
    """An aligned face, ready for the networks.

    Args:
        pipeline: prior and corrector.
        path: the file.
        picture: what was read from it; of an oblong one the central square is taken.
        options: how it is restored.
    """

    def __init__(self, pipeline: FacePriorPipeline, path: Path, picture: Picture, options: RestoreOptions) -> None:
        self._pipeline, self._path, self._options = pipeline, path, options
        face = to_tensor(square(picture.image))
        notes = list(picture.notes)
        width, height = picture.image.size
        if width != height:
            notes.append(f"cropped to the central square of {width}×{height}")
        resolution = pipeline.resolution
        self._sharp: torch.Tensor | None = None  # (3, R, R), where there is a degraded experiment
        if options.degradation is None:
            small = low_resolution(face, options.scale, resolution)
            notes += _resized(face, small)
        else:
            self._sharp = resize(face[None], resolution)[0].clamp(-1, 1)
            notes += _resized(face, self._sharp)
            generator = torch.Generator().manual_seed(options.seed)
            small = make_input(
                self._sharp, options.degradation, round(resolution / degraded_scale(options)), generator
            )
        self._small, self._notes = small, notes

    @property
    def faces(self) -> list[FaceInput]:
        """The face."""
        return [FaceInput(self._small, self._options.seed)]

    @property
    def pixels(self) -> int:
        """Pixels that are held in memory."""
        return self._small[0].numel()

    def write(self, samples: Sequence[torch.Tensor], outputs: Outputs) -> dict[str, Any]:
        """Write the results; returns what the manifest says of them.

        Args:
            samples: of the only face, (N, 3, R, R) in [-1, 1].
            outputs: where to.

        Raises:
            DeviceError: the networks overflowed.
            OutputError: a file cannot be written.
        """
        options = self._options
        check_finite(samples[0], self._pipeline)
        result = Restored(self._small, self._sharp, samples[0])
        scale = self._pipeline.resolution / self._small.shape[-1]
        made = {
            **describe(self._pipeline, options),
            "input": self._path.name,
            "notes": self._notes,
            "scale": scale,
        }
        outputs.face("-face1" if options.only_faces else "", result, made, with_sheet=options.write_sheet)
        return {
            "kind": "aligned",
            "scale": scale,
            "seed": options.seed,
            "notes": self._notes,
            "lr_consistency": [round(value, 3) for value in result.lr_consistency],
            **result.fidelity(),
        }


def degraded_scale(options: RestoreOptions) -> float:
    """The scale of a degraded experiment."""
    return DEFAULT_DEGRADED_SCALE if options.scale == "auto" else options.scale


def _resized(before: torch.Tensor, after: torch.Tensor) -> list[str]:
    own, side = before.shape[-1], after.shape[-1]
    if own == side:
        return []
    return [f"{'reduced' if side < own else 'enlarged'} from {own}×{own} to {side}×{side}"]
