"""What the machine could do at best, measured, and what the networks ask of it, counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from faceprior.benchmark.speed.clock import Clock
from faceprior.corrector import PaperCorrector
from faceprior.priors import Prior

_BURST = 0.15  # seconds that a ceiling is measured for


@dataclass(frozen=True)
class Ceiling:
    """The most that the device does, with the threads that are set.

    Attributes:
        flops: floating point operations a second (a multiply–add is two) of one large matrix product or convolution,
            whichever is faster: torch gives them to different libraries, and one may reach half of the other's.
        bytes: bytes a second, read and written, of one large copy.
    """

    flops: float
    bytes: float


def measure_ceiling(device: torch.device, dtype: torch.dtype, clock: Clock) -> Ceiling:
    """Multiply two large square matrices, convolve and copy large arrays, and keep the best times."""
    large = device.type != "cpu"
    side, length = (8192, 1 << 28) if large else (1536, 1 << 26)
    channels, pixels = (1024, 128) if large else (512, 64)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    image, kernels = (
        torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
        for shape in ((1, channels, pixels, pixels), (channels, channels, 3, 3))
    )
    source = torch.zeros(length, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    product = 2 * side**3 / _best(lambda: left @ right, clock)
    convolution = 2 * 9 * channels**2 * pixels**2 / _best(lambda: F.conv2d(image, kernels, padding=1), clock)
    return Ceiling(
        flops=max(product, convolution),
        bytes=2 * length / _best(lambda: target.copy_(source), clock),
    )


def _best(work: Callable[[], object], clock: Clock) -> float:
    """Seconds of the fastest of many calls; the first is not counted."""
    work()
    best, spent = float("inf"), 0.0
    while spent < _BURST or best == float("inf"):
        start = clock.mark()
        work()
        own = clock.seconds(start, clock.mark())
        best, spent = min(best, own), spent + own
    return best


def count_flops(prior: Prior, corrector: PaperCorrector | None, *, differentiates: bool) -> dict[str, int]:
    """Count the floating point operations of one call of each network for one face.

    Counted are matrix products, convolutions and attention, a multiply–add as two; the rest is small beside them.

    Args:
        prior: its network.
        corrector: its network.
        differentiates: count the gradient with respect to the prior's input too.

    Returns:
        By "prior" and, if there is one, "corrector".
    """
    device, side = prior.device, prior.resolution
    image, t = torch.zeros(1, 3, side, side, device=device), torch.ones(1, dtype=torch.long, device=device)

    def ask() -> None:
        with torch.set_grad_enabled(differentiates):
            x = image.clone().requires_grad_(differentiates).clone()  # the counter stumbles over a leaf's gradient
            x0 = prior(x, t).x0
            if differentiates:
                torch.autograd.grad(x0.sum(), x)

    found = {"prior": _count(ask)}
    if corrector is not None:
        grid = image[..., :: corrector.stride, :: corrector.stride]
        found["corrector"] = _count(lambda: corrector(image, t, grid))
    return found


def _count(work: Callable[[], object]) -> int:
    # the counter knows attention as two matrix products, not every fused kernel of it
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()
