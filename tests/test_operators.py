import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from faceprior.degradations import bicubic_downscale
from faceprior.images import resize
from faceprior.operators import (
    SeparableOperator,
    bicubic_matrix,
    bicubic_reduction,
    lanczos_matrix,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def matrices(draw):
    """A reduction, enlargement or any matrix of a line, of size 4 to 14."""
    size = draw(st.integers(4, 14))
    side = draw(st.integers(1, size))
    makers = {
        "bicubic": lambda: bicubic_matrix(size, side),
        "enlarging": lambda: bicubic_matrix(size, size + side),
        "stride": lambda: torch.eye(size, dtype=torch.float64)[::side],
        "lanczos": lambda: lanczos_matrix(size, side),
        "any": lambda: normal(side, size, seed=draw(st.integers(0, 99))),
        "rank 1": lambda: normal(side, 1) @ normal(1, size, seed=1),
    }
    return makers[draw(st.sampled_from(sorted(makers)))]()


operators = st.builds(SeparableOperator, matrices(), matrices())


def dense(operator):
    """The matrix of A for images flattened row by row."""
    return torch.kron(operator.rows, operator.columns)


def images_and_measurements(operator):
    (m, height), (n, width) = operator.rows.shape, operator.columns.shape
    return normal(2, 3, height, width, seed=1), normal(2, 3, m, n, seed=2)


def applied(matrix, images, shape):
    return (images.flatten(-2) @ matrix.mT).unflatten(-1, shape)


def pseudo_inverse(operator, measurements):
    return operator.from_spectrum(operator.known_spectrum(measurements))


def close(found, expected, tolerance=1e-8):
    torch.testing.assert_close(found, expected, atol=tolerance * max(1, float(expected.abs().max())), rtol=0)


@settings(deadline=None, max_examples=60)
@given(operators)
def test_an_operator_is_its_dense_matrix(operator):
    x, y = images_and_measurements(operator)
    matrix = dense(operator)
    close(operator.forward(x), applied(matrix, x, y.shape[-2:]))
    close(pseudo_inverse(operator, y), applied(torch.linalg.pinv(matrix, rtol=1e-12), y, x.shape[-2:]), 1e-6)
    values = operator.singular_values.flatten().sort(descending=True).values
    expected = torch.linalg.svdvals(matrix)
    close(values[: len(expected)], expected[: len(values)])
    assert (values[len(expected) :] == 0).all()


@settings(deadline=None, max_examples=60)
@given(operators)
def test_in_spectral_coordinates_the_operator_is_a_number_for_each(operator):
    x, _ = images_and_measurements(operator)
    spectrum = operator.to_spectrum(x)
    close(operator.from_spectrum(spectrum), x)
    torch.testing.assert_close(spectrum.norm(), x.norm())
    torch.testing.assert_close((operator.singular_values * spectrum).norm(), operator.forward(x).norm())
    measured = operator.singular_values > 0
    close(operator.known_spectrum(operator.forward(x)), spectrum * measured, 1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(6, 40), st.data())
def test_the_bicubic_reduction_is_resize_for_every_ratio(size, data):
    side = data.draw(st.integers(1, size), label="side")
    x = normal(2, 3, size, size)
    close(bicubic_reduction(size, side).forward(x), resize(x, side))
    single = bicubic_reduction(size, side).forward(x.float())
    assert single.dtype == torch.float32
    exact = resize(x.float().double(), side)  # torch's own weights in single precision are off by up to 2e-5
    torch.testing.assert_close(single.double(), exact, atol=2e-6, rtol=0)


@pytest.mark.parametrize("side", [8, 16, 13, 32])
def test_the_bicubic_reduction_is_the_degradation_but_for_its_rounding(side):
    faces = normal(2, 3, 64, 64).float().clamp(-1, 1)
    found = bicubic_reduction(64, side).forward(faces)
    error = (found.clamp(-1, 1) - bicubic_downscale(faces, side)).abs().max()
    assert 0 < error <= 1 / 255 + 1e-6  # half a step of 8 bits


def test_a_bicubic_reduction_to_the_same_size_is_the_identity():
    assert torch.equal(bicubic_matrix(9, 9), torch.eye(9, dtype=torch.float64))


@pytest.mark.parametrize(("size", "side"), [(8, 32), (5, 32), (32, 8), (32, 13), (16, 16)])
def test_lanczos_is_that_of_pillow(size, side):
    x = normal(size, size).float()
    matrix = lanczos_matrix(size, side).float()
    pillow = Image.fromarray(x.numpy()).resize((side, side), Image.Resampling.LANCZOS)
    torch.testing.assert_close(matrix @ x @ matrix.mT, torch.from_numpy(np.array(pillow)), atol=1e-4, rtol=0)
