"""Comparing methods on sets of faces: what to run, the run, its figures and its report."""
