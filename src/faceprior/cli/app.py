"""Commands. Heavy imports are inside them, so that `faceprior --help` answers at once."""

from __future__ import annotations

import atexit
import gc
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from faceprior import __version__
from faceprior.cli import options
from faceprior.cli.benchmark import benchmark
from faceprior.cli.console import EXIT_SOME_FAILED, Commands, console, end_with, say
from faceprior.cli.demo import demo
from faceprior.cli.restore import restore
from faceprior.cli.serve import serve
from faceprior.cli.training import data_app, train_app

app = typer.Typer(
    cls=Commands,
    name="faceprior",
    help="Restore tiny, blurred or over-compressed faces with a diffusion prior.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # an option a line
    context_settings={"max_content_width": 110},
)
priors_app = typer.Typer(help="Look at priors and convert checkpoints.", no_args_is_help=True)
app.add_typer(priors_app, name="priors")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")


app.command()(restore)


@app.command()
def explain(
    result: Annotated[Path, Argument(help="A PNG or a clip that faceprior wrote.", show_default=False)],
) -> None:
    """Print how a result was made: prior, corrector, method, options, seed, version."""
    from faceprior.clips.container import is_clip, read_clip_metadata
    from faceprior.images import read_metadata

    console.print_json(data=read_clip_metadata(result) if is_clip(result) else read_metadata(result))


app.command()(demo)
app.command()(benchmark)
app.command()(serve)


@app.command()
def doctor() -> None:
    """Say what is installed, what is missing, and what to do about it.

    Exit code: 0 if photographs can be restored, 3 if not.
    """
    from faceprior.cli.doctor import examine

    findings = examine()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(Text(finding.what), Text(finding.found), Text(finding.advice))
    console.print(table)
    if any(finding.fatal for finding in findings):
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command("methods")
def methods_list(
    name: Annotated[str | None, Argument(help="A method or preset, for its options.", show_default=False)] = None,
) -> None:
    """List the restoration methods and presets; of a named one, its options for --option, with their defaults."""
    from faceprior.methods import all_methods, find_preset
    from faceprior.methods.presets import PRESETS

    if name is not None:
        for option, value, text in options.explained_options(find_preset(name)):
            say(console, f"{option}={_shown(value)}  {text}")
        return
    methods, problems = all_methods()
    for method_name, method in methods.items():
        evaluations = method.default_evaluations
        parts = [method.summary, method.reference, f"{evaluations} evaluations" if evaluations else "no prior"]
        if method.differentiates:
            parts.append("differentiates")
        presets = [preset_name for preset_name, preset in PRESETS.items() if preset.method == method_name]
        if presets:
            parts.append(f"presets {', '.join(presets)}")
        say(console, f"{method_name}: {'; '.join(parts)}")
    end_with(problems, "broken")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()


@priors_app.command("list")
def priors_list() -> None:
    """List the priors and correctors that have a name: embedded ones, and public ones that are downloaded once."""
    from faceprior.priors.store import NOT_INSTALLED, embedded_cards, public_cards

    table = Table("kind", "name", "resolution", "weights", "licence")
    for kind in ("prior", "corrector"):
        for cards, where in ((embedded_cards(kind), "embedded"), (public_cards(kind), "on the hub")):
            for name, card in cards.items():
                table.add_row(kind, name, f"{card.resolution}×{card.resolution}", where, card.licence)
    console.print(table)
    if not embedded_cards("prior"):
        say(console, NOT_INSTALLED)


@priors_app.command("fetch")
def priors_fetch(
    names: Annotated[list[str], Argument(help="Names: `faceprior priors list`.", metavar="NAME...")],
) -> None:
    """Download public priors into the hub's cache and check them; nothing is asked of the hub again."""
    from faceprior.priors.store import load_prior

    for name in names:
        card = load_prior(name).card
        say(console, f"{name}: {card.source}, sha256 {card.sha256}, licence: {card.licence}")


@priors_app.command("show")
def priors_show(
    name: Annotated[str, Argument(help="Prior or corrector: embedded name, folder, file or hub id.")],
    adm_config: options.ADMConfigFile = None,
) -> None:
    """Show the card of a prior or corrector."""
    from dataclasses import asdict

    from faceprior.corrector import load_corrector
    from faceprior.priors.card import ModelCard
    from faceprior.priors.store import embedded_cards, load_prior

    known = embedded_cards("corrector").get(name) or ModelCard.read(Path(name))
    corrects = known is not None and known.kind == "corrector"
    card = load_corrector(name).card if corrects else load_prior(name, adm_config).card
    console.print_json(data=asdict(card))


@priors_app.command("convert")
def priors_convert(
    checkpoint: Annotated[
        str, Argument(help="An ADM (guided-diffusion) checkpoint, or the name of one.", show_default=False)
    ],
    output: Annotated[Path, Option("--output", "-o", help="Folder for the diffusers model and its card.")],
    adm_config: options.ADMConfigFile = None,
) -> None:
    """Convert an ADM checkpoint into a diffusers folder with a card, exactly."""
    from faceprior.errors import WeightsError
    from faceprior.priors.store import load_prior, public_cards, save_prior

    if checkpoint not in public_cards("prior") and not Path(checkpoint).is_file():
        raise WeightsError(f"{checkpoint}: is not a file; name an ADM checkpoint (.pt or .safetensors)")
    card = save_prior(load_prior(checkpoint, adm_config), output, half=False)
    say(console, f"{checkpoint} → {output} ({card.resolution}×{card.resolution}, sha256 {card.sha256[:12]}…)")


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"faceprior {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Options of every command."""


_OBJECTS_BETWEEN_COLLECTIONS = 50_000


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character must not stop the work
            stream.reconfigure(errors="backslashreplace")
    # Imports make a million objects that stay. To look through them again and again, and once more at the end, would
    # be a third of a cold start (docs/performance.md).
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)
    app()
