"""Find, load and save priors: embedded ones, diffusers folders, hub ids and ADM checkpoint files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import nn

from faceprior.errors import WeightsError, one_line
from faceprior.hub import Address, check_download, download
from faceprior.networks import ConfiguredNetwork
from faceprior.priors.adapter import Prior
from faceprior.priors.card import ModelCard, file_sha256, read_json, write_json
from faceprior.priors.checkpoint import key_faults, named, read_state_dict
from faceprior.priors.residual_unet import GaussianResidualUNet

WEIGHTS_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
INDEX_NAME = "model_index.json"
DEFAULT_PRIOR = "faces-128"
NOT_INSTALLED = (
    "no weights are installed; for non-commercial research run pip install faceprior-weights, for anything else"
    " pip install faceprior-weights-open and name faces-128-open, or name a prior of your own: a folder, file"
    " or hub id (owner/name)"
)
_DISTRIBUTIONS = ("faceprior_weights", "faceprior_weights_open")
_PIPELINE_CODE = '''"""Tells `DiffusionPipeline.from_pretrained` which pipeline these weights are for."""

from faceprior.diffusers import FacePriorPipeline

__all__ = ["FacePriorPipeline"]
'''

_ALIGNMENT = 64  # bytes, of what torch allocates on a CPU
_PUBLIC = Path(__file__).with_name("public")


def embedded_cards(kind: str) -> dict[str, ModelCard]:
    """Cards of the embedded weights of a kind ("prior" or "corrector"), by name; none where none are installed."""
    return {name: card for place in _embedded_places() for name, card in _cards_in(place, kind).items()}


def _embedded_places() -> list[Path]:
    """Folders of the distributions of weights that are installed."""
    packages = [package for name in _DISTRIBUTIONS if (package := find_spec(name)) is not None]
    return [Path(place) for package in packages for place in package.submodule_search_locations or ()]


def public_cards(kind: str) -> dict[str, ModelCard]:
    """Cards of weights that others published on the hub, where `source` says, by the name that `--prior` knows."""
    return _cards_in(_PUBLIC, kind)


def _cards_in(folder: Path, kind: str) -> dict[str, ModelCard]:
    found = {own.name: ModelCard.read(own) for own in sorted(folder.glob("*/"))}
    return {name: card for name, card in found.items() if card is not None and card.kind == kind}


def resolve(spec: str | Path, kind: str, **hub: Any) -> Path:
    """Return the local folder or file that a name, path or hub id ("owner/name") stands for, downloaded if need be.

    The kind is "prior" or "corrector"; options are `faceprior.hub.download`'s.

    Raises:
        WeightsError: it is none of these, or the hub cannot deliver it.
    """
    name, public = str(spec), public_cards(kind)
    embedded = {own: place / own for place in _embedded_places() for own in _cards_in(place, kind)}
    if name in embedded:
        return embedded[name]
    path = Path(spec).expanduser()
    if name not in public and path.exists():
        return path
    address = Address.read(public[name].source if name in public else name)
    if address is not None:
        return download(address, f"{kind} {name}", **hub)
    if not embedded:
        raise WeightsError(f"{kind} {name!r} is not a file, folder or hub id, and {NOT_INSTALLED}")
    names = ", ".join((*embedded, *public))
    raise WeightsError(
        f"{kind} {name!r} is neither a name ({names}) nor an existing file or folder nor a hub id (owner/name)"
    )


def load_prior(
    spec: str | Path = DEFAULT_PRIOR,
    adm_config: Path | None = None,
    *,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    **hub: Any,
) -> Prior:
    """Load a prior in float32 on the CPU.

    Args:
        spec: name of an embedded or public prior, a diffusers folder or hub id with a `UNet2DModel` and a DDPM-family
            schedule, or an ADM (guided-diffusion) checkpoint file.
        adm_config: for a checkpoint file, a JSON or YAML file of its architecture flags; without it the flags of
            `ffhq_10m.pt` are assumed.
        variant: see `find_weights`.
        use_safetensors: see `find_weights`.
        **hub: see `resolve`.

    Raises:
        WeightsError: nothing is found, a key or shape does not fit, a sha256 is not the card's, or the file is
            not safe to load. The message names the file.
    """
    path = resolve(spec, "prior", **hub)
    if not path.is_file():
        prior, weights = _load_folder(path, str(spec), variant, use_safetensors)
    elif variant is None and use_safetensors is None:
        from faceprior.priors.adm import load_adm_checkpoint

        prior, weights = load_adm_checkpoint(path, adm_config), path
    else:
        raise WeightsError(f"{path}: variant and use_safetensors are for folders; this is one file")
    public = public_cards("prior")
    if str(spec) in public:
        check_download(weights, prior.card.sha256)
        prior.card = _described(public[str(spec)], prior.card, weights)
    elif path.is_file() and adm_config is None:
        # the authors called it ffhq_10m.pt, the hub calls it diffusion_ffhq_10m.pt
        same = [card for card in public.values() if _plain_stem(card.source) == _plain_stem(path.name)]
        prior.card = _described(same[0], prior.card, path) if same else prior.card
    return prior


def _load_folder(path: Path, spec: str, variant: str | None, use_safetensors: bool | None) -> tuple[Prior, Path]:
    folder = path / "unet" if (path / "unet" / "config.json").is_file() else path
    weights = find_weights(folder, variant, use_safetensors=use_safetensors)
    card, config = read_card(path, weights), read_json(folder / "config.json")
    network, scheduler = load_network(weights, _network_class(folder, config)), _read_scheduler(path)
    side = _side(folder, config["sample_size"])
    if card is None:
        sha256 = file_sha256(weights)
        card = ModelCard(kind="prior", name=Path(spec).name, resolution=side, sha256=sha256, source=spec)
    elif card.resolution != side:
        raise WeightsError(f"{path}: card.json says {card.resolution} pixels, config.json {config['sample_size']}")
    return Prior(network, replace(card, schedule=scheduler)), weights


def _described(public: ModelCard, found: ModelCard, weights: Path) -> ModelCard:
    """The public card of weights, with what was read from them."""
    if found.resolution != public.resolution:
        raise WeightsError(f"{weights}: is for {found.resolution} pixels, {public.name} for {public.resolution}")
    return replace(public, sha256=found.sha256, schedule=found.schedule)


def _plain_stem(name: str) -> str:
    return Path(name).stem.removeprefix("diffusion_")


def save_prior(prior: Prior, folder: Path, *, half: bool = True, **how: Any) -> ModelCard:
    """Write a prior as a diffusers folder (`unet/`, `scheduler/`, `model_index.json`) with its card.

    Args:
        prior: the prior; it is not changed.
        folder: where to; made if it is missing.
        half: store the weights in float16 rather than as they are.
        **how: see `save_network`.

    Returns:
        The card as written, with the new sha256.
    """
    weights = save_network(prior.network, folder / "unet", half=half, **how)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir(parents=True, exist_ok=True)
    write_json(scheduler, prior.card.schedule)
    write_index(folder, unet=index_entry(prior.network), scheduler=["diffusers", prior.card.schedule["_class_name"]])
    return write_card(prior.card, folder, weights)


def index_entry(network: nn.Module) -> list[str]:
    """Return where `DiffusionPipeline.from_pretrained` finds a network's class."""
    kind = type(bare(network))
    theirs = kind.__module__.startswith("diffusers.")
    return ["diffusers" if theirs else "faceprior.diffusers.models", kind.__name__]


