"""The linear VAE against Bayes' rule (ELBO = log p(x) - KL to the exact posterior), Monte Carlo, and gradients."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal
from theory_cases import Case, case, cases, covariance, diagonal, images, rotation
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from collapse_lib.theory import alignment, linear_vae, ppca
from collapse_lib.theory.spectrum import Spectrum, covariance_spectrum


def exact_elbo(c: Case) -> Tensor:
    """(N,): log p(x) - KL(q(z|x) || p(z|x)), the posterior by conditioning the joint Gaussian of (x, z)."""
    n, k = c.W.shape
    C = c.W @ c.W.T + c.sigma2 * torch.eye(n, dtype=torch.float64)
    gain = c.W.T @ torch.linalg.inv(C)
    posterior = torch.eye(k, dtype=torch.float64) - gain @ c.W
    q = MultivariateNormal((c.X - c.mu) @ c.V.T, torch.diag(c.d))
    p = MultivariateNormal((c.X - c.mu) @ gain.T, 0.5 * (posterior + posterior.T))
    evidence = np.atleast_1d(multivariate_normal(c.mu.numpy(), C.numpy()).logpdf(c.X.numpy()))
    return torch.from_numpy(evidence) - kl_divergence(q, p)


# The ELBO -------------------------------------------------------------------------------------------------------------


@given(cases())
def test_elbo_is_the_evidence_less_the_divergence_from_the_posterior(c: Case) -> None:
    per_image = linear_vae.elbo_per_image(c.W, c.V, c.d, c.sigma2, c.mu, c.X)
    torch.testing.assert_close(per_image.elbo, exact_elbo(c), rtol=1e-8, atol=1e-8)
    q = Independent(Normal((c.X - c.mu) @ c.V.T, c.d.sqrt()), 1)
    prior = Independent(Normal(torch.zeros_like(c.d), torch.ones_like(c.d)), 1)
    torch.testing.assert_close(per_image.kl, kl_divergence(q, prior))
    mean = linear_vae.elbo(c.W, c.V, c.d, c.sigma2, covariance(c.X, c.mu))
    torch.testing.assert_close(tuple(mean), tuple(terms.mean() for terms in per_image))


def test_elbo_is_what_samples_average_to() -> None:
    c = case(5, 3, 8, 0)
    samples = 40_000
    q = Normal((c.X - c.mu) @ c.V.T, c.d.sqrt())
    z = q.sample((samples,))
    reconstruction = z @ c.W.T + c.mu
    logp = Normal(reconstruction, c.sigma2**0.5).log_prob(c.X).sum(-1)
    draws = (logp + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)).mean(1)
    errors = (c.X - reconstruction).square().sum(-1).mean(1)
    exact = linear_vae.elbo(c.W, c.V, c.d, c.sigma2, covariance(c.X, c.mu))
    for drawn, value in ((draws, exact.elbo), (errors, exact.squared_error)):
        assert abs(float(drawn.mean() - value)) < 4 * float(drawn.std()) / samples**0.5


@given(cases(wide=True))
def test_a_model_in_the_span_of_the_data_needs_only_the_eigenvalues(c: Case) -> None:
    spectrum = covariance_spectrum(c.X)
    p, k = spectrum.rank, c.W.shape[1]
    eigenvalues, U = spectrum.eigenvalues[:p], spectrum.eigenvectors[:, :p]
    W, V = U.T @ c.W, c.V @ U
    full = linear_vae.elbo(U @ W, V @ U.T, c.d, c.sigma2, spectrum.covariance)
    torch.testing.assert_close(tuple(linear_vae.elbo(W, V, c.d, c.sigma2, eigenvalues, spectrum.n)), tuple(full))
    value = linear_vae.profile_elbo(U @ W, c.sigma2, spectrum.covariance)
    torch.testing.assert_close(linear_vae.profile_elbo(W, c.sigma2, eigenvalues, spectrum.n), value)
    inner = linear_vae.profile_elbo_and_grad(W, np.log(c.sigma2), eigenvalues, spectrum.n)
    outer = linear_vae.profile_elbo_and_grad(U @ W, np.log(c.sigma2), spectrum.covariance)
    torch.testing.assert_close(inner.elbo, value)
    torch.testing.assert_close(U @ inner.W, outer.W, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(inner.log_sigma2, outer.log_sigma2, rtol=1e-8, atol=1e-8)
    assert inner.W.shape == (p, k)


# The best encoder -----------------------------------------------------------------------------------------------------


@given(cases())
def test_the_best_encoder_attains_the_likelihood_less_the_rotation_gap(c: Case) -> None:
    S = covariance(c.X, c.mu)
    gap = float(linear_vae.rotation_gap(c.W, c.sigma2))
    M = c.W.T @ c.W + c.sigma2 * torch.eye(c.W.shape[1], dtype=torch.float64)
    naive = 0.5 * (np.log(np.diag(M.numpy())).sum() - np.linalg.slogdet(M.numpy())[1])
    assert gap == pytest.approx(naive, rel=1e-9, abs=1e-12)
    assert gap >= 0
    best = linear_vae.best_encoder(c.W, c.sigma2)
    attained = exact_elbo(c._replace(V=best.V, d=best.d)).mean()
    expected = float(ppca.loglik(c.W, c.sigma2, S)) - gap
    assert float(attained) == pytest.approx(expected, rel=1e-8)
    assert float(linear_vae.elbo(c.W, *best, c.sigma2, S).elbo) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert float(linear_vae.profile_elbo(c.W, c.sigma2, S)) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(cases(), st.integers(0, 2**32 - 1), st.floats(1e-3, 1))
def test_any_other_encoder_or_offset_lowers_the_elbo(c: Case, seed: int, size: float) -> None:
    rng, mean = np.random.default_rng(seed), c.X.mean(0)
    best = linear_vae.best_encoder(c.W, c.sigma2)
    at_best = float(exact_elbo(c._replace(V=best.V, d=best.d, mu=mean)).mean())
    other_V = best.V + size * torch.from_numpy(rng.normal(size=best.V.shape))
    other_d = best.d * torch.from_numpy(np.exp(size * rng.normal(size=best.d.shape)))
    b = mean + size * torch.from_numpy(rng.normal(size=mean.shape))
    for V, d, mu in (other_V, best.d, mean), (best.V, other_d, mean), (best.V, best.d, b), (other_V, other_d, b):
        value = linear_vae.elbo(c.W, V, d, c.sigma2, covariance(c.X, mu)).elbo
        assert float(value) < at_best + 1e-9 * abs(at_best)


@given(cases())
def test_the_rotation_gap_vanishes_for_orthogonal_columns_only(c: Case) -> None:
    canonical = alignment.canonical_rotation(c.W)
    torch.testing.assert_close(canonical.W @ canonical.W.T, c.W @ c.W.T)
    torch.testing.assert_close(c.W @ canonical.Q, canonical.W)
    identity = torch.eye(c.W.shape[1], dtype=torch.float64)
    torch.testing.assert_close(canonical.Q.T @ canonical.Q, identity)
    assert abs(float(linear_vae.rotation_gap(canonical.W, c.sigma2))) < 1e-12
    if c.W.shape[1] > 1:
        assert float(linear_vae.rotation_gap(c.W, c.sigma2)) > 1e-12


# Its gradient ---------------------------------------------------------------------------------------------------------


@given(cases())
def test_profile_gradient_is_that_of_the_elbo_at_the_best_encoder(c: Case) -> None:
    S = covariance(c.X, c.mu)
    W, log_sigma2 = c.W.clone().requires_grad_(), torch.tensor(np.log(c.sigma2), requires_grad=True)
    value = linear_vae.elbo(W, *linear_vae.best_encoder(W, log_sigma2.exp()), log_sigma2.exp(), S).elbo
    expected = torch.autograd.grad(value, [W, log_sigma2])
    analytic = linear_vae.profile_elbo_and_grad(c.W, np.log(c.sigma2), S)
    torch.testing.assert_close(analytic.elbo, value.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(analytic.W, expected[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(analytic.log_sigma2, expected[1], rtol=1e-8, atol=1e-8)


def test_profile_gradient_is_the_slope_of_evidence_less_divergence() -> None:
    c = case(4, 2, 9, 1)

    def value(theta: np.ndarray) -> float:
        W, sigma2 = torch.from_numpy(theta[:-1].reshape(4, 2)), float(np.exp(theta[-1]))
        best = linear_vae.best_encoder(W, sigma2)
        return float(exact_elbo(c._replace(W=W, V=best.V, d=best.d, sigma2=sigma2)).mean())

    slope = approx_fprime(np.append(c.W.numpy(), np.log(c.sigma2)), value, 1e-7)
    analytic = linear_vae.profile_elbo_and_grad(c.W, np.log(c.sigma2), covariance(c.X, c.mu))
    np.testing.assert_allclose(np.append(analytic.W, analytic.log_sigma2), slope, rtol=1e-4, atol=1e-5)


def test_the_ppca_optimum_is_stationary_for_the_profile_elbo() -> None:
    spectrum = diagonal([4.0, 2.0, 1.0, 0.5])
    fit = ppca.mle(spectrum, 2)
    found = linear_vae.profile_elbo_and_grad(fit.W, np.log(fit.sigma2), spectrum.eigenvalues)
    assert float(found.elbo) == pytest.approx(fit.loglik, rel=1e-13)
    assert float(found.W.abs().max()) < 1e-13
    assert abs(float(found.log_sigma2)) < 1e-13


# What is missing ------------------------------------------------------------------------------------------------------


@given(cases())
def test_shortfall_adds_up_and_no_part_is_negative(c: Case) -> None:
    n = c.W.shape[0]
    spectrum = covariance_spectrum(c.X)
    W, V, d = c.W[:, : n - 1], c.V[: n - 1], c.d[: n - 1]
    gap = linear_vae.shortfall(W, V, d, c.sigma2, spectrum, c.mu)
    reached = exact_elbo(c._replace(W=W, V=V, d=d)).mean()
    assert gap.total == pytest.approx(ppca.mle(spectrum, W.shape[1]).loglik - float(reached), rel=1e-8)
    assert min(gap) >= -1e-9 * abs(float(reached))
    C = W @ W.T + c.sigma2 * torch.eye(n, dtype=torch.float64)
    likelihood = multivariate_normal(c.mu.numpy(), C.numpy()).logpdf(c.X.numpy()).mean()
    assert gap.decoder == pytest.approx(ppca.mle(spectrum, W.shape[1]).loglik - likelihood, rel=1e-7, abs=1e-8)
    assert gap.rotation == float(linear_vae.rotation_gap(W, c.sigma2))


def test_each_fault_shows_in_its_own_part() -> None:
    X = case(6, 3, 20, 2).X
    spectrum = covariance_spectrum(X)
    fit = ppca.mle(spectrum, 3)

    def faults(W: Tensor, encoder: linear_vae.Encoder, sigma2: float, mu: Tensor | None = None) -> list[bool]:
        gap = linear_vae.shortfall(W, *encoder, sigma2, spectrum, mu)
        assert min(gap) > -1e-10
        return [part > 1e-3 for part in gap]

    best = linear_vae.best_encoder(fit.W, fit.sigma2)
    turned = fit.W @ rotation(3, 0)
    assert faults(fit.W, best, fit.sigma2) == [False, False, False]
    assert faults(fit.W, best._replace(d=2 * best.d), fit.sigma2) == [False, False, True]
    assert faults(turned, linear_vae.best_encoder(turned, fit.sigma2), fit.sigma2) == [False, True, False]
    assert faults(fit.W, linear_vae.best_encoder(fit.W, 2 * fit.sigma2), 2 * fit.sigma2) == [True, False, False]
    assert faults(fit.W, best, fit.sigma2, fit.mu + 1) == [True, False, False]


# One sample -----------------------------------------------------------------------------------------------------------


def test_single_sample_variance_is_that_of_samples() -> None:
    c, samples = case(5, 3, 4, 3), 200_000
    eps = torch.randn(samples, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = (c.X - c.mu) @ c.V.T + eps * c.d.sqrt()
    logp = Normal(z @ c.W.T + c.mu, c.sigma2**0.5).log_prob(c.X).sum(-1)
    predicted = linear_vae.single_sample_variance(c.W, c.V, c.d, c.sigma2, c.mu, c.X)
    torch.testing.assert_close(predicted, logp.var(0), rtol=0.03, atol=0)


@given(cases(), st.floats(0.05, 0.95))
def test_single_sample_variance_at_the_optimum(c: Case, share: float) -> None:
    spectrum, k = covariance_spectrum(c.X), c.W.shape[1]
    sigma2 = share * float(spectrum.eigenvalues[0])
    W = ppca.fixed_sigma2(spectrum, k, sigma2).W
    per_image = linear_vae.single_sample_variance(W, *linear_vae.best_encoder(W, sigma2), sigma2, spectrum.mean, c.X)
    value = linear_vae.optimal_single_sample_variance(spectrum, k, sigma2)
    assert value == pytest.approx(float(per_image.mean()), rel=1e-9)
    assert 0 < value <= k / 2


# Rotations and matching -----------------------------------------------------------------------------------------------


@given(st.floats(0.2, 5), st.floats(0.2, 5), st.floats(-4, 4), st.floats(0.01, 0.19))
def test_pair_gap_is_the_cost_of_a_rotation(l_i: float, l_j: float, angle: float, sigma2: float) -> None:
    lengths = torch.tensor([l_i - sigma2, l_j - sigma2, 0.3], dtype=torch.float64).sqrt()
    W = torch.diag(lengths)
    c, s = np.cos(angle), np.sin(angle)
    W[:2, :2] @= torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    expected = float(linear_vae.rotation_gap(W, sigma2))
    assert float(alignment.pair_gap(l_i, l_j, angle)) == pytest.approx(expected, rel=1e-6, abs=1e-13)


def test_near_equal_eigenvalues_rotate_almost_freely() -> None:
    angles = torch.linspace(0, np.pi / 2, 181, dtype=torch.float64)
    gaps = alignment.pair_gap(1.07, 1.0, angles)
    assert float(gaps.max()) == pytest.approx(0.0006, abs=5e-5)
    assert float(angles[gaps.argmax()]) == pytest.approx(np.pi / 4)
    assert float(gaps[[0, -1]].max()) < 1e-12


def test_canonical_rotation_of_a_decoder_with_fewer_rows_than_columns() -> None:
    W = case(5, 5, 9, 4).W[:3]
    canonical = alignment.canonical_rotation(torch.cat([W, torch.zeros(2, 5)]))
    assert abs(float(linear_vae.rotation_gap(canonical.W, 0.1))) < 1e-12


def test_columns_are_found_again_in_any_order_and_sign() -> None:
    U = rotation(6, 1)[:, :4]
    order, sign = [2, 0, 3, 1], torch.tensor([1.0, -1.0, -1.0, 1.0])
    shuffled = torch.empty_like(U)
    shuffled[:, order] = U * sign * torch.tensor([3.0, 0.1, 1.0, 2.0])
    match = alignment.match_columns(shuffled, U)
    assert match.order.tolist() == order
    assert match.sign.tolist() == sign.tolist()
    torch.testing.assert_close(match.cosine, torch.ones(4, dtype=torch.float64))
    aligned = shuffled[:, match.order] * match.sign
    torch.testing.assert_close(aligned / aligned.norm(dim=0), U)


@given(st.integers(1, 4), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_matching_is_the_best_of_all_assignments(m: int, extra: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    W, U = rng.normal(size=(5, m + extra)), rng.normal(size=(5, m))
    cosine = (U / np.linalg.norm(U, axis=0)).T @ (W / np.linalg.norm(W, axis=0))
    match = alignment.match_columns(W, U)
    best = max(permutations(range(m + extra), m), key=lambda order: np.abs(cosine[np.arange(m), order]).sum())
    assert tuple(match.order.tolist()) == best
    np.testing.assert_allclose(match.cosine * match.sign, cosine[np.arange(m), best])


def test_a_collapsed_column_matches_nothing() -> None:
    match = alignment.match_columns(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([[1.0, 1.0], [-1.0, 0.0]]))
    assert match.order.tolist() == [1, 0]
    assert match.cosine.tolist() == pytest.approx([1, 0])
    assert match.sign.tolist() == [1, 1]


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_mutual_coherence_is_the_largest_cosine_of_two_columns(k: int, seed: int) -> None:
    W = np.random.default_rng(seed).normal(size=(5, k))
    pairs = [(W[:, i], W[:, j]) for i, j in permutations(range(k), 2)]
    largest = max(abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs)
    assert alignment.mutual_coherence(W) == pytest.approx(largest)
    assert alignment.mutual_coherence(3 * W[:, :1]) == 0
    assert alignment.mutual_coherence(alignment.canonical_rotation(W[:, :4]).W) < 1e-7


# Bad input ------------------------------------------------------------------------------------------------------------

W3, V3, D2, S3, X3 = torch.ones(3, 2), torch.ones(2, 3), torch.ones(2), torch.eye(3), torch.ones(4, 3)
SPECTRUM: Spectrum = diagonal([2.0, 1.0, 0.5, 0.2])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: linear_vae.elbo(W3, V3, D2, 0.0, S3), ValueError, "sigma2 must be positive"),
        (lambda: linear_vae.elbo(W3, V3, D2 - 1, 1.0, S3), ValueError, r"d must be positive, got 0 \(shape \(2,\)\)"),
        (lambda: linear_vae.elbo(W3, W3, D2, 1.0, S3), ValueError, r"V has shape \(3, 2\), expected \(2, 3\): W has"),
        (lambda: linear_vae.elbo(W3, V3, S3[0], 1.0, S3), ValueError, r"d has shape \(3,\), expected \(2,\): W has"),
        (lambda: linear_vae.elbo(W3, V3, D2, 1.0, S3[0, :2]), ValueError, r"S has shape \(2,\), expected \(3, 3\)"),
        (lambda: linear_vae.elbo(V3, W3, D2, 1.0, S3), ValueError, "k = 3 latents .* n = 2"),
        (
            lambda: linear_vae.elbo(W3.int(), V3, D2, 1.0, S3),
            TypeError,
            r"W must hold .* torch.int32 of shape \(3, 2\)",
        ),
        (lambda: linear_vae.elbo(W3, V3.log().log(), D2, 1.0, S3), ValueError, r"V of shape \(2, 3\) has 6 entries"),
        (lambda: linear_vae.elbo_per_image(W3, V3, D2, 1.0, D2, X3), ValueError, r"X has shape \(4, 3\) and mu \(2,\)"),
        (lambda: linear_vae.rotation_gap(W3, -1.0), ValueError, "sigma2 must be positive"),
        (lambda: linear_vae.rotation_gap(W3, 1e-30), ValueError, r"scaled to unit .* is not positive definite"),
        (lambda: linear_vae.best_encoder(W3, 1e-30), ValueError, r"M = .* is not positive definite"),
        (lambda: linear_vae.profile_elbo_and_grad(W3, -800.0, S3), ValueError, r"sigma2 = exp\(log_sigma2\) must be"),
        (lambda: linear_vae.profile_elbo_and_grad(W3, 0.0, S3, n=2), ValueError, "n = 2 is smaller"),
        (
            lambda: linear_vae.shortfall(W3, V3, D2, 1.0, SPECTRUM),
            ValueError,
            r"W has shape \(3, 2\), expected \(4, 2\)",
        ),
        (lambda: linear_vae.optimal_single_sample_variance(SPECTRUM, 0, 1.0), ValueError, "k = 0 latents"),
        (lambda: alignment.pair_gap(1.0, 0.0, 0.5), ValueError, "eigenvalue_j must be positive"),
        (lambda: alignment.match_columns(W3, S3), ValueError, r"W has shape \(3, 2\) and reference \(3, 3\)"),
        (lambda: alignment.match_columns(W3, V3), ValueError, r"W has shape \(3, 2\) and reference \(2, 3\)"),
    ],
)
def test_bad_input_says_what_is_wrong(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


# Printed numbers ------------------------------------------------------------------------------------------------------


def test_digits_from_the_optimum() -> None:
    X, spectrum = images("digits", 1000, "raw")
    fit = ppca.mle(spectrum, 10)
    best = linear_vae.best_encoder(fit.W, fit.sigma2)
    assert max(abs(part) for part in linear_vae.shortfall(fit.W, *best, fit.sigma2, spectrum)) < 1e-9
    per_image = linear_vae.elbo_per_image(fit.W, *best, fit.sigma2, fit.mu, X).elbo
    assert float(per_image.mean()) == pytest.approx(719.733, abs=2e-3)


def test_mnist_identities_at_full_size(real_data: Path) -> None:
    """k = 200: ELBO* = LL - G to 1e-12 relative far from the optimum; a random rotation costs about 126 nats."""
    X, spectrum = images("mnist", 1000, "raw", real_data)
    W, sigma2, S = torch.randn(784, 200, dtype=torch.float64) / 28, 0.05, spectrum.covariance
    expected = float(ppca.loglik(W, sigma2, S) - linear_vae.rotation_gap(W, sigma2))
    best = linear_vae.best_encoder(W, sigma2)
    assert float(linear_vae.elbo(W, *best, sigma2, S).elbo) == pytest.approx(expected, rel=1e-12)
    assert float(linear_vae.profile_elbo_and_grad(W, np.log(sigma2), S).elbo) == pytest.approx(expected, rel=1e-12)
    fit = ppca.mle(spectrum, 200)
    assert float(linear_vae.rotation_gap(fit.W @ rotation(200, 0), fit.sigma2)) == pytest.approx(126, abs=4)
    best = linear_vae.best_encoder(fit.W, fit.sigma2)
    assert float(linear_vae.elbo(fit.W, *best, fit.sigma2, S).kl) == pytest.approx(352.67, abs=6e-3)
    assert linear_vae.optimal_single_sample_variance(spectrum, 200, fit.sigma2) == pytest.approx(99.467, abs=6e-4)
    per_image = linear_vae.single_sample_variance(fit.W, *best, fit.sigma2, fit.mu, X)
    assert float(per_image.mean()) == pytest.approx(99.467, abs=6e-4)
