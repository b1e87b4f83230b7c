"""Clips: video in and out through PyAV, its faces followed and restored."""

from __future__ import annotations

from faceprior.clips.container import (
    CLIP_SUFFIXES,
    QUALITY,
    Frame,
    frame_count,
    is_clip,
    load_av,
    output_suffix,
    read_clip_metadata,
    read_frames,
    rewrite,
)

__all__ = [
    "CLIP_SUFFIXES",
    "QUALITY",
    "Frame",
    "frame_count",
    "is_clip",
    "load_av",
    "output_suffix",
    "read_clip_metadata",
    "read_frames",
    "rewrite",
]
