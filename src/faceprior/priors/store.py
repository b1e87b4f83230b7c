"""Find, load and save priors: embedded ones, diffusers folders, hub ids and ADM checkpoint files."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from faceprior.errors import WeightsError
from faceprior.priors.adapter import Prior
from faceprior.priors.card import ModelCard, file_sha256
from faceprior.priors.noise_schedule import NoiseSchedule

WEIGHTS_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
DEFAULT_PRIOR = "faces-128"
PRIOR_NETWORKS = {
    "GaussianResidualUNet": "faceprior.priors.residual_unet",
    "PatchTransformer": "faceprior.priors.patch_transformer",
    "UnshuffledUNet": "faceprior.priors.unshuffled_unet",
}
"""Modules of our own networks, by class; a stock `UNet2DModel` is a prior's network as well."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError)


def embedded_folder() -> Path:
    """Folder of the weights that come inside the package."""
    return Path(str(files("faceprior") / "weights"))


def embedded_cards(kind: str) -> dict[str, ModelCard]:
    """Cards of the embedded weights of a kind ("prior" or "corrector"), by name."""
    cards = {}
    for folder in sorted(embedded_folder().glob("*/")):
        card = ModelCard.read(folder)
        if card is not None and card.kind == kind:
            cards[folder.name] = card
    return cards


def resolve(spec: str | Path, kind: str) -> Path:
    """Return the local folder or file that `spec` names, downloading a hub id if need be.

    Args:
        spec: name of embedded weights, an existing folder or file, or a hub id ("owner/name").
        kind: "prior" or "corrector", for the embedded names and the message.

    Raises:
        WeightsError: it is none of these, or the hub cannot deliver it.
    """
    names = embedded_cards(kind)
    if str(spec) in names:
        return embedded_folder() / str(spec)
    path = Path(spec).expanduser()
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(str(spec)):
        raise WeightsError(
            f"{kind} {str(spec)!r} is neither embedded ({', '.join(names) or 'none'}) nor an existing file or folder"
            " nor a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(spec), allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise WeightsError(
            f"{kind} {spec}: is not a local path, and the hub did not deliver it ({type(error).__name__});"
            " check the name and the connection, or download the folder and name its path"
        ) from error


def load_prior(spec: str | Path = DEFAULT_PRIOR, adm_config: Path | None = None) -> Prior:
    """Load a prior in float32 on the CPU.

    Args:
        spec: name of an embedded prior, a diffusers folder or hub id with a `UNet2DModel` and a DDPM-family
            schedule, or an ADM (guided-diffusion) checkpoint file.
        adm_config: for a checkpoint file, a JSON or YAML file of its architecture flags; without it the flags of
            `ffhq_10m.pt` are assumed.

    Raises:
        WeightsError: nothing is found, a key or shape does not fit, a sha256 is not the card's, or the file is
            not safe to load. The message names the file.
    """
    path = resolve(spec, "prior")
    if path.is_file():
        from faceprior.priors.adm import load_adm_checkpoint

        return load_adm_checkpoint(path, adm_config)
    folder = path / "unet" if (path / "unet" / "config.json").is_file() else path
    weights = find_weights(folder)
    card = ModelCard.read(path)
    if card is not None:
        card.verify(weights)
    config = read_json(folder / "config.json")
    network = load_network(folder, _network_class(folder, config))
    scheduler = _read_scheduler(path)
    schedule = NoiseSchedule.from_scheduler_config(scheduler)
    prediction_type = scheduler.get("prediction_type", "epsilon")
    if card is None:
        card = ModelCard(
            kind="prior",
            name=Path(spec).name,
            resolution=_side(folder, config["sample_size"]),
            sha256=file_sha256(weights),
            schedule=scheduler,
            prediction_type=prediction_type,
            source=str(spec),
        )
    elif card.resolution != _side(folder, config["sample_size"]):
        raise WeightsError(f"{path}: card.json says {card.resolution} pixels, config.json {config['sample_size']}")
    else:
        sha256 = card.sha256 or file_sha256(weights)
        card = replace(card, schedule=scheduler, prediction_type=prediction_type, sha256=sha256)
    return Prior(network, schedule, prediction_type, card)


