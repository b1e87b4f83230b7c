"""The command that restores: photographs, aligned faces, clips, folders of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from typer import Argument, Option

from faceprior.cli import options
from faceprior.cli.console import EXIT_SOME_FAILED, EXIT_STOPPED, console, errors, say

if TYPE_CHECKING:
    from faceprior.cli.progress import RestoreProgress
    from faceprior.faces import FaceDetector
    from faceprior.photographs import RestoreOptions
    from faceprior.pipeline import FacePriorPipeline
    from faceprior.storage import Place


_UPSCALES: dict[str, Literal[1, 2, 4, "auto"]] = {"1": 1, "2": 2, "4": 4, "auto": "auto"}
_OF_PHOTOGRAPHS = ("photo", "detector", "only_faces", "faces", "face", "min_face", "blend", "upscale")
_CONTRADICTING = (("quiet", "verbose"), *((name, "aligned") for name in _OF_PHOTOGRAPHS))


def restore(
    context: typer.Context,
    pictures: Annotated[
        list[str],
        Argument(help="Photographs, clips, aligned faces, folders, patterns; paths or URLs.", metavar="INPUT..."),
    ],
    output: Annotated[
        str | None,
        Option(
            "--output",
            "-o",
            help="Folder, or file for one input; path or URL.",
            metavar="PATH",
            show_default="NAME-restored",
        ),
    ] = None,
    upscale: Annotated[
        Literal["1", "2", "4", "auto"], Option(help="Enlarge the whole picture; auto: as its faces need.")
    ] = "1",
    upscaler: Annotated[
        Path | None,
        Option(metavar="FILE", help="Network for that: safetensors that spandrel knows.", show_default="Lanczos"),
    ] = None,
    jpeg: Annotated[bool, Option("--jpeg", help="Write pictures as JPEG.")] = False,
    no_location: Annotated[bool, Option("--no-location", help="Leave out where it was taken.")] = False,
    blend: Annotated[float, Option(min=0, max=1, metavar="0..1", help="Share of the restored face.")] = 1.0,
    faces: Annotated[int | None, Option(min=1, metavar="N", help="The N largest ones.", show_default="all")] = None,
    face: Annotated[list[int] | None, Option(min=1, metavar="N", help="The N-th largest; may be repeated.")] = None,
    min_face: Annotated[int | None, Option(min=8, metavar="PIXELS", help="Smallest face.", show_default="24")] = None,
    max_pixels: Annotated[float, Option(min=0.001, metavar="MILLIONS", help="Largest picture that is read.")] = 100,
    only_faces: Annotated[bool, Option("--only-faces", help="Write the faces, not the photograph.")] = False,
    photo: Annotated[bool, Option("--photo", help="The inputs are photographs; don't guess.")] = False,
    aligned: Annotated[bool, Option("--aligned", help="The inputs are aligned faces; don't guess.")] = False,
    scale: Annotated[
        Literal["4", "8", "16", "auto"], Option(help="How much is missing: 16 for the most blurred.")
    ] = "auto",
    samples: Annotated[int, Option(min=1, max=1000, metavar="N", help="Restorations of each face.")] = 1,
    seed: Annotated[int, Option(min=0, max=2**63 - 1, metavar="N", help="Another seed, another face.")] = 0,
    sheet: Annotated[bool, Option("--sheet", help="Also write everything side by side.")] = False,
    resume: Annotated[bool, Option("--resume", help="Go on with a run that was stopped.")] = False,
    strict: Annotated[bool, Option("--strict", help="Exit code 3 if an input has no face.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Tell of failures only.")] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Tell of every face.")] = False,
    method: Annotated[str, Option(help="Method or preset: `faceprior methods`.", metavar="NAME")] = "default",
    option: Annotated[
        list[str] | None, Option(metavar="NAME=VALUE", help="One of the method's own: `faceprior methods NAME`.")
    ] = None,
    prior: options.Prior = None,
    corrector: options.Corrector = "auto",
    detector: Annotated[
        str | None, Option(help="centerface, yunet, or a model of yunet.", metavar="NAME", show_default="centerface")
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    ray: Annotated[
        str | None, Option(metavar="ADDRESS", help="Of a Ray cluster that does it, or local: docs/scale.md.")
    ] = None,
    ray_option: Annotated[
        list[str] | None, Option(metavar="NAME=VALUE", help="One of the cluster's own: docs/scale.md.")
    ] = None,
) -> None:
    """Restore the faces in photographs and clips, or aligned faces.

    Exit code: 0 all done, 3 some failed, 2 wrong usage.
    """
    from faceprior.cli.progress import restore_progress
    from faceprior.errors import OptionError
    from faceprior.faces.detection import MIN_FACE
    from faceprior.folders.inputs import find_inputs
    from faceprior.folders.run import restore_files
    from faceprior.images import format_of
    from faceprior.methods import find_preset
    from faceprior.photographs import RestoreOptions
    from faceprior.storage import place

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    for pair in _CONTRADICTING:
        if given.issuperset(pair):
            one, other = (f"--{name.replace('_', '-')}" for name in pair)
            raise OptionError(f"{one} and {other} contradict each other; leave one out")
    places = [place(text) for text in pictures]
    folder, name, ending = _target(place(output) if output is not None else None, places, resume=resume)
    if jpeg and ending is not None and format_of(ending) != "JPEG":
        raise OptionError(f"--jpeg and --output {output} contradict each other; leave --jpeg out")
    preset = find_preset(method).with_options(**options.read_assignments(option or (), "--option"))
    how = RestoreOptions(
        scale="auto" if scale == "auto" else float(scale),
        preset=preset,
        preset_name=method,
        samples=samples,
        seed=seed,
        kind="photo" if photo else "aligned" if aligned else "auto",
        write_sheet=sheet,
        only_faces=only_faces,
        faces=faces or "all",
        chosen=tuple(face or ()),
        max_pixels=round(max_pixels * 1e6),
        min_face=min_face or MIN_FACE,
        blend=blend,
        upscale=_UPSCALES[upscale],
        upscaler=upscaler,
        with_location=not no_location,
        ending=ending or (".jpg" if jpeg else None),
    )
    skipped = (lambda _text: None) if quiet else partial(say, errors)
    find = partial(_find_detector, None if aligned else detector or "centerface")
    load = partial(options.load_pipeline, prior, corrector, device, dtype, preset)
    tally = _Tally(folder, quiet=quiet, verbose=verbose)
    if ray is not None:
        if folder is None or name is not None:
            raise OptionError("--ray writes into a folder, the same for all machines; name it with --output")
        _on_ray(ray, places, folder, (how, find, load), ray_option or [], tally, skipped, resume=resume, quiet=quiet)
        tally.conclude(strict=strict)
        return
    if ray_option:
        raise OptionError("--ray-option is for a cluster; name it with --ray, or leave that out")
    inputs = find_inputs(places, folder, skipped)
    if name is not None and len(inputs) != 1:
        raise OptionError(f"{output}: is a file, but {len(inputs)} inputs are given; give a folder to --output")
    with ThreadPoolExecutor(1) as beside:
        finding = beside.submit(find)
        pipeline, finder = load(), finding.result()
    pipeline.check(preset)
    with restore_progress(len(inputs), samples * pipeline.evaluations(preset), quiet=quiet) as watcher:
        records = restore_files(pipeline, inputs, folder, how, finder, name=name, resume=resume, watcher=watcher)
        tally.follow(records, watcher, goes_on=folder is not None and name is None)
    tally.conclude(strict=strict)


def _target(
    output: Place | None, pictures: list[Place], *, resume: bool
) -> tuple[Place | None, str | None, str | None]:
    """Where results go: the folder, if not beside their inputs; and of a single file its name and ending."""
    from faceprior.clips.container import OUTPUT_SUFFIXES, is_clip
    from faceprior.errors import OptionError
    from faceprior.images import IMAGE_SUFFIXES, format_of

    ending = output.suffix.lower() if output is not None else ""
    a_file = ending in IMAGE_SUFFIXES or (output is not None and is_clip(output.name))
    if output is None or not a_file or (isinstance(output, Path) and output.is_dir()):
        if output is None and resume:
            raise OptionError("--resume goes by the restore.jsonl of an output folder; name it with --output")
        return output, None, None
    first = pictures[0]
    if resume or (isinstance(first, Path) and first.is_dir()):
        raise OptionError(f"{output}: is a file, which holds one result; give a folder to --output")
    able = OUTPUT_SUFFIXES if is_clip(first.name) else {own for own in IMAGE_SUFFIXES if format_of(own)}
    if ending not in able:
        kind = "clip" if is_clip(first.name) else "picture"
        raise OptionError(
            f"{output}: cannot be written, for {first.name} is a {kind} by its name;"
            f" choose one of {', '.join(sorted(able))}"
        )
    files = [own for own in (output, first) if isinstance(own, Path) and own.exists()]
    if output == first or (len(files) == 2 and files[0].samefile(files[1])):  # a link, or another case of letters
        raise OptionError(f"{output}: is the input, which is never written over; choose another --output")
    return output.parent, output.stem, output.suffix


def _on_ray(
    address: str,
    places: list[Place],
    folder: Place,
    work: tuple[RestoreOptions, Callable[[], FaceDetector | None], Callable[[], FacePriorPipeline]],
    assignments: list[str],
    tally: _Tally,
    skipped: Callable[[str], object],
    *,
    resume: bool,
    quiet: bool,
) -> None:
    from faceprior.cli.progress import restore_progress
    from faceprior.errors import OptionError
    from faceprior.storage import absolute

    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # they are handled, and said in the end
    try:
        import ray

        from faceprior.scale.run import restore_on_ray
        from faceprior.scale.work import Job, ScaleOptions
    except ImportError as error:
        raise OptionError(f"--ray needs Ray ({error}): pip install 'faceprior[scale]'") from error
    scale = ScaleOptions(**options.read_assignments(assignments, "--ray-option", get_type_hints(ScaleOptions)))
    places, folder = [absolute(where) for where in places], absolute(folder)  # other machines stand elsewhere
    how, find, load = work
    job = Job(folder, options=how, scale=scale, find_detector=find, load_pipeline=load)
    try:
        ray.init(None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise OptionError(
            f"--ray {address}: no cluster is there ({error}); check the address, or say local"
        ) from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # of `ray job stop`, Kubernetes and systemd
    try:
        with restore_progress(0, 1, quiet=quiet) as watcher:

            def on_listed(photographs: int, parts: int) -> None:
                watcher.on_inputs(photographs)
                skipped(f"{photographs} photographs; {parts} parts of the listing are left")

            records = restore_on_ray(places, job, resume=resume, on_skipped=skipped, on_listed=on_listed)
            tally.follow(records, watcher, goes_on=True, steps=1)
    finally:
        ray.shutdown()


def _find_detector(name: str | None) -> FaceDetector | None:
    from faceprior.faces import load_detector

    if name is None:
        return None
    if name == "centerface":
        return load_detector()
    return load_detector("yunet", None if name == "yunet" else name)


class _Tally:
    """Prints what was done with each input, and counts."""

    def __init__(self, folder: Place | None, *, quiet: bool, verbose: bool) -> None:
        self._seen = self._faceless = self._failed = 0
        self._folder, self._quiet, self._verbose = folder or Path(), quiet, verbose

    def follow(
        self, records: Iterable[dict[str, Any]], watcher: RestoreProgress, *, goes_on: bool, steps: int = 0
    ) -> None:
        """Tell of each input, so many steps, as it is done; and if Ctrl-C ends it whether --resume goes on."""
        try:
            for record in records:
                self._count(record)
                watcher.on_step(steps)
                watcher.on_input()
        except KeyboardInterrupt as error:
            more = ", the same command with --resume goes on" if goes_on else ""
            say(errors, f"stopped; {watcher.so_far} are done{more}")
            raise typer.Exit(EXIT_STOPPED) from error

    def _count(self, record: dict[str, Any]) -> None:
        """Tell of one input; what an earlier run did is only counted."""
        self._seen += 1
        self._faceless += record.get("faces") == [] or record.get("tracks") == 0
        if record["status"] == "failed":
            self._failed += 1
            say(errors, record["error"], label="failed")
        elif "earlier" not in record and not self._quiet:
            say(console, _summary(record, self._folder))
            for line in _details(record) if self._verbose else ():
                say(console, f"    {line}")

    def conclude(self, *, strict: bool) -> None:
        """Say how many failed, and exit with the code that it deserves."""
        if self._failed:
            others = "; the others are done" if self._failed < self._seen else ""
            say(errors, f"{self._failed} of {self._seen} failed{others}")
        if strict and self._faceless:
            say(errors, f"no face found in {self._faceless} of {self._seen} (--strict)")
        if self._failed or (strict and self._faceless):
            raise typer.Exit(EXIT_SOME_FAILED)


def _summary(record: dict[str, Any], folder: Place) -> str:
    names = [written["file"] for written in record["outputs"]]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    result = f"{folder / names[0]}{more}" if names else "nothing"
    return f"{record['input']} → {result}  ({', '.join([*_remarks(record), *record['notes']])})"


def _remarks(record: dict[str, Any]) -> Iterator[str]:
    if record["kind"] == "clip":
        yield f"{_faces(record['tracks'])} in {record['frames']} frames, {record['restored']} times restored"
    elif record["kind"] == "aligned":
        yield f"×{record['scale']:.3g}"
        yield _agreement([record["lr_consistency"]])
    else:
        if restored := [face["lr_consistency"] for face in record["faces"] if "lr_consistency" in face]:
            yield f"{_faces(len(restored))} restored"
            yield _agreement(restored)
        if left := [face["left_alone"] for face in record["faces"] if "left_alone" in face]:
            yield f"{_faces(len(left))} left alone: {left[0]}"


def _faces(count: int) -> str:
    return "1 face" if count == 1 else f"{count} faces"


def _agreement(of_faces: list[list[float]]) -> str:
    values = [value for samples in of_faces for value in samples]
    bound = "" if len(values) == 1 else "at least "
    return f"agrees with the input to {bound}{min(values):.1f} dB"


def _details(record: dict[str, Any]) -> list[str]:
    """A line for each face of a photograph, and the time."""
    lines = []
    for number, face in enumerate(record.get("faces", ()), 1):
        left, top, right, bottom = (round(value) for value in face["box"])
        if "lr_consistency" in face:
            result = f"×{face['scale']:.3g}, {_agreement([face['lr_consistency']])}"
        else:
            result = f"left alone: {face['left_alone']}" if "left_alone" in face else "not chosen"
        lines.append(f"face {number}: {right - left}×{bottom - top} at {left}, {top}; {result}")
    return [*lines, f"{record['seconds']:.1f} seconds"]
