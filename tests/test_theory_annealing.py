"""The linear VAE under a weighted KL, against direct optimisation over all its parameters."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from theory_cases import Case, cases, diagonal
from torch import Tensor

from collapse_lib.theory import annealing, linear_vae, ppca
from collapse_lib.theory.ppca import UnboundedLikelihoodError
from collapse_lib.theory.spectrum import covariance_spectrum

EIGENVALUES = [4.0, 2.0, 1.0, 0.3, 0.1, 0.05]


def weighted(elbo: linear_vae.ELBO, beta: float, sigma2: Tensor | float, n: int) -> Tensor:
    s = torch.as_tensor(sigma2, dtype=torch.float64)
    return -0.5 * n * (2 * math.pi * s).log() - elbo.squared_error / (2 * s) - beta * elbo.kl


def directly(beta: float, sigma2: float | None, k: int = 3) -> float:
    """Largest F_beta found by BFGS over (W, V, log d, log sigma2) from a few random starts."""
    S, n = torch.diag(torch.tensor(EIGENVALUES, dtype=torch.float64)), len(EIGENVALUES)

    def negative(vector: np.ndarray) -> tuple[float, np.ndarray]:
        v = torch.from_numpy(vector).requires_grad_()
        W, V, log_d, log_s = v[: n * k].view(n, k), v[n * k : 2 * n * k].view(k, n), v[2 * n * k : -1], v[-1]
        s = log_s.exp() if sigma2 is None else torch.tensor(sigma2, dtype=torch.float64) + 0 * log_s
        value = -weighted(linear_vae.elbo(W, V, log_d.exp(), s, S), beta, s, n)
        (gradient,) = torch.autograd.grad(value, v)
        return float(value.detach()), gradient.numpy()

    starts = np.random.default_rng(0).normal(scale=0.5, size=(4, 2 * n * k + k + 1))
    found = [minimize(negative, s, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 0}) for s in starts]
    return -min(f.fun for f in found)


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("sigma2", [None, 0.6])
def test_direct_optimisation_finds_the_same_optimum(beta: float, sigma2: float | None) -> None:
    best = annealing.beta_optimum(diagonal(EIGENVALUES), 3, beta, sigma2)
    np.testing.assert_allclose(directly(beta, sigma2), best.objective, rtol=1e-6, atol=1e-6)


@given(cases(), st.floats(0.05, 3))
def test_at_beta_one_it_is_ppca(c: Case, share: float) -> None:
    spectrum, k = covariance_spectrum(c.X), c.W.shape[1]
    sigma2 = share * float(spectrum.eigenvalues[0])
    fixed, best = ppca.fixed_sigma2(spectrum, k, sigma2), annealing.beta_optimum(spectrum, k, 1.0, sigma2)
    assert best.active == fixed.active
    np.testing.assert_allclose(best.objective, fixed.loglik, rtol=1e-10)
    if k < spectrum.rank:
        free, learned = annealing.beta_optimum(spectrum, k, 1.0), ppca.mle(spectrum, k)
        np.testing.assert_allclose((free.sigma2, free.objective), (learned.sigma2, learned.loglik), rtol=1e-9)


@settings(max_examples=50)
@given(
    st.lists(st.floats(0.01, 5), min_size=3, max_size=7).map(lambda v: sorted(v, reverse=True)),
    st.floats(0.02, 2.5),
    st.integers(1, 6),
)
def test_the_best_sigma2_is_the_best(eigenvalues: list[float], beta: float, k: int) -> None:
    spectrum, k = diagonal(eigenvalues), min(k, len(eigenvalues) - 1)
    best = annealing.beta_optimum(spectrum, k, beta)
    bounds = (math.log(eigenvalues[-1] / 100), math.log(100 * eigenvalues[0]))
    numeric = minimize_scalar(
        lambda v: -annealing.beta_optimum(spectrum, k, beta, math.exp(v)).objective, bounds=bounds, method="bounded"
    )
    assert best.objective >= -numeric.fun - 1e-9
    np.testing.assert_allclose(best.objective, -numeric.fun, rtol=1e-5, atol=1e-5)


@given(cases(), st.floats(0.05, 4))
def test_the_weighted_objective_from_an_elbo_at_the_noise_beta_sigma2(c: Case, beta: float) -> None:
    """The best encoder for the noise t = beta sigma2 in both; the formula against R and KL themselves."""
    spectrum, n = covariance_spectrum(c.X), len(c.mu)
    V, d = linear_vae.best_encoder(c.W, beta * c.sigma2)
    at_t = linear_vae.elbo(c.W, V, d, beta * c.sigma2, spectrum.covariance)
    want = weighted(at_t, beta, c.sigma2, n)
    torch.testing.assert_close(annealing.weighted_objective(at_t.elbo, n, beta, c.sigma2), want, rtol=1e-9, atol=1e-9)


def test_the_number_of_active_latents_falls_where_beta_passes_an_eigenvalue() -> None:
    spectrum = diagonal(EIGENVALUES)
    active = [annealing.beta_optimum(spectrum, 4, beta, 1.0).active for beta in (0.2, 0.5, 0.999, 1.0, 1.5, 3.0, 5.0)]
    assert active == [4, 3, 3, 2, 2, 1, 0]


def test_errors() -> None:
    with pytest.raises(ValueError, match="beta must be positive"):
        annealing.beta_optimum(diagonal(EIGENVALUES), 2, 0.0)
    with pytest.raises(ValueError, match="sigma2 must be positive"):
        annealing.beta_optimum(diagonal(EIGENVALUES), 2, 1.0, -1.0)
    with pytest.raises(UnboundedLikelihoodError, match="leave nothing unexplained"):
        annealing.beta_optimum(diagonal([*EIGENVALUES, 0.0, 0.0]), 6, 1.0)
