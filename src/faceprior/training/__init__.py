"""Packing data and training priors and correctors."""
