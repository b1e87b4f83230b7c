import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faceprior.networks import without_grid
from faceprior.priors.gaussian import GaussianDenoiser, fold, haar, inverse_haar, unfold
from faceprior.priors.noise_schedule import NoiseSchedule
from faceprior.priors.residual_unet import GaussianResidualUNet

SIDE, CHANNELS = 8, 3
HALF = SIDE // 2
FOLDED = CHANNELS * HALF * HALF // 2

batches = st.integers(1, 3)
channels = st.integers(1, 4)
sides = st.integers(1, 9)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(batches, channels, sides, sides)
def test_haar_is_inverted_and_keeps_the_norm(batch, channels, half_height, half_width):
    images = noise(batch, channels, 2 * half_height, 2 * half_width)
    means, details = haar(images)
    assert means.shape == (batch, channels, half_height, half_width)
    assert details.shape == (batch, 3 * channels, half_height, half_width)
    torch.testing.assert_close(inverse_haar(means, details), images)
    torch.testing.assert_close(means.square().sum() + details.square().sum(), images.square().sum())


@settings(max_examples=25, deadline=None)
@given(batches, channels, sides, sides)
def test_fold_is_inverted_and_keeps_the_norm(batch, channels, height, half_width):
    images = noise(batch, channels, height, 2 * half_width)
    halves = fold(images)
    assert halves.shape == (2, batch, channels * height * half_width)
    torch.testing.assert_close(unfold(halves, channels, height), images)
    torch.testing.assert_close(halves.square().sum(), images.square().sum())


def test_a_mirror_image_lies_in_one_half_alone():
    left = noise(1, 3, 4, 2)
    symmetric, antisymmetric = fold(torch.cat([left, left.flip(-1)], dim=-1))
    assert symmetric.norm() > 1
    assert antisymmetric.norm() == 0


def test_a_flat_image_has_no_details():
    means, details = haar(torch.full((1, 3, 6, 6), 0.7))
    assert details.abs().max() == 0
    torch.testing.assert_close(means, torch.full((1, 3, 3, 3), 1.4))


