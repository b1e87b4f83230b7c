"""Methods against independent re-implementations of their papers' equations, with dense matrices in float64."""

import copy
import itertools
import math
import re
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from faceprior.cli.app import app
from faceprior.errors import OptionError
from faceprior.images import read_metadata, resize
from faceprior.methods import (
    Enlarged,
    Method,
    NoOptions,
    Preset,
    SamplingOptions,
    all_methods,
    find_method,
    find_preset,
    registry,
)
from faceprior.methods.presets import PRESETS
from faceprior.methods.registry import OWN
from faceprior.operators import bicubic_matrix, bicubic_reduction
from faceprior.pipeline import FacePriorPipeline
from faceprior.priors.adapter import Prior
from faceprior.priors.card import ModelCard
from faceprior.priors.noise_schedule import NoiseSchedule, ddim_scheduler_config
from faceprior.sampling import (
    Initial,
    NoiseSource,
    Restoration,
    Sampler,
    Step,
    noised,
    sample,
    spaced_steps,
    time_travel,
)
from faceprior.sampling.solvers import DDIM
from tiny_faces import smooth_picture

CPU = torch.device("cpu")
SCHEDULE = NoiseSchedule.linear()
SIDE, LOW = 8, 4
WITHOUT_PRIOR = ("bicubic", "lanczos", "corrector")

NON_DEFAULTS = {
    "bicubic": {},
    "lanczos": {},
    "corrector": {},
    "sdedit": {},
    "ilvr": {"widening": 1.5, "until": 0.3},
    "repaint": {"stride": 4, "jump_length": 3, "jump_n_sample": 3},
    "ddnm": {"eta": 0.4, "sigma_y": 0.2, "travel_length": 2, "travel_repeat": 2},
    "ddrm": {"eta": 0.4, "eta_b": 0.6, "sigma_y": 0.2},
    "dps": {"zeta": 0.4},
    "pigdm": {"sigma_y": 0.2, "weight": 0.5},
    "diffpir": {"lam": 3.0, "zeta": 0.6, "sigma_n": 0.3},
}
"""Another value of every option that a method has of its own; DPI's are in the tests of the pipeline."""


def noise_source(*seeds):
    return NoiseSource([torch.Generator().manual_seed(seed) for seed in seeds], CPU)


class Silent(NoiseSource):
    """Draws zeros: an affine sampler's result is then the mean of its samples."""

    def __init__(self):
        super().__init__([], CPU)

    def normal(self, *shape):
        return torch.zeros(1, *shape)


# --- a Gaussian prior over whole images, exact and differentiable ---


def smooth_covariance():
    place = torch.stack(torch.meshgrid(*2 * [torch.arange(SIDE)], indexing="ij"), -1).flatten(0, 1).double()
    return 0.3 * torch.exp(-torch.cdist(place, place) / 3)


MEAN = torch.linspace(-0.3, 0.4, SIDE * SIDE, dtype=torch.float64)


class WholeGaussian(nn.Module):
    """E[x0 | x_t] for x0 ~ N(MEAN, covariance), of every channel on its own."""

    input_dtype = torch.float64

    def __init__(self, covariance):
        super().__init__()
        self.covariance = covariance
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)

    def jacobian(self, level):
        """∂x0/∂x_t, symmetric."""
        noisy = level * self.covariance + (1 - level) * torch.eye(len(MEAN), dtype=torch.float64)
        return math.sqrt(level) * torch.linalg.solve(noisy, self.covariance)

    def estimate(self, x, level):
        """X: (…, 64)."""
        return MEAN + (x - math.sqrt(level) * MEAN) @ self.jacobian(level)

    def forward(self, x_t, t):
        level = float(SCHEDULE.alphas_cumprod[t[0]])
        return SimpleNamespace(sample=self.estimate(x_t.flatten(2), level).unflatten(2, (SIDE, SIDE)))


def gaussian_prior(covariance=None):
    card = ModelCard(kind="prior", name="gaussian", resolution=SIDE, schedule=ddim_scheduler_config({}, "sample"))
    return Prior(WholeGaussian(smooth_covariance() if covariance is None else covariance), card)


def face(seed=0, side=LOW):
    return 0.7 * torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


A = torch.kron(bicubic_matrix(SIDE, LOW), bicubic_matrix(SIDE, LOW))  # (16, 64)
PSEUDO_INVERSE = torch.linalg.pinv(A)
I = torch.eye(SIDE * SIDE, dtype=torch.float64)  # noqa: E741 - the identity


def run(name, noise, count=6, prior=None, low=None, clip=False, start=1.0, **options):
    """A method's result with `count` steps, (B, 3, 64) in float64, and what it passed through."""
    method, seen = find_method(name), []
    preset = Preset.of(method).with_options(**options)
    if method.uses_prior:
        preset = preset.with_options(steps=count, start=start)

    def watch(step, x_prev, x0):
        seen.append((step, x_prev, x0))
        return x_prev

    prior = prior or gaussian_prior()
    steps = method.steps(SCHEDULE, preset.sampling, preset.options)
    restoration = method.begin([face()] if low is None else low, prior, preset.options)
    solver = method.solver(preset.sampling)
    found = sample(restoration, steps, Sampler(prior, solver, noise, clip=clip), on_step=watch)
    return found.flatten(2).double(), seen


# --- the papers' steps: (x_t, x0, eps, ᾱ, ᾱ', network, draw) → x_{t−1}, images flattened to (3, 64) ---


def of_singular_values(function, matrix=A):
    """V f(s) Vᵀ, with s = 0 for the null space of the matrix."""
    _, values, right = torch.linalg.svd(matrix, full_matrices=True)
    values = torch.cat([values, values.new_zeros(right.shape[0] - len(values))])
    return right.mT @ torch.diag(torch.tensor([function(float(s)) for s in values], dtype=torch.float64)) @ right


