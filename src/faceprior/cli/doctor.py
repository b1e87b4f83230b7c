"""What a machine has of what faceprior needs; it runs where torch does not."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import NamedTuple

from packaging.requirements import Requirement

import faceprior

EXTRAS = {
    "weights": "the embedded priors and correctors (non-commercial research)",
    "open": "a prior and a corrector for any use",
    "web": "faceprior serve",
    "heic": "HEIC pictures",
    "video": "clips",
    "scale": "Ray clusters",
    "research": "training and benchmarks",
}


class Finding(NamedTuple):
    """What was looked at and found, what to do about it, if anything, and whether nothing can be restored so."""

    what: str
    found: str
    advice: str = ""
    fatal: bool = False


def examine() -> list[Finding]:
    """Look at the machine; a part that cannot be looked at is a finding too."""
    findings = [
        Finding("faceprior", f"{faceprior.__version__}, Python {platform.python_version()}, {platform.platform()}"),
        *_packages(),
    ]
    for what, look in (("devices", _devices), ("formats", _formats), ("weights", _weights), ("cache", _cache)):
        try:
            findings += look()
        except Exception as error:  # noqa: BLE001 - a broken library is what a doctor is asked about
            reason = str(error).splitlines()[0] if str(error) else ""
            findings.append(Finding(what, f"{type(error).__name__}: {reason}", fatal=what != "cache"))
    return findings


def _packages() -> Iterator[Finding]:
    needed = [Requirement(text) for text in requires("faceprior") or ()]
    base = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    missing = _missing(base)
    versions = ", ".join(f"{one.name} {version(one.name)}" for one in base if one.name not in missing)
    yield Finding("packages", versions)
    if missing:
        yield Finding("missing", "; ".join(missing.values()), "pip install --upgrade faceprior", fatal=True)
    for extra, what in EXTRAS.items():
        of_extra = [one for one in needed if one not in base and one.marker and one.marker.evaluate({"extra": extra})]
        lacking = _missing(of_extra)
        found = f"{what}: " + ("installed" if not lacking else "; ".join(lacking.values()))
        yield Finding(f"extra {extra}", found, f"pip install 'faceprior[{extra}]'" if lacking else "")


def _missing(requirements: list[Requirement]) -> dict[str, str]:
    """Say of each requirement that is not met what is there instead."""
    found: dict[str, str] = {}
    for one in requirements:
        try:
            if not one.specifier.contains(version(one.name), prereleases=True):
                found[one.name] = f"{one.name} {version(one.name)} (needs {one.specifier})"
        except PackageNotFoundError:
            found[one.name] = f"{one.name} is missing"
    return found


def _devices() -> Iterator[Finding]:
    import torch

    from faceprior.devices import choose_device, choose_dtype

    device = choose_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    dtype = str(choose_dtype("auto", device)).removeprefix("torch.")
    advice = ""
    if device.type == "cpu" and torch.version.cuda:
        advice = "torch is built for CUDA but finds no GPU: look at nvidia-smi; on a CPU the build for CPUs is enough"
    yield Finding("device", f"{device.type} ({name}), {dtype}, {torch.get_num_threads()} threads", advice)


def _formats() -> Iterator[Finding]:
    from PIL import features

    able = {"WEBP": features.check("webp"), "AVIF": features.check("avif"), "HEIC": find_spec("pillow_heif")}
    lacking = [name for name, found in able.items() if not found]
    advice = f"for {', '.join(lacking)}: pip install --upgrade pillow 'faceprior[heic]'" if lacking else ""
    yield Finding(
        "formats", " ".join(["JPEG", "PNG", "TIFF", *(name for name in able if name not in lacking)]), advice
    )


def _weights() -> Iterator[Finding]:
    from faceprior.priors.store import NOT_INSTALLED, embedded_cards

    cards = [card for kind in ("prior", "corrector") for card in embedded_cards(kind).values()]
    for card in cards:
        yield Finding(card.kind, f"{card.name}, {card.resolution}×{card.resolution}: {card.licence}")
    if not cards:
        yield Finding("weights", "none", NOT_INSTALLED)


def _cache() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    yield Finding("cache", f"{HF_HUB_CACHE}{' (offline: HF_HUB_OFFLINE is set)' if HF_HUB_OFFLINE else ''}")
