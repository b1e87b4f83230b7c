"""dlib and its models (King 2017, CC0), from the PyPI packages `dlib-bin` and `face_recognition_models`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from faceprior.errors import FacePriorError

_PACKAGE = "face_recognition_models"


def load_dlib() -> Any:
    """Import dlib; raises FacePriorError if the extra "research" is not installed."""
    try:
        import dlib
    except ImportError as error:
        raise FacePriorError(_missing("dlib-bin")) from error
    return dlib


def model_file(name: str) -> Path:
    """Return a model of the package `face_recognition_models`; raises FacePriorError if it is not installed."""
    # the package itself cannot be imported: it needs pkg_resources, which setuptools no longer has
    path = package_file(_PACKAGE, f"models/{name}")
    if path is None:
        raise FacePriorError(_missing(_PACKAGE))
    return path


def package_file(package: str, name: str) -> Path | None:
    """Return a file or folder of an installed package, which is not imported for it; None if there is none."""
    found = importlib.util.find_spec(package)
    folders = map(Path, (found.submodule_search_locations if found else None) or ())
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def _missing(package: str) -> str:
    return f"faces are compared with {package}, which is not installed: pip install 'faceprior[research]'"
