"""What the components of a diffusers pipeline may be, and what is known of them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import diffusers
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin
from torch import nn

from faceprior.corrector import CorrectorNetwork
from faceprior.errors import WeightsError
from faceprior.priors import ModelCard, Prior
from faceprior.priors.noise_schedule import NoiseSchedule
from faceprior.priors.store import bare

_OF_THE_PRIOR = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"}
"""What a scheduler says about the prior; the rest of its configuration is about sampling, which is the presets'."""


def check_component(name: str, component: Any, before: Any) -> None:
    """Check that a pipeline can work with a "unet", "scheduler" or "corrector", and warn of what has no effect.

    Raises:
        WeightsError: it is of another kind, or its noise schedule is not one that a prior can have.
    """
    kind = type(component).__name__
    if name == "scheduler":
        if not isinstance(component, SchedulerMixin):
            raise WeightsError(f"the scheduler is a {kind}; a pipeline needs one of diffusers' schedulers")
        NoiseSchedule.from_scheduler_config(schedule_of(component))
        Prior.check_prediction_type(component.config.get("prediction_type", "epsilon"))
        _warn_of_sampling(component, before)
    elif name == "unet" and not isinstance(_side(component), int):
        raise WeightsError(f"the unet is a {kind} whose config has no sample_size; a prior's network has one")
    elif name == "corrector" and not isinstance(bare(component), CorrectorNetwork | None):
        raise WeightsError(f"the corrector is a {kind}; a pipeline needs a BlindCorrector, a PaperCorrector, or None")


def _warn_of_sampling(scheduler: Any, before: Any) -> None:
    without_effect = []
    if not isinstance(scheduler, (DDIMScheduler, DDPMScheduler) if before is None else type(before)):
        without_effect = [type(scheduler).__name__]
    elif before is not None:
        old, new = before.config, schedule_of(scheduler)
        without_effect = [
            key for key in new if key[0] != "_" and key not in _OF_THE_PRIOR and new[key] != old.get(key)
        ]
    if without_effect:
        warnings.warn(
            f"of {', '.join(without_effect)} faceprior takes the noise schedule and the prediction type alone; how it"
            " samples is an option of the call: preset, solver, num_inference_steps, eta, start, end",
            stacklevel=4,
        )


def schedule_of(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's configuration as a card has it."""
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return {"_class_name": type(scheduler).__name__, **config}


def describe(network: nn.Module, before: ModelCard | None = None) -> ModelCard:
    """Return the card that lies in the folder which a network was loaded from, or else one that is made from it.

    A network that takes another's place may have been trained since: no sha256 is known of it.
    """
    network, side = bare(network), _side(network)
    kind: Literal["prior", "corrector"] = "corrector" if isinstance(network, CorrectorNetwork) else "prior"
    source = getattr(network, "config", {}).get("_name_or_path")
    for folder in (Path(source), Path(source).parent) if source else ():
        card = ModelCard.read(folder)
        if card is not None and (card.kind, card.resolution) == (kind, side):
            return card if before is None else replace(card, sha256="")
    template = before.template if before is not None and before.resolution == side else ()
    return ModelCard(kind=kind, name=type(network).__name__, resolution=side, template=template)


def _side(network: Any) -> Any:
    config = getattr(bare(network), "config", {})
    side = config.get("sample_size", config.get("resolution"))
    return side[0] if isinstance(side, list | tuple) and side else side


def scheduler_for(prior: Prior) -> SchedulerMixin:
    """Return the scheduler that a prior was saved with; DDIM if diffusers has none of its name."""
    named = getattr(diffusers, str(prior.card.schedule.get("_class_name")), None)
    kind: Any = named if isinstance(named, type) and issubclass(named, SchedulerMixin) else DDIMScheduler
    return kind.from_config({**prior.card.schedule, "prediction_type": prior.card.prediction_type})
