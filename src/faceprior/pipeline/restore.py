"""Restoring files, any number of them: every input is done, or said why not, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch

from faceprior.errors import OutputError
from faceprior.faces import FaceDetector
from faceprior.images import MIN_SIDE
from faceprior.pipeline.crops import degraded_scale
from faceprior.pipeline.face_prior import FacePriorPipeline, low_resolution
from faceprior.pipeline.inputs import Input, output_names
from faceprior.pipeline.manifest import Manifest, Record
from faceprior.pipeline.recipe import RestoreOptions, settings
from faceprior.pipeline.stages import NoWatcher, Stages, Watcher, file_stamp


def restore_files(
    pipeline: FacePriorPipeline,
    inputs: Sequence[Input],
    output: Path,
    options: RestoreOptions,
    detector: FaceDetector | None = None,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> Iterator[Record]:
    """Restore pictures from files into a folder.

    Of an aligned face it writes `<name>.png`, for several samples also `<name>-2.png` …, `<name>-mean.png` and
    `<name>-spread.png`; of a photograph the whole of it in its own format, again once for each sample and for their
    mean. A photograph in which nothing is restored is copied, or only enlarged. An input that cannot be read or
    written fails alone.

    `restore.jsonl` gets a line for each input as soon as its results are written, in the order of the inputs; a
    run that was stopped at any moment goes on from there. What failed is tried again, and goes to the end.

    Args:
        pipeline: prior and corrector.
        inputs: the files.
        output: folder; made if it is missing.
        options: how.
        detector: finds faces in photographs; without one every input must be an aligned face.
        resume: leave out what the manifest in the folder says is done, if there is one.
        watcher: looks on.

    Yields:
        A record for every input, in the order of the inputs: "input", "status" ("done" or "failed"), and either
        "error" or what the manifest says of it (docs/folders.md); "earlier" is True in those of an earlier run.

    Raises:
        OutputError: the folder cannot be made or written to.
        OptionError: the scale does not fit the prior, or the run that is resumed had other options.
    """
    _check_scale(options, pipeline.resolution)
    watcher = watcher or NoWatcher()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written to ({error.strerror}); choose another --output") from error
    if resume:
        _remove_partials(inputs, output)
    own = settings(pipeline, options, detector.name if detector else None)
    with closing(Manifest(output, own, resume=resume, is_valid=_Unchanged(inputs, output))) as manifest:
        kept = {i: manifest.names[str(g.path)] for i, g in enumerate(inputs) if str(g.path) in manifest.names}
        if kept:
            watcher.on_notice(f"{len(kept)} of {len(inputs)} were done before")
        suffixes = [""] if options.only_faces else options.suffixes
        names = output_names(inputs, output, suffixes, kept)
        yield from Stages(pipeline, detector, output, options, manifest, watcher).run(inputs, names)


def _check_scale(options: RestoreOptions, resolution: int) -> None:
    scale = options.scale if options.degradation is None else degraded_scale(options)
    low_resolution(torch.zeros(3, MIN_SIDE, MIN_SIDE), scale, resolution)


def _remove_partials(inputs: Sequence[Input], output: Path) -> None:
    """Remove what a killed run was writing."""
    for folder in {output, *(output / given.folder for given in inputs)}:
        for partial in folder.glob(".faceprior-*.partial"):
            partial.unlink(missing_ok=True)


class _Unchanged:
    """Says of a record of an earlier run whether its input and its results are still as they were."""

    def __init__(self, inputs: Sequence[Input], output: Path) -> None:
        self._inputs, self._output = {str(given.path) for given in inputs}, output

    def __call__(self, record: Record) -> bool:
        if record["input"] not in self._inputs:
            return True  # not our business now
        try:
            if file_stamp(Path(record["input"])) != record["file"]:
                return False
            outputs = record["outputs"]
            return all((self._output / own["file"]).stat().st_size == own["bytes"] for own in outputs)
        except (OSError, KeyError, TypeError):
            return False
