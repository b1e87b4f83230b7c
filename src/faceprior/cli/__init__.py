"""The command line: `faceprior`."""

from __future__ import annotations

from faceprior.cli.app import main

__all__ = ["main"]
