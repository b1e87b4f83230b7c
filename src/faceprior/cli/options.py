"""Options that several commands share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

if TYPE_CHECKING:
    from faceprior.methods import Preset
    from faceprior.pipeline import FacePriorPipeline


DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Prior = Annotated[
    str | None,
    Option("--prior", help="Name, folder, hub id or ADM checkpoint.", metavar="PRIOR", show_default="embedded"),
]
ADMConfigFile = Annotated[
    Path | None, Option("--adm-config", help="JSON or YAML with the flags of an ADM checkpoint file.")
]
Corrector = Annotated[str, Option(metavar="CORRECTOR", help="auto, none, embedded name, folder or hub id.")]
Settings = Annotated[
    list[str] | None,
    Option(
        "--set",
        help="Any other option of the YAML file, NAME=VALUE; repeat for several.",
        metavar="NAME=VALUE",
        show_default="none",
    ),
]
Device = Annotated[DeviceName, Option(help="Where to compute.")]
Dtype = Annotated[DtypeName, Option(help="Number format of the networks.")]


def read_assignments(texts: Sequence[str], flag: str, kinds: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read what was given to a flag as NAME=VALUE, once or more often, of known names and kinds if there are any.

    Raises:
        OptionError: one is no assignment, is given twice, is not known or has a value of another kind.
    """
    from faceprior.errors import OptionError
    from faceprior.settings import as_kind, read_assignment

    given = dict[str, Any]()
    for text in texts:
        name, value = read_assignment(text, f"{flag} {text}")
        if name in given:
            raise OptionError(f"option {name} is given twice")
        if kinds is not None:
            if name not in kinds:
                raise OptionError(f"{flag} {name} is not known; choose {', '.join(kinds)}")
            value = as_kind(kinds[name], value, f"{flag} {name}")
        given[name] = value
    return given


def with_settings(flags: Mapping[str, Any], settings: Sequence[str] | None) -> dict[str, Any]:
    """Return the flags that were given, and beside them what was given to --set; raises OptionError as above."""
    from faceprior.errors import OptionError

    given = {name: value for name, value in flags.items() if value is not None}
    added = read_assignments(settings or (), "--set")
    if twice := given.keys() & added.keys():
        raise OptionError(f"option {min(twice)} is given twice")
    return given | added


def explained_options(preset: Preset) -> Iterator[tuple[str, Any, str]]:
    """Yield each option of a preset: its name, its value and what its class says about it."""
    texts = dict[str, str]()
    for group in (preset.sampling, preset.options):  # a name that both have is the method's own
        texts |= dict(_ATTRIBUTE.findall(inspect.getdoc(type(group)) or ""))
    for name, value in preset.as_dict().items():
        yield name, value, " ".join(texts.get(name, "").split())


_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


def load_pipeline(
    prior: str | None = None,
    corrector: str = "auto",
    device: DeviceName = "auto",
    dtype: DtypeName = "auto",
    preset: Preset | None = None,
    adm_config: Path | None = None,
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
    where = choose_device(device)
    format_ = choose_dtype(dtype, where)
    pipeline = FacePriorPipeline.from_pretrained(prior or DEFAULT_PRIOR, corrector=corrector, adm_config=adm_config)
    return pipeline.to(where, format_)
