"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from faceprior.methods import Preset
    from faceprior.pipeline import FacePriorPipeline


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
PresetOption = Annotated[PresetName, typer.Option(help="Named set of the method's options.")]
Solver = _of_preset(SolverName, "Rule of a step.")
Steps = _of_preset(int, "Steps, 1 to start·T.")
Start = _of_preset(float, "First noise level, of T; 1 is pure noise.")
Tau = _of_preset(float, "τ: above τ·T the whole grid is held, below edges only.")
Stride = _of_preset(int, "k: every k-th pixel is held: 1, 2, 4, 8.")
EdgeExponent = _of_preset(float, "s: RACM holds a pixel with probability edge^s.")
LateWeight = _of_preset(float, "ω: weight below τ·T is ω·t/T.")
Eta = _of_preset(float, "η: fresh noise in DDIM, 0 to 1.")
Samples = Annotated[int, typer.Option(min=1, max=1000, help="Restorations of each face.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the noise.")]
Device = Annotated[DeviceName, typer.Option(help="Where to compute.")]
Dtype = Annotated[DtypeName, typer.Option(help="Number format of the networks.")]


def make_preset(name: PresetName, solver: SolverName | None, **options: Any) -> Preset:
    """Return the preset with the options that were given laid over it."""
    from faceprior.methods import find_preset

    return find_preset(name.value).with_options(solver=solver.value if solver else None, **options)


def load_pipeline(
    prior: str | None,
    adm_config: Path | None,
    corrector: str,
    device: DeviceName,
    dtype: DtypeName,
) -> FacePriorPipeline:
    """Load prior and corrector onto the device."""
    from faceprior.pipeline import FacePriorPipeline
    from faceprior.pipeline.devices import choose_device, choose_dtype
    from faceprior.priors import DEFAULT_PRIOR

    where = choose_device(device.value)
    format_ = choose_dtype(dtype.value, where)
    pipeline = FacePriorPipeline.from_pretrained(prior or DEFAULT_PRIOR, corrector=corrector, adm_config=adm_config)
    return pipeline.to(where, format_)
