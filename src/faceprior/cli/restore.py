"""The command that restores: faces, photographs, folders of them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from faceprior.cli import options
from faceprior.cli.console import EXIT_SOME_FAILED, EXIT_STOPPED, console, errors, say
from faceprior.cli.options import DegradationName, DeviceName, DtypeName

if TYPE_CHECKING:
    from faceprior.faces import FaceDetector
    from faceprior.photographs import RestoreOptions
    from faceprior.pipeline import FacePriorPipeline

_FACES, _PHOTOS = "Aligned faces and experiments", "Photographs"


class ScaleName(str, Enum):
    """Scales that `restore` offers."""

    x4, x8, x16, auto = "4", "8", "16", "auto"


class UpscaleName(str, Enum):
    """Enlargements of a photograph."""

    x1, x2, x4, auto = "1", "2", "4", "auto"


class DetectorName(str, Enum):
    """Face detectors."""

    centerface, yunet = "centerface", "yunet"


def restore(
    pictures: Annotated[
        list[Path],
        typer.Argument(help="Photographs, aligned faces, folders of them, patterns; clips.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    scale: Annotated[
        ScaleName,
        typer.Option(help="How much is missing: a face is taken to have resolution/scale pixels a side."),
    ] = ScaleName.auto,
    upscale: Annotated[
        UpscaleName,
        typer.Option(help="Enlarge photographs; auto: as much as their faces need.", rich_help_panel=_PHOTOS),
    ] = UpscaleName.x1,
    upscaler: Annotated[
        Path | None,
        typer.Option(
            help="Network that enlarges around the faces, a safetensors file that spandrel knows.",
            show_default="Lanczos",
            rich_help_panel=_PHOTOS,
        ),
    ] = None,
    jpeg: Annotated[
        bool, typer.Option("--jpeg", help="Write JPEG, whatever the photograph is.", rich_help_panel=_PHOTOS)
    ] = False,
    no_location: Annotated[
        bool, typer.Option("--no-location", help="Leave out where it was taken.", rich_help_panel=_PHOTOS)
    ] = False,
    blend: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the restored face, 0 to 1.", rich_help_panel=_PHOTOS),
    ] = 1.0,
    faces: Annotated[
        str,
        typer.Option(
            help="all, largest, or the number of largest ones.", metavar="N|largest|all", rich_help_panel=_PHOTOS
        ),
    ] = "all",
    face: Annotated[
        list[int] | None,
        typer.Option(
            "--face",
            min=1,
            help="Restore only this face, counted from the largest; repeat for several.",
            metavar="N",
            show_default=False,
            rich_help_panel=_PHOTOS,
        ),
    ] = None,
    only_faces: Annotated[
        bool,
        typer.Option("--only-faces", help="Write the faces instead of the photograph.", rich_help_panel=_PHOTOS),
    ] = False,
    min_face: Annotated[
        int, typer.Option(min=8, help="Smallest face, in pixels.", metavar="PX", rich_help_panel=_PHOTOS)
    ] = 24,
    detector: Annotated[
        DetectorName, typer.Option(help="What finds faces.", rich_help_panel=_PHOTOS)
    ] = DetectorName.centerface,
    detector_model: Annotated[
        str | None,
        typer.Option(
            help="Model file or hub id of the detector yunet.", show_default="its own", rich_help_panel=_PHOTOS
        ),
    ] = None,
    photo: Annotated[
        bool, typer.Option("--photo", help="The inputs are photographs; don't guess.", rich_help_panel=_PHOTOS)
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit code 3 if a photograph has no face.", rich_help_panel=_PHOTOS),
    ] = False,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="The inputs are aligned faces; don't guess.", rich_help_panel=_FACES)
    ] = False,
    degrade: Annotated[
        bool,
        typer.Option(
            "--degrade",
            help="Make a low-resolution face out of each (sharp, aligned) input first.",
            rich_help_panel=_FACES,
        ),
    ] = False,
    degradation: Annotated[
        DegradationName, typer.Option(help="How --degrade does it (×8 if the scale is auto).", rich_help_panel=_FACES)
    ] = DegradationName.bicubic,
    samples: options.Samples = 1,
    seed: options.Seed = 0,
    sheet: Annotated[bool, typer.Option("--sheet", help="Also write everything side by side.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what a stopped run with the same options has done.")
    ] = False,
    prior: options.Prior = None,
    adm_config: options.ADMConfigFile = None,
    corrector: options.Corrector = "auto",
    method: options.Method = None,
    preset: options.PresetOption = None,
    method_options: options.MethodOptions = None,
    solver: options.Solver = None,
    steps: options.Steps = None,
    start: options.Start = None,
    end: options.End = None,
    tau: options.Tau = None,
    stride: options.Stride = None,
    edge_exponent: options.EdgeExponent = None,
    late_weight: options.LateWeight = None,
    eta: options.Eta = None,
    device: options.Device = DeviceName.auto,
    dtype: options.Dtype = DtypeName.auto,
    batch_size: options.BatchSize = 8,
) -> None:
    """Restore the faces in photographs, or aligned faces.

    A photograph is written to DIR in its own format, a face as DIR/<stem>.png; with --samples N there are
    <stem>-2 … and <stem>-mean too. Subfolders of a folder stay subfolders. DIR/restore.jsonl says what was done.
    Exit code: 0 all done, 3 some failed, 2 wrong usage.
    """
    from faceprior.cli.progress import RestoreProgress, steps_progress
    from faceprior.clips import is_clip
    from faceprior.errors import OptionError
    from faceprior.faces import load_detector
    from faceprior.folders.inputs import find_inputs
    from faceprior.folders.run import restore_files
    from faceprior.photographs import RestoreOptions

    if photo and aligned:
        raise OptionError("--photo and --aligned contradict each other; leave one out")
    chosen = options.make_preset(
        preset,
        solver,
        method=method,
        method_options=method_options,
        steps=steps,
        start=start,
        end=end,
        tau=tau,
        stride=stride,
        edge_exponent=edge_exponent,
        late_weight=late_weight,
        eta=eta,
    )
    how = RestoreOptions(
        scale="auto" if scale is ScaleName.auto else float(scale.value),
        preset=chosen,
        preset_name=options.preset_name(preset, method),
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        kind="photo" if photo else "aligned" if aligned else "auto",
        degradation=degradation.value if degrade else None,
        write_sheet=sheet,
        only_faces=only_faces,
        faces=_which(faces),
        chosen=tuple(face or ()),
        min_face=min_face,
        blend=blend,
        upscale=_UPSCALES[upscale],
        upscaler=upscaler,
        as_jpeg=jpeg,
        with_location=not no_location,
    )
    clips = [path for path in pictures if is_clip(path)]
    others = [path for path in pictures if not is_clip(path)]
    inputs = find_inputs(others, output) if others else []
    finder = None if aligned or degrade else load_detector(detector.value, detector_model)
    pipeline = options.load_pipeline(prior, adm_config, corrector, device, dtype, chosen)
    pipeline.check(chosen)

    failed_clips = _restore_clips(pipeline, clips, output, how, finder) if clips else 0
    tally, steps_each = _Tally(failed_clips), samples * pipeline.evaluations(chosen)
    try:
        with steps_progress(len(inputs) * steps_each) as progress:
            watcher = RestoreProgress(progress, steps_each)
            for record in restore_files(pipeline, inputs, output, how, finder, resume=resume, watcher=watcher):
                tally.count(record, output)
    except KeyboardInterrupt as error:
        say(errors, f"stopped; {tally.seen} of {len(inputs)} are done, the same command with --resume goes on")
        raise typer.Exit(EXIT_STOPPED) from error
    tally.conclude(strict=strict)


_UPSCALES: dict[UpscaleName, Literal[1, 2, 4, "auto"]] = {
    UpscaleName.x1: 1,
    UpscaleName.x2: 2,
    UpscaleName.x4: 4,
    UpscaleName.auto: "auto",
}


def _restore_clips(
    pipeline: FacePriorPipeline, clips: list[Path], output: Path, how: RestoreOptions, finder: FaceDetector | None
) -> int:
    from faceprior.cli.video import restore_clips
    from faceprior.faces import load_detector

    return restore_clips(pipeline, clips, output, how, finder or load_detector())


def _which(faces: str) -> int | Literal["largest", "all"]:
    from faceprior.errors import OptionError

    if faces == "largest":
        return "largest"
    if faces == "all":
        return "all"
    if not faces.isdecimal() or int(faces) < 1:
        raise OptionError(f"faces is {faces}; choose all, largest or a number of 1 or more")
    return int(faces)


class _Tally:
    """Prints what was done with each input, and counts."""

    def __init__(self, failed_clips: int = 0) -> None:
        self.seen = self._faceless = 0
        self._failed, self._failed_clips = 0, failed_clips

    def count(self, record: dict[str, Any], output: Path) -> None:
        """Tell of one input; what an earlier run did is only counted."""
        self.seen += 1
        self._faceless += record.get("faces") == []
        if record["status"] == "failed":
            self._failed += 1
            say(errors, record["error"], label="failed")
        elif "earlier" not in record:
            say(console, _summary(record, output))

    def conclude(self, *, strict: bool) -> None:
        """Say how many failed, and exit with the code that it deserves."""
        if self._failed:
            others = "; the others are done" if self._failed < self.seen else ""
            say(errors, f"{self._failed} of {self.seen} failed{others}")
        if strict and self._faceless:
            say(errors, f"no face found in {self._faceless} of {self.seen} (--strict)")
        if self._failed or self._failed_clips or (strict and self._faceless):
            raise typer.Exit(EXIT_SOME_FAILED)


def _summary(record: dict[str, Any], output: Path) -> str:
    names = [written["file"] for written in record["outputs"]]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    result = f"{output / names[0]}{more}" if names else "nothing"
    remarks = _about_photo(record) if record["kind"] == "photo" else [f"×{record['scale']:.3g}", _agreement(record)]
    return f"{record['input']} → {result}  ({', '.join([*remarks, *record['notes']])})"


def _about_photo(record: dict[str, Any]) -> list[str]:
    restored = [face for face in record["faces"] if "lr_consistency" in face]
    left = [face for face in record["faces"] if "left_alone" in face]
    remarks = []
    if restored:
        agreements = ", ".join(f"{face['lr_consistency'][0]:.1f}" for face in restored[:3])
        more = ", …" if len(restored) > 3 else ""
        count = "1 face" if len(restored) == 1 else f"{len(restored)} faces"
        remarks = [f"{count} restored", f"agrees with the input to {agreements}{more} dB"]
    if left:
        count = "1 face" if len(left) == 1 else f"{len(left)} faces"
        remarks.append(f"{count} left alone: {left[0]['left_alone']}")
    return remarks


def _agreement(record: dict[str, Any]) -> str:
    return f"agrees with the input to {record['lr_consistency'][0]:.1f} dB"
