"""Collapse curves and the reference column, against the linear VAE itself, chi-squared tails, and printed tables."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import chi2, norm
from theory_cases import Case, cases, covariance, diagonal, images
from torch.distributions import Normal, kl_divergence

from collapse_lib.theory import collapse, linear_vae, ppca
from collapse_lib.theory.spectrum import covariance_spectrum


@given(cases(), st.floats(0.05, 1.2))
def test_latent_kl_is_that_of_the_optimal_encoder(c: Case, share: float) -> None:
    spectrum, k = covariance_spectrum(c.X), c.W.shape[1]
    sigma2 = share * float(spectrum.eigenvalues[0])
    optimum = ppca.fixed_sigma2(spectrum, k, sigma2)
    V, d = linear_vae.best_encoder(optimum.W, sigma2)
    q, prior = Normal((c.X - optimum.mu) @ V.T, d.sqrt()), Normal(torch.zeros_like(d), torch.ones_like(d))
    kl = collapse.latent_kl(c.X, spectrum, k, sigma2)
    torch.testing.assert_close(kl, kl_divergence(q, prior), rtol=1e-8, atol=1e-12)
    assert bool((kl[:, optimum.active :] == 0).all())


@pytest.mark.parametrize("delta", [0.0, 0.1, 0.25, 0.5])
def test_collapse_curve_counts_images(delta: float) -> None:
    """20 images along one direction with l = 4, s = 1: how many have a KL below epsilon, by torch's Gaussian KL."""
    x = np.repeat(np.linspace(-3, 3, 10), 2)
    x *= 2 / x.std()
    mean, prior = torch.from_numpy(x) * 3**0.5 / 4, Normal(0.0, 1.0)
    kl = kl_divergence(Normal(mean, 0.5), prior).numpy()
    epsilon = np.concatenate([np.linspace(0, 2, 41), np.linspace(0, 2, 41) - 1]).reshape(2, 41)
    collapsed = (kl < epsilon[..., None]).sum(-1) >= (1 - delta) * 20
    X = np.stack([x, 0.1 * np.tile([1.0, -1.0], 10)], 1)
    curve = collapse.collapse_curve(X, covariance_spectrum(X), 1, 1.0, epsilon, delta)
    np.testing.assert_array_equal(curve, collapsed)
    assert 0 < collapsed.mean() < 1


@given(cases(), st.floats(0.05, 1.2))
def test_collapse_curve_starts_at_the_collapsed_latents_and_rises_to_one(c: Case, share: float) -> None:
    spectrum, k = covariance_spectrum(c.X), c.W.shape[1]
    sigma2 = share * float(spectrum.eigenvalues[0])
    curve = collapse.collapse_curve(c.X, spectrum, k, sigma2, [0.0, 1e-15, 0.1, 1.0, 10.0, 1e9])
    assert curve.dtype == torch.float64
    assert float(curve[0]) == 0
    assert float(curve[1]) == pytest.approx(1 - ppca.fixed_sigma2(spectrum, k, sigma2).active / k)
    assert bool((curve.diff() >= 0).all())
    assert float(curve[-1]) == 1


@pytest.mark.parametrize("delta", [0.01, 0.2])
@pytest.mark.parametrize("variance", [1.3, 4.0, 40.0])
def test_the_curve_of_gaussian_data_is_a_chi_squared_tail(variance: float, delta: float) -> None:
    # Quantiles of a Gaussian: a sample without the sampling error.
    quantiles = torch.from_numpy(norm.ppf((np.arange(4000) + 0.5) / 4000))
    X = torch.stack([quantiles * variance**0.5, torch.zeros(4000)], 1)
    epsilon, v = np.linspace(0.05, 12, 120), 1 / variance
    # KL < epsilon iff m^2 < 2 epsilon + 1 + log v - v, and m^2 / (1 - v) is chi-squared with one degree of freedom.
    expected = chi2(1).cdf((2 * epsilon + 1 + np.log(v) - v) / (1 - v)) >= 1 - delta
    curve = collapse.collapse_curve(X, diagonal([variance, 0.1]), 1, 1.0, epsilon, delta)
    assert int((curve.numpy() != expected).sum()) <= 1
    assert (float(curve[0]), float(curve[-1])) == (0, 1)


@given(cases(), st.floats(0.05, 1.2))
def test_linear_reference_is_the_elbo_of_the_optimum(c: Case, share: float) -> None:
    spectrum, (n, k) = covariance_spectrum(c.X), c.W.shape
    sigma2 = share * float(spectrum.eigenvalues[0])
    optimum = ppca.fixed_sigma2(spectrum, k, sigma2)
    encoder = linear_vae.best_encoder(optimum.W, sigma2)
    S = covariance(c.X, spectrum.mean)
    expected = linear_vae.elbo(optimum.W, *encoder, sigma2, S)
    reference = collapse.linear_reference(spectrum, k, sigma2)
    assert (reference.elbo, reference.squared_error, reference.kl) == pytest.approx(
        tuple(float(term) for term in expected), rel=1e-9, abs=1e-12
    )
    assert reference.active == optimum.active
    tuned = linear_vae.elbo(optimum.W, *encoder, reference.tuned_sigma2, S).elbo
    assert reference.tuned_elbo == pytest.approx(float(tuned), rel=1e-9)
    assert reference.tuned_sigma2 == pytest.approx(float(expected.squared_error) / n, rel=1e-9)


