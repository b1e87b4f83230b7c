"""Restoring files: every input is done, or said why not; nothing half-written is ever seen."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

import faceprior
from faceprior.degradations import bicubic_downscale, chain_preset, real_world
from faceprior.errors import FacePriorError, OutputError
from faceprior.images import read_image, resize, square, to_pil, to_tensor, write_png
from faceprior.methods import DEFAULT_PRESET, Preset, find_preset
from faceprior.pipeline.face_prior import FacePriorPipeline, low_resolution
from faceprior.pipeline.results import Restored, spread_picture
from faceprior.sampling import Step

LOG_NAME = "restore.jsonl"
DEFAULT_DEGRADED_SCALE = 8.0


@dataclass(frozen=True)
class RestoreOptions:
    """How files are restored.

    Attributes:
        scale: R/n of the inputs, or "auto".
        preset: all options of the method.
        preset_name: where they came from.
        samples: samples of each input.
        seed: of every input's noise.
        batch_size: samples that go through the networks together.
        degradation: None for real low-resolution faces; "bicubic" or a preset of the real-world chain makes a
            low-resolution face out of each (sharp) input first.
        write_sheet: whether to write `<stem>-sheet.png`, everything side by side.
    """

    scale: float | Literal["auto"] = "auto"
    preset: Preset = find_preset(DEFAULT_PRESET)
    preset_name: str = DEFAULT_PRESET
    samples: int = 1
    seed: int = 0
    batch_size: int = 8
    degradation: str | None = None
    write_sheet: bool = False


@dataclass(frozen=True)
class _Face:
    """One input, read and ready."""

    path: Path
    name: str  # stem of its outputs
    low_resolution: torch.Tensor  # (3, n, n)
    sharp: torch.Tensor | None  # (3, R, R), where there is a degraded experiment


def restore_files(
    pipeline: FacePriorPipeline,
    inputs: Sequence[Path],
    output: Path,
    options: RestoreOptions,
    on_step: Callable[[int], object] = lambda _faces: None,
) -> Iterator[dict[str, Any]]:
    """Restore aligned faces from files into a folder.

    Writes for every input `<stem>.png`, for several samples also `<stem>-2.png` …, `<stem>-mean.png` and
    `<stem>-spread.png`, and a line of `restore.jsonl`. A file that cannot be read or written fails alone.

    Args:
        pipeline: prior and corrector.
        inputs: the files.
        output: folder; made if it is missing.
        options: how.
        on_step: called after every step of the sampler with the number of faces in its batch.

    Yields:
        A record for every input, in the order of finishing: "input", "status" ("done" or "failed"), and either
        "error" or "outputs", "scale", "lr_consistency", "seconds" and for degraded experiments "psnr", "ssim".

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        log = (output / LOG_NAME).open("w", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written to ({error.strerror}); choose another --output"
        ) from error
    names = output_names(inputs, output, options)
    faces_at_once = max(1, options.batch_size // options.samples)
    with log:

        def logged(record: dict[str, Any]) -> dict[str, Any]:
            log.write(json.dumps(record, ensure_ascii=False) + "\n")
            log.flush()
            return record

        waiting: list[_Face] = []
        for position, path in enumerate(inputs):
            try:
                waiting.append(_prepare(path, names[position], options, pipeline.resolution))
            except FacePriorError as error:
                yield logged({"input": str(path), "status": "failed", "error": str(error)})
            if waiting and (len(waiting) == faces_at_once or position == len(inputs) - 1):
                for record in _restore_batch(pipeline, waiting, output, options, on_step):
                    yield logged(record)
                waiting = []


def output_names(inputs: Sequence[Path], output: Path, options: RestoreOptions) -> list[str]:
    """Choose the stem of each input's outputs: its own, unless that would meet another's output or an input."""
    suffixes = ["", *(f"-{number}" for number in range(2, options.samples + 1))]
    if options.samples > 1:
        suffixes += ["-mean", "-spread"]
    if options.write_sheet:
        suffixes.append("-sheet")
    taken = {_identity(path) for path in inputs}  # an input is never written over
    names = [""] * len(inputs)
    for position in sorted(
        range(len(inputs)), key=lambda i: str(inputs[i])
    ):  # whatever order they were given in
        for name in _candidates(inputs[position]):
            files = {_identity(output / f"{name}{suffix}.png") for suffix in suffixes}
            if not files & taken:
                break
        taken |= files
        names[position] = name
    return names


def _candidates(path: Path) -> Iterator[str]:
    kind = path.suffix.lstrip(".")
    yield path.stem
    yield f"{path.stem}_{kind}"
    yield f"{path.parent.name}_{path.stem}"
    number = 2
    while True:
        yield f"{path.stem}_{kind}_{number}"
        number += 1


def _identity(path: Path) -> str:
    return os.path.normcase(path.resolve()).casefold()  # two names that one file system may take for one


def _prepare(path: Path, name: str, options: RestoreOptions, resolution: int) -> _Face:
    face = to_tensor(square(read_image(path)))
    if options.degradation is None:
        return _Face(path, name, low_resolution(face, options.scale, resolution), None)
    sharp = resize(face[None], resolution).clamp(-1, 1)
    scale = DEFAULT_DEGRADED_SCALE if options.scale == "auto" else options.scale
    damaged = sharp
    if options.degradation != "bicubic":
        generator = torch.Generator().manual_seed(options.seed)
        damaged = real_world(sharp[0], chain_preset(options.degradation), generator)[None]
    return _Face(path, name, bicubic_downscale(damaged, round(resolution / scale))[0], sharp[0])


def _restore_batch(
    pipeline: FacePriorPipeline,
    faces: Sequence[_Face],
    output: Path,
    options: RestoreOptions,
    on_step: Callable[[int], object],
) -> Iterator[dict[str, Any]]:
    started = time.perf_counter()

    def stepped(_step: Step, x_prev: torch.Tensor, _x0: torch.Tensor) -> torch.Tensor:
        on_step(len(x_prev))
        return x_prev

    generators = [torch.Generator().manual_seed(options.seed) for _ in faces]
    samples = pipeline.restore(
        [face.low_resolution for face in faces],
        generators,
        options.samples,
        options.preset,
        options.batch_size,
        stepped,
    )
    seconds = (time.perf_counter() - started) / len(faces)
    for face, images in zip(faces, samples, strict=True):
        result = Restored(face.low_resolution, face.sharp, images)
        record: dict[str, Any] = {"input": str(face.path), "status": "done"}
        try:
            record["outputs"] = _write(face, result, pipeline, output, options)
        except OutputError as error:
            yield {"input": str(face.path), "status": "failed", "error": str(error)}
            continue
        record["scale"] = pipeline.resolution / face.low_resolution.shape[-1]
        record["lr_consistency"] = [round(value, 3) for value in result.lr_consistency]
        record["seconds"] = round(seconds, 3)
        record.update(result.fidelity())
        yield record


def _write(
    face: _Face, result: Restored, pipeline: FacePriorPipeline, output: Path, options: RestoreOptions
) -> list[str]:
    made = describe(pipeline, face.path, face.low_resolution, options)
    written = []

    def write(suffix: str, image: Image.Image, **content: Any) -> None:
        path = output / f"{face.name}{suffix}.png"
        write_png(path, image, {**made, **content})
        written.append(path.name)

    for number, (image, consistency) in enumerate(zip(result.images, result.lr_consistency, strict=True), 1):
        suffix = f"-{number}" if number > 1 else ""
        write(suffix, to_pil(image), content="sample", sample=number, lr_consistency=round(consistency, 3))
    if options.samples > 1:
        write("-mean", to_pil(result.mean), content="mean", samples=options.samples)
        write("-spread", spread_picture(result.spread), content="spread", samples=options.samples)
    if options.write_sheet:
        write("-sheet", result.sheet(), content="sheet", samples=options.samples)
    return written


def describe(
    pipeline: FacePriorPipeline, path: Path, low_resolution: torch.Tensor, options: RestoreOptions
) -> dict[str, Any]:
    """How a result was made, for its metadata: nothing in it changes from one run to the next."""
    corrector = pipeline.corrector_card
    network = pipeline.unet
    return {
        "faceprior": faceprior.__version__,
        "input": path.name,
        "method": "dpi",
        "preset": options.preset_name,
        "options": options.preset.as_dict(),
        "scale": pipeline.resolution / low_resolution.shape[-1],
        "seed": options.seed,
        "degradation": options.degradation,
        "prior": {"name": pipeline.prior.card.name, "sha256": pipeline.prior.card.sha256},
        "corrector": {"name": corrector.name, "sha256": corrector.sha256} if corrector else None,
        "device": str(pipeline.prior.device.type),
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
    }
