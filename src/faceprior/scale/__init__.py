"""The restoring of millions of photographs, on the machines of a Ray cluster (docs/scale.md)."""
