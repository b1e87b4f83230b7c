"""A photograph's way, in three pure functions over bytes: `prepare`, `restore`, `compose`.

What goes from one to the next is a value without a path, a pipeline or decoded pixels in it, so it may be kept, or
travel to another process or machine.
"""

from __future__ import annotations

from faceprior.photographs.compose import Composed, ResultFile, compose
from faceprior.photographs.faces import Face, find_faces, is_aligned_crop, paste_faces
from faceprior.photographs.options import RestoreOptions, how_made
from faceprior.photographs.prepare import Prepared, prepare
from faceprior.photographs.restore import Condition, restore
from faceprior.photographs.results import RestoredFace

__all__ = [
    "Composed",
    "Condition",
    "Face",
    "Prepared",
    "RestoreOptions",
    "RestoredFace",
    "ResultFile",
    "compose",
    "find_faces",
    "how_made",
    "is_aligned_crop",
    "paste_faces",
    "prepare",
    "restore",
]
