"""The web page: `faceprior serve`."""

from __future__ import annotations

from faceprior.app.options import ServeOptions, parse_auth

__all__ = ["ServeOptions", "parse_auth"]