def write_index(folder: Path, **components: Sequence[str | None]) -> None:
    """Write `model_index.json`, and the code that tells `DiffusionPipeline.from_pretrained` where our pipeline is.

    Components are [library, class] by name; [None, None] for one that the pipeline does without.
    """
    write_json(folder / INDEX_NAME, {"_class_name": ["pipeline", "FacePriorPipeline"], **components})
    (folder / "pipeline.py").write_text(_PIPELINE_CODE, encoding="utf-8")


def read_index(folder: Path) -> dict[str, Any]:
    """Read the `model_index.json` of a pipeline's folder; empty if there is none."""
    path = folder / INDEX_NAME
    return read_json(path) if path.is_file() else {}


def write_card(card: ModelCard, folder: Path, weights: Path) -> ModelCard:
    """Write the card of weights that were just written, with the sha256 of those without a variant; returns it."""
    main = (weights, *(weights.with_name(name) for name in WEIGHTS_NAMES))
    written = next((path for path in main if path.name in WEIGHTS_NAMES and path.is_file()), None)
    card = replace(card, sha256=file_sha256(written) if written else "")
    card.write(folder)
    return card


def read_card(folder: Path, weights: Path) -> ModelCard | None:
    """Read a folder's card, with the sha256 of the weights; None if there is none.

    Raises:
        WeightsError: the card is damaged, or vouches for other weights.
    """
    card = ModelCard.read(folder)
    if card is None:
        return None
    found = file_sha256(weights)
    if weights.name in WEIGHTS_NAMES and card.sha256 not in ("", found):
        raise WeightsError(
            f"{weights}: its sha256 {found[:12]}… is not the card's {card.sha256[:12]}…;"
            " the file is damaged or was exchanged: get it again"
        )
    return replace(card, sha256=found)


def bare(network: nn.Module) -> nn.Module:
    """Return a network itself, without what `torch.compile` wraps around it."""
    own: nn.Module = getattr(network, "_orig_mod", network)
    return own


