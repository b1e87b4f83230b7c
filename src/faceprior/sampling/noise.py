"""Randomness that belongs to an image, not to a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch


class NoiseSource:
    """One generator per image, so that an image's result does not depend on its batch-mates.

    The order of draws is part of what a seed means: the start, then in each step the mask's uniform numbers (if
    the method wants any), then the solver's noise (if it adds any). Numbers are drawn on each generator's own device
    and then moved: with CPU generators a seed means the same noise on every machine.

    Args:
        generators: one for each image of the batch.
        device: where the draws are needed.
    """

    def __init__(self, generators: Sequence[torch.Generator], device: torch.device) -> None:
        self.generators, self.device = list(generators), device

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal noise, (B, *shape), float32."""
        draws = [torch.randn(shape, generator=g, device=g.device, dtype=torch.float32) for g in self.generators]
        return torch.stack(draws).to(self.device)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform numbers in [0, 1), (B, *shape), float32."""
        draws = [torch.rand(shape, generator=g, device=g.device, dtype=torch.float32) for g in self.generators]
        return torch.stack(draws).to(self.device)


def noised(x0: torch.Tensor, z: torch.Tensor, alphas_cumprod: float) -> torch.Tensor:
    """Draw from q(x_t | x0) with noise z: √ᾱ · x0 + √(1 − ᾱ) · z."""
    return math.sqrt(alphas_cumprod) * x0 + math.sqrt(1 - alphas_cumprod) * z


def spawn_generators(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """Derive independent generators, for the samples of one image; sample j is the same for every count > j."""
    return [
        torch.Generator(generator.device).manual_seed(
            int(torch.randint(2**62, (), generator=generator, device=generator.device))
        )
        for _ in range(count)
    ]


def face_generator(seed: int, index: int) -> torch.Generator:
    """Return the generator of one face of a photograph.

    It depends on nothing but these two, so a face's noise is the same whatever else is restored beside it. The first
    face has the generator that an aligned face of its own has.

    Args:
        seed: of the photograph, below 2^64.
        index: number of the face in its photograph, from 0.
    """
    if index > 0:
        seed = int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)