@given(st.floats(0.1, 50), st.floats(0, 20), st.integers(1, 30), st.floats(0.01, 20))
def test_tuned_sigma2_is_the_best(squared_error: float, kl: float, n: int, sigma2: float) -> None:
    def at(log_sigma2: float) -> float:
        s = np.exp(log_sigma2)
        return -0.5 * n * np.log(2 * np.pi * s) - squared_error / (2 * s) - kl

    tuned = collapse.tuned_sigma2(squared_error, kl, n)
    found = minimize_scalar(lambda log: -at(log), bracket=(-8, 5))
    assert tuned.elbo == pytest.approx(-found.fun, rel=1e-9, abs=1e-9)
    assert np.log(tuned.sigma2) == pytest.approx(found.x, abs=1e-4)
    ratio = tuned.sigma2 / sigma2
    gain = 0.5 * n * (ratio - 1 - np.log(ratio))
    assert tuned.elbo - at(np.log(sigma2)) == pytest.approx(gain, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: collapse.collapse_curve(torch.ones(3, 1), diagonal([1.0]), 1, 0.5, 0.1, 1.0), r"delta .* got 1.0"),
        (lambda: collapse.collapse_curve(torch.ones(3, 1), diagonal([1.0]), 0, 0.5, 0.1), "k = 0 latents"),
        (lambda: collapse.linear_reference(diagonal([1.0]), 2, 0.5), "k = 2 latents .* n = 1"),
        (lambda: collapse.linear_reference(diagonal([1.0]), 1, 0.0), "sigma2 must be positive"),
        (lambda: collapse.latent_kl(torch.ones(3, 2), diagonal([1.0]), 1, 0.5), r"X has shape \(3, 2\) and mu \(1,\)"),
        (lambda: collapse.tuned_sigma2(0.0, 1.0, 3), "squared_error must be positive"),
    ],
)
def test_bad_input_says_what_is_wrong(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


# Printed numbers ------------------------------------------------------------------------------------------------------

MNIST = {  # logit: ELBO, tuned sigma2, tuned ELBO, KL, collapsed % at .01 / .5 / 1 / 2; raw: ELBO, collapsed % at .01
    30: (-2121.4, 3.569, -1632.3, 21.1, (81.0, 83.0, 84.5, 90.5), -2054.6, 100),
    10: (-1763.0, 2.278, -1485.8, 50.6, (63.5, 66.0, 70.0, 76.5), -1625.6, 100),
    3: (-1446.6, 1.360, -1350.7, 117.8, (15.0, 26.5, 35.5, 52.0), -1159.6, 98.5),
    1: (-1283.5, 0.859, -1279.3, 226.3, (0, 0, 0, 0.5), -742.4, 94.5),
    0.3: (-1484.5, 0.681, -1308.3, 346.7, (0, 0, 0, 0), -302.0, 83.5),
    0.1: (-2742.3, 0.630, -1387.6, 456.6, (0, 0, 0, 0), 75.1, 66.5),
    0.03: (-7915.9, 0.612, -1496.7, 577.0, (0, 0, 0, 0), 446.2, 36.0),
    0.02: (-11744.0, 0.609, -1535.7, 617.5, (0, 0, 0, 0), 557.9, 21.0),
    0.01: (-23381.1, 0.607, -1603.3, 686.8, (0, 0, 0, 0), 731.2, 0),
    0.003: (-78280.8, 0.605, -1722.6, 807.2, (0, 0, 0, 0), 943.4, 0),
    0.001: (-235820.7, 0.604, -1832.1, 917.1, (0, 0, 0, 0), 866.2, 0),
    0.0001: (-2366267.0, 0.604, -2062.2, 1147.3, (0, 0, 0, 0), -3834.4, 0),
}


def test_mnist_reference_column(real_data: Path) -> None:
    (X, logit), (X_raw, raw) = (images("mnist", 1000, kind, real_data) for kind in ("logit", "raw"))
    for sigma2, (elbo, tuned_sigma2, tuned_elbo, kl, shares, elbo_raw, share_raw) in MNIST.items():
        found = collapse.linear_reference(logit, 200, sigma2)
        assert (found.elbo, found.tuned_elbo, found.kl) == pytest.approx((elbo, tuned_elbo, kl), abs=0.06)
        assert found.tuned_sigma2 == pytest.approx(tuned_sigma2, abs=6e-4)
        curve = 100 * collapse.collapse_curve(X, logit, 200, sigma2, [0.01, 0.5, 1.0, 2.0])
        assert curve.tolist() == pytest.approx(shares)
        assert collapse.linear_reference(raw, 200, sigma2).elbo == pytest.approx(elbo_raw, abs=0.06)
        assert 100 * float(collapse.collapse_curve(X_raw, raw, 200, sigma2, 0.01)) == pytest.approx(share_raw)
