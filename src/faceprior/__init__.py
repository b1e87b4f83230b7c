"""faceprior: face restoration with Diffusion Prior Interpolation (DPI, arXiv 2412.16552)."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faceprior.pipeline import FacePriorOutput, FacePriorPipeline
    from faceprior.priors import Prior, load_prior

__version__ = version("faceprior")

__all__ = ["FacePriorOutput", "FacePriorPipeline", "Prior", "__version__", "load_prior"]

# torch and diffusers take seconds to import: public names are resolved on first use (PEP 562)
_HOMES = {
    "FacePriorOutput": "faceprior.pipeline",
    "FacePriorPipeline": "faceprior.pipeline",
    "Prior": "faceprior.priors",
    "load_prior": "faceprior.priors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'faceprior' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
