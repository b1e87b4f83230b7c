"""How pictures are restored: the options, and what every result says about how it was made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import faceprior
from faceprior.errors import OptionError
from faceprior.faces.detection import MIN_FACE
from faceprior.images import MAX_PIXELS
from faceprior.methods import DEFAULT_PRESET, Preset, find_method, find_preset
from faceprior.photographs.upscaler import load_upscaler

if TYPE_CHECKING:
    from faceprior.pipeline.face_prior import FacePriorPipeline

Kind = Literal["auto", "aligned", "photo"]

# said by `how_made`, or by another name, or without influence on a result
_ELSEWHERE = {"preset", "preset_name", "seed", "upscaler", "write_sheet", "batch_size", "max_pixels"}


@dataclass(frozen=True)
class RestoreOptions:
    """How pictures are restored.

    Attributes:
        kind: what an input is: an aligned face, a photograph, or what it looks like.
        scale: R/n of the faces, 2 to 32; "auto" takes what a face's effective resolution says.
        faces: which faces of a photograph: the number of largest ones, or "all".
        chosen: numbers of the faces of a photograph that are restored, from 1, the largest first; none stands for
            all that `faces` leaves.
        max_pixels: largest picture that is decoded, in pixels.
        min_face: smallest face of a photograph, side of its box in pixels.
        preset: the method and all its options.
        preset_name: where they came from.
        samples: samples of each face.
        seed: of every picture's noise.
        batch_size: samples that go through the networks together, no result depends on it; None is eight, or more
            on a CPU with many cores.
        blend: share of the restored face against the photograph, 0 to 1.
        upscale: by how much a photograph is enlarged (Lanczos outside the faces): 1, 2 or 4; "auto" for as much as
            its restored faces need.
        upscaler: safetensors file of a network that enlarges the photograph instead (`load_upscaler`).
        with_location: leave in a photograph where it was taken.
        only_faces: write the faces of a photograph, each for itself, instead of the photograph.
        write_sheet: whether to write `<stem>-sheet.png`, everything side by side.
        ending: of the pictures' file names (a clip's, where it is one of a clip), which says their format; None
            keeps a photograph's and a clip's, and is PNG for a face.

    Raises:
        OptionError: an option is out of its range, or two contradict each other.
    """

    kind: Kind = "auto"
    scale: float | Literal["auto"] = "auto"
    faces: int | Literal["all"] = "all"
    chosen: tuple[int, ...] = ()
    max_pixels: int = MAX_PIXELS
    min_face: int = MIN_FACE
    preset: Preset = find_preset(DEFAULT_PRESET)
    preset_name: str = DEFAULT_PRESET
    samples: int = 1
    seed: int = 0
    batch_size: int | None = None
    blend: float = 1.0
    upscale: Literal[1, 2, 4, "auto"] = 1
    upscaler: Path | None = None
    with_location: bool = True
    only_faces: bool = False
    write_sheet: bool = False
    ending: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise OptionError(f"samples is {self.samples} and batch size {self.batch_size}; both must be at least 1")
        if self.faces != "all" and not (isinstance(self.faces, int) and self.faces >= 1):
            raise OptionError(f"faces is {self.faces!r}; choose all, or a number from 1 on")
        if any(number < 1 for number in self.chosen):
            raise OptionError(f"face {min(self.chosen)} was chosen; faces are counted from 1: choose one of them")
        if self.max_pixels < 1:
            raise OptionError(f"the largest picture is {self.max_pixels} pixels; choose 1 or more")
        if self.min_face < 8:
            raise OptionError(f"the smallest face is {self.min_face} pixels; choose 8 or more")
        if not 0 <= self.blend <= 1:
            raise OptionError(f"blend is {self.blend:g}; choose a number from 0 to 1")
        if self.upscaler is not None and self.upscale == 1:
            raise OptionError("an upscaler has nothing to enlarge; say --upscale auto, 2 or 4 too")
        if self.upscale not in (1, 2, 4, "auto"):
            raise OptionError(f"upscale is {self.upscale}; choose 1, 2, 4 or auto")

    @property
    def suffixes(self) -> list[str]:
        """What the results of a face are called, appended to the name: the samples, the mean, ..."""
        suffixes = [sample_suffix(number) for number in range(1, self.samples + 1)]
        if self.samples > 1:
            suffixes += ["-mean", "-doubt"]
        if self.write_sheet:
            suffixes.append("-sheet")
        return suffixes


def sample_suffix(number: int) -> str:
    """What is appended to the name of a sample, counted from 1; nothing to the first's."""
    return f"-{number}" if number > 1 else ""


def how_made(pipeline: FacePriorPipeline, options: RestoreOptions) -> dict[str, Any]:
    """How results are made, for their metadata: nothing in it changes from one run to the next."""
    method, corrector = find_method(options.preset.method), pipeline.corrector_card
    prior = {"name": pipeline.prior.card.name, "sha256": pipeline.prior.card.sha256}
    used = corrector if method.uses_corrector else None
    upscaler = None if options.upscaler is None else load_upscaler(options.upscaler)
    return {
        "faceprior": faceprior.__version__,
        "method": method.name,
        "preset": options.preset_name,
        "options": options.preset.as_dict(),
        "seed": options.seed,
        "prior": prior if method.uses_prior else None,
        "corrector": {"name": used.name, "sha256": used.sha256} if used else None,
        "device": str(pipeline.prior.device.type),
        "dtype": str(pipeline.prior.dtype).removeprefix("torch."),
    } | ({} if upscaler is None else {"upscaler": {"name": upscaler.name, "sha256": upscaler.sha256}})


def settings(pipeline: FacePriorPipeline, options: RestoreOptions, detector: str | None) -> dict[str, Any]:
    """All that decides the results of a run over files."""
    own = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in _ELSEWHERE}
    own |= {"sheet": options.write_sheet, "chosen": list(options.chosen), "detector": detector}
    return {**how_made(pipeline, options), **own}
