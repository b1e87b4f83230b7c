"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

if TYPE_CHECKING:
    from faceprior.methods import Preset
    from faceprior.pipeline import FacePriorPipeline


class PresetName(str, Enum):
    """Named sets of options."""

    default, faithful, detailed, fast = "default", "faithful", "detailed", "fast"
    paper_ddim, paper_ddpm = "paper-ddim", "paper-ddpm"


class SolverName(str, Enum):
    """Rules of one reverse-diffusion step."""

    ddim, ddpm, dpmpp_2m, unipc = "ddim", "ddpm", "dpmpp-2m", "unipc"


class DeviceName(str, Enum):
    """Devices."""

    auto, cpu, cuda, mps = "auto", "cpu", "cuda", "mps"


class DtypeName(str, Enum):
    """Number formats of the networks."""

    auto, float32, bfloat16, float16 = "auto", "float32", "bfloat16", "float16"


class DegradationName(str, Enum):
    """Ways to make a bad face out of a sharp one."""

    bicubic, gfpgan, codeformer, difface, diffbir = "bicubic", "gfpgan", "codeformer", "difface", "diffbir"


def _of_preset(kind: Any, text: str, name: str | None = None) -> Any:
    """Return the type of an option whose default is the preset's."""
    names = (name,) if name else ()
    return Annotated[kind | None, typer.Option(*names, help=text, show_default="preset")]


Prior = Annotated[
    str | None,
    typer.Option(
        "--prior",
        help="Embedded name, diffusers folder, ADM checkpoint file or hub id.",
        show_default="embedded",
    ),
]
ADMConfigFile = Annotated[
    Path | None, typer.Option("--adm-config", help="JSON or YAML with the flags of an ADM checkpoint file.")
]
Corrector = Annotated[str, typer.Option(help="auto, none, embedded name, folder or hub id.")]
Method = Annotated[
    str | None, typer.Option("--method", help="See `faceprior methods`.", show_default="dpi", metavar="NAME")
]
PresetOption = Annotated[
    PresetName | None, typer.Option("--preset", help="Named set of dpi's options.", show_default="default")
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="Any option of the method, NAME=VALUE; repeat for several.", metavar="NAME=VALUE"),
]
Solver = _of_preset(SolverName, "Rule of a step.")
Steps = _of_preset(int, "Steps, 1 to (start − end)·T.")
Start = _of_preset(float, "First noise level, of T; 1 is pure noise.")
End = _of_preset(float, "Last noise level, of T; the higher, the smoother.")
Tau = _of_preset(float, "τ: above τ·T the whole grid is held, below edges only.")
Stride = _of_preset(int, "k: every k-th pixel is held: 1, 2, 4, 8.")
EdgeExponent = _of_preset(float, "s: RACM holds a pixel with probability edge^s.")
LateWeight = _of_preset(float, "ω: weight below τ·T is ω·t/T.")
Eta = _of_preset(float, "η: fresh noise in DDIM, 0 to 1.")
Data = Annotated[Path, typer.Option("--data", help="Folder that `faceprior data pack` wrote.")]
Faces = Annotated[int, typer.Option(min=1, help="Held-out faces, spread over the split.")]
Samples = Annotated[int, typer.Option(min=1, max=1000, help="Restorations of each face.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the noise.")]
Device = Annotated[DeviceName, typer.Option(help="Where to compute.")]
Dtype = Annotated[DtypeName, typer.Option(help="Number format of the networks.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples computed together.")]


def scales(default: str) -> Any:
    """Return the option for scales, any number of them, that shows a default."""
    text = "Resolution over the side of the inputs; several may be given."
    return typer.Option(min=2, max=32, help=text, show_default=default)


def make_preset(
    name: PresetName | None,
    solver: SolverName | None,
    *,
    method: str | None = None,
    method_options: Sequence[str] | None = None,
    **options: Any,
) -> Preset:
    """Return a preset with the options that were given laid over it.

    Args:
        name: of the preset; None is the method's default.
        solver: rule of a step.
        method: name of the method; None is the preset's.
        method_options: NAME=VALUE, typed by the method's options.
        **options: further options by name; None leaves them to the preset.

    Raises:
        OptionError: preset and method do not belong together, or an option is unknown, out of its range or given
            twice.
    """
    from faceprior.errors import OptionError
    from faceprior.methods import find_preset

    chosen = preset_name(name, method)
    preset = find_preset(chosen)
    if method not in (None, preset.method):
        raise OptionError(f"preset {chosen} belongs to {preset.method}, not to {method}; leave out --preset")
    given = {option: value for option, value in options.items() if value is not None}
    if solver is not None:
        given["solver"] = solver.value
    for option, value in typed_options(preset, method_options or ()):
        if option in given:
            raise OptionError(f"option {option} is given twice")
        given[option] = value
    return preset.with_options(**given)


def preset_name(name: PresetName | None, method: str | None) -> str:
    """Return the name of the preset that the two options stand for."""
    from faceprior.methods import DEFAULT_PRESET

    return name.value if name is not None else method or DEFAULT_PRESET


def typed_options(preset: Preset, assignments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Read NAME=VALUE by the types of the preset's options.

    Raises:
        OptionError: there is no such option, no "=", or the value is not of the option's type.
    """
    from faceprior.errors import OptionError

    known = preset.types()
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise OptionError(f"--option {assignment}: write NAME=VALUE")
        if name not in known:
            raise OptionError(f"{preset.method} has no option {name}; it has {', '.join(known) or 'none'}")
        hint = known[name]
        read, kind = next((_READERS[part] for part in (hint, *get_args(hint)) if part in _READERS), (str, "a text"))
        try:
            yield name, read(text.strip())
        except (ValueError, KeyError) as error:
            raise OptionError(f"--option {assignment}: {name} of {preset.method} is {kind}") from error


_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
}


def load_pipeline(
    prior: str | None,
    adm_config: Path | None,
    corrector: str,
    device: DeviceName,
    dtype: DtypeName,
    preset: Preset | None = None,
) -> FacePriorPipeline:
    """Load prior and corrector onto the device; the corrector only if the preset's method, if given, works with it.

    Raises:
        OptionError: a corrector is named for a method that works without.
    """
    from faceprior.devices import choose_device, choose_dtype
    from faceprior.errors import OptionError
    from faceprior.methods import find_method
    from faceprior.pipeline import FacePriorPipeline
    from faceprior.priors import DEFAULT_PRIOR

    if preset is not None and not find_method(preset.method).uses_corrector:
        if corrector not in ("auto", "none"):
            raise OptionError(f"{preset.method} works without a corrector; leave out --corrector")
        corrector = "none"
    where = choose_device(device.value)
    format_ = choose_dtype(dtype.value, where)
    pipeline = FacePriorPipeline.from_pretrained(prior or DEFAULT_PRIOR, corrector=corrector, adm_config=adm_config)
    return pipeline.to(where, format_)
