"""`FacePriorPipeline` as a diffusers pipeline."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from torch import nn

from faceprior.corrector import Corrector, CorrectorNetwork
from faceprior.devices import choose_device
from faceprior.diffusers import models
from faceprior.diffusers.components import check_component, describe, schedule_of, scheduler_for
from faceprior.diffusers.models import as_model
from faceprior.errors import OptionError
from faceprior.pipeline import face_prior
from faceprior.priors import DEFAULT_PRIOR, ModelCard, Prior
from faceprior.priors.residual_unet import GaussianResidualUNet
from faceprior.priors.store import bare, in_own_memory

_COMPONENTS = ("unet", "scheduler", "corrector")


class FacePriorPipeline(DiffusionPipeline, face_prior.FacePriorPipeline):  # type: ignore[misc]
    """`faceprior.FacePriorPipeline` with components that diffusers knows: it restores the same bytes.

    What is registered is what counts: prior and corrector are made anew from the components for every call, so
    that `pipeline.unet = ...`, `torch.compile` and another scheduler act at once.

    Args:
        unet: the prior's network, any that `faceprior.priors.load_prior` loads.
        scheduler: a diffusers scheduler that carries the prior's noise schedule and prediction type; the
            sampling itself is the presets'.
        corrector: the CRT; None restores without.
        card: what the prior is; None takes the card from the folder that the network was loaded from, or else
            makes one from the network.
        corrector_card: what the corrector is; None as for the card.

    Raises:
        WeightsError: the scheduler's noise schedule or the network is not one that a prior can have. Assigning a
            component raises it too.
    """

    model_cpu_offload_seq = "unet->corrector"
    _optional_components = ("corrector",)

    unet: Any
    scheduler: Any
    corrector: Any

    def __init__(
        self,
        # all classes by name: diffusers' from_pipe takes over only those
        unet: UNet2DModel | GaussianResidualUNet | models.GaussianResidualUNet,
        scheduler: SchedulerMixin,
        corrector: CorrectorNetwork | models.BlindCorrector | models.PaperCorrector | None = None,
        card: ModelCard | None = None,
        corrector_card: ModelCard | None = None,
    ) -> None:
        self._cards: dict[str, ModelCard] = {}
        self._fitting: dict[tuple[torch.device, str], int] = {}
        self.register_modules(unet=unet, scheduler=scheduler, corrector=corrector)
        for name, own in (("unet", card), ("corrector", corrector_card)):
            if own is not None and getattr(self, name) is not None:
                self._cards[name] = own
        self.to()  # networks lie in memory as after loading, so results are the same to the last bit

    def __setattr__(self, name: str, value: Any) -> None:
        """Register a component, or say at once why it cannot be one."""
        before = self.__dict__.get(name)
        if name in _COMPONENTS:
            check_component(name, value, before)
            if value is not None and self.config[name][0] is None:
                self.register_modules(**{name: value})  # diffusers would keep that there is none, and save none
                return
        super().__setattr__(name, value)
        if name in ("unet", "corrector") and value is not None:
            in_own_memory(value)
            if before is None or bare(value) is not bare(before):
                self._cards[name] = describe(value, self._cards.get(name))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path = DEFAULT_PRIOR,
        *,
        corrector: str | Path | CorrectorNetwork | None = "auto",
        unet: nn.Module | None = None,
        scheduler: SchedulerMixin | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device_map: str | None = None,
        **options: Any,
    ) -> FacePriorPipeline:
        """Load a prior and its corrector.

        Args:
            pretrained_model_name_or_path: see `faceprior.FacePriorPipeline.from_pretrained`.
            corrector: see there; or a network.
            unet: a network instead of the saved one.
            scheduler: a scheduler instead of the saved one.
            torch_dtype: number format to compute in; None is float32.
            dtype: the same under diffusers' newer name.
            device_map: device for all networks: "cuda", "cpu", ..., or "balanced" for the best there is.
            **options: see `faceprior.pipeline.face_prior.load_components`.

        Raises:
            WeightsError: something is not found, not safe, or does not fit.
            OptionError: the corrector does not fit the prior, or an option is unknown.
            DeviceError: the device does not exist on this machine.
        """
        if unknown := options.keys() - signature(face_prior.load_components).parameters.keys():
            raise OptionError(f"FacePriorPipeline.from_pretrained has no option {', '.join(sorted(unknown))}")
        number_format = torch_dtype or dtype or torch.float32
        if not isinstance(number_format, torch.dtype):
            raise OptionError(f"torch_dtype is {number_format!r}; give one torch.dtype, such as torch.bfloat16")
        if not isinstance(device_map, str | None):
            raise OptionError(f"device_map is {device_map!r}; name one device for all networks, or balanced")
        device = choose_device("auto" if device_map == "balanced" else device_map) if device_map else None

        named = None if isinstance(corrector, nn.Module) else corrector
        prior, crt = face_prior.load_components(pretrained_model_name_or_path, named, **options)
        network: Any = as_model(crt.network) if crt else None
        if isinstance(corrector, nn.Module):
            check_component("corrector", corrector, None)
            crt, network = Corrector(corrector, describe(corrector)), corrector
            crt.check(prior.resolution, prior.schedule, corrector.stride)
        pipeline = cls(as_model(prior.network), scheduler_for(prior), network, prior.card, crt.card if crt else None)
        if unet is not None:
            pipeline.unet = unet
        if scheduler is not None:
            pipeline.scheduler = scheduler
        return pipeline.to(device, number_format)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> FacePriorPipeline:
        """Make a pipeline of another one's components, as diffusers does, and of the cards that go with them."""
        if isinstance(pipeline, FacePriorPipeline):
            for name, card in (("unet", "card"), ("corrector", "corrector_card")):
                if name not in kwargs:
                    kwargs.setdefault(card, getattr(pipeline, card))
        made: FacePriorPipeline = super().from_pipe(pipeline, **kwargs)
        return made

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        **hub: Any,
    ) -> None:
        """Write prior, scheduler, corrector and cards as a diffusers folder that `from_pretrained` reads.

        Args:
            save_directory: the folder; made if it is missing.
            safe_serialization: weights as safetensors rather than pickled.
            variant: "fp16" and the like: part of the weights' file names; their numbers stay as they are.
            push_to_hub: upload it all, too.
            **hub: `repo_id` (the folder's name without), `commit_message`, `private`, `token`, `create_pr`.

        Raises:
            OptionError: an option is unknown.
        """
        if unknown := hub.keys() - {"repo_id", "commit_message", "private", "token", "create_pr"}:
            raise OptionError(f"FacePriorPipeline.save_pretrained has no option {', '.join(sorted(unknown))}")
        if hub and not push_to_hub:
            raise OptionError(f"{', '.join(sorted(hub))} says how to upload; add push_to_hub=True")
        how: dict[str, Any] = {"variant": variant, "safe_serialization": safe_serialization}
        face_prior.FacePriorPipeline.save_pretrained(self, save_directory, **how)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).resolve().name), **hub, **how)

    def to(self, *args: Any, silence_dtype_warnings: bool = True, **kwargs: Any) -> FacePriorPipeline:
        """Move and cast the networks, as `torch.nn.Module.to` does."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)  # noqa: SLF001 - as torch and diffusers parse it
        if device is not None:
            super().to(device, silence_dtype_warnings=silence_dtype_warnings)  # it knows what is offloaded
        for network in (self.unet, self.corrector):
            if network is not None:
                nn.Module.to(network, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    @property
    def prior(self) -> Prior:  # type: ignore[override] # made of what is registered
        """The registered network under the registered noise schedule."""
        return Prior(self.unet, self.card)

    @property
    def card(self) -> ModelCard:
        """What the prior is; of a network that took the place of another, the sha256 is unknown."""
        return replace(self._cards["unet"], schedule=schedule_of(self.scheduler))

    @property
    def crt(self) -> Corrector | None:  # type: ignore[override]
        """The registered corrector, if there is one."""
        return None if self.corrector is None else Corrector(self.corrector, self._cards["corrector"])

    @property
    def interrupt(self) -> bool:
        """Whether the call now at work is to stop."""
        return self._interrupt

    @wraps(face_prior.FacePriorPipeline.__call__)
    def __call__(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> Any:
        """Restore aligned faces."""
        output = face_prior.FacePriorPipeline.__call__(self, *args, **kwargs)
        self.maybe_free_model_hooks()
        return output
