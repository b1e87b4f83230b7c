import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from faceprior.corrector import (
    PaperCorrector,
    embedded_corrector_for,
    enlarge_grid,
    load_corrector,
    make_condition,
    save_corrector,
)
from faceprior.errors import FacePriorError, OptionError, WeightsError
from faceprior.images import resize
from faceprior.methods import PRESETS, Preset, SamplingOptions, find_method, find_preset
from faceprior.methods.dpi import DPI, Conditions, DPIOptions, adaptive_mask, coarser, edge_strength, interpolate
from faceprior.methods.texture import with_texture
from faceprior.networks import without_grid
from faceprior.priors.adapter import Prior
from faceprior.priors.card import ModelCard
from faceprior.priors.noise_schedule import NoiseSchedule, ddim_scheduler_config
from faceprior.priors.store import embedded_cards
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
    prior.card = replace(prior.card, resolution=16)
    step = next(step for step in spaced_steps(prior.schedule, count) if step.t == t)
    low = faces(2, 8)
    x = math.sqrt(step.alphas_cumprod) * faces(2, 16, seed=1) + math.sqrt(1 - step.alphas_cumprod) * torch.randn(
        2, 3, 16, 16, generator=rng
    )
    method = DPI(list(low), prior, preset.options)
    method.start = lambda step, sampler, initial: (x, Conditions(method.condition))
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
    corrector = tiny.corrector(total, kind="paper") if corrected else None
    low = faces(2, 8)
    steps = spaced_steps(prior.schedule, preset.sampling.steps, preset.sampling.start)
    solver = make_solver(preset.sampling.solver, preset.sampling.eta)
    sampler = Sampler(prior, solver, NoiseSource(generators(3, 4), CPU))
    found = sample(DPI(list(low), prior, preset.options, corrector), steps, sampler)

    for y, own, result in zip(low, generators(3, 4), found, strict=True):
        x = torch.randn(3, 32, 32, generator=own)
        crt = (lambda *seen: corrector.network(*seen).x0[..., ::2, ::2]) if corrected else None
        expected = reference_run(preset_name, prior.network, total, y, x, own, crt)
        assert expected.std() > 0.1
        torch.testing.assert_close(result.double(), expected, atol=2e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("preset_name", "levels", "told"),
    [
        ("default", (244, 188, 132, 76, 20), (212, 164, 115, 66, 20)),
        ("faithful", (122, 95, 67, 40), (122, 95, 67, 40)),
        (
            "detailed",
            (452, 404, 356, 308, 260, 212, 164, 116, 68, 20),
            (384, 343, 303, 262, 221, 180, 139, 99, 58, 20),
        ),
        ("fast", (115, 30), (98, 30)),
    ],
)
def test_a_whole_run_of_our_presets_is_the_plain_loop(tiny, preset_name, levels, told):
    preset = find_preset(preset_name)
    prior, corrector, low = tiny.gaussian_prior(), tiny.corrector(), faces(2, 8)
    method = DPI(list(low), prior, preset.options, corrector)
    steps = find_method(preset.method).steps(prior.schedule, preset.sampling, preset.options)
    solver = make_solver(preset.sampling.solver, preset.sampling.eta)
    found = sample(method, steps, Sampler(prior, solver, NoiseSource(generators(3, 4), CPU)))

    schedule = prior.schedule.alphas_cumprod
    for y, own, result in zip(low, generators(3, 4), found, strict=True):
        bad = nn.functional.interpolate(y[None], size=(32, 32), mode="bicubic", antialias=True).clamp(-1, 1)
        alone = corrector.network(torch.zeros(1, 3, 32, 32), torch.tensor([999]), bad)
        face = alone.x0.clamp(-1, 1)
        z = torch.randn(1, 3, 32, 32, generator=own)
        x = (math.sqrt(schedule[levels[0]]) * face + math.sqrt(1 - schedule[levels[0]]) * z).double()
        held = first = face.double()
        for t, said, after in zip(levels, told, (*levels[1:], None), strict=True):
            clean = prior.network(x.float(), torch.tensor([said])).sample.double().clamp(-1, 1)
            eps = (x - math.sqrt(schedule[t]) * clean) / math.sqrt(1 - schedule[t])
            moves = held - clean
            if t <= 1000 * preset.options.tau:  # RACM
                strength = reference_edge_strength(held[0])
                held_at = torch.rand(1, 32, 32, generator=own) < strength**preset.options.edge_exponent
                moves = preset.options.late_weight * t / 1000 * held_at * moves
            clean = clean + resize(resize(moves, 16), 32)
            if after is None:
                x = clean
                break
            again = (x - math.sqrt(schedule[t]) * clean) / math.sqrt(1 - schedule[t])
            eps = eps + preset.options.rederived * (again - eps)
            x = math.sqrt(schedule[after]) * clean + math.sqrt(1 - schedule[after]) * eps
            if preset.options.crt == "always":
                seen = corrector.network(x.float(), torch.tensor([after]), bad).x0
                news = seen.double() - first
                news -= resize(resize(news, min(32, 2 * preset.options.detail_above)), 32)
                held = first + preset.options.detail * news
        assert (x - bad).abs().mean() > 0.01
        if preset.options.finishes:
            x = alone.x0 + preset.options.deviation * (x - alone.x0)
            x = with_texture(x.float(), alone, preset.options.texture)
        torch.testing.assert_close(result.double(), x[0].double(), atol=2e-4, rtol=1e-3)


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


