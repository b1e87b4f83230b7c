import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, current_thread
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from faceprior.cores import at_once, on_cores
from faceprior.errors import OptionError, WeightsError
from faceprior.methods.dpi import DPI, Conditions, DPIOptions
from faceprior.priors.adapter import Prior
from faceprior.priors.card import ModelCard
from faceprior.priors.noise_schedule import NoiseSchedule, ddim_scheduler_config
from faceprior.sampling import (
    Batch,
    Denoised,
    Initial,
    NoiseSource,
    Restoration,
    Sampler,
    face_generator,
    make_solver,
    sample,
    sample_batches,
    spaced_steps,
    spawn_generators,
)
from faceprior.sampling.solvers import DDIM, AncestralDDPM, DPMSolverPP2M, UniPC

SCHEDULE = NoiseSchedule.linear()
CPU = torch.device("cpu")


def levels(count, start=1.0, schedule=SCHEDULE):
    return [step.t for step in spaced_steps(schedule, count, start)]


def noise_source(*seeds):
    return NoiseSource([torch.Generator().manual_seed(seed) for seed in seeds], CPU)


# --- steps ---


def test_twenty_steps_are_adms_ddim20():
    assert levels(20) == list(range(950, -1, -50))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 10, 20, 25, 50, 100, 125, 200, 250, 500, 1000])
def test_counts_that_divide_the_schedule_are_diffusers_leading_spacing(count):
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=0)
    scheduler.set_timesteps(count)
    assert levels(count) == scheduler.timesteps.tolist()


@settings(deadline=None)
@given(st.data())
def test_any_number_of_steps_falls_strictly_to_the_clean_image(data):
    total = data.draw(st.integers(1, 300), label="T")
    start = data.draw(st.floats(1e-6, 1), label="start")
    top = max(1, round(start * total))
    bottom = data.draw(st.integers(0, top - 1), label="last level")
    count = data.draw(st.integers(1, top - bottom), label="count")
    schedule = NoiseSchedule.linear(total, 1e-4, 0.02)
    steps = spaced_steps(schedule, count, start, bottom / total)
    visited = [step.t for step in steps]
    assert len(steps) == count
    assert visited == sorted(set(visited), reverse=True)
    assert visited[-1] == bottom
    assert visited[0] < top
    assert [step.t_prev for step in steps] == [*visited[1:], -1]
    assert [step.last for step in steps] == [False] * (count - 1) + [True]
    for index, step in enumerate(steps):
        assert step.index == index
        assert step.fraction == step.t / total
        assert step.alphas_cumprod == schedule.alphas_cumprod[step.t]
        assert step.alphas_cumprod_prev == (1 if step.last else schedule.alphas_cumprod[step.t_prev])


@pytest.mark.parametrize(
    ("count", "start"),
    [(0, 1.0), (-1, 1.0), (1001, 1.0), (501, 0.5), (1, 0.0), (1, -0.1), (1, 1.1), (1, math.nan), (2, 1e-9)],
)
def test_steps_out_of_range_are_refused(count, start):
    with pytest.raises(OptionError, match=r"steps is|start is"):
        spaced_steps(SCHEDULE, count, start)


@pytest.mark.parametrize("end", [-0.1, 0.5, 0.7, math.inf, math.nan])
def test_an_end_that_is_not_below_the_start_is_refused(end):
    with pytest.raises(OptionError, match="end is"):
        spaced_steps(SCHEDULE, 1, 0.5, end)


@pytest.mark.parametrize("shift", [-0.1, 1.0, math.nan])
def test_a_shift_out_of_range_is_refused(shift):
    with pytest.raises(OptionError, match="shift is"):
        spaced_steps(SCHEDULE, 4, 0.5, shift=shift)


def test_the_prior_is_told_a_lower_level_in_every_step_but_the_last(tiny):
    steps = spaced_steps(SCHEDULE, 4, 0.4, 0.1, shift=0.2)
    assert [step.t for step in steps] == [325, 250, 175, 100]
    assert [step.told for step in steps] == [260, 200, 140, 100]
    prior, x = tiny.gaussian_prior(), torch.randn(1, 3, 32, 32)
    told = []
    prior.network.register_forward_hook(lambda module, args, output: told.append(args[1].item()))
    sampler = Sampler(prior, make_solver("ddim"), NoiseSource([torch.Generator()], torch.device("cpu")))
    estimates = [sampler.estimate(x, step) for step in steps]
    assert told == [260, 200, 140, 100]
    for step, estimate in zip(steps, estimates, strict=True):  # ε is that of the level that the image has
        again = math.sqrt(step.alphas_cumprod) * estimate.x0 + math.sqrt(1 - step.alphas_cumprod) * estimate.eps
        torch.testing.assert_close(again, x)


