"""What a sample lacks of a face's texture, and how it is given: against the equations, written with SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from faceprior.corrector import Correction
from faceprior.methods.texture import with_texture


def expectation(rng, count=2, side=64, error=0.01):
    """Smooth pictures, and an expected error that is `error` in the mean of each."""
    spectra = torch.randn(count, 3, side, side, generator=rng).double().numpy()
    frequency = np.hypot(*np.meshgrid(np.arange(side), np.arange(side)))
    pictures = idctn(spectra * np.exp(-frequency / 12), axes=(2, 3), norm="ortho")
    x0 = torch.from_numpy(0.5 * pictures / np.abs(pictures).max()).float()
    errors = error * (0.5 + torch.rand(count, 1, side, side, generator=rng))
    return Correction(x0, (errors * error / errors.mean((1, 2, 3), keepdim=True)).log())


def octaves(side):
    """Weights of each half octave from 4 cycles a face: hats over the logarithm of the frequency."""
    place = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            cycles = math.hypot(row, column) / 2
            place[row, column] = 2 * math.log2(cycles / 4) if cycles > 4 else 0
    count = math.floor(place.max())
    place = np.minimum(place, count)
    return [np.maximum(0, 1 - abs(place - centre)) for centre in range(1, count + 1)]


@pytest.mark.parametrize("texture", [1.5, 5.5])
def test_each_half_octave_gets_the_power_that_the_equations_give_it(rng, texture):
    expected = expectation(rng)
    samples = expected.x0 + 0.05 * torch.randn(expected.x0.shape, generator=rng)
    found = with_texture(samples, expected, texture)
    pictures = [own.double().numpy() for own in (samples, expected.x0, expected.log_error.exp())]
    for x, m, error, result in zip(*pictures, found, strict=True):
        away = x - m
        spectra = [dctn(image, axes=(1, 2), norm="ortho") for image in (m, away, x)]
        gains = np.zeros((64, 64))
        for weight in octaves(64):
            known, varied, moved = [((image**2).mean(0) * weight).sum() / weight.sum() for image in spectra]
            wanted = known + texture * math.sqrt(0.01 / (away**2).mean()) * varied
            gains += weight * max(0.0, math.log(wanted / moved)) / 2
        raised = idctn(np.exp(gains) * spectra[2], axes=(1, 2), norm="ortho")
        assert gains.max() > 0.3
        unsure = np.minimum(1, error / 0.01)
        wanted = unsure * raised + (1 - unsure) * x
        np.testing.assert_allclose(result.numpy(), wanted, atol=2e-5)


def test_what_is_coarse_and_what_is_known_stays_as_it_is(rng):
    expected = expectation(rng)._replace(log_error=torch.zeros(2, 1, 64, 64))
    assert torch.allclose(with_texture(expected.x0, expected, 5.5), expected.x0, atol=1e-6)
    samples = expected.x0 + 0.02 * torch.randn(expected.x0.shape, generator=rng)
    raised = with_texture(samples, expected, 5.5)
    found, before = (dctn(own.numpy(), axes=(2, 3), norm="ortho") for own in (raised, samples))
    frequency = np.hypot(*np.meshgrid(np.arange(64), np.arange(64))) / 2
    np.testing.assert_allclose(found[..., frequency <= 4], before[..., frequency <= 4], atol=1e-4)
    assert (abs(found) >= abs(before) - 1e-4).all()


def test_the_more_the_corrector_is_sure_the_less_is_raised(rng):
    sure, unsure = (expectation(torch.Generator().manual_seed(1), error=error) for error in (1e-4, 1e-2))
    samples = sure.x0 + 0.02 * torch.randn(sure.x0.shape, generator=rng)
    found = [with_texture(samples, own, 5.5).std() for own in (sure, unsure)]
    assert found[0] < found[1]


def test_nothing_is_raised_by_a_corrector_that_does_not_know_its_error_or_where_none_is_asked_for(rng):
    expected = expectation(rng)
    samples = expected.x0 + 0.05 * torch.randn(expected.x0.shape, generator=rng)
    assert torch.equal(with_texture(samples, expected._replace(log_error=None), 5.5), samples)
    assert torch.equal(with_texture(samples, expected, 0.0), samples)
    assert not torch.equal(with_texture(samples, expected, 5.5), samples)


def test_a_flat_face_stays_flat():
    flat = Correction(torch.full((1, 3, 32, 32), 0.25), torch.zeros(1, 1, 32, 32))
    assert torch.allclose(with_texture(flat.x0.clone(), flat, 5.5), flat.x0, atol=1e-5)


def test_scaling_a_spectrum_costs_less_than_drawing_what_is_missing(rng):
    """Faces whose expectation knows a third of the finest octaves' power: as much power again, drawn or scaled."""
    truth = torch.randn(8, 3, 64, 64, generator=rng).double().numpy()
    frequency = np.hypot(*np.meshgrid(np.arange(64), np.arange(64))) / 2
    error = 0.1 * np.sqrt(2 / 3) * truth * (frequency > 16)
    known = 0.1 * np.sqrt(1 / 3) * torch.randn(8, 3, 64, 64, generator=rng).double().numpy() * (frequency > 16)
    drawn = 0.1 * np.sqrt(2 / 3) * torch.randn(8, 3, 64, 64, generator=rng).double().numpy() * (frequency > 16)
    m, x0, x = (
        torch.from_numpy(idctn(own, axes=(2, 3), norm="ortho")).float()
        for own in (known, known + error, known + drawn)
    )
    expected = Correction(m, torch.full((8, 1, 64, 64), (x0 - m).square().mean().log().item()))
    scaled = with_texture(torch.lerp(m, x, 0.1), expected, 10.0)
    assert scaled.square().mean().item() == pytest.approx(x0.square().mean().item(), rel=0.1)
    assert (scaled - x0).square().mean() < 0.7 * (x - x0).square().mean()
