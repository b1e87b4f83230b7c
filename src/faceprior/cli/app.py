"""Commands. Heavy imports are inside them, so that `faceprior --help` answers at once."""

from __future__ import annotations

import io
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from faceprior import __version__
from faceprior.cli.console import EXIT_SOME_FAILED, Commands, console, errors, say
from faceprior.cli.training import data_app, train_app

app = typer.Typer(
    cls=Commands,
    name="faceprior",
    help="Restore tiny, blurred or over-compressed faces with a diffusion prior (DPI).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
priors_app = typer.Typer(help="Look at priors and convert checkpoints.", no_args_is_help=True)
app.add_typer(priors_app, name="priors")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")


class ScaleName(str, Enum):
    """Scales that `restore` offers."""

    x4, x8, x16, auto = "4", "8", "16", "auto"


class PresetName(str, Enum):
    """Named sets of options."""

    default, paper_ddim, paper_ddpm = "default", "paper-ddim", "paper-ddpm"


class SolverName(str, Enum):
    """Rules of one reverse-diffusion step."""

    ddim, ddpm = "ddim", "ddpm"


class DeviceName(str, Enum):
    """Devices."""

    auto, cpu, cuda, mps = "auto", "cpu", "cuda", "mps"


class DtypeName(str, Enum):
    """Number formats of the networks."""

    auto, float32, bfloat16, float16 = "auto", "float32", "bfloat16", "float16"


class DegradationName(str, Enum):
    """Ways to make a bad face out of a sharp one."""

    bicubic, gfpgan, codeformer, difface, diffbir = "bicubic", "gfpgan", "codeformer", "difface", "diffbir"


PriorOption = Annotated[
    str | None,
    typer.Option(
        "--prior",
        help="Embedded name, diffusers folder, ADM checkpoint file or hub id.",
        show_default="embedded",
    ),
]
ADMConfigOption = Annotated[
    Path | None, typer.Option("--adm-config", help="JSON or YAML with the flags of an ADM checkpoint file.")
]


@app.command()
def restore(
    faces: Annotated[list[Path], typer.Argument(help="Aligned face crops, any picture format.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    scale: Annotated[
        ScaleName,
        typer.Option(help="How much is missing: the face is taken to have resolution/scale pixels a side."),
    ] = ScaleName.auto,
    prior: PriorOption = None,
    adm_config: ADMConfigOption = None,
    corrector: Annotated[str, typer.Option(help="auto, none, embedded name, folder or hub id.")] = "auto",
    preset: Annotated[PresetName, typer.Option(help="Named set of the options below.")] = PresetName.default,
    solver: Annotated[SolverName | None, typer.Option(help="Rule of a step.", show_default="preset")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, 1 to start·T.", show_default="preset")] = None,
    start: Annotated[
        float | None, typer.Option(help="First noise level, of T; 1 is pure noise.", show_default="preset")
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(help="τ: above τ·T the whole grid is held, below edges only.", show_default="preset"),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="k: every k-th pixel is held: 1, 2, 4, 8.", show_default="preset")
    ] = None,
    edge_exponent: Annotated[
        float | None,
        typer.Option(help="s: RACM holds a pixel with probability edge^s.", show_default="preset"),
    ] = None,
    late_weight: Annotated[
        float | None, typer.Option(help="ω: weight below τ·T is ω·t/T.", show_default="preset")
    ] = None,
    eta: Annotated[float | None, typer.Option(help="η: fresh noise in DDIM, 0 to 1.", show_default="preset")] = None,
    samples: Annotated[int, typer.Option(min=1, max=1000, help="Restorations of each face.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the noise.")] = 0,
    device: Annotated[DeviceName, typer.Option(help="Where to compute.")] = DeviceName.auto,
    dtype: Annotated[DtypeName, typer.Option(help="Number format of the networks.")] = DtypeName.auto,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples computed together.")] = 8,
    degrade: Annotated[
        bool, typer.Option("--degrade", help="Make a low-resolution face out of each (sharp) input first.")
    ] = False,
    degradation: Annotated[
        DegradationName, typer.Option(help="How --degrade does it (×8 if the scale is auto).")
    ] = DegradationName.bicubic,
    sheet: Annotated[bool, typer.Option("--sheet", help="Also write everything side by side.")] = False,
) -> None:
    """Restore aligned face crops.

    Writes DIR/<stem>.png for every input (with --samples N also <stem>-2.png …, <stem>-mean.png and
    <stem>-spread.png) and DIR/restore.jsonl. Exit code: 0 all done, 3 some failed, 2 wrong usage.
    """
    from faceprior.cli.progress import steps_progress
    from faceprior.pipeline.devices import choose_device, choose_dtype
    from faceprior.pipeline.face_prior import FacePriorPipeline
    from faceprior.pipeline.restore import RestoreOptions, restore_files

    options = RestoreOptions(
        scale="auto" if scale is ScaleName.auto else float(scale.value),
        preset=_preset(
            preset,
            solver=solver.value if solver else None,
            steps=steps,
            start=start,
            tau=tau,
            stride=stride,
            edge_exponent=edge_exponent,
            late_weight=late_weight,
            eta=eta,
        ),
        preset_name=preset.value,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        degradation=degradation.value if degrade else None,
        write_sheet=sheet,
    )
    where = choose_device(device.value)
    pipeline = FacePriorPipeline.from_pretrained(*_given(prior), corrector=corrector, adm_config=adm_config)
    pipeline.to(where, choose_dtype(dtype.value, where))
    pipeline.check(options.preset)

    failed, steps_each = 0, samples * options.preset.sampling.steps
    with steps_progress(len(faces) * steps_each) as progress:
        for record in restore_files(pipeline, faces, output, options, progress.advance):
            if record["status"] == "failed":
                failed += 1
                progress.skip(steps_each)
                say(errors, record["error"], label="failed")
            else:
                say(console, _summary(record, output))
    if failed:
        say(errors, f"{failed} of {len(faces)} failed" + ("; the others are done" if failed < len(faces) else ""))
        raise typer.Exit(EXIT_SOME_FAILED)


def _summary(record: dict[str, Any], output: Path) -> str:
    first, *others = record["outputs"]
    more = f" and {len(others)} more" if others else ""
    agreement = f"agrees with the input to {record['lr_consistency'][0]:.1f} dB"
    remarks = ", ".join([f"×{record['scale']:.3g}", agreement, *record["notes"]])
    return f"{record['input']} → {output / first}{more}  ({remarks})"


@app.command()
def explain(
    result: Annotated[Path, typer.Argument(help="A PNG that faceprior wrote.", show_default=False)],
) -> None:
    """Print how a result was made: prior, corrector, method, options, seed, version."""
    import json

    from faceprior.images import read_metadata

    console.print_json(json.dumps(read_metadata(result), ensure_ascii=False))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("demo"),
) -> None:
    """Restore a photograph of an astronaut from 16×16 pixels on the embedded prior, and measure it."""
    from faceprior.cli.demo import run_demo

    table = Table("", "PSNR (dB)", "SSIM", "LR consistency (dB)", title="against the original")
    figures = run_demo(output)
    for name in ("bicubic", "restored", "mean"):
        row = (
            f"{figures[figure][name]:.{digits}f}" for figure, digits in (("psnr", 2), ("ssim", 3), ("consistency", 1))
        )
        table.add_row("mean of samples" if name == "mean" else name, *row)
    console.print(table)
    say(console, f"Look at {output / 'sheet.png'}; the single pictures are in {output}/.")


@priors_app.command("list")
def priors_list() -> None:
    """List the embedded priors and correctors."""
    from faceprior.priors.store import embedded_cards

    table = Table("kind", "name", "resolution", "licence")
    for kind in ("prior", "corrector"):
        for name, card in embedded_cards(kind).items():
            table.add_row(kind, name, f"{card.resolution}×{card.resolution}", card.licence)
    console.print(table)


@priors_app.command("show")
def priors_show(
    name: Annotated[str, typer.Argument(help="Prior or corrector: embedded name, folder, file or hub id.")],
    adm_config: ADMConfigOption = None,
) -> None:
    """Show the card of a prior or corrector."""
    import json
    from dataclasses import asdict

    from faceprior.corrector import load_corrector
    from faceprior.priors.store import embedded_cards, is_corrector, load_prior

    if name in embedded_cards("corrector") or is_corrector(name):
        card = load_corrector(name).card
    else:
        card = load_prior(name, adm_config).card
    console.print_json(json.dumps(asdict(card), ensure_ascii=False))


@priors_app.command("convert")
def priors_convert(
    checkpoint: Annotated[Path, typer.Argument(help="An ADM (guided-diffusion) checkpoint.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the diffusers model and its card.")],
    adm_config: ADMConfigOption = None,
) -> None:
    """Convert an ADM checkpoint into a diffusers folder with a card, exactly."""
    from faceprior.errors import WeightsError
    from faceprior.priors.store import load_prior, save_prior

    if not checkpoint.is_file():
        raise WeightsError(f"{checkpoint}: is not a file; name an ADM checkpoint (.pt or .safetensors)")
    card = save_prior(load_prior(checkpoint, adm_config), output, half=False)
    say(console, f"{checkpoint} → {output} ({card.resolution}×{card.resolution}, sha256 {card.sha256[:12]}…)")


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"faceprior {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Options of every command."""


def _preset(name: PresetName, **options: Any) -> Any:
    from faceprior.methods import find_preset

    return find_preset(name.value).with_options(**options)


def _given(prior: str | None) -> tuple[str, ...]:
    return () if prior is None else (prior,)


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character must not stop the work
            stream.reconfigure(errors="backslashreplace")
    app()
