"""Measuring restorations."""