@torch.no_grad()
def test_smooth_moves_are_made_in_the_last_step_too(tiny):
    prior, low = tiny.gaussian_prior(), faces(1, 8)
    method, seen = watched(dpi(tiny, low, DPIOptions(tau=0.0, smooth=True), tiny.corrector()))
    found = sample(method, spaced_steps(prior.schedule, 3, 1.0, 0.1), sampler_of(tiny, 1, prior=prior))
    x, _, conditions = seen[-2]
    held = method.corrected(x, conditions)
    free = prior(x, torch.tensor([100])).x0.clamp(-1, 1)
    assert (free - held).abs().mean() > 0.01
    torch.testing.assert_close(found, interpolate(free, held, 1.0, 2))


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
@pytest.mark.parametrize(
    ("crt", "asked"),
    [("never", []), ("first", [999]), ("after", [250, 125]), ("always", [999, 250, 125])],
)
def test_the_corrector_is_asked_when_the_option_says_and_its_answer_is_used(tiny, crt, asked):
    prior, corrector = tiny.gaussian_prior(), tiny.corrector()
    counted = Counted(corrector)
    method, seen = watched(DPI(list(faces(1, 8)), prior, DPIOptions(tau=0.0, crt=crt), corrector))
    sample(method, spaced_steps(prior.schedule, 4, 0.5), sampler_of(tiny, 1, prior=prior))
    assert [t.item() for _, t, _ in counted.asked] == asked
    for x, t, _ in counted.asked:
        # without a sample, or about the step's result, of whose level it is told
        assert (
            torch.equal(x, torch.zeros_like(x)) if t == 999 else any(torch.equal(x, x_prev) for x_prev, _, _ in seen)
        )


@torch.no_grad()
@pytest.mark.parametrize("stride", [2, 4])
def test_a_warm_start_with_a_corrector_asked_first_is_the_noised_corrected_face(tiny, stride):
    corrector, low = tiny.corrector(), faces(2, 8)
    method = dpi(tiny, low, DPIOptions(stride=stride, crt="first"), corrector)
    step = spaced_steps(tiny.gaussian_prior().schedule, 10, 0.3)[0]
    found, (condition, *_) = method.start(step, sampler_of(tiny, 1, 2))
    z = NoiseSource(generators(1, 2), CPU).normal(3, 32, 32)
    alone = torch.cat([corrector.alone(corrector.network.see(face[None])).x0.clamp(-1, 1) for face in low])
    torch.testing.assert_close(found, noised(alone, z, step.alphas_cumprod))
    torch.testing.assert_close(condition, alone[..., ::stride, ::stride])


