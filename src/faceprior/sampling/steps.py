"""Which noise levels a sampler visits."""

from __future__ import annotations

from dataclasses import dataclass

from faceprior.errors import OptionError
from faceprior.priors.noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class Step:
    """One step of the sampler, from x_t to x_{t_prev}.

    Attributes:
        index: 0 for the first (noisiest) step.
        t: noise level of x_t, 0 … T−1.
        t_prev: noise level of the result; −1 for the clean image.
        fraction: t / T.
        alphas_cumprod: ᾱ_t.
        alphas_cumprod_prev: ᾱ of the result; 1 for the clean image.
        pure_noise: whether the sampler starts here, from pure noise.
    """

    index: int
    t: int
    t_prev: int
    fraction: float
    alphas_cumprod: float
    alphas_cumprod_prev: float
    pure_noise: bool

    @property
    def last(self) -> bool:
        """Whether the result is the clean image."""
        return self.t_prev < 0


def spaced_steps(schedule: NoiseSchedule, count: int, start: float = 1.0) -> list[Step]:
    """Spread `count` steps evenly below the noise level `start` · T ("leading" spacing: t = 0 is the last).

    With start = 1 and a count that divides T this is ADM's `ddim<count>`.

    Args:
        schedule: of the prior, T levels.
        count: number of steps, 1 … start · T.
        start: where the sampler starts, as a fraction of T, in (0, 1].

    Raises:
        OptionError: count or start is out of its range.
    """
    total = len(schedule)
    if not 0 < start <= 1:
        raise OptionError(f"start is {start}; it must lie above 0 and at most 1 (1 is pure noise)")
    top = max(1, round(start * total))
    if not 1 <= count <= top:
        raise OptionError(f"steps is {count}; it must lie in 1 to {top} (start · T)")
    levels = [i * top // count for i in range(count)]
    steps = []
    for index, t in enumerate(reversed(levels)):
        t_prev = levels[count - index - 2] if index < count - 1 else -1
        steps.append(
            Step(
                index=index,
                t=t,
                t_prev=t_prev,
                fraction=t / total,
                alphas_cumprod=float(schedule.alphas_cumprod[t]),
                alphas_cumprod_prev=float(schedule.alphas_cumprod[t_prev]) if t_prev >= 0 else 1.0,
                pure_noise=index == 0 and start == 1,
            )
        )
    return steps