def mirrored_means_basis():
    """Pixel-space vectors of the folded Haar means, (2, FOLDED, C·R·R), pixel by pixel."""
    basis = torch.zeros(2, FOLDED, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    places = itertools.product(range(CHANNELS), range(HALF), range(HALF // 2))
    for position, (c, i, j) in enumerate(places):
        for half, sign in enumerate((1, -1)):
            block = basis[half, position, c, 2 * i : 2 * i + 2]
            block[:, 2 * j : 2 * j + 2] = 0.5 / 2**0.5
            mirror = HALF - 1 - j
            block[:, 2 * mirror : 2 * mirror + 2] = sign * 0.5 / 2**0.5
    return basis.flatten(2)


def details_basis():
    """Pixel-space vectors of the Haar details, (3·C·R/2·R/2, C·R·R): horizontal, vertical, diagonal."""
    patterns = torch.tensor([[[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]).double() / 2
    basis = torch.zeros(3, CHANNELS, HALF, HALF, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    for k, c, i, j in itertools.product(range(3), range(CHANNELS), range(HALF), range(HALF)):
        basis[k, c, i, j, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = patterns[k]
    return basis.flatten(0, 3).flatten(1)


def fitted(rank, remainder_std):
    """A random Gaussian as a denoiser, and as its dense mean and covariance in pixel space (float64)."""
    denoiser = GaussianDenoiser(SIDE, rank, CHANNELS)
    components = torch.stack([torch.linalg.qr(noise(FOLDED, rank, seed=seed))[0].T for seed in (1, 2)])
    denoiser.mean.copy_(noise(CHANNELS, HALF, HALF, seed=3))
    denoiser.components.copy_(components)
    denoiser.component_std.copy_(0.2 + noise(2, rank, seed=4).abs())
    denoiser.remainder_std.copy_(torch.tensor(remainder_std)[:, None].expand(2, FOLDED))
    denoiser.detail_std.copy_(0.05 + 0.3 * noise(3 * CHANNELS, HALF, HALF, seed=5).abs())

    covariance = torch.zeros(CHANNELS * SIDE**2, CHANNELS * SIDE**2, dtype=torch.float64)
    for basis, principal, std, rest in zip(
        mirrored_means_basis(), components, denoiser.component_std.double(), remainder_std, strict=True
    ):
        remainder = torch.eye(FOLDED, dtype=torch.float64) - principal.T @ principal
        inner = principal.T @ torch.diag(std**2) @ principal + rest**2 * remainder
        covariance += basis.T @ inner @ basis
    details = details_basis()
    covariance += details.T @ torch.diag(denoiser.detail_std.double().flatten() ** 2) @ details
    mean = denoiser.mean.double().repeat_interleave(2, dim=1).repeat_interleave(2, dim=2) / 2
    return denoiser, mean.flatten(), covariance


def posterior_mean(x_t, level, mean, covariance):
    """E[x0 | x_t] = μ + √ᾱ Σ (ᾱ Σ + (1 − ᾱ) I)⁻¹ (x_t − √ᾱ μ), in float64."""
    noisy = level * covariance + (1 - level) * torch.eye(len(mean), dtype=torch.float64)
    centred = x_t.flatten(1).double() - level**0.5 * mean
    return mean + level**0.5 * torch.linalg.solve(noisy, centred.T).T @ covariance


@pytest.mark.parametrize("level", [4e-5, 0.02, 0.5, 0.97, 0.9999])
@pytest.mark.parametrize(
    ("rank", "remainder_std"),
    [
        pytest.param(FOLDED, (0.0, 0.0), id="every component"),
        pytest.param(5, (0.4, 0.15), id="five components and an even remainder"),
    ],
)
def test_the_denoiser_is_the_posterior_mean_of_the_dense_gaussian(level, rank, remainder_std):
    denoiser, mean, covariance = fitted(rank, remainder_std)
    x_t = noise(4, CHANNELS, SIDE, SIDE, seed=6).float()
    found = denoiser(x_t, torch.full((4, 1, 1, 1), level))
    expected = posterior_mean(x_t, level, mean, covariance)
    torch.testing.assert_close(found.flatten(1).double(), expected, atol=2e-5, rtol=1e-4)


def test_every_image_of_a_batch_is_denoised_at_its_own_level():
    denoiser, mean, covariance = fitted(FOLDED, (0.0, 0.0))
    x_t = noise(2, CHANNELS, SIDE, SIDE, seed=7).float()
    levels = (0.9, 0.1)
    found = denoiser(x_t, torch.tensor(levels).view(2, 1, 1, 1))
    for image, level, row in zip(x_t, levels, found, strict=True):
        expected = posterior_mean(image[None], level, mean, covariance)
        torch.testing.assert_close(row.flatten().double(), expected[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("pattern", ["rows", "columns", "chess"])
def test_a_wide_grid_is_halved(pattern):
    signs = 1.0 - 2 * (torch.arange(128) % 2)
    down, across = {"rows": (signs, signs.abs()), "columns": (signs.abs(), signs), "chess": (signs, signs)}[pattern]
    grid = (down[:, None] * across).expand(1, 3, 128, 128)
    share = 0.25 if pattern == "chess" else 0.5  # halved in both directions
    filtered = without_grid(grid)[..., 48:80, 48:80] / grid[..., 48:80, 48:80]
    torch.testing.assert_close(filtered, torch.full_like(filtered, share), atol=0.03, rtol=0)


def test_what_is_no_grid_passes_the_grid_filter():
    place = (torch.arange(128) + 0.5) / 128
    for cycles in (0, 5, 31, 58):
        wave = torch.cos(2 * math.pi * cycles * place).expand(1, 3, 128, 128).contiguous()
        torch.testing.assert_close(without_grid(wave), wave, atol=1e-3, rtol=0)
    spot = torch.zeros(1, 3, 128, 128)
    spot[..., 64, 64] = 1
    assert without_grid(spot)[..., 64, 64].min() > 0.95


def test_the_grid_filter_lets_gradients_through_after_its_first_use_without_them():
    images = torch.randn(1, 3, 6, 6)  # of a side that has no filter yet
    with torch.inference_mode():
        without_grid(images)
    images.requires_grad_()
    without_grid(images).sum().backward()
    assert images.grad.abs().max() > 0


def test_the_residual_network_starts_at_the_gaussian_estimate():
    network = GaussianResidualUNet(SIDE, 4, (16, 32), (1, 1))
    network.gaussian.load_state_dict(fitted(4, (0.4, 0.15))[0].state_dict())
    x_t, t = noise(2, CHANNELS, SIDE, SIDE).float(), torch.tensor([3, 977])
    levels = NoiseSchedule.linear().at(t)
    torch.testing.assert_close(network(x_t, t).sample, network.gaussian(x_t, levels))
    assert network(x_t, t, return_dict=False)[0].shape == x_t.shape


@torch.no_grad()
def test_the_residual_is_scaled_by_the_error_at_its_step(tiny):
    network = tiny.gaussian_network()
    x_t, t = noise(2, 3, tiny.side, tiny.side).float(), torch.tensor([10, 900])
    gaussian = network.gaussian(x_t, NoiseSchedule.linear().at(t))
    once = network(x_t, t).sample - without_grid(gaussian)
    network.error_std[900] *= 3
    again = network(x_t, t).sample - without_grid(gaussian)
    assert once.std() > 1e-3
    torch.testing.assert_close(again[0], once[0])
    torch.testing.assert_close(again[1], 3 * once[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "to", "double"])
def test_a_cast_leaves_the_gaussian_in_float32(tiny, cast):
    network = tiny.gaussian_network()
    before = {name: tensor.clone() for name, tensor in network.gaussian.state_dict().items()}
    network.to(torch.bfloat16) if cast == "to" else getattr(network, cast)()
    for name, tensor in network.gaussian.state_dict().items():
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, before[name]), name
    assert network.error_std.dtype == network.alphas_cumprod.dtype == torch.float32
    assert network.unet.conv_in.weight.dtype != torch.float32


@torch.no_grad()
def test_the_gaussian_part_of_a_bfloat16_network_keeps_its_precision(tiny):
    network = tiny.gaussian_network().to(torch.bfloat16)
    torch.nn.init.zeros_(network.unet.conv_out.weight)
    torch.nn.init.zeros_(network.unet.conv_out.bias)
    x_t, t = noise(1, 3, tiny.side, tiny.side).float(), torch.tensor([500])
    found = network(x_t, t).sample
    assert found.dtype == torch.float32
    assert torch.equal(found, without_grid(network.gaussian(x_t, NoiseSchedule.linear().at(t))))