@torch.no_grad()
def test_a_face_is_corrected_only_where_it_is_not_known_already(tiny):
    method = dpi(tiny, faces(1, 8), DPIOptions(crt="first"), tiny.corrector())
    step = spaced_steps(tiny.gaussian_prior().schedule, 10, 0.3)[0]
    known = torch.zeros(1, 1, 32, 32)
    known[..., :16] = 1
    corrected, _ = method.start(step, sampler_of(tiny, 1))
    initial = Initial(faces(1, 32, seed=9), known)
    found, _ = method.start(step, sampler_of(tiny, 1), initial)
    expected = noised(initial.faces, torch.randn(3, 32, 32, generator=generators(1)[0]), step.alphas_cumprod)
    assert torch.equal(found[..., :16], expected[..., :16])
    torch.testing.assert_close(found[..., 16:], corrected[..., 16:])


@torch.no_grad()
def test_a_new_condition_lies_between_the_first_and_what_the_corrector_says_of_the_sample(tiny):
    low, step = faces(1, 8), spaced_steps(SCHEDULE, 10, 0.5)[2]
    held = []
    for detail in (0.0, 1.0, 0.3):
        method = dpi(tiny, low, DPIOptions(tau=0.0, crt="always", detail=detail), tiny.corrector())
        x, conditions = method.start(step, sampler_of(tiny, 1))
        assert torch.equal(method.corrected(x, conditions), conditions.first)
        x, _, conditions = method.step(x, conditions, step, sampler_of(tiny, 1))
        held.append(method.corrected(x, conditions))
    assert torch.equal(held[0], conditions.first)
    assert not torch.allclose(held[1], held[0], atol=1e-3)
    torch.testing.assert_close(held[2], 0.7 * held[0] + 0.3 * held[1])


@torch.no_grad()
def test_what_is_coarser_than_its_detail_stays_what_the_corrector_said_first(tiny):
    low, step = faces(1, 8), spaced_steps(SCHEDULE, 10, 0.5)[2]
    held = {}
    for cycles in (0, 4, 16):
        options = DPIOptions(tau=0.0, crt="always", smooth=True, detail_above=cycles)
        method = dpi(tiny, low, options, tiny.corrector())
        x, conditions = method.start(step, sampler_of(tiny, 1))
        x, _, conditions = method.step(x, conditions, step, sampler_of(tiny, 1))
        held[cycles], first = method.corrected(x, conditions), conditions.first
    torch.testing.assert_close(held[16], first)
    news = held[0] - first
    torch.testing.assert_close(held[4] - first, news - resize(resize(news, 8), 32))
    assert news.abs().max() > 0.01


@pytest.mark.parametrize(("pixels", "coarse", "fine"), [(16, 3, 13), (8, 1, 7)])
def test_coarser_keeps_slow_waves_and_drops_fast_ones(pixels, coarse, fine):
    place = (torch.arange(32) + 0.5) / 32
    for frequency, share in ((coarse, 1.0), (fine, 0.0)):
        wave = torch.cos(2 * math.pi * frequency * place).expand(1, 3, 32, 32)
        torch.testing.assert_close(coarser(wave, pixels).square().mean().item(), 0.5 * share, atol=0.06, rtol=0)