# --- one step of a solver against diffusers and the equations ---


class Constant(nn.Module):
    """Predicts the same tensor whatever it sees."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = nn.Parameter(prediction, requires_grad=False)

    def forward(self, x_t, t):
        return SimpleNamespace(sample=self.prediction.expand(len(x_t), -1, -1, -1))


class Given(Restoration):
    """An unconditional restoration that starts from a given x_t."""

    def __init__(self, x):
        self.x = x

    def start(self, step, sampler, initial=None):
        return self.x, None


def constant_prior(prediction, prediction_type="epsilon"):
    schedule = ddim_scheduler_config({}, prediction_type)
    card = ModelCard(kind="prior", name="constant", resolution=prediction.shape[-1], schedule=schedule)
    return Prior(Constant(prediction), card)


def one_step(solver, prediction, x, step, seed=5, prediction_type="epsilon"):
    prior = constant_prior(prediction, prediction_type)
    return sample(Given(x), [step], Sampler(prior, solver, noise_source(seed)))


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("count", [20, 7])
def test_a_ddim_step_is_that_of_diffusers_with_the_clipped_model_output(rng, eta, prediction_type, count):
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=True,
        set_alpha_to_one=True,
        prediction_type=prediction_type,
    )
    clipped = 0
    for step in spaced_steps(SCHEDULE, count):
        x, prediction = (torch.randn(1, 3, 8, 8, generator=rng) for _ in range(2))
        scheduler.num_inference_steps = 1  # the step back is t − T/1 unless it is the one that we take:
        scheduler.config.num_train_timesteps = step.t - step.t_prev
        z = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(5))[None]
        expected = scheduler.step(prediction, step.t, x, eta=eta, use_clipped_model_output=True, variance_noise=z)
        found = one_step(DDIM(eta), prediction, x, step, prediction_type=prediction_type)
        torch.testing.assert_close(found, expected.prev_sample, atol=1e-5, rtol=1e-5)
        clipped += (expected.pred_original_sample.abs() == 1).sum()
    assert clipped > 100  # the comparison covers clipping


def ancestral_scheduler(variance_type):
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type=variance_type, clip_sample=True)
    scheduler.alphas_cumprod = SCHEDULE.alphas_cumprod  # in float32 its 1 − α is off by 6e-4 at small t
    return scheduler


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("count", [1000, 50])
def test_an_ancestral_step_is_that_of_diffusers(rng, variance_type, count):
    scheduler = ancestral_scheduler(variance_type)
    scheduler.set_timesteps(count)
    steps = spaced_steps(SCHEDULE, count)
    channels = 6 if variance_type == "learned_range" else 3
    for step in (*steps[:: max(1, count // 25)], *steps[-3:]):
        x, prediction = torch.randn(1, 3, 8, 8, generator=rng), torch.randn(1, channels, 8, 8, generator=rng)
        expected = scheduler.step(prediction, step.t, x, generator=torch.Generator().manual_seed(5))
        found = one_step(AncestralDDPM(), prediction, x, step)
        torch.testing.assert_close(found, expected.prev_sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1000, 50, 3])
def test_an_ancestral_step_draws_from_the_posterior_of_bayes_rule(rng, count):
    for step in spaced_steps(SCHEDULE, count)[:: max(1, count // 10)]:
        if step.last:
            continue
        x, x0, share = (torch.randn(2, 3, 4, 4, generator=rng) for _ in range(3))
        share = share.clamp(-1, 1)
        # q(x' | x_t, x0) ∝ N(x_t; √α x', β) · N(x'; √ᾱ' x0, 1 − ᾱ'), in float64
        alpha = step.alphas_cumprod / step.alphas_cumprod_prev
        beta, rest = 1 - alpha, 1 - step.alphas_cumprod_prev
        variance = 1 / (alpha / beta + 1 / rest)
        mean = variance * (alpha**0.5 * x.double() / beta + step.alphas_cumprod_prev**0.5 * x0.double() / rest)
        z = noise_source(1, 2).normal(3, 4, 4).double()

        fixed = AncestralDDPM().step(Denoised(x, x0, x, None), step, noise_source(1, 2))
        torch.testing.assert_close(fixed.double(), mean + variance**0.5 * z, atol=1e-5, rtol=1e-5)
        learned = AncestralDDPM().step(Denoised(x, x0, x, share), step, noise_source(1, 2))
        mixed = beta ** ((share.double() + 1) / 2) * variance ** ((1 - share.double()) / 2)
        torch.testing.assert_close(learned.double(), mean + mixed**0.5 * z, atol=1e-5, rtol=1e-5)


# --- multistep solvers ---

MULTISTEP = ["dpmpp-2m", "unipc"]


def curved_estimate(x, t):
    """Some x0 that depends on x_t and t, neither linearly; float64."""
    return torch.tanh((1 + t / 1000) * x + math.sin(t / 90))


def run_on_curved_estimates(solver, steps, x):
    for step in steps:
        level, x0 = step.alphas_cumprod, curved_estimate(x, step.t)
        eps = (x - math.sqrt(level) * x0) / math.sqrt(1 - level)
        x = solver.step(Denoised(x, x0, eps, None), step, noise_source())
        yield x


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("dpmpp-2m", partial(DPMSolverMultistepScheduler, algorithm_type="dpmsolver++")),
        ("unipc", partial(UniPCMultistepScheduler, solver_type="bh2", predict_x0=True)),
    ],
)
def test_a_multistep_solver_is_that_of_diffusers(rng, name, scheduler):
    scheduler = scheduler(
        beta_start=1e-4,
        beta_end=0.02,
        solver_order=2,
        prediction_type="sample",
        timestep_spacing="leading",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.set_timesteps(9)
    steps = spaced_steps(SCHEDULE, 9, 1.0, 0.1)
    assert scheduler.timesteps.tolist() == [step.t for step in steps]
    x = expected = torch.randn(1, 3, 8, 8, generator=rng, dtype=torch.float64)
    for t, found in zip(scheduler.timesteps, run_on_curved_estimates(make_solver(name), steps, x), strict=True):
        expected = scheduler.step(curved_estimate(expected, int(t)), t, expected).prev_sample
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "least", "most"), [("ddim", 1.5, 3.5), ("dpmpp-2m", 4.5, 9), ("unipc", 4.5, 20)])
def test_errors_of_a_solver_of_order_p_fall_with_the_pth_power_of_the_steps(name, least, most):
    """On a Gaussian prior, from level 600 to 100 in 10 and in 25 steps: 2.5 times as many."""

    def run(count):
        steps = spaced_steps(SCHEDULE, count + 1, 0.1 + 0.5 * (count + 1) / count, 0.1)
        assert (steps[0].t, steps[-1].t) == (600, 100)
        start = Given(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
        return sample(start, steps, Sampler(block_prior(), make_solver(name), noise_source(0), clip=False))

    exact = run(500)
    few, more = ((run(count) - exact).norm().item() for count in (10, 25))
    assert least < few / more < most


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_multistep_solver_begins_and_ends_with_ddim(rng, name):
    x = torch.randn(1, 3, 8, 8, generator=rng, dtype=torch.float64)
    for count in (1, 2):
        steps = spaced_steps(SCHEDULE, count)
        found, ddim = (list(run_on_curved_estimates(make_solver(own), steps, x)) for own in (name, "ddim"))
        for one, other in zip(found, ddim, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_multistep_solver_forgets_what_lies_before_a_rise_or_another_run(rng, name):
    x, solver = torch.randn(1, 3, 8, 8, generator=rng, dtype=torch.float64), make_solver(name)
    steps = spaced_steps(SCHEDULE, 10)
    expected = list(run_on_curved_estimates(make_solver(name), steps, x))
    *_, half_way = run_on_curved_estimates(solver, steps[:5], x)
    assert torch.equal(half_way, expected[4])
    again = list(run_on_curved_estimates(solver, steps, x))  # as after a rise to the first level
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_multistep_solver_goes_on_from_what_a_method_made_of_x(rng, name):
    """A restoration may change x_{t−1}: the change stays in, times √ᾱ' · … of the DDIM step."""
    x, change = (torch.randn(1, 3, 4, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    steps, x0s = spaced_steps(SCHEDULE, 10)[:3], torch.randn(3, 1, 3, 4, 4, generator=rng, dtype=torch.float64)

    def run(changed):
        solver, current = make_solver(name), x
        for index, (step, x0) in enumerate(zip(steps, x0s, strict=True)):
            current = current + changed * (index == 2)
            level = step.alphas_cumprod
            eps = (current - math.sqrt(level) * x0) / math.sqrt(1 - level)
            current = solver.step(Denoised(current, x0, eps, None), step, noise_source())
        return current

    last = steps[2]
    share = math.sqrt((1 - last.alphas_cumprod_prev) / (1 - last.alphas_cumprod))
    torch.testing.assert_close(run(change) - run(0), share * change)


def test_the_last_step_draws_no_noise_and_returns_the_clipped_estimate(rng):
    x, eps = (torch.randn(1, 3, 4, 4, generator=rng) for _ in range(2))
    step = spaced_steps(SCHEDULE, 10)[-1]
    x0 = (x.double() - math.sqrt(1 - step.alphas_cumprod) * eps) / math.sqrt(step.alphas_cumprod)
    for solver in (DDIM(0.0), DDIM(1.0), AncestralDDPM(), make_solver("dpmpp-2m"), make_solver("unipc")):
        found = one_step(solver, eps, x, step)
        torch.testing.assert_close(found.double(), x0.clamp(-1, 1), atol=1e-5, rtol=1e-5)
        assert torch.equal(found, one_step(solver, eps, x, step, seed=6))


@pytest.mark.parametrize(
    ("name", "eta"),
    [("ddim", -0.1), ("ddim", 1.1), ("ddim", math.nan), ("ddpm", 0.5), ("unipc", 0.5), ("euler", 0.0), ("", 0.0)],
)
def test_an_unknown_solver_or_eta_is_refused(name, eta):
    with pytest.raises(OptionError):
        make_solver(name, eta)


def test_solvers_are_made_by_name():
    assert make_solver("ddim", 0.3) == DDIM(0.3)
    assert make_solver("ddpm") == AncestralDDPM()
    assert isinstance(make_solver("dpmpp-2m"), DPMSolverPP2M)
    assert isinstance(make_solver("unipc"), UniPC)
    assert make_solver("unipc") is not make_solver("unipc")  # they remember their steps


# --- a prior whose posterior is known ---

MEAN = torch.tensor([0.2, -0.3, 0.1, 0.4], dtype=torch.float64)
SPREAD = torch.tensor(
    [[1.0, 0.8, 0.7, 0.6], [0.8, 1.2, 0.5, 0.6], [0.7, 0.5, 0.9, 0.4], [0.6, 0.6, 0.4, 1.1]],
    dtype=torch.float64,
)
COVARIANCE = 0.2 * SPREAD
"""Of the pixels of every 2×2 block, row by row; blocks and channels are independent of each other, so one image
of side 8 holds 48 draws. The first pixel of a block stands on the grid of stride 2."""


def to_blocks(images):
    """(B, 3, H, W) → (B·3·H/2·W/2, 4)."""
    blocks = images.unfold(-2, 2, 2).unfold(-2, 2, 2)  # (B, 3, H/2, W/2, 2, 2)
    return blocks.reshape(-1, 4)


def from_blocks(blocks, shape):
    batch, channels, height, width = shape
    blocks = blocks.view(batch, channels, height // 2, width // 2, 2, 2)
    return blocks.transpose(3, 4).reshape(shape)


class BlockGaussian(nn.Module):
    """The exact denoiser of N(MEAN, COVARIANCE) in every block, as a diffusers-like network (float64)."""

    input_dtype = torch.float64

    def __init__(self, prediction_type):
        super().__init__()
        self.prediction_type = prediction_type
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, x_t, t):
        level = SCHEDULE.alphas_cumprod[t[0]]
        noisy = level * COVARIANCE + (1 - level) * torch.eye(4, dtype=torch.float64)
        centred = to_blocks(x_t) - level.sqrt() * MEAN
        x0 = MEAN + level.sqrt() * centred @ torch.linalg.solve(noisy, COVARIANCE)
        x0 = from_blocks(x0, x_t.shape)
        eps = (x_t - level.sqrt() * x0) / (1 - level).sqrt()
        v = level.sqrt() * eps - (1 - level).sqrt() * x0
        return SimpleNamespace(sample={"epsilon": eps, "sample": x0, "v_prediction": v}[self.prediction_type])


def block_prior(prediction_type="sample", side=8):
    schedule = ddim_scheduler_config({}, prediction_type)
    card = ModelCard(kind="prior", name="blocks", resolution=side, schedule=schedule)
    return Prior(BlockGaussian(prediction_type), card)


def test_the_three_prediction_types_give_one_estimate(rng):
    x_t, t = torch.randn(1, 3, 8, 8, generator=rng), torch.tensor([400])
    estimates = [block_prior(kind)(x_t, t) for kind in ("sample", "epsilon", "v_prediction")]
    for estimate in estimates:
        torch.testing.assert_close(estimate.x0, estimates[0].x0, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(estimate.eps, estimates[0].eps, atol=1e-5, rtol=1e-5)
        level = SCHEDULE.at(t)
        rebuilt = level.sqrt() * estimate.x0 + (1 - level).sqrt() * estimate.eps
        torch.testing.assert_close(rebuilt, x_t, atol=1e-5, rtol=1e-5)
        assert estimate.variance_range is None


def test_six_channels_are_an_estimate_and_a_variance(rng):
    prediction = torch.randn(1, 6, 4, 4, generator=rng)
    estimate = constant_prior(prediction)(torch.randn(2, 3, 4, 4, generator=rng), torch.tensor([1, 2]))
    assert torch.equal(estimate.eps, prediction[:, :3].expand(2, -1, -1, -1))
    assert torch.equal(estimate.variance_range, prediction[:, 3:].expand(2, -1, -1, -1))


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(WeightsError, match="flow"):
        constant_prior(torch.zeros(1, 3, 4, 4), "flow")


class Silent(NoiseSource):
    """Draws zeros: what a linear sampler makes of it is the mean of its samples."""

    def __init__(self):
        super().__init__([], CPU)

    def normal(self, *shape):
        return torch.zeros(1, *shape)


def affine_map(prior, restoration, steps):
    """Mean and matrix of a deterministic linear sampler, of one block: it maps N(0, I) to N(mean, A Aᵀ)."""
    starts = torch.zeros(5, 4)
    starts[1:] = torch.eye(4)
    starts = from_blocks(starts.repeat_interleave(3 * (8 // 2) ** 2, dim=0), (5, 3, 8, 8))
    rows = []
    for x in starts:
        restoration = started(restoration, x[None])
        found = sample(restoration, steps, Sampler(prior, DDIM(), Silent(), clip=False))
        blocks = to_blocks(found).double()
        rows.append(blocks)
    mean = rows[0]
    return mean, torch.stack([row - mean for row in rows[1:]], dim=-1)  # (N, 4), (N, 4, 4)


def started(restoration, x):
    """The same, started from x."""
    held = getattr(restoration, "condition", None)
    restoration.start = lambda step, sampler, initial: (x, None if held is None else Conditions(held))
    return restoration


def test_deterministic_ddim_carries_noise_to_the_prior():
    """The probability-flow ODE maps N(0, I) to the prior exactly; 250 steps come within a few per cent."""
    coarse, fine = (affine_map(block_prior(), Restoration(), spaced_steps(SCHEDULE, count)) for count in (25, 250))
    for mean, matrix in (coarse, fine):
        torch.testing.assert_close(mean, MEAN.expand_as(mean), atol=0.01, rtol=0)
        torch.testing.assert_close(matrix, matrix[:1].expand_as(matrix), atol=1e-4, rtol=0)
    errors = [(matrix[0] @ matrix[0].T - COVARIANCE).norm() / COVARIANCE.norm() for _, matrix in (coarse, fine)]
    assert errors[1] < 0.02
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("solver", [AncestralDDPM(), DDIM(1.0)], ids=["ancestral", "ddim with eta 1"])
def test_stochastic_samplers_draw_from_the_prior(solver):
    steps = spaced_steps(SCHEDULE, 1000)
    found = sample(Restoration(), steps, Sampler(block_prior(side=64), solver, noise_source(0, 1), clip=False))
    blocks = to_blocks(found).double()
    count = len(blocks)  # 6144 independent draws: the standard error of a variance is 1.8 % of it
    assert count == 2 * 3 * 32 * 32
    torch.testing.assert_close(blocks.mean(0), MEAN, atol=4 * (0.24 / count) ** 0.5, rtol=0)
    assert (blocks.T.cov() - COVARIANCE).norm() / COVARIANCE.norm() < 0.05


GRID_CONDITION = torch.tensor([0.6, -0.2, 0.1], dtype=torch.float64)


def fcm(prior):
    """DPI that holds the whole grid at every level but the last, to one value a channel."""
    face = GRID_CONDITION.float().view(3, 1, 1).expand(3, 8, 8)
    return DPI([face], prior, DPIOptions(tau=0.0, late_weight=0.0, stride=2, placement="sampled"))


def grid_posterior():
    """Mean (48, 4) and covariance of a block given its grid pixel."""
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    y = GRID_CONDITION.repeat_interleave(16)[:, None]
    mean = torch.cat([y, MEAN[1:] + (y - MEAN[0]) * gain], dim=1)
    covariance = torch.zeros(4, 4, dtype=torch.float64)
    covariance[1:, 1:] = COVARIANCE[1:, 1:] - torch.outer(gain, COVARIANCE[0, 1:])
    return mean, covariance


def test_deterministic_fcm_samples_the_posterior_given_the_grid():
    """With a Gaussian prior and w = 1, DDIM with FCM becomes posterior sampling as the steps get many.

    Write σ² = (1 − ᾱ)/ᾱ, x = x_t/√ᾱ, D(x) = E[x0 | x_t] = Σu with u = (Σ + σ²I)⁻¹x (zero mean). The
    interpolation leaves x_g = y + σ ε̂_g on the grid, whose fixed point is D(x)_g = y. Solving that for u_g gives
    off the grid D(x)_o = μ + S u_o and x_o = μ + (S + σ²) u_o, with μ and S mean and covariance of x_o given
    x_g = y. So dx_o/dlnσ = x_o − D(x)_o = σ²(S + σ²)⁻¹(x_o − μ): the probability flow of that posterior itself.

    With finitely many steps the grid lags behind its fixed point, so the error falls with the steps.
    """
    mean, covariance = grid_posterior()
    errors = []
    for count in (20, 100, 1000):
        prior = block_prior()
        found, matrix = affine_map(prior, fcm(prior), spaced_steps(SCHEDULE, count))
        off_mean = ((found - mean)[:, 1:].norm() / (mean - MEAN)[:, 1:].norm()).item()
        spread = matrix[0] @ matrix[0].T
        off_covariance = ((spread - covariance)[1:, 1:].norm() / covariance.norm()).item()
        assert spread[0, 0] < 1e-3 * COVARIANCE[0, 0]  # the grid itself is held
        torch.testing.assert_close(found[:, 0], mean[:, 0], atol=0.02, rtol=0)
        errors.append((off_mean, off_covariance))
    assert errors[0][0] > 3 * errors[1][0] > 6 * errors[2][0]
    assert errors[2][0] < 0.03
    assert errors[2][1] < 0.02


@pytest.mark.parametrize("solver", [DDIM(1.0), AncestralDDPM()], ids=["ddim with eta 1", "ancestral"])
def test_the_mean_of_stochastic_fcm_nears_the_posterior_mean(solver):
    """The samplers are affine in their draws, so the mean of the samples is what no noise at all gives."""
    mean, _ = grid_posterior()
    errors = []
    for count in (20, 200, 1000):
        prior = block_prior()
        restoration = started(fcm(prior), torch.zeros(1, 3, 8, 8))
        found = sample(restoration, spaced_steps(SCHEDULE, count), Sampler(prior, solver, Silent(), clip=False))
        blocks = to_blocks(found).double()
        torch.testing.assert_close(blocks[:, 0], mean[:, 0], atol=0.01, rtol=0)
        errors.append(((blocks - mean)[:, 1:].norm() / (mean - MEAN)[:, 1:].norm()).item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] > 5 * errors[1] > 15 * errors[2]
    assert errors[2] < 0.01


def test_without_clipping_the_ancestral_rule_is_the_same_interpolation_as_ddim_with_eta_1():
    """DESIGN §2: noising y to level t and taking its posterior mean changes nothing then."""
    prior = block_prior()
    steps = spaced_steps(SCHEDULE, 20)
    found = [
        sample(fcm(prior), steps, Sampler(prior, solver, noise_source(3), clip=False))
        for solver in (AncestralDDPM(), DDIM(1.0))
    ]
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_fcm_leaves_on_the_grid_what_the_last_estimate_makes_of_the_held_value():
    """x_{t=0} is √ᾱ₀ y + √(1 − ᾱ₀) ε̂ on the grid; the result there is the prior's own estimate from it."""
    prior, seen = block_prior(), []
    steps = spaced_steps(SCHEDULE, 10)

    def watch(step, x_prev, x0):
        seen.append((x_prev, x0))
        return x_prev

    found = sample(fcm(prior), steps, Sampler(prior, DDIM(), noise_source(0), clip=False), on_step=watch)
    y = GRID_CONDITION.float().view(1, 3, 1, 1).expand(1, 3, 4, 4)
    for (x_prev, x0), step in zip(seen[:-1], steps, strict=False):
        torch.testing.assert_close(x0[..., ::2, ::2], y)
        level = step.alphas_cumprod_prev
        eps = (x_prev - math.sqrt(level) * x0) / math.sqrt(1 - level)
        assert eps[..., ::2, ::2].std() > 0.1  # its noise is still on it
    final = prior(seen[-2][0], torch.tensor([0])).x0
    torch.testing.assert_close(found, final, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[..., ::2, ::2], y, atol=0.05, rtol=0)
    assert not torch.equal(found[..., ::2, ::2], y)


# --- the loop ---


def test_the_loop_goes_on_with_what_on_step_returns(rng):
    prior, steps = block_prior(), spaced_steps(SCHEDULE, 3)
    marker = torch.randn(1, 3, 8, 8, generator=rng)
    calls = []

    def on_step(step, x_prev, x0):
        calls.append(step)
        return marker if step.index == 1 else x_prev

    found = sample(Restoration(), steps, Sampler(prior, DDIM(), noise_source(0), clip=False), on_step=on_step)
    assert calls == steps
    torch.testing.assert_close(found, prior(marker, torch.tensor([0])).x0, atol=1e-5, rtol=1e-5)


def test_clipping_is_a_choice(rng):
    x, eps = (3 * torch.randn(1, 3, 4, 4, generator=rng) for _ in range(2))
    prior, step = constant_prior(eps), spaced_steps(SCHEDULE, 10)[-1]
    clipped, free = (
        sample(Given(x), [step], Sampler(prior, DDIM(), noise_source(0), clip=clip)) for clip in (True, False)
    )
    assert clipped.abs().max() == 1
    assert free.abs().max() > 1
    assert torch.equal(clipped, free.clamp(-1, 1))


def test_batches_side_by_side_are_what_they_are_alone_and_a_callback_sees_them_all():
    steps = spaced_steps(SCHEDULE, 3)
    seen = []

    def batch(*seeds):
        return Batch(Restoration(), Sampler(block_prior(), AncestralDDPM(), noise_source(*seeds)))

    def brighten(step, x_prev, x0):
        seen.append((step.index, len(x_prev), len(x0)))
        return x_prev + torch.arange(3.0).view(3, 1, 1, 1) * step.last

    found = sample_batches([batch(0, 1), batch(2)], steps, on_step=brighten).results
    assert seen == [(0, 3, 3), (1, 3, 3), (2, 3, 3)]
    for position in range(3):
        alone = sample_batches([batch(position)], steps).results
        torch.testing.assert_close(found[position : position + 1], alone + position)


# --- cores ---


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize("count", [1, 3])
def test_each_call_has_one_thread_of_torch_and_so_many_run_at_once(threads, count):
    threads(count)
    together = Barrier(count)

    def call(number, text):
        together.wait(timeout=60)
        return torch.get_num_threads(), torch.is_grad_enabled(), text * number

    with torch.no_grad():
        found = on_cores(call, range(2 * count), "ab" * count)
    assert found == [(1, False, "ab"[number % 2] * number) for number in range(2 * count)]
    assert torch.get_num_threads() == count
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == count


def test_what_a_call_on_a_core_raises_is_raised(threads):
    threads(2)
    with pytest.raises(OptionError, match="no 1"):
        on_cores(lambda number: (_ for _ in ()).throw(OptionError(f"no {number}")), [1, 2])


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_called_at_once_has_a_core_each_where_one_is_free(threads, count):
    threads(2)
    begun, together = Barrier(count), Barrier(2)

    def call(text):
        together.wait(timeout=60)
        return text, current_thread(), torch.get_num_threads(), torch.is_grad_enabled()

    def image(_):
        begun.wait(timeout=60)
        return at_once(partial(call, "first"), partial(call, "second"))

    with torch.no_grad():
        found = on_cores(image, range(count))
    for first, second in found:
        assert (first[0], *first[2:]) == ("first", 1, False)
        assert (second[0], *second[2:]) == ("second", 1, False)
        assert (first[1] is second[1]) == (count == 2)  # each of two images has its core for itself


def test_what_is_called_at_once_elsewhere_is_called_in_turn(threads):
    called = []
    threads(2)
    assert at_once(lambda: called.append("first"), lambda: called.append("second")) == (None, None)
    assert called == ["first", "second"]


@pytest.mark.parametrize("which", [0, 1])
def test_what_one_of_two_calls_at_once_raises_is_raised(threads, which):
    threads(2)

    def fail():
        raise OptionError("no")

    calls = [fail if which == place else list for place in range(2)]
    with pytest.raises(OptionError, match="no"):
        on_cores(lambda _: at_once(*calls), [0])


# --- noise ---


def test_every_image_has_its_own_noise():
    together = noise_source(1, 2, 3)
    normal, uniform = together.normal(3, 4, 4), together.uniform(1, 5, 5)
    assert normal.shape == (3, 3, 4, 4)
    assert uniform.shape == (3, 1, 5, 5)
    assert normal.dtype == uniform.dtype == torch.float32
    assert uniform.min() >= 0
    assert uniform.max() < 1
    for position, seed in enumerate((1, 2, 3)):
        alone = noise_source(seed)
        assert torch.equal(alone.normal(3, 4, 4)[0], normal[position])
        assert torch.equal(alone.uniform(1, 5, 5)[0], uniform[position])


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6))
def test_sample_j_has_the_same_generator_for_every_count(seed, few, more):
    first, second = (
        [g.initial_seed() for g in spawn_generators(torch.Generator().manual_seed(seed), count)]
        for count in sorted((few, few + more))
    )
    assert second[: len(first)] == first
    assert len(set(second)) == len(second)


def test_every_sample_of_a_face_depends_on_its_seed():
    first, second = (
        [g.initial_seed() for g in spawn_generators(torch.Generator().manual_seed(seed), 4)] for seed in (1, 2)
    )
    assert not set(first) & set(second)


def test_the_faces_of_a_photograph_have_noise_of_their_own():
    draws = {(s, i): torch.rand(4, generator=face_generator(s, i)) for s in (0, 1, 2**63 + 5) for i in (0, 1, 2)}
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 9
    for (seed, index), draw in draws.items():
        assert torch.equal(draw, torch.rand(4, generator=face_generator(seed, index)))
        if index == 0:  # as an aligned face of its own
            assert torch.equal(draw, torch.rand(4, generator=torch.Generator().manual_seed(seed)))
    # a seed means the same noise in every release: these are what 0.1.0 drew
    assert face_generator(1, 0).initial_seed() == 1
    assert face_generator(1, 1).initial_seed() == 77803131892610477
    assert face_generator(2**63, 2).initial_seed() == 1129379982339236933


# --- a method as it stands: the prior alone ---


@pytest.mark.parametrize("known", [0.0, 0.25, 1.0])
def test_the_prior_alone_starts_from_noise_or_from_noised_initial_faces(tiny, rng, known):
    prior = tiny.gaussian_prior()
    (step,) = spaced_steps(prior.schedule, 1, 0.6)
    shape = (2, 3, tiny.side, tiny.side)
    z = noise_source(5, 6).normal(*shape[1:])

    def start(initial=None):
        x_t, state = Restoration().start(step, Sampler(prior, DDIM(), noise_source(5, 6)), initial)
        assert state is None
        return x_t

    assert torch.equal(start(), z)
    faces = torch.rand(shape, generator=rng) * 2 - 1
    level = float(prior.schedule.alphas_cumprod[step.t])
    expected = level**0.5 * known * faces + (1 - level) ** 0.5 * z
    assert torch.allclose(start(Initial(faces, torch.full((2, 1, 1, 1), known))), expected, atol=1e-6)


def test_estimates_without_their_graph_keep_their_values(rng):
    values = [torch.randn(1, 3, 4, 4, generator=rng, requires_grad=True) for _ in range(4)]
    bare = Denoised(*values).detach()
    for own, value in zip(bare, values, strict=True):
        assert not own.requires_grad
        assert torch.equal(own, value)
    assert Denoised(*values[:3], None).detach().variance_range is None


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_noise_is_single_whatever_torchs_default_number_format_is(draw):
    expected = getattr(noise_source(3, 4), draw)(2, 5)
    torch.set_default_dtype(torch.float64)
    try:
        found = getattr(noise_source(3, 4), draw)(2, 5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