def ancestral(x, x0, level, level_prev, z):
    alpha = level / level_prev
    mean = math.sqrt(level_prev) * (1 - alpha) * x0 + math.sqrt(alpha) * (1 - level_prev) * x
    return mean / (1 - level) + math.sqrt((1 - alpha) * (1 - level_prev) / (1 - level)) * z


def fresh_unless_last(draw, level_prev):
    return draw() if level_prev < 1 else 0.0


def sdedit_step(x, x0, eps, level, level_prev, network, draw, y):
    return ancestral(x, x0, level, level_prev, fresh_unless_last(draw, level_prev))


def ilvr_step(x, x0, eps, level, level_prev, network, draw, y, widening=1.0, until=0.0):
    x_prev = ancestral(x, x0, level, level_prev, fresh_unless_last(draw, level_prev))
    t_prev = 0 if level_prev == 1 else int((SCHEDULE.alphas_cumprod - level_prev).abs().argmin())
    if t_prev < until * 1000:
        return x_prev
    coarse = round(LOW / widening)
    reduce = torch.kron(bicubic_matrix(SIDE, coarse), bicubic_matrix(SIDE, coarse))
    reduce_y = torch.kron(bicubic_matrix(LOW, coarse), bicubic_matrix(LOW, coarse))
    low_pass = torch.linalg.pinv(reduce) @ reduce
    y_prev = (
        math.sqrt(level_prev) * y @ reduce_y.mT @ torch.linalg.pinv(reduce).mT + math.sqrt(1 - level_prev) * draw()
    )
    return y_prev @ low_pass + x_prev @ (I - low_pass)


