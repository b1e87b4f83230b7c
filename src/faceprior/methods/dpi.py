"""DPI, Diffusion Prior Interpolation (Yang et al., AAAI 2025, arXiv 2412.16552).

The prior's estimate of the clean image is interpolated towards a condition on a sparse grid: everywhere while the
noise is high (FCM, the fixed condition mask), later only where the condition has edges, at random and ever weaker
(RACM, the randomly adaptive condition mask). Between steps the condition itself is corrected (CRT).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F

from faceprior.cores import at_once
from faceprior.corrector import Correction, Corrector, Placement, make_condition
from faceprior.errors import OptionError
from faceprior.images import resize
from faceprior.methods.measured import Enlarged, check_not_negative, check_share, warm_start
from faceprior.methods.method import Method, SamplingOptions
from faceprior.methods.texture import with_texture
from faceprior.priors.adapter import Prior
from faceprior.sampling import Initial, Sampler, Started, Step, Stepped, noised

GREY = (0.2989, 0.587, 0.114)
LAPLACIAN = ((0.0, -1.0, 0.0), (-1.0, 4.0, -1.0), (0.0, -1.0, 0.0))

CRTUse = Literal["never", "first", "after", "always"]

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
        crt: when the corrector, where there is one, is asked: "never"; "first", before the first step, about the face
            alone, whose answer is then the condition and where a warm start begins; "after" every step, about the
            sample, as in the paper; "always", both.
        detail: how far the corrector follows the sample, 0 to 1: where a new condition lies between what it
            said first and what it says of the sample. 1 is the paper's; the less, the nearer to the expectation.
        detail_above: lowest frequency at which it does, in cycles a face: what is coarser stays what it said first.
            0, the paper's, is all of them.
        smooth: whether the condition is the whole face, and moves all that is coarser than the grid, in the last step
            too; in the paper it is the grid's pixels, the others stay, and the last step is the prior's.
        rederived: share of the noise estimate that is derived again from the moved x0, 0 to 1. The paper's, 0, keeps
            the prior's; a corrector that looks at the sample then sees its own moves as news.
        deviation: share of the sample's deviation from the corrector's expectation that stays at the end, 0 to 1; 1
            is the paper's.
        texture: how much of the power that is then missing a result is given, by a gain for each frequency
            (`faceprior.methods.texture`), times the factor of the prior's card; at least 0. 0 is the paper's.

    Raises:
        OptionError: a value is out of its range.
    """

    tau: float = 0.4
    late_weight: float = 2 / 3
    edge_exponent: float = 1.4
    stride: int = 2
    placement: Placement = "sampled"
    crt: CRTUse = "after"
    detail: float = 1.0
    detail_above: int = 0
    smooth: bool = False
    rederived: float = 0.0
    deviation: float = 1.0
    texture: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tau", "detail", "rederived", "deviation"):
            check_share(name, getattr(self, name))
        if not (self.late_weight >= 0 and self.late_weight * self.tau <= 1):
            raise OptionError(f"late weight is {self.late_weight}; times tau ({self.tau}) it must lie in 0 to 1")
        check_not_negative("edge exponent", self.edge_exponent)
        if self.stride not in (1, 2, 4, 8):
            raise OptionError(f"stride is {self.stride}; choose 1, 2, 4 or 8")
        if self.placement not in ("resized", "sampled"):
            raise OptionError(f"placement is {self.placement!r}; choose resized or sampled")
        if self.crt not in get_args(CRTUse):
            raise OptionError(f"crt is {self.crt!r}; choose {', '.join(get_args(CRTUse))}")
        if self.detail_above < 0:
            raise OptionError(f"detail above is {self.detail_above}; it must be at least 0, in cycles a face")
        check_not_negative("texture", self.texture)

    @property
    def finishes(self) -> bool:
        """Whether the end needs the corrector's expectation."""
        return self.texture > 0 or self.deviation < 1


