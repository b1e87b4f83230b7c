"""DPI, Diffusion Prior Interpolation (Yang et al., AAAI 2025, arXiv 2412.16552).

The prior's estimate of the clean image is interpolated towards a condition on a sparse grid: everywhere while the
noise is high (FCM, the fixed condition mask), later only where the condition has edges, at random and ever weaker
(RACM, the randomly adaptive condition mask). Between steps the condition itself is corrected (CRT).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from faceprior.corrector import Corrector, Placement, make_condition
from faceprior.errors import OptionError
from faceprior.methods.measured import Enlarged
from faceprior.methods.method import Method, SamplingOptions
from faceprior.priors.adapter import Prior
from faceprior.sampling import Initial, Sampler, Started, Step, Stepped, noised

GREY = (0.2989, 0.587, 0.114)
LAPLACIAN = ((0.0, -1.0, 0.0), (-1.0, 4.0, -1.0), (0.0, -1.0, 0.0))

_FLAT = 1e-4  # an image whose edge strength varies less has rounding errors, not edges


@dataclass(frozen=True)
class DPIOptions:
    """Options of DPI.

    Attributes:
        tau: τ; above noise level τ·T the whole grid is held (FCM), from it downwards edges only (RACM).
            Fraction of T, 0 to 1.
        late_weight: ω; from τ·T downwards the weight of the condition is ω · t/T. At least 0, and ω · τ at most 1.
        edge_exponent: s; the probability that RACM holds a pixel is (edge strength)^s. At least 0.
        stride: k; the condition stands on every k-th pixel of a row and of a column: 1, 2, 4 or 8.
        placement: how the condition gets onto the grid: "resized" as in the paper, or "sampled", without its
            half-pixel shift (see `faceprior.corrector.make_condition`).
        crt: whether the corrector, where there is one, corrects the condition between the steps.
        crt_once: whether it is asked once, at the start, rather than after every step; a warm start then begins
            with the corrected face.

    Raises:
        OptionError: a value is out of its range.
    """

    tau: float = 0.4
    late_weight: float = 2 / 3
    edge_exponent: float = 1.4
    stride: int = 2
    placement: Placement = "sampled"
    crt: bool = True
    crt_once: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1:
            raise OptionError(f"tau is {self.tau}; it must lie in 0 to 1")
        if not (self.late_weight >= 0 and self.late_weight * self.tau <= 1):
            raise OptionError(f"late weight is {self.late_weight}; times tau ({self.tau}) it must lie in 0 to 1")
        if not 0 <= self.edge_exponent < math.inf:
            raise OptionError(f"edge exponent is {self.edge_exponent}; it must be at least 0")
        if self.stride not in (1, 2, 4, 8):
            raise OptionError(f"stride is {self.stride}; choose 1, 2, 4 or 8")
        if self.placement not in ("resized", "sampled"):
            raise OptionError(f"placement is {self.placement!r}; choose resized or sampled")


class DPI(Enlarged):
    """DPI at work on one batch of faces.

    Args:
        low_resolution: the faces, each (3, n, n) in [-1, 1], of any sides n.
        prior: whose resolution and noise schedule are used.
        options: options.
        corrector: the CRT; None keeps the first condition.

    Raises:
        OptionError: the corrector does not fit the prior or the stride.
    """

    def __init__(
        self,
        low_resolution: Sequence[torch.Tensor],
        prior: Prior,
        options: DPIOptions,
        corrector: Corrector | None = None,
    ) -> None:
        super().__init__(low_resolution, prior)
        resolution = prior.resolution
        if resolution % options.stride:
            raise OptionError(f"stride is {options.stride}; it must divide the prior's resolution {resolution}")
        corrector = corrector if options.crt else None
        if corrector is not None:
            corrector.check(resolution, prior.schedule, options.stride)
        self.options, self.corrector = options, corrector
        self.condition = torch.cat(
            [make_condition(face[None], resolution, options.stride, options.placement) for face in low_resolution]
        )
        if corrector is not None:
            self.first_condition = torch.cat([corrector.first_condition(face[None]) for face in low_resolution])

    def start(self, step: Step, sampler: Sampler, initial: Initial | None = None) -> Started:
        """Pure noise or the noised guess at the face; if the corrector is asked once, the guess that it corrected."""
        x, _ = super().start(step, sampler, initial)
        if self.corrector is None or not self.options.crt_once:
            return x, self.condition
        t = min(step.t + 1, len(sampler.prior.schedule) - 1)  # trained on (x_{t−1}, t), t below T
        condition = self._corrected(self.corrector, x, t, sampler)
        if not step.pure_noise:
            stride = self.options.stride
            change = enlarge_grid(condition - self.enlarged[..., ::stride, ::stride], stride)
            if initial is not None:  # it needs no correction
                change = (1 - initial.known) * change
            x = x + math.sqrt(step.alphas_cumprod) * change
        return x, condition

    def step(self, x_t: torch.Tensor, condition: torch.Tensor, step: Step, sampler: Sampler) -> Stepped:
        """Hold the estimate to the condition on the grid, make the step, and correct the condition.

        The last step is left to the prior.
        """
        options, stride = self.options, self.options.stride
        denoised = sampler.estimate(x_t, step)
        if step.last:
            return sampler.solve(denoised, step), denoised.x0, condition

        # w_t · m_t: FCM, all of the grid, above τ · T; RACM, at random where the condition has edges, below
        weight: float | torch.Tensor = 1.0
        if step.fraction <= options.tau:
            mask = adaptive_mask(condition, options.edge_exponent, sampler.noise.uniform(1, *condition.shape[-2:]))
            weight = options.late_weight * step.fraction * mask

        # x0' = x0 + w_t · m_t · (y − x0); an ancestral solver also mixes x_t in, where y is noised with the same eps
        noised_condition = noised(condition, denoised.eps[..., ::stride, ::stride], step.alphas_cumprod)
        denoised = denoised._replace(
            x0=interpolate(denoised.x0, condition, weight, stride),
            x_t=interpolate(denoised.x_t, noised_condition, weight, stride),
        )
        x_prev = sampler.solve(denoised, step)

        # CRT sees x_{t−1} and is told the t of the step just made, as the authors' code does
        if self.corrector is not None and not options.crt_once:
            condition = self._corrected(self.corrector, x_prev, step.t, sampler)
        return x_prev, denoised.x0, condition

    def _corrected(self, corrector: Corrector, x: torch.Tensor, t: int, sampler: Sampler) -> torch.Tensor:
        skip = self.options.stride // corrector.network.stride
        told = torch.full((len(x),), t, device=x.device)
        return sampler.apply(corrector.network, x, told, self.first_condition)[..., ::skip, ::skip]


def interpolate(
    images: torch.Tensor, condition: torch.Tensor, weight: float | torch.Tensor, stride: int
) -> torch.Tensor:
    """Move images towards the condition on the grid: x + w · (y − x) where both indices are multiples of stride.

    Args:
        images: (B, 3, R, R).
        condition: y, (B, 3, R/k, R/k).
        weight: w in 0 to 1, a number or (B, 1, R/k, R/k).
        stride: k.
    """
    moved = images.clone()
    grid = moved[..., ::stride, ::stride]
    grid += weight * (condition - grid)
    return moved


def enlarge_grid(values: torch.Tensor, stride: int) -> torch.Tensor:
    """Fill the pixels between those of the grid bicubically: (B, 3, R/k, R/k) → (B, 3, R, R)."""
    side = stride * (values.shape[-1] - 1) + 1  # from the grid's first pixel to its last
    filled = F.interpolate(values, size=(side, side), mode="bicubic", align_corners=True)
    return F.pad(filled, (0, stride - 1, 0, stride - 1), mode="replicate")


def edge_strength(condition: torch.Tensor) -> torch.Tensor:
    """|Laplacian| of the grey condition, reflected at the border, min–max normalised for each image.

    Args:
        condition: (B, 3, h, w) in [-1, 1].

    Returns:
        (B, 1, h, w) in 0 to 1; 0 everywhere for an image without any edge.
    """
    grey = (condition * condition.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    kernel = condition.new_tensor(LAPLACIAN).view(1, 1, 3, 3)
    strength = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), kernel).abs()
    low, high = strength.amin((2, 3), keepdim=True), strength.amax((2, 3), keepdim=True)
    return (strength - low) / (high - low).clamp(min=_FLAT)


def adaptive_mask(condition: torch.Tensor, edge_exponent: float, uniform: torch.Tensor) -> torch.Tensor:
    """RACM on the grid: Bernoulli(ℓ^s), with ℓ the edge strength.

    Args:
        condition: (B, 3, h, w).
        edge_exponent: s.
        uniform: draws in [0, 1), (B, 1, h, w).

    Returns:
        Boolean, (B, 1, h, w).
    """
    return uniform < edge_strength(condition) ** edge_exponent


METHOD = Method(
    name="dpi",
    summary="interpolate the estimate towards a condition on a sparse grid, and correct the condition",
    reference="Yang et al., AAAI 2025, arXiv 2412.16552",
    restoration=DPI,
    options=DPIOptions(tau=0.0, late_weight=1.0, crt_once=True),
    sampling=SamplingOptions(steps=12, start=0.15, end=0.04),
    solvers=("ddim", "ddpm", "dpmpp-2m", "unipc"),
    uses_corrector=True,
)