def save_prior(prior: Prior, folder: Path, *, half: bool = True) -> ModelCard:
    """Write a prior as a diffusers folder (`unet/`, `scheduler/`, `model_index.json`) with its card.

    Args:
        prior: the prior; it is not changed.
        folder: where to; made if it is missing.
        half: store the weights in float16 rather than as they are.

    Returns:
        The card as written, with the new sha256.
    """
    save_network(prior.network, folder / "unet", half=half)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir(parents=True, exist_ok=True)
    scheduler.write_text(json.dumps(prior.card.schedule, indent=2) + "\n", encoding="utf-8")
    card = replace(prior.card, sha256=file_sha256(folder / "unet" / WEIGHTS_NAMES[0]))
    card.write(folder)
    network = type(prior.network)
    library = "diffusers" if network.__module__.startswith("diffusers.") else network.__module__
    index = {
        "_class_name": "FacePriorPipeline",
        "unet": [library, network.__name__],
        "scheduler": ["diffusers", prior.card.schedule["_class_name"]],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return card


def ddim_scheduler_config(schedule: dict[str, Any], prediction_type: str) -> dict[str, Any]:
    """Return the configuration of the `DDIMScheduler` that is ADM's ddim sampler, for a noise schedule."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
        **schedule,
        "prediction_type": prediction_type,
    }


def is_corrector(folder: str | Path) -> bool:
    """Whether a local folder holds a corrector rather than a prior."""
    config = Path(folder) / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == "ConditionCorrector"


def find_weights(folder: Path) -> Path:
    """Return the weights file of a diffusers model folder; raises WeightsError if there is none."""
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder}: holds no {WEIGHTS_NAMES[0]}; name a diffusers model folder")


def load_network(folder: Path, kind: type[nn.Module]) -> nn.Module:
    """Load a diffusers model in float32, refusing missing, unexpected and misshapen keys by name."""
    try:
        network, info = kind.from_pretrained(  # type: ignore[attr-defined]
            folder, output_loading_info=True, low_cpu_mem_usage=False, torch_dtype=torch.float32
        )
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:300] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{folder}: the weights cannot be loaded ({reason})") from error
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info[fault]:
            names = ", ".join(str(key) for key in info[fault][:5])
            more = f" and {len(info[fault]) - 5} more" if len(info[fault]) > 5 else ""
            raise WeightsError(
                f"{folder}: {fault.replace('_', ' ')}: {names}{more}; the weights do not fit config.json"
            )
    # a mapped file is not aligned as CPU kernels want it, and the last bits of a result would differ
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    loaded: nn.Module = network.eval().requires_grad_(requires_grad=False)
    return loaded


def save_network(network: nn.Module, folder: Path, *, half: bool) -> None:
    """Write a diffusers model as safetensors, in float16 if `half`."""
    folder.mkdir(parents=True, exist_ok=True)
    network.save_config(folder)  # type: ignore[operator]
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if half:
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    partial = folder / f"{WEIGHTS_NAMES[0]}.partial"
    # `save_file` would make a file that only its owner can read
    partial.write_bytes(save(state, metadata={"format": "pt"}))
    partial.replace(folder / WEIGHTS_NAMES[0])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises WeightsError naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: is not a JSON object")
    return values


def _network_class(folder: Path, config: dict[str, Any]) -> type[nn.Module]:
    name = config.get("_class_name")
    if name == "UNet2DModel":
        from diffusers import UNet2DModel

        if config.get("in_channels", 3) != 3 or config.get("out_channels", 3) not in (3, 6):
            raise WeightsError(f"{folder}: a prior has 3 input and 3 or 6 output channels; this network has others")
        if config.get("class_embed_type") or config.get("num_class_embeds"):
            raise WeightsError(f"{folder}: the network is conditioned on classes; a prior is unconditional")
        unet: type[nn.Module] = UNet2DModel
        return unet
    if name not in PRIOR_NETWORKS:
        known = ", ".join(("UNet2DModel", *PRIOR_NETWORKS))
        raise WeightsError(f"{folder}: network {name!r} is not a prior; {known} are")
    own: type[nn.Module] = getattr(import_module(PRIOR_NETWORKS[name]), name)
    return own


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
