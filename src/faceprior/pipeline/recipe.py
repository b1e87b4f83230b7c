"""How files are restored: the options, and what every result says about how it was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

import faceprior
from faceprior.errors import DeviceError, OptionError
from faceprior.methods import DEFAULT_PRESET, Preset, find_method, find_preset
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.pipeline.photo import PhotoFace, PhotoOptions

Kind = Literal["auto", "aligned", "photo"]


@dataclass(frozen=True)
class RestoreOptions:
    """How pictures are restored.

    Attributes:
        scale: R/n of the faces, or "auto".
        preset: the method and all its options.
        preset_name: where they came from.
        samples: samples of each face.
        seed: of every picture's noise.
        batch_size: samples that go through the networks together; no result depends on it.
        kind: what an input is: an aligned face, a photograph, or what it looks like.
        degradation: None for real low-resolution faces; "bicubic" or a preset of the real-world chain makes a
            low-resolution face out of each (sharp, aligned) input first.
        write_sheet: whether to write `<stem>-sheet.png`, everything side by side.
        only_faces: write the faces of a photograph, each for itself, instead of the photograph.
        faces: which faces of a photograph: the number of largest ones, "largest" or "all".
        chosen: numbers of the faces of a photograph that are restored, from 1, the largest first; none stands for
            all that `faces` leaves.
        min_face: smallest face of a photograph, in pixels.
        blend: share of the restored face in the result, 0 to 1.
        upscale: enlargement of a photograph, 1, 2 or 4.

    Raises:
        OptionError: an option is out of its range, or two contradict each other.
    """

    scale: float | Literal["auto"] = "auto"
    preset: Preset = find_preset(DEFAULT_PRESET)
    preset_name: str = DEFAULT_PRESET
    samples: int = 1
    seed: int = 0
    batch_size: int = 8
    kind: Kind = "auto"
    degradation: str | None = None
    write_sheet: bool = False
    only_faces: bool = False
    faces: int | Literal["largest", "all"] = "all"
    chosen: tuple[int, ...] = ()
    min_face: int = 24
    blend: float = 1.0
    upscale: Literal[1, 2, 4] = 1

    def __post_init__(self) -> None:
        if self.degradation is not None and self.kind == "photo":
            raise OptionError("a degraded experiment wants sharp aligned faces; leave out --photo or --degrade")
        if self.samples < 1 or self.batch_size < 1:
            raise OptionError(f"samples is {self.samples} and batch size {self.batch_size}; both must be at least 1")
        if any(number < 1 for number in self.chosen):
            raise OptionError(f"face {min(self.chosen)} was chosen; faces are counted from 1")
        _ = self.photo

    def restores(self, index: int, face: PhotoFace) -> bool:
        """Whether a face is to be restored; `index` is its number in the photograph, from 0."""
        return face.left_alone is None and (not self.chosen or index + 1 in self.chosen)

    @property
    def photo(self) -> PhotoOptions:
        """What of it concerns a photograph."""
        return PhotoOptions(
            faces=self.faces, min_face=self.min_face, blend=self.blend, upscale=self.upscale, scale=self.scale
        )

    @property
    def suffixes(self) -> list[str]:
        """What the results of a face are called, appended to the name: the samples, the mean, ..."""
        suffixes = ["", *(f"-{number}" for number in range(2, self.samples + 1))]
        if self.samples > 1:
            suffixes += ["-mean", "-spread"]
        if self.write_sheet:
            suffixes.append("-sheet")
        return suffixes


def describe(pipeline: FacePriorPipeline, options: RestoreOptions) -> dict[str, Any]:
    """How results are made, for their metadata: nothing in it changes from one run to the next."""
    method, corrector = find_method(options.preset.method), pipeline.corrector_card
    prior = {"name": pipeline.prior.card.name, "sha256": pipeline.prior.card.sha256}
    used = corrector if method.uses_corrector else None
    return {
        "faceprior": faceprior.__version__,
        "method": method.name,
        "preset": options.preset_name,
        "options": options.preset.as_dict(),
        "seed": options.seed,
        "degradation": options.degradation,
        "prior": prior if method.uses_prior else None,
        "corrector": {"name": used.name, "sha256": used.sha256} if used else None,
        "device": str(pipeline.prior.device.type),
        "dtype": dtype_name(pipeline),
    }


def settings(pipeline: FacePriorPipeline, options: RestoreOptions, detector: str | None) -> dict[str, Any]:
    """All that decides the results of a run over files."""
    return {
        **describe(pipeline, options),
        "scale": options.scale,
        "samples": options.samples,
        "kind": options.kind,
        "sheet": options.write_sheet,
        "only_faces": options.only_faces,
        "faces": options.faces,
        "chosen": list(options.chosen),
        "min_face": options.min_face,
        "blend": options.blend,
        "upscale": options.upscale,
        "detector": detector,
    }


def dtype_name(pipeline: FacePriorPipeline) -> str:
    """The number format that the networks compute in."""
    return str(next(pipeline.unet.parameters()).dtype).removeprefix("torch.")


def check_finite(images: torch.Tensor, pipeline: FacePriorPipeline) -> None:
    """Check that the networks did not overflow; raises DeviceError."""
    if not bool(torch.isfinite(images).all()):
        raise DeviceError(f"the networks overflowed in {dtype_name(pipeline)}; choose --dtype float32")
