"""`python -m faceprior`."""

from __future__ import annotations

from faceprior.cli import main

main()
