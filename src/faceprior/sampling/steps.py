"""Which noise levels a sampler visits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from faceprior.errors import OptionError
from faceprior.priors.noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class Step:
    """One step of the sampler, from x_t to x_{t_prev}.

    A step may also go up, t_prev > t: it asks the prior nothing and noises x_t to the higher level.

    Attributes:
        index: 0 for the first (noisiest) step.
        t: noise level of x_t, 0 … T−1.
        told: noise level that the prior is told, at most t.
        t_prev: noise level of the result; −1 for the clean image.
        fraction: t / T.
        alphas_cumprod: ᾱ_t.
        alphas_cumprod_prev: ᾱ of the result; 1 for the clean image.
        pure_noise: whether the sampler starts here, from pure noise.
    """

    index: int
    t: int
    told: int
    t_prev: int
    fraction: float
    alphas_cumprod: float
    alphas_cumprod_prev: float
    pure_noise: bool

    @property
    def last(self) -> bool:
        """Whether the result is the clean image."""
        return self.t_prev < 0

    @property
    def rises(self) -> bool:
        """Whether the result is noisier than x_t."""
        return self.t_prev > self.t


CLEAN = Step(
    index=0, t=-1, told=-1, t_prev=-1, fraction=0.0, alphas_cumprod=1.0, alphas_cumprod_prev=1.0, pure_noise=False
)
"""Where a sampler without any step starts, and ends."""


def spaced_steps(
    schedule: NoiseSchedule, count: int, start: float = 1.0, end: float = 0.0, shift: float = 0.0
) -> list[Step]:
    """Spread `count` steps evenly from below the noise level `start` · T down to `end` · T ("leading" spacing).

    With start = 1, end = 0 and a count that divides T this is ADM's `ddim<count>`.

    Args:
        schedule: of the prior, T levels.
        count: number of steps, 1 … (start − end) · T.
        start: where the sampler starts, as a fraction of T, in (0, 1].
        end: level of the last step, as a fraction of T, at least 0 and below `start`.
        shift: share of t by which the prior is told a lower level than the image has, in every step but the last,
            at least 0 and below 1 (see `faceprior.methods.SamplingOptions`).

    Raises:
        OptionError: count, start, end or shift is out of its range.
    """
    total = len(schedule)
    if not 0 < start <= 1:
        raise OptionError(f"start is {start}; it must lie above 0 and at most 1 (1 is pure noise)")
    top = max(1, round(start * total))
    if not (0 <= end <= 1 and round(end * total) < top):
        raise OptionError(f"end is {end}; it must be at least 0 and lie below start ({start})")
    bottom = round(end * total)
    if not 1 <= count <= top - bottom:
        raise OptionError(f"steps is {count}; it must lie in 1 to {top - bottom} ((start − end) · T)")
    if not 0 <= shift < 1:
        raise OptionError(f"shift is {shift}; it must be at least 0 and below 1")
    levels = [bottom + i * (top - bottom) // count for i in range(count)]
    steps = []
    for index, t in enumerate(reversed(levels)):
        last = index == count - 1
        t_prev = -1 if last else levels[count - index - 2]
        steps.append(
            Step(
                index=index,
                t=t,
                told=t if last else round((1 - shift) * t),
                t_prev=t_prev,
                fraction=t / total,
                alphas_cumprod=float(schedule.alphas_cumprod[t]),
                alphas_cumprod_prev=1.0 if last else float(schedule.alphas_cumprod[t_prev]),
                pure_noise=index == 0 and start == 1,
            )
        )
    return steps


def time_travel(steps: Sequence[Step], length: int, visits: int) -> list[Step]:
    """Go down every stretch of `length` steps several times, noising the image again in between.

    The schedule of RePaint (Lugmayr et al. 2022, algorithm 1 and appendix B; also DDNM's time travel): wherever the
    sampler arrives at the end of a stretch, it goes back up to where the stretch began, `visits` − 1 times; the top
    stretch is gone down once. The way up is one step: noising is Gaussian, and `length` small ones are one large one.

    Args:
        steps: falling (`spaced_steps`).
        length: steps of a stretch, at least 1.
        visits: how often each stretch is gone down, at least 1; 1 leaves the steps as they are.
    """
    count = len(steps)
    places = dict.fromkeys(range(0, count - length, length), visits - 1)  # counted from the clean end
    path, place = [], count - 1
    while place >= 0:
        if places.get(place, 0) > 0:
            places[place] -= 1
            low, high = steps[count - 1 - place], steps[count - 1 - place - length]
            path.append(replace(low, t_prev=high.t, alphas_cumprod_prev=high.alphas_cumprod, pure_noise=False))
            place += length
        else:
            path.append(steps[count - 1 - place])
            place -= 1
    return [replace(step, index=index, pure_noise=index == 0 and step.pure_noise) for index, step in enumerate(path)]


def noise_of_rise(step: Step) -> tuple[float, float]:
    """Factors (a, b) of a rising step x' = a · x + b · z, z standard normal: q(x' | x_t), Ho et al. 2020, eq. 2."""
    alpha = step.alphas_cumprod_prev / step.alphas_cumprod
    return math.sqrt(alpha), math.sqrt(1 - alpha)