def repaint_step(x, x0, eps, level, level_prev, network, draw, y, stride=2):
    x_prev = ancestral(x, x0, level, level_prev, fresh_unless_last(draw, level_prev))
    enlarged = resize(y.unflatten(1, (LOW, LOW))[None].float(), SIDE)[0].clamp(-1, 1).double()
    known = math.sqrt(level_prev) * enlarged[:, ::stride, ::stride]
    known = known + math.sqrt(1 - level_prev) * draw(side=SIDE // stride).unflatten(1, known.shape[1:])
    x_prev = x_prev.unflatten(1, (SIDE, SIDE)).clone()
    x_prev[:, ::stride, ::stride] = known
    return x_prev.flatten(1)


def ddnm_step(x, x0, eps, level, level_prev, network, draw, y, eta=0.85, sigma_y=0.0):
    a, spread = math.sqrt(level_prev), math.sqrt(1 - level_prev)

    def share(s):  # λ
        brought = a * 2 * sigma_y / s if s > 1e-9 else 0.0
        return 1.0 if brought <= spread else spread / brought

    def left(s):  # √φ
        brought = a * 2 * sigma_y / s if s > 1e-9 else 0.0
        return math.sqrt(max(0.0, spread**2 - (share(s) * brought) ** 2))

    x0 = x0 - (x0 @ A.mT - y) @ PSEUDO_INVERSE.mT @ of_singular_values(share)
    return a * x0 + (math.sqrt(1 - eta**2) * eps + eta * draw()) @ of_singular_values(left)


def ddrm_step(x, x0, eps, level, level_prev, network, draw, y, eta=0.85, eta_b=1.0, sigma_y=0.0):
    sigma, z = math.sqrt((1 - level_prev) / level_prev), draw()
    from_y, keep = y @ PSEUDO_INVERSE.mT, math.sqrt(1 - eta**2)

    def null(s):
        return float(s <= 1e-9)

    def noisier(s):
        return float(s > 1e-9 and sigma < 2 * sigma_y / s)

    def held(s):
        return float(s > 1e-9 and sigma >= 2 * sigma_y / s)

    free = x0 + sigma * (keep * eps + eta * z)
    per_noise = of_singular_values(lambda s: s / (2 * sigma_y) if noisier(s) else 0.0)
    pulled = x0 + sigma * eta * z + sigma * keep * (from_y - x0) @ per_noise
    own = of_singular_values(lambda s: math.sqrt(sigma**2 - (2 * sigma_y * eta_b / s) ** 2) if held(s) else 0.0)
    from_known = (1 - eta_b) * x0 + eta_b * from_y
    found = free @ of_singular_values(null) + pulled @ of_singular_values(noisier)
    return math.sqrt(level_prev) * (found + from_known @ of_singular_values(held) + z @ own)


def dps_step(x, x0, eps, level, level_prev, network, draw, y, zeta=1.0):
    residual = y - x0 @ A.mT
    gradient = -(residual @ A @ network.jacobian(level)) / residual.norm()
    x_prev = ancestral(x, x0, level, level_prev, fresh_unless_last(draw, level_prev))
    return x_prev - zeta * gradient


def pigdm_step(x, x0, eps, level, level_prev, network, draw, y, sigma_y=0.0, weight=1.0, eta=1.0):
    variance = (1 - level) / level / (1 + (1 - level) / level)
    system = variance * A @ A.mT + (2 * sigma_y) ** 2 * torch.eye(len(A), dtype=torch.float64)
    guidance = torch.linalg.solve(system, (y - x0 @ A.mT).mT).mT @ A @ network.jacobian(level)
    x0 = x0 + weight * math.sqrt(level) * variance * guidance
    c1 = eta * math.sqrt((1 - level / level_prev) * (1 - level_prev) / (1 - level))
    z = fresh_unless_last(draw, level_prev)
    return math.sqrt(level_prev) * x0 + c1 * z + math.sqrt(max(0.0, 1 - level_prev - c1**2)) * eps


def diffpir_step(x, x0, eps, level, level_prev, network, draw, y, lam=1.0, zeta=0.1, sigma_n=0.001):
    rho = lam * sigma_n**2 / ((1 - level) / level)
    x0 = torch.linalg.solve(A.mT @ A + rho * I, (y @ A + rho * x0).mT).mT
    eps = (x - math.sqrt(level) * x0) / math.sqrt(1 - level)
    noise = math.sqrt(1 - zeta) * eps + math.sqrt(zeta) * draw()
    return math.sqrt(level_prev) * x0 + math.sqrt(1 - level_prev) * noise


REFERENCES = {
    "sdedit": sdedit_step,
    "ilvr": ilvr_step,
    "repaint": repaint_step,
    "ddnm": ddnm_step,
    "ddrm": ddrm_step,
    "dps": dps_step,
    "pigdm": pigdm_step,
    "diffpir": diffpir_step,
}


def reference_levels(count, start, length=1, visits=1):
    """Levels t that RePaint's published schedule visits, the clean image's −1 at the end."""
    top = round(1000 * start)
    jumps = dict.fromkeys(range(0, count - length, length), visits - 1)
    place, places = count, []
    while place >= 1:
        place -= 1
        places.append(place)
        if jumps.get(place, 0) > 0:
            jumps[place] -= 1
            place += length
            places.append(place)  # its `length` single steps up are one Gaussian
    return [place * top // count for place in places] + [-1]


def reference_start(name, y, level, pure, draw, sigma_y=0.0):
    z = draw()
    enlarged = resize(y.unflatten(1, (LOW, LOW))[None].float(), SIDE)[0].flatten(1).double()
    if name == "ddrm":
        sigma = math.sqrt((1 - level) / level)
        held = of_singular_values(lambda s: float(s > 1e-9 and 2 * sigma_y / s < sigma))
        own = of_singular_values(
            lambda s: math.sqrt(sigma**2 - ((2 * sigma_y / s) ** 2 if s > 1e-9 and 2 * sigma_y / s < sigma else 0))
        )
        return math.sqrt(level) * (
            y @ PSEUDO_INVERSE.mT @ held + (0 if pure else 1) * enlarged @ (I - held) + z @ own
        )
    if pure and name != "sdedit":
        return z
    return math.sqrt(level) * enlarged + math.sqrt(1 - level) * z


def reference_run(name, seed, count, start, **options):
    """The whole sampler, of one image, with the draws that the seed stands for in the order of the package's."""
    generator = torch.Generator().manual_seed(seed)

    def draw(side=SIDE):
        return torch.randn(3, side, side, generator=generator).flatten(1).double()

    network, y = gaussian_prior().network, face().flatten(1).double()
    travel = [options.pop(key, 1) for key in ("travel_length", "travel_repeat")]
    if name == "repaint":
        travel = [options.pop(key, 10) for key in ("jump_length", "jump_n_sample")]
    levels = reference_levels(count, start, *travel)
    first = float(SCHEDULE.alphas_cumprod[levels[0]])
    x = reference_start(name, y, first, start == 1, draw, options.get("sigma_y", 0.0))
    for t, t_prev in itertools.pairwise(levels):
        level = float(SCHEDULE.alphas_cumprod[t])
        level_prev = float(SCHEDULE.alphas_cumprod[t_prev]) if t_prev >= 0 else 1.0
        if t_prev > t:
            x = math.sqrt(level_prev / level) * x + math.sqrt(1 - level_prev / level) * draw()
            continue
        x0 = network.estimate(x, level)
        eps = (x - math.sqrt(level) * x0) / math.sqrt(1 - level)
        x = REFERENCES[name](x, x0, eps, level, level_prev, network, draw, y, **options)
    return x


@pytest.mark.parametrize("start", [1.0, 0.6])
@pytest.mark.parametrize("changed", [False, True], ids=["defaults", "other options"])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_method_is_its_papers_equations(name, changed, start):
    options = NON_DEFAULTS[name] if changed else {}
    found, _ = run(name, noise_source(3), 7, start=start, **options)
    expected = reference_run(name, 3, 7, start, **options)
    assert (found[0] - expected).abs().max() < 2e-3 * expected.abs().max()


def test_ddnm_plus_is_ddnm_where_the_noise_vanishes():
    """But for the last step, which has no noise to compare that of the face with."""
    without, nearly, noisy = (run("ddnm", noise_source(1), sigma_y=sigma_y)[1][-2][1] for sigma_y in (0.0, 1e-6, 0.1))
    torch.testing.assert_close(without, nearly, atol=1e-4, rtol=0)
    assert (without - noisy).abs().max() > 0.01


# --- closed forms ---


def posterior():
    """Mean (3, 64) and covariance of a face given A x = y."""
    covariance, y = smooth_covariance(), face().flatten(1).double()
    gain = torch.linalg.solve(A @ covariance @ A.mT, A @ covariance).mT
    return MEAN + (y - MEAN @ A.mT) @ gain.mT, covariance - gain @ A @ covariance


class Impulses(NoiseSource):
    """The start of image i is the i-th unit impulse (of each channel); zero for the last image."""

    def __init__(self):
        super().__init__([], CPU)

    def normal(self, *shape):
        impulses = torch.cat([torch.eye(SIDE * SIDE), torch.zeros(1, SIDE * SIDE)])
        return impulses.view(-1, 1, SIDE, SIDE).expand(-1, 3, -1, -1).clone()


def test_deterministic_ddnm_samples_the_posterior():
    """With η = 0 only the start is random and the sampler is affine, so impulses show its mean and covariance.

    What holds for DPI's grid (test_sampling) holds for the range of any A: with many steps the samples become draws
    from the posterior of the Gaussian prior given A x = y.
    """
    mean, covariance = posterior()
    errors = []
    for count in (20, 100, 400):
        low = [face()] * (SIDE * SIDE + 1)
        prior = gaussian_prior()
        preset = find_preset("ddnm").with_options(steps=count, eta=0.0)
        method = find_method("ddnm")
        steps = method.steps(SCHEDULE, preset.sampling, preset.options)
        restoration = method.begin(low, prior, preset.options)
        restoration.start = lambda step, sampler, initial: (sampler.noise.normal(), None)
        found = sample_at_once(prior, restoration, steps, Impulses()).flatten(2).double()[:, 0]
        centre, matrix = found[-1], (found[:-1] - found[-1]).mT
        off_mean = ((centre - mean[0]).norm() / (mean[0] - face_only()).norm()).item()
        off_covariance = ((matrix @ matrix.mT - covariance).norm() / covariance.norm()).item()
        errors.append((off_mean, off_covariance))
    assert errors[2][0] < 0.03
    assert errors[2][1] < 0.05
    for coarse, fine in itertools.pairwise(errors):
        assert fine[0] < 0.7 * coarse[0]
        assert fine[1] < 0.5 * coarse[1]


def face_only():
    """The pseudo-inverse's image, which knows nothing of the prior."""
    return PSEUDO_INVERSE @ face().flatten(1).double()[0]


def sample_at_once(prior, restoration, steps, noise):
    """The loop with noise that is drawn but not used: η is 0."""
    restoration.eta = 0.0
    return sample(restoration, steps, Sampler(prior, DDIM(), noise, clip=False))


def test_the_mean_of_sdedit_is_the_denoised_enlargement():
    """Ancestral steps draw from p(x0 | x_{t0}); the mean of that over x_{t0}'s noise is E[x0 | √ᾱ y]."""
    level = float(SCHEDULE.alphas_cumprod[499])
    enlarged = resize(face()[None], SIDE)[0].flatten(1).double()
    expected = gaussian_prior().network.estimate(math.sqrt(level) * enlarged, level)
    errors = []
    for count in (20, 100, 500):
        found, _ = run("sdedit", Silent(), count, start=0.5)
        errors.append(((found[0] - expected).norm() / (expected - MEAN).norm()).item())
    assert errors[2] < 0.01


def test_pigdm_corrects_towards_the_posterior_mean_of_a_unit_gaussian():
    """With unit variance r_t² is exact, and x0' − x0 = ᾱ_t (E[x0 | x_t, y] − E[x0 | x_t]).

    ᾱ_t is what is left of the exact 1/√ᾱ_t · √ᾱ_t when the guidance is weighted by r_t² and not by σ_t².
    """
    prior, sigma = gaussian_prior(I), 0.1
    method, step = find_method("pigdm"), spaced_steps(SCHEDULE, 10)[4]
    preset = Preset.of(method).with_options(sigma_y=sigma / 2)
    x = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    restoration = method.begin([face()], prior, preset.options)
    restoration.start = lambda step, sampler, initial: (x, None)
    seen = []
    sampler = Sampler(prior, DDIM(), noise_source(0), clip=False)
    sample(restoration, [step], sampler, on_step=lambda *a: seen.append(a) or a[1])
    level = step.alphas_cumprod
    x0 = prior.network.estimate(x[0].flatten(1).double(), level)
    gain = (1 - level) * A.mT @ torch.linalg.inv((1 - level) * A @ A.mT + sigma**2 * torch.eye(len(A)).double())
    exact = x0 + (face().flatten(1).double() - x0 @ A.mT) @ gain.mT
    error = (seen[0][2].flatten(2)[0] - (x0 + level * (exact - x0))).abs().max()
    assert error < 1e-5
    assert (level * (exact - x0)).abs().max() > 0.05


def test_bicubic_is_resize_and_lanczos_is_pillows():
    low = [face(0, 4), face(1, 5)]
    bicubic, _ = run("bicubic", noise_source(0, 1), low=low)
    lanczos, _ = run("lanczos", noise_source(0, 1), low=low)
    for position, own in enumerate(low):
        assert torch.equal(bicubic[position], resize(own[None], SIDE)[0].flatten(1).double())
        pillow = [Image.fromarray(c.numpy()).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for c in own]
        expected = torch.stack([torch.from_numpy(np.array(c)) for c in pillow]).flatten(1).double()
        torch.testing.assert_close(lanczos[position], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["ilvr", "ddnm", "ddrm"])
@pytest.mark.parametrize("side", [4, 5])
def test_the_result_reduces_to_the_face_exactly(name, side):
    """Before it is clipped to the range of pixels."""
    low = face(side=side)
    found, _ = run(name, noise_source(0), 8, low=[low], clip=True)
    reduced = bicubic_reduction(SIDE, side).forward(found.unflatten(2, (SIDE, SIDE)))[0]
    assert (reduced - low).abs().max() < 1e-5


def test_repaint_keeps_the_known_pixels():
    found, _ = run("repaint", noise_source(0), 6)
    expected = resize(face()[None], SIDE).clamp(-1, 1)[..., ::2, ::2].double()
    assert torch.equal(found.unflatten(2, (SIDE, SIDE))[..., ::2, ::2], expected)


# --- time travel ---


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4))
def test_time_travel_visits_what_repaints_schedule_does(count, length, visits):
    steps = time_travel(spaced_steps(SCHEDULE, count), length, visits)
    visited = [step.t for step in steps]
    assert [*visited, -1] == reference_levels(count, 1.0, length, visits)
    assert [step.t_prev for step in steps] == [*visited[1:], -1]
    assert [step.index for step in steps] == list(range(len(steps)))
    assert [step.pure_noise for step in steps] == [True] + [False] * (len(steps) - 1)
    for step in steps:
        assert step.alphas_cumprod == SCHEDULE.alphas_cumprod[step.t]
        assert step.alphas_cumprod_prev == (1 if step.last else SCHEDULE.alphas_cumprod[step.t_prev])


