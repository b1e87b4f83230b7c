import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from faceprior.corrector import ConditionCorrector, load_corrector, make_condition, save_corrector
from faceprior.errors import FacePriorError, OptionError, WeightsError
from faceprior.methods import PRESETS, Preset, SamplingOptions, find_preset
from faceprior.methods.dpi import DPI, DPIOptions, adaptive_mask, edge_strength, enlarge_grid, interpolate
from faceprior.priors.card import ModelCard
from faceprior.priors.noise_schedule import NoiseSchedule
from faceprior.sampling import Initial, NoiseSource, Sampler, make_solver, noised, sample, spaced_steps

CPU = torch.device("cpu")
SCHEDULE = NoiseSchedule.linear()
DDIM_PRESET, DDPM_PRESET = PRESETS["paper-ddim"], PRESETS["paper-ddpm"]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def faces(count, side, seed=0):
    """Low-resolution faces with structure: a few waves and some noise."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(0, 1, side)
    phases = 6 * torch.rand(count, 3, 1, 1, generator=generator)
    waves = torch.sin(7 * grid[:, None] + phases) * torch.cos(5 * grid[None, :] - phases)
    return (0.6 * waves + 0.15 * torch.randn(count, 3, side, side, generator=generator)).clamp(-1, 1)


# --- an independent re-implementation, in float64 with explicit R×R masks ---


def reference_edge_strength(condition):
    """ℓ of one condition (3, h, w), by loops."""
    red, green, blue = condition.double().numpy()
    padded = np.pad(0.2989 * red + 0.587 * green + 0.114 * blue, 1, mode="reflect")
    strength = np.zeros(red.shape)
    for i, j in np.ndindex(strength.shape):
        window = padded[i : i + 3, j : j + 3]
        strength[i, j] = abs(4 * window[1, 1] - window[0, 1] - window[2, 1] - window[1, 0] - window[1, 2])
    strength -= strength.min()
    return torch.from_numpy(strength / strength.max())


def on_grid(values, side, stride):
    """(C, R/k, R/k) → (C, R, R), zero off the grid."""
    full = torch.zeros(values.shape[0], side, side, dtype=values.dtype)
    for i, j in np.ndindex(values.shape[1:]):
        full[:, i * stride, j * stride] = values[:, i, j]
    return full


def late_weight(preset_name, t):
    return t / 1500 if preset_name == "paper-ddim" else t / 750


def reference_constraint(preset_name, t, condition, uniform, side):
    """w_t · m_t as an R×R image, from DESIGN §2's table (T = 1000)."""
    first_stage = {"paper-ddim": t // 50 > 7, "paper-ddpm": t > 300}[preset_name]
    if first_stage:
        return on_grid(torch.ones(1, *condition.shape[1:], dtype=torch.float64), side, 2)
    exponent = {"paper-ddim": 1.4, "paper-ddpm": 1.2}[preset_name]
    held = uniform.double() < reference_edge_strength(condition) ** exponent
    return late_weight(preset_name, t) * on_grid(held.double()[None], side, 2)


def reference_step(preset_name, x, eps, share, condition, uniform, z, t, level, level_prev):
    """x_{t−1} of one image as the reference code makes it: y is noised like the sample, then blended in."""
    side = x.shape[-1]
    x, eps, z, y = x.double(), eps.double(), z.double(), on_grid(condition.double(), x.shape[-1], 2)
    clean = ((x - math.sqrt(1 - level) * eps) / math.sqrt(level)).clamp(-1, 1)
    if preset_name == "paper-ddim":
        eps = (x - math.sqrt(level) * clean) / math.sqrt(1 - level)

        def step(clean, _):
            return math.sqrt(level_prev) * clean + math.sqrt(1 - level_prev) * eps

    else:
        alpha = level / level_prev
        beta, rest = 1 - alpha, 1 - level_prev
        posterior = beta * rest / (1 - level)
        log_variance = (share.double() + 1) / 2 * math.log(beta) + (1 - share.double()) / 2 * math.log(posterior)

        def step(clean, noisy):
            mean = math.sqrt(level_prev) * beta * clean + math.sqrt(alpha) * rest * noisy
            return mean / (1 - level) + torch.exp(log_variance / 2) * z

    unbent = step(clean, x)
    bent = step(y, math.sqrt(level) * y + math.sqrt(1 - level) * eps)
    constraint = reference_constraint(preset_name, t, condition, uniform, side)
    return unbent + constraint * (bent - unbent)


class Fixed(nn.Module):
    """Predicts the same six channels for every image."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = nn.Parameter(prediction, requires_grad=False)

    def forward(self, x_t, t):
        return SimpleNamespace(sample=self.prediction.expand(len(x_t), -1, -1, -1))


STAGES = [
    pytest.param("paper-ddim", 20, 750, id="paper-ddim in stage 1"),
    pytest.param("paper-ddim", 20, 400, id="paper-ddim, last of stage 1"),
    pytest.param("paper-ddim", 20, 350, id="paper-ddim, first of stage 2"),
    pytest.param("paper-ddim", 20, 50, id="paper-ddim, last of stage 2"),
    pytest.param("paper-ddpm", 1000, 820, id="paper-ddpm in stage 1"),
    pytest.param("paper-ddpm", 1000, 301, id="paper-ddpm, last of stage 1"),
    pytest.param("paper-ddpm", 1000, 300, id="paper-ddpm, first of stage 2"),
    pytest.param("paper-ddpm", 1000, 40, id="paper-ddpm in stage 2"),
]


@pytest.mark.parametrize(("preset_name", "count", "t"), STAGES)
def test_a_step_of_a_published_preset_is_the_reference_codes(tiny, rng, preset_name, count, t):
    preset = PRESETS[preset_name]
    prediction = torch.randn(1, 6, 16, 16, generator=rng).clamp(-1, 1)
    prior = tiny.prior(Fixed(prediction), "epsilon")
    prior.card = ModelCard(kind="prior", name="fixed", resolution=16)
    step = next(step for step in spaced_steps(prior.schedule, count) if step.t == t)
    low = faces(2, 8)
    x = math.sqrt(step.alphas_cumprod) * faces(2, 16, seed=1) + math.sqrt(1 - step.alphas_cumprod) * torch.randn(
        2, 3, 16, 16, generator=rng
    )
    method = DPI(list(low), prior, preset.options)
    method.start = lambda step, sampler, initial: (x, method.condition)
    solver = make_solver(preset.sampling.solver, preset.sampling.eta)
    found = sample(method, [step], Sampler(prior, solver, NoiseSource(generators(1, 2), CPU)))

    moved = 0
    for image, y, own, result in zip(x, low, generators(1, 2), found, strict=True):
        uniform = (
            torch.rand(8, 8, generator=own) if t <= {"paper-ddim": 350, "paper-ddpm": 300}[preset_name] else None
        )
        z = torch.randn(3, 16, 16, generator=own)
        eps, share = prediction[0].chunk(2)
        # n = R/k: the low-resolution face is the condition as it is
        levels = step.alphas_cumprod, step.alphas_cumprod_prev
        expected = reference_step(preset_name, image, eps, share, y, uniform, z, t, *levels)
        torch.testing.assert_close(result.double(), expected, atol=2e-5, rtol=1e-5)
        constraint = reference_constraint(preset_name, t, y, uniform, 16)
        moved += int((constraint > 0).sum())
    assert 4 < moved <= 2 * 64


def test_the_published_weights_agree_with_the_tables_step_counts():
    for index in range(8):
        assert DDIM_PRESET.options.late_weight * (50 * index / 1000) == pytest.approx(index / 30)
    assert DDPM_PRESET.options.late_weight * 0.3 == pytest.approx(300 / 750)
    ddim, ddpm = SamplingOptions("ddim", 20, 1.0, 0.0), SamplingOptions("ddpm", 1000, 1.0, 0.0)
    assert (DDIM_PRESET.sampling, DDPM_PRESET.sampling) == (ddim, ddpm)


def reference_run(preset_name, network, total, low, x, generator, crt=None):
    """The authors' loop for one face (3, n, n) from x_T (3, R, R), by DESIGN §2's equations and table.

    Networks see float32, all else is float64. `total` is T; the table's counts are for a thousand.
    """
    side = x.shape[-1]
    alphas_cumprod = torch.cumprod(1 - torch.linspace(0.1 / total, 20 / total, total, dtype=torch.float64), 0)
    spacing = total // 20 if preset_name == "paper-ddim" else 1
    first = nn.functional.interpolate(low[None], size=(side // 2, side // 2), mode="bicubic", antialias=True)
    first = first[0].clamp(-1, 1)
    condition = first.double()
    for index in reversed(range(total // spacing)):
        t = index * spacing
        level = float(alphas_cumprod[t])
        level_prev = float(alphas_cumprod[t - spacing]) if index > 0 else 1.0
        predicted = network(x[None].float(), torch.tensor([t])).sample[0].double()
        if predicted.shape[0] == 6:
            eps, share = predicted.chunk(2)
        else:  # a network that predicts x0
            eps, share = (
                (x.double() - math.sqrt(level) * predicted) / math.sqrt(1 - level),
                -torch.ones_like(predicted),
            )
        if index == 0:  # the last step is not interpolated
            return ((x.double() - math.sqrt(1 - level) * eps) / math.sqrt(level)).clamp(-1, 1)
        second_stage = index <= 7 if preset_name == "paper-ddim" else 1000 * t <= 300 * total
        uniform = torch.rand(side // 2, side // 2, generator=generator) if second_stage else None
        z = torch.randn(x.shape, generator=generator) if preset_name == "paper-ddpm" else torch.zeros_like(x)
        of_a_thousand = t * 1000 // total
        x = reference_step(preset_name, x, eps, share, condition, uniform, z, of_a_thousand, level, level_prev)
        if crt is not None:  # told the t of the step just made, in DDIM its index times the spacing
            condition = crt(x[None].float(), torch.tensor([t]), first[None])[0].double()
    raise AssertionError("no last step")


@torch.no_grad()
@pytest.mark.parametrize("corrected", [False, True], ids=["without corrector", "with corrector"])
@pytest.mark.parametrize("network", ["gaussian_prior", "epsilon_prior"])
@pytest.mark.parametrize(("preset_name", "total"), [("paper-ddim", 1000), ("paper-ddpm", 40)])
def test_a_whole_run_of_a_published_preset_is_the_reference_loop(tiny, preset_name, total, network, corrected):
    preset = find_preset(preset_name)
    preset = preset.with_options(steps=min(total, preset.sampling.steps))
    prior = getattr(tiny, network)(total)
    corrector = tiny.corrector(total, placement="resized") if corrected else None
    low = faces(2, 8)
    steps = spaced_steps(prior.schedule, preset.sampling.steps, preset.sampling.start)
    solver = make_solver(preset.sampling.solver, preset.sampling.eta)
    sampler = Sampler(prior, solver, NoiseSource(generators(3, 4), CPU))
    found = sample(DPI(list(low), prior, preset.options, corrector), steps, sampler)

    for y, own, result in zip(low, generators(3, 4), found, strict=True):
        x = torch.randn(3, 32, 32, generator=own)
        crt = corrector.network if corrected else None
        expected = reference_run(preset_name, prior.network, total, y, x, own, crt)
        assert expected.std() > 0.1
        torch.testing.assert_close(result.double(), expected, atol=2e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("preset_name", "levels"),
    [
        ("default", (140, 131, 122, 113, 104, 95, 85, 76, 67, 58, 49, 40)),
        ("fast", (71, 63, 55, 46, 38, 30)),
    ],
)
def test_a_whole_run_of_our_presets_is_the_plain_loop(tiny, preset_name, levels):
    preset = find_preset(preset_name)
    prior, corrector, low = tiny.gaussian_prior(), tiny.corrector(), faces(2, 8)
    method = DPI(list(low), prior, preset.options, corrector)
    steps = spaced_steps(prior.schedule, preset.sampling.steps, preset.sampling.start, preset.sampling.end)
    solver = make_solver(preset.sampling.solver, preset.sampling.eta)
    found = sample(method, steps, Sampler(prior, solver, NoiseSource(generators(3, 4), CPU)))

    schedule = prior.schedule.alphas_cumprod
    for y, own, result in zip(low, generators(3, 4), found, strict=True):
        face = nn.functional.interpolate(y[None], size=(32, 32), mode="bicubic", antialias=True)
        blurred = face[..., ::2, ::2]
        x = math.sqrt(schedule[levels[0]]) * face + math.sqrt(1 - schedule[levels[0]]) * torch.randn(
            1, 3, 32, 32, generator=own
        )
        held = corrector.network(x, torch.tensor([levels[0] + 1]), blurred.clamp(-1, 1)).double()
        x = x.double() + math.sqrt(schedule[levels[0]]) * enlarge_grid(held - blurred.double(), 2)
        for t, after in zip(levels, (*levels[1:], None), strict=True):
            clean = prior.network(x.float(), torch.tensor([t])).sample.double().clamp(-1, 1)
            eps = (x - math.sqrt(schedule[t]) * clean) / math.sqrt(1 - schedule[t])
            if after is None:
                x = clean
            else:
                clean[..., ::2, ::2] = held
                x = math.sqrt(schedule[after]) * clean + math.sqrt(1 - schedule[after]) * eps
        assert (x - face).abs().mean() > 0.01
        torch.testing.assert_close(result.double(), x[0], atol=2e-4, rtol=1e-3)


# --- the start ---


def dpi(tiny, low, options=None, corrector=None, prior=None):
    return DPI(list(low), prior or tiny.gaussian_prior(), options or DPIOptions(), corrector)


def sampler_of(tiny, *seeds, prior=None, solver="ddim"):
    return Sampler(prior or tiny.gaussian_prior(), make_solver(solver), NoiseSource(generators(*seeds), CPU))


def watched(method):
    """The same, with a list of what each of its steps returns: (x_{t_prev}, x0, condition)."""
    make, seen = method.step, []

    def watch(x_t, condition, step, sampler):
        seen.append(make(x_t, condition, step, sampler))
        return seen[-1]

    method.step = watch
    return method, seen


def test_a_start_below_one_is_the_noised_bicubic_face(tiny):
    low = faces(1, 8)
    step = spaced_steps(SCHEDULE, 10, 0.5)[0]
    found, _ = dpi(tiny, low).start(step, sampler_of(tiny, 1))
    face = nn.functional.interpolate(low, size=(32, 32), mode="bicubic", antialias=True)
    z = torch.randn(3, 32, 32, generator=generators(1)[0])
    expected = math.sqrt(step.alphas_cumprod) * face + math.sqrt(1 - step.alphas_cumprod) * z
    torch.testing.assert_close(found, expected)


def test_the_ancestral_preset_starts_from_pure_noise(tiny):
    step = spaced_steps(SCHEDULE, 1000)[0]
    found, _ = dpi(tiny, faces(1, 8)).start(step, sampler_of(tiny, 1))
    assert torch.equal(found[0], torch.randn(3, 32, 32, generator=generators(1)[0]))


@pytest.mark.parametrize("count", [20, 999])
def test_a_start_of_one_is_pure_noise_for_every_number_of_steps(tiny, count):
    step = spaced_steps(SCHEDULE, count, 1.0)[0]
    found, _ = dpi(tiny, faces(1, 8)).start(step, sampler_of(tiny, 1))
    assert torch.equal(found[0], torch.randn(3, 32, 32, generator=generators(1)[0]))


# --- masks ---


def test_edge_strength_is_the_laplacian_of_a_hand_computed_example():
    grey = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])
    # with the border reflected: |4·centre − neighbours|, where a border pixel counts its inner neighbour twice
    laplacian = torch.tensor([[0.0, 2.0, 0.0, 0.0], [2.0, 4.0, 1.0, 0.0], [0.5, 1.0, 0.0, 0.0], [2.0, 0.5, 0.0, 0.0]])
    found = edge_strength(grey.expand(1, 3, 4, 4))
    torch.testing.assert_close(found[0, 0], laplacian / 4)


def test_edge_strength_weighs_colours_as_the_eye_does():
    images = torch.zeros(3, 3, 5, 5)
    for channel in range(3):
        images[channel, :, 2, 2] = 0.25
        images[channel, channel, 2, 2] = 0.75
        images[channel, :, 0, 0] = 0.1
    found = edge_strength(images)
    for image, strength in zip(images, found, strict=True):
        torch.testing.assert_close(strength[0].double(), reference_edge_strength(image), atol=1e-5, rtol=1e-4)
    assert len({round(float(strength[0, 0, 0]), 4) for strength in found}) == 3


@pytest.mark.parametrize("value", [-1.0, -0.3, 0.0, 0.1, 0.7, 1.0])
def test_a_flat_image_has_no_edges(value):
    flat = torch.full((1, 3, 16, 16), value)
    assert edge_strength(flat).abs().max() == 0
    assert not adaptive_mask(flat, 1.4, torch.full((1, 1, 16, 16), 1e-6)).any()


def test_a_flat_face_has_no_edges_after_it_was_enlarged():
    condition = make_condition(torch.full((1, 3, 11, 11), 0.3), 64, 2, "sampled")
    assert condition.std() < 1e-6
    assert edge_strength(condition).max() < 0.01


def test_edge_strength_of_an_image_does_not_depend_on_its_batch():
    low = faces(3, 16)
    low[1] *= 0.1
    together = edge_strength(low)
    for position in range(3):
        assert torch.equal(together[position], edge_strength(low[position : position + 1])[0])
    assert torch.equal(together.amax((1, 2, 3)), torch.ones(3))
    assert torch.equal(together.amin((1, 2, 3)), torch.zeros(3))


@pytest.mark.parametrize("exponent", [0.5, 1.2, 3.0])
def test_a_pixel_is_held_when_its_uniform_is_below_its_edge_strength(exponent):
    low = faces(2, 16)
    probability = edge_strength(low) ** exponent
    assert not adaptive_mask(low, exponent, probability).any()
    positive = probability > 1e-6
    assert adaptive_mask(low, exponent, probability * (1 - 1e-5))[positive].all()
    assert adaptive_mask(low, exponent, probability).dtype == torch.bool


def test_edges_are_held_more_often_than_flat_skin(rng):
    face = torch.zeros(1, 3, 16, 16)
    face[..., 8:] = 1.0  # one vertical edge, between columns 7 and 8
    face[..., 1] += 0.1  # and a faint one
    rate = torch.stack(
        [adaptive_mask(face, 1.4, torch.rand(1, 1, 16, 16, generator=rng)).float() for _ in range(200)]
    ).mean(0)[0, 0]
    assert rate[:, 7:9].min() > 0.95
    assert 0.05 < rate[:, 1].mean() < 0.3  # 0.2 ** 1.4 = 0.105
    assert rate[:, 4:6].max() == 0


def test_an_exponent_of_zero_holds_the_whole_grid():
    assert adaptive_mask(torch.zeros(1, 3, 4, 4), 0.0, torch.full((1, 1, 4, 4), 0.999)).all()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_interpolation_moves_the_grid_and_nothing_else(rng, stride):
    images = torch.randn(2, 3, 16, 16, generator=rng)
    condition = torch.randn(2, 3, 16 // stride, 16 // stride, generator=rng)
    before = images.clone()
    found = interpolate(images, condition, 0.25, stride)
    for position in range(2):
        mask = on_grid(torch.ones(1, 16 // stride, 16 // stride), 16, stride)
        y = on_grid(condition[position], 16, stride)
        expected = images[position] + 0.25 * mask * (y - images[position])
        torch.testing.assert_close(found[position], expected)
        off = (1 - mask).bool().expand_as(images[position])
        assert torch.equal(found[position][off], images[position][off])
    assert torch.equal(images, before)


@torch.no_grad()
def test_the_last_step_is_left_to_the_prior(tiny):
    prior, low = tiny.gaussian_prior(), faces(1, 8)
    method, seen = watched(dpi(tiny, low, DPIOptions(tau=0.0), tiny.corrector()))
    found = sample(method, spaced_steps(prior.schedule, 3), sampler_of(tiny, 1, prior=prior))
    free = prior(seen[-2][0], torch.tensor([0])).x0.clamp(-1, 1)
    assert torch.equal(found, free)
    assert torch.equal(seen[-1][1], free)
    assert torch.equal(seen[-1][2], seen[-2][2])  # no step follows that would need another condition


@torch.no_grad()
def test_a_run_without_constraint_is_the_prior_alone(tiny):
    prior = tiny.gaussian_prior()
    results = []
    for low in (faces(1, 8, seed=1), faces(1, 8, seed=2)):
        method = dpi(tiny, low, DPIOptions(tau=1.0, late_weight=0.0))
        results.append(sample(method, spaced_steps(prior.schedule, 4), sampler_of(tiny, 5, prior=prior)))
    assert torch.equal(*results)


# --- the corrector asked once ---


class Counted:
    """A corrector whose network notes what it is asked."""

    def __init__(self, corrector):
        self.asked = []
        corrector.network.register_forward_pre_hook(lambda module, given: self.asked.append(given))


@torch.no_grad()
@pytest.mark.parametrize(("start", "first"), [(0.5, 375), (1.0, 750)])
def test_a_corrector_asked_once_sees_the_start_alone(tiny, start, first):
    prior, corrector, low = tiny.gaussian_prior(), tiny.corrector(), faces(1, 8)
    counted = Counted(corrector)
    options = DPIOptions(tau=0.0, crt_once=True)
    method, seen = watched(DPI(list(low), prior, options, corrector))
    steps = spaced_steps(prior.schedule, 4, start)
    sample(method, steps, sampler_of(tiny, 1, prior=prior))
    (x, t, condition) = counted.asked[0]
    uncorrected, _ = DPI(list(low), prior, options).start(steps[0], sampler_of(tiny, 1))
    assert len(counted.asked) == 1
    assert torch.equal(x, uncorrected)
    assert t.tolist() == [first + 1]
    assert torch.equal(condition, make_condition(low, 32, 2, "sampled"))
    assert all(torch.equal(one, corrector.network(x, t, condition)) for _, _, one in seen)


@torch.no_grad()
def test_a_corrector_asked_once_of_pure_noise_at_t_is_asked_about_a_level_that_it_knows(tiny):
    corrector = tiny.corrector()
    counted = Counted(corrector)
    method = DPI(list(faces(1, 8)), tiny.gaussian_prior(), DPIOptions(crt_once=True), corrector)
    step = spaced_steps(SCHEDULE, 1000)[0]
    found, _ = method.start(step, sampler_of(tiny, 1))
    assert torch.equal(found[0], torch.randn(3, 32, 32, generator=generators(1)[0]))
    assert counted.asked[0][1].tolist() == [999]


@torch.no_grad()
@pytest.mark.parametrize("stride", [2, 4])
def test_a_warm_start_with_a_corrector_asked_once_is_the_noised_corrected_face(tiny, stride):
    method = dpi(tiny, faces(2, 8), DPIOptions(stride=stride, crt_once=True), tiny.corrector())
    step = spaced_steps(tiny.gaussian_prior().schedule, 10, 0.3)[0]
    found, condition = method.start(step, sampler_of(tiny, 1, 2))
    z = NoiseSource(generators(1, 2), CPU).normal(3, 32, 32)
    clean = (found - math.sqrt(1 - step.alphas_cumprod) * z) / math.sqrt(step.alphas_cumprod)
    torch.testing.assert_close(clean[..., ::stride, ::stride], condition, atol=1e-5, rtol=1e-5)
    change = clean - method.enlarged
    assert change.abs().max() > 0.01
    own = change[..., ::stride, ::stride].abs().amax((1, 2, 3))
    assert (change.abs().amax((1, 2, 3)) < 1.5 * own).all()  # between the grid's pixels nothing comes out of nowhere


@torch.no_grad()
def test_a_face_is_corrected_only_where_it_is_not_known_already(tiny):
    method = dpi(tiny, faces(1, 8), DPIOptions(crt_once=True), tiny.corrector())
    step = spaced_steps(tiny.gaussian_prior().schedule, 10, 0.3)[0]
    known = torch.zeros(1, 1, 32, 32)
    known[..., :16] = 1
    corrected, _ = method.start(step, sampler_of(tiny, 1))
    initial = Initial(faces(1, 32, seed=9), known)
    found, _ = method.start(step, sampler_of(tiny, 1), initial)
    expected = noised(initial.faces, torch.randn(3, 32, 32, generator=generators(1)[0]), step.alphas_cumprod)
    assert torch.equal(found[..., :16], expected[..., :16])
    again, _ = method.start(step, sampler_of(tiny, 1), Initial(initial.faces, torch.zeros(1, 1, 1, 1)))
    assert torch.equal(again, corrected)
    left = (found - corrected)[..., 16:]  # of the corrector, which sees another x_t
    assert 0 < left.abs().max() < 0.1 * (expected - corrected)[..., 16:].abs().max()


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_an_enlarged_grid_keeps_its_pixels_and_follows_lines_between_them(rng, stride):
    values = torch.randn(2, 3, 8, 8, generator=rng)
    found = enlarge_grid(values, stride)
    assert found.shape == (2, 3, 8 * stride, 8 * stride)
    torch.testing.assert_close(found[..., ::stride, ::stride], values)
    places = torch.arange(8 * stride, dtype=torch.float32)
    ramp = places[::stride].expand(1, 3, 8, 8)
    inner = slice(2 * stride, 5 * stride)
    for filled in (enlarge_grid(ramp, stride), enlarge_grid(ramp.mT, stride).mT):
        torch.testing.assert_close(filled[0, 0, 3, inner], places[inner], atol=0.05 * stride, rtol=0)


# --- the condition ---


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("placement", ["resized", "sampled"])
def test_the_resized_condition_is_shifted_by_half_a_grid_cell(stride, placement):
    """On a linear ramp the shift is seen exactly, away from the border."""
    side, resolution = 32, 64

    def ramp(place):  # place of a pixel's centre, as a fraction of the side
        return 1.6 * place - 0.8

    row = ramp((torch.arange(side) + 0.5) / side)
    face = row.expand(1, 3, side, side)
    stands_on = torch.arange(0, resolution, stride)
    shift = (stride - 1) / 2 if placement == "resized" else 0.0
    expected = ramp((stands_on + 0.5 + shift) / resolution)
    for images, take in ((face, lambda c: c[0, 0, 0]), (face.mT, lambda c: c[0, 0, :, 0])):
        found = take(make_condition(images, resolution, stride, placement))
        inner = slice(len(found) // 4, -(len(found) // 4))
        torch.testing.assert_close(found[inner], expected[inner], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("placement", ["resized", "sampled"])
@pytest.mark.parametrize("side", [4, 7, 16, 32, 50])
def test_a_condition_is_a_grid_of_valid_pixels(placement, side):
    face = torch.sign(faces(2, side))  # bicubic overshoots at its edges
    condition = make_condition(face, 32, 4, placement)
    assert condition.shape == (2, 3, 8, 8)
    assert condition.abs().max() <= 1


def test_faces_of_one_batch_need_not_have_one_size(tiny):
    method = DPI([faces(1, 8)[0], faces(1, 5)[0]], tiny.gaussian_prior(), DPIOptions())
    assert method.condition.shape == (2, 3, 16, 16)
    assert torch.equal(method.condition[1:], dpi(tiny, faces(1, 5)).condition)


# --- options ---


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tau": -0.1}, "tau"),
        ({"tau": 1.1}, "tau"),
        ({"tau": math.nan}, "tau"),
        ({"late_weight": -1.0}, "late weight"),
        ({"late_weight": 3.0, "tau": 0.4}, "late weight"),
        ({"late_weight": math.inf, "tau": 0.0}, "late weight"),
        ({"edge_exponent": -0.01}, "edge exponent"),
        ({"stride": 0}, "stride"),
        ({"stride": 3}, "stride"),
        ({"stride": 16}, "stride"),
        ({"stride": -2}, "stride"),
        ({"placement": "centred"}, "placement"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, word):
    with pytest.raises(OptionError, match=word) as caught:
        DPIOptions(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"edge_exponent": math.nan}, {"late_weight": -1.0, "tau": 0.0}])
def test_an_exponent_that_is_no_number_and_a_negative_weight_are_refused(options):
    with pytest.raises(OptionError):
        DPIOptions(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.0},
        {"tau": 1.0},
        {"late_weight": 2.5, "tau": 0.4},
        {"late_weight": 0.0},
        {"edge_exponent": 0.0},
        {"stride": 1},
        {"stride": 8},
    ],
)
def test_the_ends_of_the_ranges_are_accepted(options):
    for name, value in options.items():
        assert getattr(DPIOptions(**options), name) == value


def test_a_stride_that_does_not_divide_the_resolution_is_refused(tiny):
    prior = tiny.gaussian_prior()
    prior.card = ModelCard(kind="prior", name="odd", resolution=36)
    with pytest.raises(OptionError, match=r"stride is 8.*36"):
        DPI([faces(1, 8)[0]], prior, DPIOptions(stride=8))


def test_a_preset_takes_options_by_name_and_leaves_the_rest():
    changed = DDIM_PRESET.with_options(tau=0.2, steps=7, eta=None)
    assert changed == Preset(
        "dpi", SamplingOptions("ddim", 7, 1.0, 0.0), DPIOptions(0.2, 2 / 3, 1.4, stride=2, placement="resized")
    )
    assert changed.as_dict()["tau"] == 0.2
    assert DDIM_PRESET.options.tau == 0.35
    with pytest.raises(OptionError, match="sharpness"):
        DDIM_PRESET.with_options(sharpness=1)
    with pytest.raises(OptionError, match=r"paper.*default, fast, paper-ddim, paper-ddpm"):
        find_preset("paper")


# --- the corrector ---


def test_the_default_corrector_has_the_size_of_the_papers():
    with torch.device("meta"):
        network = ConditionCorrector()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 3) == 5.867


@torch.no_grad()
@pytest.mark.parametrize("injection", ["add", "concat"])
@pytest.mark.parametrize("grid", ["sparse", "dense"])
def test_a_new_corrector_returns_the_condition(rng, grid, injection):
    network = ConditionCorrector(
        32, 2, grid, injection, block_out_channels=(16, 16), attention=(False, True), norm_num_groups=8
    )
    condition = torch.randn(2, 3, 16, 16, generator=rng)
    found = network(torch.randn(2, 3, 32, 32, generator=rng), 500, condition)
    assert torch.equal(found, condition)


@torch.no_grad()
@pytest.mark.parametrize("injection", ["add", "concat"])
@pytest.mark.parametrize("grid", ["sparse", "dense"])
def test_a_corrector_looks_at_the_grid_the_step_and_the_condition_alone(tiny, rng, grid, injection):
    network = tiny.corrector(grid=grid, injection=injection).network
    x, condition = torch.randn(1, 3, 32, 32, generator=rng), torch.randn(1, 3, 16, 16, generator=rng)
    found = network(x, 500, condition)
    assert found.shape == condition.shape
    assert found.dtype == torch.float32
    assert not torch.equal(found, condition)
    elsewhere = torch.randn(1, 3, 32, 32, generator=rng)
    elsewhere[..., ::2, ::2] = x[..., ::2, ::2]
    assert torch.equal(network(elsewhere, 500, condition), found)
    on_it = x.clone()
    on_it[..., 6, 8] += 1
    assert not torch.equal(network(on_it, 500, condition), found)
    assert not torch.equal(network(x, 400, condition), found)
    other = condition + 0.5
    assert not torch.allclose(network(x, 500, other) - other, found - condition, atol=1e-5)


@torch.no_grad()
def test_the_sparse_network_sees_zeros_off_the_grid(tiny, rng):
    network = tiny.corrector(grid="sparse", injection="add").network
    x, condition = torch.randn(1, 3, 32, 32, generator=rng), torch.randn(1, 3, 16, 16, generator=rng)
    seen = []
    network.unet.conv_in.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    network(x, 500, condition)
    inputs, features = seen[0]
    mask = on_grid(torch.ones(1, 16, 16), 32, 2)
    assert torch.equal(inputs[:, :3], x * mask)
    assert torch.equal(inputs[0, 3:], on_grid(condition[0], 32, 2))
    weight, bias = network.unet.conv_in.weight, network.unet.conv_in.bias
    plain = nn.functional.conv2d(x * mask, weight, bias, padding=1)
    shared = 0.1 * on_grid(condition[0], 32, 2).mean(0)
    torch.testing.assert_close(features, plain + shared, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("resolution", "schedule", "stride", "word"),
    [
        (64, SCHEDULE, 2, "32×32"),
        (32, NoiseSchedule.linear(1000, 1e-4, 0.03), 2, "noise schedule"),
        (32, NoiseSchedule.linear(500), 2, "noise schedule"),
        (32, SCHEDULE, 1, "stride 1"),
    ],
)
def test_a_corrector_that_does_not_fit_is_refused(tiny, resolution, schedule, stride, word):
    with pytest.raises(OptionError, match=f"tiny-corrector.*{word}|{word}.*corrector"):
        tiny.corrector().check(resolution, schedule, stride)


def test_dpi_checks_its_corrector(tiny):
    with pytest.raises(OptionError, match="stride 1"):
        dpi(tiny, faces(1, 8), DPIOptions(stride=1), tiny.corrector())
    with pytest.raises(OptionError, match="noise schedule"):
        dpi(tiny, faces(1, 8), corrector=tiny.corrector(steps=20))


@torch.no_grad()
def test_a_wider_stride_takes_its_pixels_out_of_the_corrected_grid(tiny, rng):
    corrector, low = tiny.corrector(placement="resized"), faces(1, 8)
    method = dpi(tiny, low, DPIOptions(stride=4, placement="sampled"), corrector)
    x = torch.randn(1, 3, 32, 32, generator=rng)
    step = spaced_steps(SCHEDULE, 10)[3]
    x_prev, _, found = method.step(x, method.condition, step, sampler_of(tiny, 1))
    first = make_condition(low, 32, 2, "resized")  # the corrector's own placement
    assert torch.equal(found, corrector.network(x_prev, step.t, first)[..., ::2, ::2])


@pytest.mark.parametrize("half", [False, True])
def test_a_corrector_is_saved_and_loaded(tiny, tmp_path, rng, half):
    corrector = tiny.corrector(grid="sparse", injection="add", placement="resized")
    card = save_corrector(corrector, tmp_path, half=half)
    loaded = load_corrector(tmp_path)
    assert loaded.card == card
    assert len(card.sha256) == 64
    for name, value in corrector.network.config.items():
        if name.startswith("_"):
            continue
        saved = loaded.network.config[name]
        assert (tuple(saved) if isinstance(saved, list) else saved) == value, name
    for name, tensor in corrector.network.state_dict().items():
        expected = tensor.half().float() if half else tensor
        assert torch.equal(loaded.network.state_dict()[name], expected), name
        assert loaded.network.state_dict()[name].dtype == torch.float32
    assert not loaded.network.training


@pytest.fixture
def saved(tiny, tmp_path):
    save_corrector(tiny.corrector(), tmp_path, half=False)
    return tmp_path


def test_a_corrector_with_exchanged_weights_is_refused(saved):
    weights = saved / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    content = json.loads((saved / "card.json").read_text())
    content["sha256"] = "0" * 64
    (saved / "card.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"diffusion_pytorch_model\.safetensors.*sha256"):
        load_corrector(saved)


def test_a_corrector_with_a_missing_key_is_refused_by_its_name(saved):
    weights = saved / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["unet.conv_out.bias"]
    save_file(state, weights)
    (saved / "card.json").unlink()
    with pytest.raises(WeightsError, match=r"unet\.conv_out\.bias") as caught:
        load_corrector(saved)
    assert str(saved) in str(caught.value)


def test_a_corrector_is_loaded_without_a_card_too(saved):
    expected = load_corrector(saved)
    (saved / "card.json").unlink()
    found = load_corrector(saved)
    assert (found.card.kind, found.card.resolution) == ("corrector", 32)
    assert found.card.sha256 == expected.card.sha256


def test_what_is_not_a_corrector_is_refused(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    with pytest.raises(WeightsError, match="holds a UNet2DModel, not a ConditionCorrector"):
        load_corrector(saved)
    with pytest.raises(WeightsError, match="not a file"):
        load_corrector(saved / "config.json")
    with pytest.raises(FacePriorError, match=r"corrector 'no-such-thing' is neither"):
        load_corrector("no-such-thing")
