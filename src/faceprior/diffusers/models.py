"""Our networks as diffusers models: `from_pretrained`, `save_pretrained`, `push_to_hub` and the rest."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from faceprior import corrector
from faceprior.networks import ConfiguredNetwork
from faceprior.priors import residual_unet
from faceprior.priors.store import bare


class GaussianResidualUNet(residual_unet.GaussianResidualUNet, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """`faceprior.priors.residual_unet.GaussianResidualUNet` as a diffusers model of prediction type "sample"."""

    __init__ = register_to_config(residual_unet.GaussianResidualUNet.__init__)
    config = ConfigMixin.config

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as diffusers does, but the closed-form part in float32, as `to` leaves it."""
        dtypes = [kwargs.pop(name, None) for name in ("torch_dtype", "dtype")]
        dtype = next(filter(None, dtypes), torch.float32)
        loaded = super().from_pretrained(*args, **kwargs, torch_dtype=torch.float32)
        nn.Module.to(loaded[0] if isinstance(loaded, tuple) else loaded, dtype=dtype)
        return loaded


class BlindCorrector(corrector.BlindCorrector, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """`faceprior.corrector.BlindCorrector` as a diffusers model."""

    __init__ = register_to_config(corrector.BlindCorrector.__init__)
    config = ConfigMixin.config


class PaperCorrector(corrector.PaperCorrector, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """`faceprior.corrector.PaperCorrector` as a diffusers model."""

    __init__ = register_to_config(corrector.PaperCorrector.__init__)
    config = ConfigMixin.config


_MODELS: tuple[type[Any], ...] = (GaussianResidualUNet, BlindCorrector, PaperCorrector)


def as_model(network: nn.Module) -> nn.Module:
    """Return one of our networks as a diffusers model that shares its tensors; a diffusers model as it is."""
    if not isinstance(network, ConfiguredNetwork) or isinstance(network, ModelMixin):
        return network
    (kind,) = (model for model in _MODELS if isinstance(bare(network), model.__bases__[0]))
    model: nn.Module = kind(**{name: value for name, value in network.config.items() if name[0] != "_"})
    model.register_to_config(_name_or_path=network.loaded_from)  # type: ignore[operator]
    model.load_state_dict(network.state_dict(), assign=True)
    return model.train(network.training).requires_grad_(any(own.requires_grad for own in network.parameters()))
