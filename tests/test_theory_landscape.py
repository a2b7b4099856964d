"""The likelihood surface around stationary points, against the dense likelihood and automatic differentiation."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from theory_cases import case, diagonal, rotation, slope
from torch import Tensor

from collapse_lib.theory import landscape, linear_vae, ppca
from collapse_lib.theory.spectrum import Spectrum, covariance_spectrum, spectrum_of_covariance

L10 = [5.0, 3.1, 2.2, 1.4, 1.1, 0.8, 0.5, 0.3, 0.1, 0.0]


def stationary(spectrum: Spectrum, used: tuple[int, ...], zeros: int, sigma2: float) -> Tensor:
    lengths = (spectrum.eigenvalues[list(used)] - sigma2).sqrt()
    columns = spectrum.eigenvectors[:, list(used)] * lengths
    return torch.cat([columns, columns.new_zeros(spectrum.n, zeros)], 1)


def moved(spectrum: Spectrum, used: tuple[int, ...], sigma2: float, steps: dict[int, float]) -> float:
    """Dense LL where the zero column is moved by `steps` along eigenvectors, less its value at zero."""
    W = stationary(spectrum, used, 1, sigma2)
    start = ppca.loglik_dense(W, sigma2, spectrum.covariance)
    for j, step in steps.items():
        W[:, -1] += step * spectrum.eigenvectors[:, j]
    return float(ppca.loglik_dense(W, sigma2, spectrum.covariance) - start)


@pytest.mark.parametrize("sigma2", [0.2, 0.9, 1.3])
@pytest.mark.parametrize("j", [1, 4, 8, 9])
def test_slice_is_the_dense_likelihood(j: int, sigma2: float) -> None:
    spectrum = diagonal(L10)
    steps = torch.linspace(-3, 3, 13, dtype=torch.float64)
    used = (0,) if j == 1 else (0, 1)
    expected = [moved(spectrum, used, sigma2, {j: float(step)}) for step in steps]
    torch.testing.assert_close(landscape.slice_1d(steps, L10[j], sigma2).tolist(), expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("j", [0, 1])
def test_slice_towards_a_used_direction_is_quartic(j: int) -> None:
    spectrum, sigma2 = diagonal(L10), 0.9
    steps = torch.linspace(-3, 3, 13, dtype=torch.float64)
    expected = [moved(spectrum, (0, 1), sigma2, {j: float(step)}) for step in steps]
    torch.testing.assert_close(
        landscape.slice_1d(steps, L10[j], sigma2, used=True).tolist(), expected, atol=1e-12, rtol=1e-10
    )
    small = landscape.slice_1d(0.01, L10[j], sigma2, used=True)
    assert float(small) == pytest.approx(-(0.01**4) / (4 * L10[j] ** 2), rel=1e-3)


@pytest.mark.parametrize(("sigma2", "signs"), [(0.6, (1, 1)), (1.0, (1, -1)), (1.3, (-1, -1))])
def test_surface_is_the_dense_likelihood_and_a_large_sigma2_stabilises_collapse(
    sigma2: float, signs: tuple[int, int]
) -> None:
    spectrum, (i, j) = diagonal(L10), (4, 5)
    grid = torch.linspace(-1, 1, 9, dtype=torch.float64)
    surface = landscape.surface_2d(grid[:, None], grid, L10[i], L10[j], sigma2)
    expected = [[moved(spectrum, (0, 1), sigma2, {i: float(a), j: float(b)}) for b in grid] for a in grid]
    torch.testing.assert_close(surface.tolist(), expected, atol=1e-12, rtol=1e-10)
    assert landscape.curvature(torch.tensor([L10[i], L10[j]]), sigma2).sign().tolist() == list(signs)
    assert (float(surface.max()) > 1e-5) == (signs[0] > 0)
    torch.testing.assert_close(surface[:, 4], landscape.slice_1d(grid, L10[i], sigma2))


@given(st.floats(0, 5), st.floats(0.05, 5))
def test_curvature_is_the_second_derivative(eigenvalue: float, sigma2: float) -> None:
    S = torch.diag(torch.tensor([eigenvalue, 0.7], dtype=torch.float64))

    def value(t: Tensor) -> Tensor:
        return ppca.loglik_dense(torch.stack([t, torch.zeros_like(t)])[:, None], sigma2, S)

    expected = torch.autograd.functional.hessian(value, torch.zeros((), dtype=torch.float64))
    assert float(landscape.curvature(eigenvalue, sigma2)) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("used", "zeros", "sigma2"),
    [((0, 1, 2), 0, 0.9), ((0, 1), 1, 0.9), ((0, 2), 2, 0.6), ((1, 4), 1, 1.0), ((2,), 2, 2.1), ((), 1, 0.4)],
)
def test_hessian_spectrum(used: tuple[int, ...], zeros: int, sigma2: float) -> None:
    """All n k eigenvalues of the Hessian of LL; as many ascent directions in the profile ELBO and in the full ELBO."""
    spectrum = diagonal(L10)
    S, W, k = spectrum.covariance, stationary(spectrum, used, zeros, sigma2), len(used) + zeros

    def hessian_eigenvalues(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(torch.autograd.functional.hessian(f, x.flatten()))

    predicted = landscape.hessian_spectrum(spectrum, used, zeros, sigma2)
    likelihood = hessian_eigenvalues(lambda w: ppca.loglik_dense(w.view(10, k), sigma2, S), W)
    torch.testing.assert_close(predicted.eigenvalues, likelihood, atol=1e-9, rtol=1e-9)
    profile = hessian_eigenvalues(lambda w: linear_vae.profile_elbo(w.view(10, k), sigma2, S), W)
    if predicted.positive:
        assert float(profile[-1]) == pytest.approx(float(likelihood[-1]), rel=1e-9)

    def full(x: Tensor) -> Tensor:
        w, v, log_d = x.split([10 * k, 10 * k, k])
        return linear_vae.elbo(w.view(10, k), v.view(k, 10), log_d.exp(), sigma2, S).elbo

    V, d = linear_vae.best_encoder(W, sigma2)
    start = torch.cat([W.flatten(), V.flatten(), d.log()])
    assert float(torch.autograd.functional.jacobian(full, start).abs().max()) < 1e-12
    elbo = hessian_eigenvalues(full, start)
    torch.testing.assert_close(
        tuple(landscape.numerical_spectra(spectrum, used, zeros, sigma2)), (likelihood, profile, elbo)
    )
    for eigenvalues in (likelihood, profile, elbo):
        assert int((eigenvalues > 1e-8).sum()) == predicted.positive


@pytest.mark.parametrize(("used", "zeros", "sigma2"), [((0, 2), 1, 0.6), ((1,), 0, 2.0), ((), 2, 0.4)])
def test_stationary_decoder_is_one(used: tuple[int, ...], zeros: int, sigma2: float) -> None:
    spectrum = spectrum_of_covariance(rotation(10, 3) @ torch.diag(torch.tensor(L10)).double() @ rotation(10, 3).T)
    W = landscape.stationary_decoder(spectrum, used, zeros, sigma2)
    torch.testing.assert_close(W, stationary(spectrum, used, zeros, sigma2))
    assert float(slope(W, sigma2, spectrum.covariance).abs().max()) < 1e-12
    value = ppca.loglik_dense(W, sigma2, spectrum.covariance)
    assert float(value) == pytest.approx(ppca.stationary_value(spectrum, used, sigma2), rel=1e-12)


def test_stationary_decoder_where_only_the_data_span_is_stored() -> None:
    X = case(7, 2, 5, 0).X  # N < n: four eigenvalues that are not zero, five stored
    spectrum = covariance_spectrum(X)
    W = landscape.stationary_decoder(spectrum, (0, 1), 1, float(spectrum.eigenvalues[1]) / 2)
    assert W.shape == (7, 3)
    assert float(slope(W, float(spectrum.eigenvalues[1]) / 2, spectrum.covariance).abs().max()) < 1e-12


def test_counting_ascent_directions() -> None:
    """Unused and above sigma2: 2.2 and 1.4, for each of 2 zero columns; unused and above the used 1.1: 2.2 and 1.4."""
    spectrum = diagonal([5.0, 2.2, 1.4, 1.1, 0.5])
    assert landscape.hessian_spectrum(spectrum, (0, 3), 2, 0.9).positive == 2 * 2 + 2
    assert landscape.hessian_spectrum(spectrum, (0, 1, 2, 3), 1, 0.9).positive == 0
    assert landscape.hessian_spectrum(spectrum, (), 3, 6.0).positive == 0


@given(st.floats(0.01, 5), st.floats(0.05, 5))
def test_escape_rate_is_the_top_of_the_elbos_hessian(eigenvalue: float, sigma2: float) -> None:
    S = torch.diag(torch.tensor([eigenvalue, 0.0], dtype=torch.float64))

    def value(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x[0])
        W, V = torch.stack([x[0], zero])[:, None], torch.stack([x[1], zero])[None]
        return linear_vae.elbo(W, V, torch.ones(1), sigma2, S).elbo

    top = torch.linalg.eigvalsh(torch.autograd.functional.hessian(value, torch.zeros(2, dtype=torch.float64)))[-1]
    rate = float(landscape.elbo_escape_rate(eigenvalue, sigma2))
    assert rate == pytest.approx(float(top), rel=1e-8, abs=1e-10 * (1 / sigma2 + eigenvalue))
    assert (rate > 0) == (eigenvalue > sigma2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: landscape.curvature(-1.0, 1.0), "eigenvalue must not be negative, got -1"),
        (lambda: landscape.curvature(1.0, 0.0), "sigma2 must be positive"),
        (lambda: landscape.slice_1d(0.1, 1.0, 1.0, used=True), "a used direction has an eigenvalue above sigma2 = 1"),
        (lambda: landscape.surface_2d(0.1, 0.1, 1.0, -1.0, 1.0), "eigenvalue_b must not be negative"),
        (lambda: landscape.elbo_escape_rate(1.0, -1.0), "sigma2 must be positive"),
        (lambda: landscape.hessian_spectrum(diagonal([2.0, 1.0]), (0,), -1, 0.5), "zero_columns = -1 is negative"),
        (lambda: landscape.hessian_spectrum(diagonal([2.0, 1.0]), (0,), 2, 0.5), "k = 3 latents .* n = 2"),
        (lambda: landscape.hessian_spectrum(diagonal([2.0, 1.0]), (), 0, 0.5), "k = 0 latents"),
        (lambda: landscape.hessian_spectrum(diagonal([2.0, 1.0]), (1,), 0, 1.0), r"directions \[1\]"),
        (lambda: landscape.stationary_decoder(diagonal([2.0, 1.0]), (0,), -1, 0.5), "zero_columns = -1 is negative"),
        (lambda: landscape.stationary_decoder(diagonal([2.0, 1.0]), (0,), 2, 0.5), "k = 3 latents .* n = 2"),
        (lambda: landscape.numerical_spectra(diagonal([2.0, 1.0]), (1,), 0, 1.0), r"directions \[1\]"),
    ],
)
def test_bad_input_says_what_is_wrong(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
