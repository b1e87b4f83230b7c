"""Clips: video in and out through PyAV, its faces followed and restored."""