class Conditions(NamedTuple):
    """DPI's state: conditions on the grid, (B, 3, R/k, R/k) each, or smooth ones of whole faces, (B, 3, R, R).

    Attributes:
        first: what the first step moves its estimate to.
        expected: what the corrector says of the face alone, where the result is to be finished by it.
        made: the last step; None before the first.
    """

    first: torch.Tensor
    expected: Correction | None = None
    made: Step | None = None


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
        corrector = None if options.crt == "never" else corrector
        if corrector is not None:
            corrector.check(resolution, prior.schedule, options.stride)
        self.options, self.corrector, self.texture = options, corrector, options.texture * prior.card.texture
        self.spacing = 1 if options.smooth else options.stride
        self.condition = torch.cat(
            [make_condition(face[None], resolution, self.spacing, options.placement) for face in low_resolution]
        )
        if corrector is not None:
            self.seen = torch.cat([corrector.network.see(face[None]) for face in low_resolution])

    def start(self, step: Step, sampler: Sampler, initial: Initial | None = None) -> Started:
        """Pure noise, or the noised guess at the face: the bicubic one, or the corrector's."""
        first, guess, finishing = self.condition, self.enlarged, None
        if self.corrector is not None and (self.options.crt != "after" or self.options.finishes):
            expected = self.corrector.alone(self.seen)
            finishing = expected if self.options.finishes else None
            if self.options.crt != "after":
                guess = expected.x0.clamp(-1, 1)
                first = self.conditioned(guess)
        return warm_start(guess, step, sampler, initial), Conditions(first, finishing)

    def step(self, x_t: torch.Tensor, conditions: Conditions, step: Step, sampler: Sampler) -> Stepped:
        """Correct the condition, hold the estimate to it on the grid, and make the step.

        The last step is left to the prior, as in the paper, unless moves are smooth: others would leave a grid.
        """
        options, level = self.options, step.alphas_cumprod
        if step.last and not options.smooth:
            denoised = sampler.estimate(x_t, step)
            return self.ended(sampler.solve(denoised, step), denoised.x0, conditions)

        # the prior and CRT look at x_t
        denoised, condition = at_once(lambda: sampler.estimate(x_t, step), lambda: self.corrected(x_t, conditions))

        # w_t · m_t: FCM, all of the grid, above τ · T; RACM, at random where the condition has edges, below
        weight: float | torch.Tensor = 1.0
        if step.fraction <= options.tau:
            mask = adaptive_mask(condition, options.edge_exponent, sampler.noise.uniform(1, *condition.shape[-2:]))
            weight = options.late_weight * step.fraction * mask

        # x0' = x0 + w_t · m_t · (y − x0); an ancestral solver also mixes x_t in, where y is noised with the same eps
        x0 = interpolate(denoised.x0, condition, weight, options.stride)
        noised_condition = noised(condition, self.conditioned(denoised.eps), level)
        x_t = interpolate(denoised.x_t, noised_condition, weight, options.stride)
        # eps' = (x_t − √ᾱ · x0') / √(1 − ᾱ), for the share that is derived again
        eps = denoised.eps - options.rederived * math.sqrt(level / (1 - level)) * (x0 - denoised.x0)
        x_prev = sampler.solve(denoised._replace(x0=x0, x_t=x_t, eps=eps), step)
        if step.last:
            return self.ended(x_prev, x0, conditions)
        return x_prev, x0, conditions._replace(made=step)

    def ended(self, sample: torch.Tensor, x0: torch.Tensor, conditions: Conditions) -> Stepped:
        """The last step, taken back towards the expectation as far as `deviation` says."""
        if conditions.expected is not None:
            sample = torch.lerp(conditions.expected.x0, sample, self.options.deviation)
        return sample, x0, conditions

    def finish(self, samples: torch.Tensor, state: Conditions) -> torch.Tensor:
        """Give samples the texture that they lack."""
        return samples if state.expected is None else with_texture(samples, state.expected, self.texture)

    def corrected(self, x_t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The condition of a step, by what CRT says of the x_t that the one before has led to.

        The authors' network is told the t of that step, as in their code, ours the t of x_t.
        """
        options, made = self.options, conditions.made
        if self.corrector is None or options.crt == "first" or made is None:
            return conditions.first
        network = self.corrector.network
        told = made.t_prev if network.knows_level else made.t
        correction = network(x_t, torch.full((len(x_t),), told, device=x_t.device), self.seen)
        corrected = self.conditioned(correction.x0)
        if options.detail_above:
            corrected = corrected - coarser(corrected - conditions.first, 2 * options.detail_above)
        return torch.lerp(conditions.first, corrected, options.detail)

    def conditioned(self, faces: torch.Tensor) -> torch.Tensor:
        """The pixels of faces (B, 3, R, R) that have a condition: the grid's, (B, 3, R/k, R/k), or all."""
        return faces[..., :: self.spacing, :: self.spacing]


def interpolate(
    images: torch.Tensor, condition: torch.Tensor, weight: float | torch.Tensor, stride: int
) -> torch.Tensor:
    """Move images towards a condition on the grid: x + w · (y − x) where both indices are multiples of stride.

    A condition on all pixels moves what is coarser than the grid alone: x + w · L(y − x), L a bicubic reduction
    to the grid's size and back. No pixel is then preferred to its neighbour, and no grid can appear.

    Args:
        images: x, (B, 3, R, R).
        condition: y, (B, 3, R/k, R/k) or (B, 3, R, R).
        weight: w in 0 to 1, a number or (B, 1) and the condition's sides.
        stride: k.
    """
    side = images.shape[-1]
    if condition.shape[-1] == side:
        return images + coarser(weight * (condition - images), side // stride)
    moved = images.clone()
    moved[..., ::stride, ::stride] += weight * (condition - images[..., ::stride, ::stride])
    return moved


def coarser(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """What so many pixels a side hold of images, (B, 3, h, h): a bicubic reduction, if it is one, and back."""
    side = images.shape[-1]
    return resize(resize(images, pixels), side) if pixels < side else images


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
    options=DPIOptions(
        tau=0.0,
        late_weight=1.0,
        crt="always",
        detail_above=16,
        smooth=True,
        rederived=1.0,
        deviation=0.4,
        texture=5.5,
    ),
    sampling=SamplingOptions(steps=5, start=0.3, end=0.02, shift=0.13),
    solvers=("ddim", "ddpm", "dpmpp-2m", "unipc"),
    uses_corrector=True,
    blind=True,
)
