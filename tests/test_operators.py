import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from faceprior.degradations import bicubic_downscale, gaussian_blur
from faceprior.errors import OptionError
from faceprior.images import resize
from faceprior.operators import (
    SeparableOperator,
    bicubic_matrix,
    bicubic_reduction,
    blur_matrix,
    box_matrix,
    lanczos_matrix,
    stride_matrix,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def matrices(draw):
    """A reduction, blur, enlargement or any matrix of a line, of size 4 to 14."""
    size = draw(st.integers(4, 14))
    side = draw(st.integers(1, size))
    makers = {
        "bicubic": lambda: bicubic_matrix(size, side),
        "enlarging": lambda: bicubic_matrix(size, size + side),
        "box": lambda: box_matrix(size, draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))),
        "stride": lambda: stride_matrix(size, side),
        "blur": lambda: blur_matrix(size, draw(st.floats(0, 0.8))),  # wider ones cannot be undone in float64
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


def close(found, expected, tolerance=1e-8):
    torch.testing.assert_close(found, expected, atol=tolerance * max(1, float(expected.abs().max())), rtol=0)


@settings(deadline=None, max_examples=60)
@given(operators)
def test_an_operator_is_its_dense_matrix(operator):
    x, y = images_and_measurements(operator)
    matrix = dense(operator)
    close(operator.forward(x), applied(matrix, x, y.shape[-2:]))
    close(operator.adjoint(y), applied(matrix.mT, y, x.shape[-2:]))
    close(operator.pseudo_inverse(y), applied(torch.linalg.pinv(matrix, rtol=1e-12), y, x.shape[-2:]), 1e-6)
    values = operator.singular_values.flatten().sort(descending=True).values
    expected = torch.linalg.svdvals(matrix)
    close(values[: len(expected)], expected[: len(values)])
    assert (values[len(expected) :] == 0).all()


@settings(deadline=None, max_examples=60)
@given(operators)
def test_the_adjoint_and_the_pseudo_inverse_keep_their_promises(operator):
    x, y = images_and_measurements(operator)
    torch.testing.assert_close((operator.forward(x) * y).sum(), (x * operator.adjoint(y)).sum())
    close(operator.forward(operator.pseudo_inverse(operator.forward(x))), operator.forward(x), 1e-7)  # A A⁺ A = A
    inverse = operator.pseudo_inverse(y)
    close(operator.pseudo_inverse(operator.forward(inverse)), inverse, 1e-6)  # A⁺ A A⁺ = A⁺
    projected = operator.pseudo_inverse(operator.forward(x))
    close((projected * (x - projected)).sum(), torch.zeros((), dtype=x.dtype), 1e-5)  # A⁺A is orthogonal


@settings(deadline=None, max_examples=60)
@given(operators, st.floats(0.01, 10))
def test_the_damped_solution_is_that_of_the_dense_system(operator, damping):
    _, y = images_and_measurements(operator)
    matrix = dense(operator)
    system = matrix @ matrix.mT + damping * torch.eye(len(matrix), dtype=y.dtype)
    close(operator.solve(y, damping), applied(torch.linalg.inv(system), y, y.shape[-2:]))


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


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_the_box_average_is_average_pooling(factor):
    x = normal(2, 3, 12, 12)
    matrix = box_matrix(12, 12 // factor)
    expected = torch.nn.functional.avg_pool2d(x, factor)
    torch.testing.assert_close(SeparableOperator(matrix, matrix).forward(x), expected)


def test_a_box_that_is_not_of_whole_pixels_is_refused():
    with pytest.raises(OptionError, match="12 pixels to 5"):
        box_matrix(12, 5)


@pytest.mark.parametrize("stride", [1, 2, 4, 5])
def test_the_stride_takes_every_kth_pixel(stride):
    x = normal(2, 3, 12, 12)
    matrix = stride_matrix(12, stride)
    assert torch.equal(SeparableOperator(matrix, matrix).forward(x), x[..., ::stride, ::stride])


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 2.5])
def test_the_blur_is_that_of_the_degradations(sigma):
    x = normal(2, 3, 24, 24)
    matrix = blur_matrix(24, sigma)
    expected = gaussian_blur(x, sigma, sigma, 0.0)
    torch.testing.assert_close(SeparableOperator(matrix, matrix).forward(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "side"), [(8, 32), (5, 32), (32, 8), (32, 13), (16, 16)])
def test_lanczos_is_that_of_pillow(size, side):
    x = normal(size, size).float()
    matrix = lanczos_matrix(size, side).float()
    pillow = Image.fromarray(x.numpy()).resize((side, side), Image.Resampling.LANCZOS)
    torch.testing.assert_close(matrix @ x @ matrix.mT, torch.from_numpy(np.array(pillow)), atol=1e-4, rtol=0)