@torch.no_grad()
def test_a_condition_on_all_pixels_moves_what_is_coarser_than_the_grid_alone(rng):
    images = torch.randn(2, 3, 32, 32, generator=rng)
    across = torch.arange(32.0).expand(32, 32)
    coarse, fine = torch.cos(across * 2 * math.pi / 16), torch.cos(across * math.pi)
    found = interpolate(images, images + 0.5 * coarse + fine, 0.5, 2) - images
    torch.testing.assert_close(found[..., 4:-4], 0.25 * coarse.expand_as(found)[..., 4:-4], atol=0.03, rtol=0)
    for stride in (2, 4):
        torch.testing.assert_close(interpolate(images, images + 1, 1.0, stride), images + 1)
    torch.testing.assert_close(interpolate(images, images.flip(-1), 0.3, 1), torch.lerp(images, images.flip(-1), 0.3))


@torch.no_grad()
def test_a_condition_on_all_pixels_prefers_none_to_its_neighbour():
    condition, ratios = faces(1, 32), []
    for given in (condition[..., ::2, ::2], condition):
        errors = (interpolate(torch.zeros(1, 3, 32, 32), given, 1.0, 2) - condition).abs()
        ratios.append((errors[..., ::2, ::2].mean() / errors[..., 1::2, 1::2].mean()).item())
    assert ratios == [0, pytest.approx(1, abs=0.2)]


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_noise_estimate_is_derived_again_for_the_share_that_is_asked_for(tiny, share):
    prior, low = tiny.gaussian_prior(), faces(1, 8)
    method = DPI(list(low), prior, DPIOptions(tau=0.0, crt="never", rederived=share))
    step = spaced_steps(prior.schedule, 10, 0.5)[2]
    sampler = sampler_of(tiny, 1, prior=prior)
    x, condition = method.start(step, sampler)
    x_prev, x0, _ = method.step(x, condition, step, sampler)
    level, level_prev = step.alphas_cumprod, step.alphas_cumprod_prev
    eps = (x_prev - math.sqrt(level_prev) * x0) / math.sqrt(1 - level_prev)
    of_prior = sampler.estimate(x, step).eps
    of_moved = (x - math.sqrt(level) * x0) / math.sqrt(1 - level)
    torch.testing.assert_close(eps, torch.lerp(of_prior, of_moved, share), atol=1e-4, rtol=1e-4)


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
    prior.card = replace(prior.card, resolution=36)
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
    with pytest.raises(OptionError, match=r"paper.*default, faithful, detailed, fast, paper-ddim, paper-ddpm"):
        find_preset("paper")


# --- the corrector ---


def test_the_papers_corrector_has_the_size_of_the_papers():
    with torch.device("meta"):
        network = PaperCorrector()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 3) == 5.867


@torch.no_grad()
def test_a_new_corrector_of_the_papers_returns_the_condition(rng):
    network = PaperCorrector(32, 2, (16, 16), (False, True), norm_num_groups=8)
    condition = torch.randn(2, 3, 16, 16, generator=rng)
    found = network(torch.randn(2, 3, 32, 32, generator=rng), 500, condition).x0
    assert torch.equal(found[..., ::2, ::2], condition)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["blind", "paper"])
def test_a_corrector_looks_at_the_grid_the_step_and_the_bad_face_alone(tiny, rng, kind):
    network = tiny.corrector(kind=kind).network
    x, low = torch.randn(1, 3, 32, 32, generator=rng), faces(1, 16)
    seen = network.see(low)
    found = network(x, 500, seen).x0
    assert found.shape == (1, 3, 32, 32)
    assert found.dtype == torch.float32
    elsewhere = torch.randn(1, 3, 32, 32, generator=rng)
    elsewhere[..., ::2, ::2] = x[..., ::2, ::2]
    assert torch.equal(network(elsewhere, 500, seen).x0, found)
    on_it = x.clone()
    on_it[..., 6, 8] += 1
    assert not torch.equal(network(on_it, 500, seen).x0, found)
    assert not torch.equal(network(x, 400, seen).x0, found)
    assert not torch.equal(network(x, 500, seen + 0.1).x0, found)


