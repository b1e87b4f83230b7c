"""Restoring files: every input is done, or said why not; nothing half-written is ever seen."""

from __future__ import annotations

import json
import os
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

import faceprior
from faceprior.degradations import make_input
from faceprior.errors import DeviceError, FacePriorError, OutputError
from faceprior.images import MIN_SIDE, read_picture, resize, square, to_pil, to_tensor, write_png
from faceprior.methods import DEFAULT_PRESET, Preset, find_method, find_preset
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
        preset: the method and all its options.
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
    notes: tuple[str, ...]  # what was done to the file before


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
        A record for every input, in the order of the inputs: "input", "status" ("done" or "failed"), and either
        "error" or "outputs", "scale", "notes" (what was done to the file first: cropped, reduced, ...),
        "lr_consistency", "seconds" and for degraded experiments "psnr", "ssim", "consistency".

    Raises:
        OutputError: the folder cannot be made or written to.
        OptionError: the scale does not fit the prior.
        DeviceError: a batch does not fit into the device's memory.
    """
    _check_scale(options, pipeline.resolution)
    try:
        output.mkdir(parents=True, exist_ok=True)
        log = (output / LOG_NAME).open("wb", buffering=0)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written to ({error.strerror}); choose another --output") from error
    names = output_names(inputs, output, options)
    faces_at_once = max(1, options.batch_size // options.samples)
    with log:
        for first in range(0, len(inputs), faces_at_once):
            chunk = slice(first, first + faces_at_once)
            for record in _restore_batch(pipeline, inputs[chunk], names[chunk], output, options, on_step):
                line = json.dumps(record, ensure_ascii=False) + "\n"
                try:
                    log.write(line.encode("utf-8", "backslashreplace"))  # file names need not be UTF-8
                except OSError as error:
                    raise OutputError(
                        f"{output / LOG_NAME}: cannot be written ({error.strerror}); choose another --output"
                    ) from error
                yield record


def output_names(inputs: Sequence[Path], output: Path, options: RestoreOptions) -> list[str]:
    """Choose the stem of each input's outputs: its own, unless that would meet another's output or an input."""
    suffixes = ["", *(f"-{number}" for number in range(2, options.samples + 1))]
    if options.samples > 1:
        suffixes += ["-mean", "-spread"]
    if options.write_sheet:
        suffixes.append("-sheet")
    parents = {parent: os.path.realpath(parent) for parent in {path.parent for path in inputs}}
    taken = {_folded(parents[path.parent], path.name) for path in inputs}  # an input is never written over
    folder = os.path.realpath(output)
    numbers = defaultdict[str, Iterator[int]](lambda: count(2))
    names = [""] * len(inputs)
    for position in sorted(range(len(inputs)), key=lambda i: str(inputs[i])):  # whatever order they were given in
        path = inputs[position]
        for name in _candidates(path, numbers[path.name]):
            files = {_folded(folder, f"{name}{suffix}.png") for suffix in suffixes}
            if not files & taken:
                taken |= files
                names[position] = name
                break
    return names


def _candidates(path: Path, numbers: Iterator[int]) -> Iterator[str]:
    kind = path.suffix.lstrip(".")
    yield path.stem
    yield f"{path.stem}_{kind}"
    yield f"{path.parent.name}_{path.stem}"
    yield from (f"{path.stem}_{kind}_{number}" for number in numbers)


def _folded(folder: str, name: str) -> str:
    # alike for two names that one file system may take for one
    return unicodedata.normalize("NFC", os.path.join(folder, name)).casefold()  # noqa: PTH118 - a million of them


def _degraded_scale(options: RestoreOptions) -> float:
    return DEFAULT_DEGRADED_SCALE if options.scale == "auto" else options.scale


def _check_scale(options: RestoreOptions, resolution: int) -> None:
    scale = options.scale if options.degradation is None else _degraded_scale(options)
    low_resolution(torch.zeros(3, MIN_SIDE, MIN_SIDE), scale, resolution)


def _prepare(path: Path, name: str, options: RestoreOptions, resolution: int) -> _Face:
    picture = read_picture(path)
    face = to_tensor(square(picture.image))
    notes = list(picture.notes)
    width, height = picture.image.size
    if width != height:
        notes.append(f"cropped to the central square of {width}×{height}")
    if options.degradation is None:
        small, sharp = low_resolution(face, options.scale, resolution), None
        notes += _resized(face, small)
    else:
        sharp = resize(face[None], resolution)[0].clamp(-1, 1)
        notes += _resized(face, sharp)
        generator = torch.Generator().manual_seed(options.seed)
        small = make_input(sharp, options.degradation, round(resolution / _degraded_scale(options)), generator)
    return _Face(path, name, small, sharp, tuple(notes))


def _resized(before: torch.Tensor, after: torch.Tensor) -> list[str]:
    own, side = before.shape[-1], after.shape[-1]
    if own == side:
        return []
    return [f"{'reduced' if side < own else 'enlarged'} from {own}×{own} to {side}×{side}"]


def _restore_batch(
    pipeline: FacePriorPipeline,
    paths: Sequence[Path],
    names: Sequence[str],
    output: Path,
    options: RestoreOptions,
    on_step: Callable[[int], object],
) -> Iterator[dict[str, Any]]:
    failures: dict[int, FacePriorError] = {}
    faces: dict[int, _Face] = {}
    for position, (path, name) in enumerate(zip(paths, names, strict=True)):
        try:
            faces[position] = _prepare(path, name, options, pipeline.resolution)
        except FacePriorError as error:
            failures[position] = error
    started = time.perf_counter()
    samples = dict(zip(faces, _sample(pipeline, list(faces.values()), options, on_step), strict=True))
    seconds = (time.perf_counter() - started) / max(1, len(faces))
    for position, path in enumerate(paths):
        try:
            if position in failures:
                raise failures[position]
            record = _finish(pipeline, faces[position], samples[position], output, options)
            yield {"input": str(path), "status": "done", **record, "seconds": round(seconds, 3)}
        except FacePriorError as error:
            yield {"input": str(path), "status": "failed", "error": str(error)}


def _sample(
    pipeline: FacePriorPipeline,
    faces: Sequence[_Face],
    options: RestoreOptions,
    on_step: Callable[[int], object],
) -> Sequence[torch.Tensor]:
    """Samples of each face, (N, 3, R, R)."""

    def stepped(_step: Step, x_prev: torch.Tensor, _x0: torch.Tensor) -> torch.Tensor:
        on_step(len(x_prev))
        return x_prev

    if not faces:
        return []
    generators = [torch.Generator().manual_seed(options.seed) for _ in faces]
    inputs = [face.low_resolution for face in faces]
    try:
        samples = pipeline.restore(inputs, generators, options.samples, options.preset, options.batch_size, stepped)
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(
            f"{options.batch_size} faces at once do not fit into the memory of {pipeline.prior.device};"
            " choose a smaller --batch-size"
        ) from error
    return list(samples)


def _finish(
    pipeline: FacePriorPipeline, face: _Face, images: torch.Tensor, output: Path, options: RestoreOptions
) -> dict[str, Any]:
    if not bool(torch.isfinite(images).all()):
        raise DeviceError(f"{face.path}: the networks overflowed in {_dtype(pipeline)}; choose --dtype float32")
    result = Restored(face.low_resolution, face.sharp, images)
    return {
        "outputs": _write(face, result, pipeline, output, options),
        "scale": pipeline.resolution / face.low_resolution.shape[-1],
        "notes": list(face.notes),
        "lr_consistency": [round(value, 3) for value in result.lr_consistency],
        **result.fidelity(),
    }


def _write(
    face: _Face, result: Restored, pipeline: FacePriorPipeline, output: Path, options: RestoreOptions
) -> list[str]:
    made = describe(pipeline, face.path, face.low_resolution, options, face.notes)
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
    pipeline: FacePriorPipeline,
    path: Path,
    low_resolution: torch.Tensor,
    options: RestoreOptions,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """How a result was made, for its metadata: nothing in it changes from one run to the next."""
    method, corrector = find_method(options.preset.method), pipeline.corrector_card
    prior = {"name": pipeline.prior.card.name, "sha256": pipeline.prior.card.sha256}
    used = corrector if method.uses_corrector else None
    return {
        "faceprior": faceprior.__version__,
        "input": path.name,
        "notes": list(notes),
        "method": method.name,
        "preset": options.preset_name,
        "options": options.preset.as_dict(),
        "scale": pipeline.resolution / low_resolution.shape[-1],
        "seed": options.seed,
        "degradation": options.degradation,
        "prior": prior if method.uses_prior else None,
        "corrector": {"name": used.name, "sha256": used.sha256} if used else None,
        "device": str(pipeline.prior.device.type),
        "dtype": _dtype(pipeline),
    }


def _dtype(pipeline: FacePriorPipeline) -> str:
    return str(next(pipeline.unet.parameters()).dtype).removeprefix("torch.")
