"""Files of installed packages that are not imported for them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from faceprior.errors import FacePriorError


def package_file(package: str, name: str, missing: str) -> Path:
    """Return a file of an installed package; raises FacePriorError with the text of `missing` if there is none."""
    found = importlib.util.find_spec(package)
    for folder in map(Path, (found.submodule_search_locations if found else None) or ()):
        if (folder / name).exists():
            return folder / name
    raise FacePriorError(missing)