@torch.no_grad()
def test_the_blind_corrector_sees_every_pixel_of_the_bad_face_and_says_what_it_doubts(tiny, rng):
    network = tiny.corrector().network
    x, seen = torch.randn(1, 3, 32, 32, generator=rng), torch.rand(1, 3, 32, 32, generator=rng)
    found = network(x, 500, seen)
    assert found.log_error.shape == (1, 1, 32, 32)
    between = seen.clone()
    between[..., 5, 7] += 0.5
    assert not torch.equal(network(x, 500, between).x0[..., ::2, ::2], found.x0[..., ::2, ::2])


@torch.no_grad()
def test_the_blind_corrector_mixes_sample_and_network_by_the_samples_noise(tiny, rng):
    """(1 − g) · x_t/√ᾱ + g · F on the grid, F between."""
    network = tiny.corrector().network
    nn.init.zeros_(network.unet.conv_out.weight)  # F is the bad face
    nn.init.zeros_(network.unet.conv_out.bias)
    x, seen = torch.randn(1, 3, 32, 32, generator=rng), torch.rand(1, 3, 32, 32, generator=rng)
    between = without_grid(seen)
    for t in (0, 40, 300, 999):
        level = network.schedule.alphas_cumprod[t].item()
        variance = (1 - level) / level
        g = variance / (variance + 0.01)
        found = network(x, t, seen).x0
        expected = (1 - g) * x[..., ::2, ::2] / math.sqrt(level) + g * between[..., ::2, ::2]
        torch.testing.assert_close(found[..., ::2, ::2], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[..., 1::2, 1::2], between[..., 1::2, 1::2])


@torch.no_grad()
def test_the_sparse_network_sees_zeros_off_the_grid(tiny, rng):
    network = tiny.corrector(kind="paper").network
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
    ("resolution", "schedule", "problem"),
    [
        (64, SCHEDULE, " is for 32×32 faces, the prior for 64×64"),
        *[
            (32, other, " was trained with another noise schedule than the prior")
            for other in (NoiseSchedule.linear(1000, 1e-4, 0.03), NoiseSchedule.linear(500))
        ],
    ],
)
def test_a_corrector_that_does_not_fit_is_refused(tiny, resolution, schedule, problem):
    advice = "choose another with --corrector, or none"
    with pytest.raises(OptionError, match=f"^corrector tiny-corrector{problem}; {advice}$"):
        tiny.corrector().check(resolution, schedule, 2)


def test_a_stride_that_is_no_multiple_of_the_correctors_is_refused(tiny):
    problem = "stride 1 is not a multiple of the corrector's stride 2"
    with pytest.raises(
        OptionError, match=f"^{problem}; choose another with --option stride=N, or use --corrector none$"
    ):
        tiny.corrector().check(32, SCHEDULE, 1)


def test_dpi_checks_its_corrector(tiny):
    with pytest.raises(OptionError, match="stride 1"):
        dpi(tiny, faces(1, 8), DPIOptions(stride=1), tiny.corrector())
    with pytest.raises(OptionError, match="noise schedule"):
        dpi(tiny, faces(1, 8), corrector=tiny.corrector(steps=20))


@torch.no_grad()
def test_a_wider_stride_takes_its_pixels_out_of_the_corrected_grid(tiny, rng):
    corrector, low = tiny.corrector(kind="paper"), faces(1, 8)
    method = dpi(tiny, low, DPIOptions(stride=4, placement="sampled"), corrector)
    x = torch.randn(1, 3, 32, 32, generator=rng)
    step = spaced_steps(SCHEDULE, 10)[3]
    x_prev, _, conditions = method.step(x, Conditions(method.condition), step, sampler_of(tiny, 1))
    found = method.corrected(x_prev, conditions)
    first = make_condition(low, 32, 2, "resized")  # the corrector's own placement
    assert torch.equal(found, corrector.network(x_prev, step.t, first).x0[..., ::4, ::4])