def find_weights(folder: Path, variant: str | None = None, *, use_safetensors: bool | None = None) -> Path:
    """Return the weights file of a diffusers model folder.

    Args:
        folder: of the network.
        variant: "fp16" and the like: the middle of the file's name.
        use_safetensors: whether it is a safetensors file; None takes a pickled one where there is no other.

    Raises:
        WeightsError: there is no such file.
    """
    names = [_with_variant(name, variant) for name in WEIGHTS_NAMES]
    wanted = {None: names, True: names[:1], False: names[1:]}[use_safetensors]
    for name in wanted:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder}: holds no {wanted[0]}; name a diffusers model folder that has one")


def _with_variant(name: str, variant: str | None) -> str:
    stem, suffix = name.split(".")
    return f"{stem}.{variant}.{suffix}" if variant else name


def load_network(weights: Path, kind: type[nn.Module]) -> nn.Module:
    """Load a network, ours or of diffusers, in float32 from its file.

    Raises:
        WeightsError: it cannot be read, or keys are missing, unexpected or misshapen; the message names them.
    """
    load = _load_configured if issubclass(kind, ConfiguredNetwork) else _load_diffusers
    folder = weights.parent
    try:
        network, faults = load(weights, kind)
    except Exception as error:  # a damaged file raises nearly anything
        raise WeightsError(f"{folder}: the weights cannot be loaded ({one_line(error)})") from error
    if wrong := named(faults):
        raise WeightsError(f"{folder}: {wrong}; the weights do not fit config.json")
    return in_own_memory(network.eval().requires_grad_(requires_grad=False))


def _load_configured(weights: Path, kind: type[nn.Module]) -> tuple[nn.Module, dict[str, list[str]]]:
    config = {name: value for name, value in read_json(weights.parent / "config.json").items() if name[0] != "_"}
    network = kind(**config)
    assert isinstance(network, ConfiguredNetwork)  # noqa: S101 - it is of the class that was asked for
    network.loaded_from = str(weights.parent)
    state = read_state_dict(weights)
    faults = key_faults(state, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
    if not any(faults.values()):
        network.load_state_dict(state)
    return network, faults


def _load_diffusers(weights: Path, kind: type[nn.Module]) -> tuple[nn.Module, dict[str, list[str]]]:
    _, *variant, suffix = weights.name.split(".")
    network, info = kind.from_pretrained(  # type: ignore[attr-defined]
        weights.parent,
        output_loading_info=True,
        low_cpu_mem_usage=False,
        torch_dtype=torch.float32,
        variant=".".join(variant) or None,
        use_safetensors=suffix == "safetensors",
    )
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return network, {fault.replace("_", " "): info[fault] for fault in kinds}


def in_own_memory(network: nn.Module) -> nn.Module:
    """Move a network's tensors out of a mapped file: they are not aligned there as CPU kernels want them.

    The last bits of a result would depend on where the file's tensors begin.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
    return network


def save_network(
    network: nn.Module, folder: Path, *, half: bool, variant: str | None = None, safe_serialization: bool = True
) -> Path:
    """Write a network, ours or of diffusers, compiled or not, as a diffusers model; returns the weights file.

    It is stored in float16 (half) or as it is, as safetensors or pickled; a variant is the middle of the file's name.
    """
    network = bare(network)
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in network.config.items() if name[0] != "_"}  # type: ignore[operator,union-attr]
    write_json(folder / "config.json", {"_class_name": type(network).__name__, **config}, sort_keys=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if half:
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    weights = folder / _with_variant(WEIGHTS_NAMES[0 if safe_serialization else 1], variant)
    partial = weights.with_name(f"{weights.name}.partial")
    if safe_serialization:
        # `save_file` would make a file that only its owner can read
        partial.write_bytes(save(state, metadata={"format": "pt"}))
    else:
        torch.save(state, partial)
    partial.replace(weights)
    return weights


def _network_class(folder: Path, config: dict[str, Any]) -> type[nn.Module]:
    name = config.get("_class_name")
    if name == "UNet2DModel":
        from diffusers import UNet2DModel

        if config.get("in_channels", 3) != 3 or config.get("out_channels", 3) not in (3, 6):
            raise WeightsError(f"{folder}: a prior has 3 input and 3 or 6 output channels; this network has others")
        if config.get("class_embed_type") or config.get("num_class_embeds"):
            raise WeightsError(f"{folder}: the network is conditioned on classes; a prior is unconditional")
        return cast("type[nn.Module]", UNet2DModel)
    if name == "GaussianResidualUNet":
        return GaussianResidualUNet
    raise WeightsError(f"{folder}: network {name!r} is not a prior; UNet2DModel and GaussianResidualUNet are")


def _read_scheduler(folder: Path) -> dict[str, Any]:
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file():
            return read_json(path)
    raise WeightsError(f"{folder}: holds no scheduler_config.json; a prior needs its noise schedule")


def _side(folder: Path, sample_size: Any) -> int:
    side = sample_size[0] if isinstance(sample_size, list | tuple) else sample_size
    if not isinstance(side, int) or side < 8:
        raise WeightsError(f"{folder}: sample_size {sample_size!r} in config.json is not an image side")
    return side