def test_a_step_that_goes_up_noises_the_image_and_asks_nothing():
    low, high = 100, 700
    levels = SCHEDULE.alphas_cumprod[low], SCHEDULE.alphas_cumprod[high]
    up = Step(0, low, low, high, 0.1, float(levels[0]), float(levels[1]), pure_noise=False)
    asked = []
    x = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))

    class Start(Restoration):
        def start(self, step, sampler, initial=None):
            return x, None

    sampler = Sampler(asked.append, DDIM(), noise_source(5))
    found = sample(Start(), [up], sampler, on_step=lambda *a: asked.append(a))
    assert asked == []
    z = noise_source(5).normal(3, SIDE, SIDE)
    ratio = float(levels[1] / levels[0])
    torch.testing.assert_close(found, math.sqrt(ratio) * x + math.sqrt(1 - ratio) * z)


def test_without_steps_the_loop_returns_the_start():
    restoration = Enlarged([face()], gaussian_prior())
    found = sample(restoration, [], Sampler(None, DDIM(), noise_source(0)))
    assert torch.equal(found, resize(face()[None], SIDE))


# --- the start ---


@pytest.mark.parametrize("name", [*REFERENCES, "dpi"])
@pytest.mark.parametrize("start", [0.4, 1.0])
def test_a_method_starts_from_a_face_that_is_known(name, start):
    """And from its own guess where none is."""
    method, prior = find_method(name), gaussian_prior()
    restoration = method.begin([face()], prior, method.options)
    step = spaced_steps(SCHEDULE, 20, start)[0]
    known = torch.zeros(1, 1, SIDE, SIDE)
    known[..., : SIDE // 2] = 1
    given = Initial(face(3, SIDE)[None], known)
    found, _ = restoration.start(step, Sampler(prior, method.solver(method.sampling), noise_source(1)), given)
    mixed = torch.cat([given.faces[..., : SIDE // 2], resize(face()[None], SIDE)[..., SIDE // 2 :]], dim=3)
    expected = noised(mixed, noise_source(1).normal(3, SIDE, SIDE), step.alphas_cumprod)
    if name == "ddrm":  # what the face says goes before
        null = I - torch.as_tensor(PSEUDO_INVERSE @ A)
        found, expected = (image.flatten(2).double() @ null for image in (found, expected))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sigma_y", [0.0, 0.05, 0.3])
def test_ddrm_starts_with_the_noise_that_the_measurement_does_not_bring(sigma_y):
    step = spaced_steps(SCHEDULE, 20, 0.1)[0]  # where the diffusion is hardly noisier than the measurement
    method, prior = find_method("ddrm"), gaussian_prior()
    restoration = method.begin([face()], prior, replace(method.options, sigma_y=sigma_y))
    found, _ = restoration.start(step, Sampler(prior, method.solver(method.sampling), noise_source(1)))
    z = noise_source(1).normal(3, SIDE, SIDE)[0].flatten(1).double()
    y = face().flatten(1).double()
    expected = reference_start("ddrm", y, step.alphas_cumprod, pure=False, draw=lambda: z, sigma_y=sigma_y)
    torch.testing.assert_close(found[0].flatten(1).double(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_the_corrector_alone_is_its_answer_without_a_sample_kept_in_range(tiny, value):
    corrector, prior = tiny.corrector(), tiny.gaussian_prior()
    low = value * (1 - 0.2 * face(side=8).abs())
    method = find_method("corrector")
    restoration = method.begin([low], prior, method.options, corrector)
    found = sample(restoration, [], Sampler(None, DDIM(), noise_source(0)))
    seen = resize(low[None], tiny.side).clamp(-1, 1)
    nothing = torch.zeros(1, 3, tiny.side, tiny.side)
    answer = corrector.network(nothing, len(prior.schedule) - 1, seen).x0
    assert answer.abs().max() > 1
    torch.testing.assert_close(found, answer.clamp(-1, 1))


@pytest.mark.parametrize("name", WITHOUT_PRIOR)
def test_a_method_without_a_prior_cannot_start_from_a_face(pipeline, name):
    given = Initial(face(3, 32)[None], torch.ones(1, 1, 1, 1))
    with pytest.raises(OptionError, match=f"{name} does not sample, so it cannot start from a face"):
        pipeline.restore([face(side=8)], [torch.Generator()], 1, find_preset(name), 1, initial=given)


@pytest.mark.parametrize("name", OWN)
def test_a_restoration_does_not_change_while_it_samples(tiny, name):
    prior, method = tiny.gaussian_prior(), find_method(name)
    sampling = None if method.sampling is None else replace(method.sampling, steps=3)
    steps = method.steps(SCHEDULE, sampling, method.options)
    restoration = method.begin([face(side=8)], prior, method.options, tiny.corrector())
    before = {key: (value, copy.deepcopy(value)) for key, value in vars(restoration).items() if key != "corrector"}
    sample(restoration, steps, Sampler(prior, method.solver(sampling), noise_source(0)))
    assert vars(restoration).keys() - {"corrector"} == before.keys()
    for key, (value, kept) in before.items():
        now = vars(restoration)[key]
        assert now is value
        assert torch.equal(now, kept) if isinstance(now, torch.Tensor) else now == kept


# --- gradients ---


@pytest.mark.parametrize("name", ["dps", "pigdm"])
def test_the_graph_is_gone_after_each_step(name):
    found, seen = run(name, noise_source(0), 4)
    assert not any(tensor.requires_grad for _, *tensors in seen for tensor in tensors)
    assert not found.requires_grad


@pytest.mark.parametrize("name", OWN)
def test_torchs_default_number_format_changes_nothing(pipeline, name):
    batch = [face(side=8)]
    expected = restore(pipeline, name, batch)
    torch.set_default_dtype(torch.float64)
    try:
        found = restore(pipeline, name, batch)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["dps", "pigdm", "dpi"])
def test_inference_mode_changes_nothing(pipeline, name):
    with torch.inference_mode():
        found = restore(pipeline, name)
    assert torch.equal(found, restore(pipeline, name))


def test_on_a_cpu_one_image_at_a_time_is_differentiated(pipeline, monkeypatch):
    sizes = []
    method = find_method("dps")

    def begin(faces, prior, options):
        sizes.append(len(faces))
        return method.restoration(faces, prior, options)

    begin.differentiates = True
    monkeypatch.setitem(OWN, "dps", Method("dps", "", "", begin, method.options, method.sampling))
    restore(pipeline, "dps", batch=[face(side=8)] * 3)
    assert sizes == [1, 1, 1, 1]  # the first is the check of the options


# --- the pipeline ---


@pytest.fixture(scope="module")
def pipeline(tiny):
    built = FacePriorPipeline(tiny.gaussian_prior(), tiny.corrector())
    built.set_progress_bar_config(disable=True)
    return built


def restore(pipeline, name, batch=None, seeds=None, batch_size=8, **options):
    preset = find_preset(name)
    if find_method(name).uses_prior:
        preset = preset.with_options(steps=4).with_options(**options)
    batch = [face(side=8)] if batch is None else batch
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(batch))]
    pipeline.check(preset)
    return torch.cat([own.images for own in pipeline.restore(batch, generators, 1, preset, batch_size)])


@pytest.mark.parametrize("name", OWN)
def test_a_batch_of_four_is_four_singles_bit_for_bit(pipeline, name):
    batch = [face(seed, side) for seed, side in enumerate((8, 8, 6, 8))]
    singles = [restore(pipeline, name, [own], [seed])[0] for seed, own in enumerate(batch)]
    for batch_size in (1, 3, 4):
        together = restore(pipeline, name, batch, batch_size=batch_size)
        for found, single in zip(together, singles, strict=True):
            assert torch.equal(found, single)


@pytest.mark.parametrize("name", OWN)
def test_a_seed_reproduces_and_another_differs(pipeline, name):
    first, again, other = (restore(pipeline, name, seeds=[seed]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name in WITHOUT_PRIOR)
    assert first.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        (name, option, value)
        for name, changes in NON_DEFAULTS.items()
        for option, value in ({**changes, "steps": 5, "start": 0.7} if name not in WITHOUT_PRIOR else {}).items()
    ],
)
def test_every_option_changes_the_result(pipeline, name, option, value):
    base = {"travel_repeat": 2, "jump_length": 1, "jump_n_sample": 2}  # or length or number would have no effect
    base = {key: setting for key, setting in base.items() if key in NON_DEFAULTS[name] and key != option}
    if option in ("travel_repeat", "jump_n_sample"):
        base["jump_length" if name == "repaint" else "travel_length"] = 1
    assert not torch.equal(restore(pipeline, name, **{**base, option: value}), restore(pipeline, name, **base))


def test_no_option_is_left_out_of_the_test_above():
    for name, method in OWN.items():
        if name != "dpi":  # in test_pipeline
            defaults = {field.name: getattr(method.options, field.name) for field in fields(method.options)}
            assert defaults.keys() == NON_DEFAULTS[name].keys()
            assert all(defaults[option] != value for option, value in NON_DEFAULTS[name].items())


@pytest.mark.parametrize("name", ["sdedit", "ilvr", "repaint"])
def test_the_solver_is_a_choice(pipeline, name):
    assert not torch.equal(restore(pipeline, name, solver="ddim"), restore(pipeline, name))


WRONG = [
    ("ilvr", {"widening": 0.5}, "widening is 0.5"),
    ("ilvr", {"until": 1.5}, "until is 1.5"),
    ("repaint", {"stride": 3}, "stride is 3"),
    ("repaint", {"jump_length": 0}, "jump_length is 0"),
    ("ddnm", {"eta": 1.1}, "eta is 1.1"),
    ("ddnm", {"sigma_y": math.nan}, "sigma_y is nan"),
    ("ddnm", {"travel_repeat": 0}, "travel_repeat 0"),
    ("ddnm", {"solver": "ddpm"}, "ddnm works with ddim only"),
    ("ddrm", {"eta_b": -0.1}, "eta_b is -0.1"),
    ("dps", {"zeta": -1.0}, "zeta is -1.0"),
    ("pigdm", {"weight": math.inf}, "weight is inf"),
    ("diffpir", {"lam": 0.0}, "lam is 0.0"),
    (
        "diffpir",
        {"tau": 0.5},
        "diffpir has no option tau; it has solver, steps, start, end, eta, shift, lam, zeta, sigma_n",
    ),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG)
def test_a_wrong_option_is_refused_by_its_name(pipeline, name, options, message):
    with pytest.raises(OptionError, match=message) as caught:
        restore(pipeline, name, **options)
    assert "\n" not in str(caught.value)


def test_a_method_without_a_prior_has_no_options():
    with pytest.raises(OptionError, match="bicubic has no option steps; it has none"):
        find_preset("bicubic").with_options(steps=3)
    assert find_preset("bicubic").as_dict() == {}


def test_a_preset_of_foreign_options_is_refused():
    with pytest.raises(OptionError, match="ddnm takes DDNMOptions, not NoOptions"):
        Preset("ddnm", SamplingOptions(), NoOptions())
    with pytest.raises(OptionError, match="bicubic takes no SamplingOptions"):
        Preset("bicubic", SamplingOptions(), NoOptions())


PUBLISHED = {
    "bicubic": (None, 0),
    "lanczos": (None, 0),
    "sdedit": (SamplingOptions("ddpm", 500, 0.5), 500),
    "ilvr": (SamplingOptions("ddpm", 100), 100),
    "repaint": (SamplingOptions("ddpm", 250), 2410),
    "ddnm": (SamplingOptions("ddim", 100), 100),
    "ddrm": (SamplingOptions("ddim", 20), 20),
    "dps": (SamplingOptions("ddpm", 1000), 1000),
    "pigdm": (SamplingOptions("ddim", 100, eta=1.0), 100),
    "diffpir": (SamplingOptions("ddim", 100), 100),
    "dpi": (SamplingOptions("ddim", 5, 0.3, 0.02, shift=0.13), 5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_defaults_are_the_papers(name):
    method = find_method(name)
    assert (method.sampling, method.default_evaluations) == PUBLISHED[name]
    assert method.differentiates == (name in ("dps", "pigdm"))
    assert method.uses_corrector == (name == "dpi")
    assert find_preset(name) == Preset(name, method.sampling, method.options)


def test_the_default_preset_is_that_of_dpi():
    assert find_preset("default") == find_preset("dpi")


def test_the_number_of_evaluations_is_that_of_the_calls(pipeline):
    preset = find_preset("repaint").with_options(steps=6, jump_length=2, jump_n_sample=3)
    calls = []
    pipeline.restore(
        [face(side=8)], [torch.Generator()], 2, preset, 2, lambda step, x, *_: calls.append(step.rises) or x
    )
    assert calls == [False] * pipeline.evaluations(preset)
    assert pipeline.evaluations(preset) == 6 + 2 * 2 * 2


# --- other packages' methods ---


class Point:
    """An entry point of a package that is not installed."""

    def __init__(self, name, package, found):
        self.name, self.value, self.dist = name, f"{package}:METHOD", SimpleNamespace(name=package)
        self.found = found

    def load(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@dataclass(frozen=True)
class HalfwayOptions:
    share: float = 0.5
    sharp: bool = False
    count: int | None = None


class Halfway(Enlarged):
    def __init__(self, low_resolution, prior, options):
        super().__init__(low_resolution, prior)
        self.options = options

    def step(self, x_t, state, step, sampler):
        denoised = sampler.estimate(x_t, step)
        x0 = denoised.x0 + self.options.share * (self.enlarged - denoised.x0)
        return sampler.solve(denoised._replace(x0=x0), step), x0, state


HALFWAY = Method(
    "halfway", "go halfway", "nobody, nowhere", Halfway, HalfwayOptions(), SamplingOptions(steps=4), solvers=("ddim",)
)


@pytest.fixture
def installed(monkeypatch):
    """Pretend that packages with these entry points are installed."""

    def install(*points):
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "faceprior.methods" else ())

    return install


def test_another_packages_method_works_like_our_own(pipeline, installed):
    installed(Point("halfway", "halves", HALFWAY))
    assert find_method("halfway") is HALFWAY
    found = restore(pipeline, "halfway")
    assert not torch.equal(found, restore(pipeline, "halfway", share=0.7))
    methods, problems = all_methods()
    assert list(methods) == [*OWN, "halfway"]
    assert problems == []


BROKEN = {
    "it cannot be imported": (Point("halfway", "halves", ImportError("no module named x")), "no module named x"),
    "it exits": (Point("halfway", "halves", RuntimeError()), "cannot be loaded (RuntimeError)"),
    "it is no method": (Point("halfway", "halves", Halfway), "is a type, not a faceprior.methods.Method"),
    "its name is another": (Point("halfways", "halves", HALFWAY), "is a method named 'halfway'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_named_and_breaks_no_other(installed, name):
    point, message = BROKEN[name]
    installed(point, Point("third", "thirds", Method("third", "", "", Halfway)))
    with pytest.raises(OptionError) as caught:
        find_method(point.name)
    assert "package halves" in str(caught.value)
    assert message in str(caught.value)
    methods, problems = all_methods()
    assert list(methods) == [*OWN, "third"]
    assert problems == [str(caught.value)]


def test_two_packages_with_one_name_are_both_named(installed):
    installed(Point("halfway", "halves", HALFWAY), Point("halfway", "fifths", HALFWAY))
    with pytest.raises(OptionError, match="packages fifths and halves"):
        find_method("halfway")
    assert list(all_methods()[0]) == list(OWN)


def test_a_package_cannot_take_the_name_of_our_own(installed):
    installed(Point("ddnm", "halves", HALFWAY))
    assert find_method("ddnm") is OWN["ddnm"]
    methods, problems = all_methods()
    assert methods == OWN
    assert problems == ["method 'ddnm' of package halves has the name of one of faceprior's own"]


def test_an_unknown_method_is_refused_with_the_known_ones(installed):
    installed(Point("halfway", "halves", HALFWAY))
    with pytest.raises(OptionError, match=r"'best' is not known; choose bicubic, .*, dpi, halfway"):
        find_method("best")
    with pytest.raises(OptionError, match=r"'best' is neither a preset nor a method; .* default, .*, halfway"):
        find_preset("best")


# --- the documentation ---

DOCUMENTATION = Path(__file__).parent.parent / "docs" / "method.md"


def example(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENTATION.read_text("utf-8"), flags=re.DOTALL)
    return found


def test_the_documented_example_is_a_method(pipeline, installed):
    home = {}
    exec(example("python"), home)  # noqa: S102 - our own documentation
    group, name, attribute = re.search(
        r'^\[project\.entry-points\."(.+)"\]\n(\w+) = ".+:(\w+)"', example("toml")
    ).groups()
    assert group == registry.ENTRY_POINTS
    installed(Point(name, "my_package", home[attribute]))
    close, far = restore(pipeline, name, strength=0.9), restore(pipeline, name, strength=0.1)
    low = face(side=8)
    distances = [(bicubic_reduction(32, 8).forward(found[0]) - low).norm() for found in (close, far)]
    assert distances[0] < 0.5 * distances[1]


def test_the_documented_table_is_what_the_methods_say():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\d+) \| [^|]*\|$", DOCUMENTATION.read_text("utf-8"), re.MULTILINE)
    assert {name: int(evaluations) for name, evaluations in rows} == {
        name: method.default_evaluations for name, method in OWN.items()
    }


def test_the_documented_presets_are_those_of_the_code():
    rows = re.findall(
        r"^\| `([\w-]+)`(?:, after `([\w-]+)`)? \| (`solver=.*|`steps=.*)\|$",
        DOCUMENTATION.read_text("utf-8"),
        re.MULTILINE,
    )
    shown = {"": {}}
    for name, before, options in rows:
        shown[name] = shown[before] | dict(re.findall(r"`(\w+)=([^`]+)`", options))
    assert shown.keys() == {"", *PRESETS}
    for name, preset in PRESETS.items():
        assert shown[name].keys() == preset.as_dict().keys()
        for option, value in preset.as_dict().items():
            text = shown[name][option]
            same = float(Fraction(text)) == value if type(value) in (int, float) else text == str(value).lower()
            assert same, (name, option, text, value)


# --- the command line ---


@pytest.fixture(scope="module")
def weights(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "prior"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def command(weights, tmp_path):
    Image.fromarray(smooth_picture(0, 8)).save(tmp_path / "face.png")

    def run_command(*arguments):
        fixed = (
            "--output",
            tmp_path / "out",
            "--prior",
            weights,
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--aligned",
        )
        words = ["restore", tmp_path / "face.png", *fixed, *arguments]
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run_command


def metadata(tmp_path):
    return read_metadata(tmp_path / "out" / "face.png")


def test_a_method_is_chosen_and_written_into_the_metadata(command, tmp_path):
    result = command(
        "--method", "ddnm", "--option", "steps=3", "--option", "sigma_y=0.1", "--option", "travel-repeat=2"
    )
    assert result.exit_code == 0, result.output
    found = metadata(tmp_path)
    assert (found["method"], found["preset"], found["corrector"]) == ("ddnm", "ddnm", None)
    assert found["prior"]["name"]
    expected = {"solver": "ddim", "steps": 3, "start": 1.0, "end": 0.0, "eta": 0.85, "shift": 0.0, "sigma_y": 0.1}
    assert found["options"] == {**expected, "travel_length": 1, "travel_repeat": 2}


def test_a_method_without_a_prior_says_so_in_the_metadata(command, tmp_path):
    assert command("--method", "lanczos").exit_code == 0
    found = metadata(tmp_path)
    assert (found["method"], found["options"], found["prior"]) == ("lanczos", {}, None)


@pytest.mark.parametrize("name", OWN)
def test_every_method_is_on_the_command_line(command, tmp_path, name):
    steps = () if name in WITHOUT_PRIOR else ("--option", "steps=2")
    assert command("--method", name, *steps).exit_code == 0
    assert metadata(tmp_path)["method"] == name


def test_another_packages_method_is_on_the_command_line(command, tmp_path, installed):
    installed(Point("halfway", "halves", HALFWAY))
    assert (
        command(
            "--method", "halfway", *["--option", "sharp=True", "--option", "share=1", "--option", "count=3"]
        ).exit_code
        == 0
    )
    found = metadata(tmp_path)["options"]
    assert [repr(found[option]) for option in ("sharp", "share", "count")] == ["True", "1.0", "3"]


USAGE = {
    "unknown method": (("--method", "best"), "'best' is neither a preset nor a method; choose"),
    "another method's flag": (
        ("--method", "ddnm", "--option", "tau=0.3"),
        "ddnm has no option tau; it has solver, steps",
    ),
    "another method's option": (("--method", "ddnm", "--option", "zeta=1"), "ddnm has no option zeta; it has solver"),
    "no value": (("--method", "ddnm", "--option", "sigma_y"), "--option sigma_y: write NAME=VALUE"),
    "not a number": (("--method", "ddnm", "--option", "sigma_y=low"), "sigma_y is 'low'; it must be a number"),
    "not whole": (("--method", "ddnm", "--option", "steps=2.5"), "steps is 2.5; it must be a whole number"),
    "neither true nor false": (("--option", "crt=maybe"), "crt is 'maybe'; choose 'never'"),
    "out of range": (("--method", "ddnm", "--option", "eta=2"), "eta is 2.0; it must lie in 0 to 1"),
    "given twice": (("--option", "tau=0.3", "--option", "tau=0.4"), "option tau is given twice"),
    "a corrector": (("--method", "ddnm", "--corrector", "corrector-128"), "ddnm works without a corrector"),
    "steps of bicubic": (("--method", "bicubic", "--option", "steps=3"), "bicubic has no option steps; it has none"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_one_line(command, tmp_path, case):
    arguments, message = USAGE[case]
    result = command(*arguments)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_preset_is_named_like_a_method(command, tmp_path):
    assert command("--method", "paper-ddim", "--option", "steps=2").exit_code == 0
    assert metadata(tmp_path)["preset"] == "paper-ddim"


def test_the_methods_are_listed_and_the_options_of_one_explained():
    result = CliRunner().invoke(app, ["methods"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == list(OWN)
    assert next(line for line in lines if line.startswith("ddrm:")).endswith("20 evaluations")
    assert next(line for line in lines if line.startswith("dpi:")).endswith(
        "presets default, faithful, detailed, fast, paper-ddim, paper-ddpm"
    )
    for name, preset in (("ddrm", find_preset("ddrm")), ("fast", find_preset("fast"))):
        lines = CliRunner().invoke(app, ["methods", name]).stdout.splitlines()
        assert [line.split("=")[0] for line in lines] == list(preset.as_dict())
        assert all(len(line.split("  ", 1)[1]) > 10 for line in lines)  # what it is


def test_a_broken_package_is_reported_by_the_list(installed):
    installed(Point("halfway", "halves", ImportError("no module named x")))
    result = CliRunner().invoke(app, ["methods"])
    assert result.exit_code == 3
    assert "broken method 'halfway' of package halves cannot be loaded" in result.stderr
    assert result.stdout.splitlines()[-1].startswith("dpi:")