@pytest.mark.parametrize("kind", ["blind", "paper"])
@pytest.mark.parametrize("half", [False, True])
def test_a_corrector_is_saved_and_loaded(tiny, tmp_path, rng, half, kind):
    corrector = tiny.corrector(kind=kind)
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
    assert (found.card.kind, found.card.name, found.card.resolution) == ("corrector", saved.name, 32)
    assert found.card.sha256 == expected.card.sha256


def test_a_variant_of_a_corrector_is_loaded_by_its_name_and_only_so(tiny, tmp_path):
    save_corrector(tiny.corrector(), tmp_path, variant="fp16")  # in half precision, unless it is told otherwise
    weight = tiny.corrector().network.unet.conv_in.weight
    loaded = load_corrector(tmp_path, variant="fp16")
    assert torch.equal(loaded.network.unet.conv_in.weight, weight.half().float())
    with pytest.raises(WeightsError):
        load_corrector(tmp_path)


def test_the_embedded_corrector_is_that_of_the_resolution_and_the_schedule(tiny):
    def serves(betas=None, **card):
        schedule = ddim_scheduler_config(betas or {}, "sample")
        given = ModelCard(kind="prior", name="given", schedule=schedule, **card)
        found = embedded_corrector_for(Prior(tiny.gaussian_prior().network, given))
        return found and found.card

    correctors = embedded_cards("corrector")
    assert len(correctors) > 1
    for card in correctors.values():
        assert serves(resolution=card.resolution, licence=card.licence) == card
    assert serves(resolution=64) is None
    assert serves({"beta_start": 1e-5, "beta_end": 0.01}, resolution=128) is None


@pytest.mark.parametrize("kind", ["blind", "paper"])
def test_what_a_corrector_sees_stays_in_range_where_the_enlargement_overshoots(tiny, kind):
    steps = torch.ones(1, 3, 8, 8)
    steps[..., ::2, :3] = -1
    seen = tiny.corrector(kind=kind).network.see(steps)
    assert (seen.min(), seen.max()) == (-1, 1)


@torch.no_grad()
def test_the_authors_network_adds_what_it_says_to_the_condition(tiny):
    network = tiny.corrector(kind="paper").network
    nn.init.zeros_(network.unet.conv_out.weight)
    nn.init.constant_(network.unet.conv_out.bias, 0.25)
    seen = network.see(faces(1, 8))
    x0 = network(torch.zeros(1, 3, 32, 32), 10, seen).x0
    torch.testing.assert_close(x0[..., ::2, ::2], seen + 0.25)


@pytest.mark.parametrize("kind", ["blind", "paper"])
@torch.no_grad()
def test_a_corrector_in_half_precision_takes_and_gives_single(tiny, kind):
    network = tiny.corrector(kind=kind).network.to(torch.bfloat16)
    found = network(torch.zeros(1, 3, 32, 32), 10, network.see(faces(1, 8)))
    assert found.x0.dtype == torch.float32
    assert found.x0.isfinite().all()


def test_what_is_not_a_corrector_is_refused(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    refusal = r"holds a UNet2DModel, not a corrector \(BlindCorrector or PaperCorrector\)"
    with pytest.raises(WeightsError, match=refusal):
        load_corrector(saved)
    with pytest.raises(WeightsError, match="not a file"):
        load_corrector(saved / "config.json")
    with pytest.raises(FacePriorError, match=r"corrector 'no-such-thing' is neither"):
        load_corrector("no-such-thing")


@torch.no_grad()
def test_the_texture_is_that_of_the_option_times_that_of_the_priors_card(tiny):
    found = []
    for factor, texture in ((1.0, 2.0), (0.5, 4.0), (1.0, 4.0)):
        prior = tiny.gaussian_prior()
        prior.card = replace(prior.card, texture=factor)
        options = replace(find_preset("default").options, texture=texture)
        method = dpi(tiny, faces(1, 8), options, tiny.corrector(), prior)
        steps = spaced_steps(prior.schedule, 3, 0.3)
        found.append(sample(method, steps, sampler_of(tiny, 1, prior=prior)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
