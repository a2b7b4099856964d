"""pPCA against scipy's Gaussian, scikit-learn's PCA, Bayes' rule, finite differences, and printed numbers."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from theory_cases import Case, case, cases, covariance, diagonal, images, rotation, slope
from torch import Tensor

from collapse_lib.theory import ppca
from collapse_lib.theory.spectrum import covariance_spectrum, spectrum_of_covariance


def mean_logpdf(X: torch.Tensor, W: torch.Tensor, sigma2: float, mu: torch.Tensor) -> float:
    C = W.numpy() @ W.numpy().T + sigma2 * np.eye(len(W))
    return float(multivariate_normal(mu.numpy(), C).logpdf(X.numpy()).mean())


# The spectrum ---------------------------------------------------------------------------------------------------------


@given(cases(), st.booleans())
def test_spectrum_diagonalises_the_covariance(c: Case, offset: bool) -> None:
    about = c.mu if offset else c.X.mean(0)
    spectrum = covariance_spectrum(c.X, offset=c.mu if offset else None)
    S = covariance(c.X, about)
    eigenvalues, U = spectrum.eigenvalues, spectrum.eigenvectors
    torch.testing.assert_close(U.T @ U, torch.eye(len(eigenvalues), dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(S @ U, U * eigenvalues, atol=1e-12 * float(eigenvalues[0]), rtol=0)
    assert bool((eigenvalues.diff() <= 0).all())
    assert spectrum.trace == pytest.approx(float(S.trace()), rel=1e-12)
    assert spectrum.rank == len(eigenvalues) == spectrum.n
    torch.testing.assert_close(spectrum.covariance, S)
    torch.testing.assert_close(spectrum.mu, about)
    torch.testing.assert_close(spectrum.mean, c.X.mean(0))


def test_the_covariance_is_that_of_numpy_with_one_over_n() -> None:
    X = case(5, 2, 9, 0).X
    expected = np.cov(X.numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(covariance_spectrum(X).covariance.numpy(), expected, atol=1e-13)


@given(cases(), st.booleans())
def test_covariance_about_another_point(c: Case, offset: bool) -> None:
    spectrum = covariance_spectrum(c.X, offset=0.5 * c.mu if offset else None)
    torch.testing.assert_close(spectrum.covariance_about(c.mu), covariance(c.X, c.mu))


@given(cases(wide=True), st.booleans())
def test_dual_and_primal_route_agree(c: Case, offset: bool) -> None:
    (N, n), b = c.X.shape, c.mu if offset else None
    dual, primal = covariance_spectrum(c.X, offset=b), covariance_spectrum(c.X, offset=b, route="primal")
    scale = float(primal.eigenvalues[0])
    assert len(dual.eigenvalues) == N
    assert len(primal.eigenvalues) == dual.n == n
    assert dual.rank == primal.rank == (N if offset else N - 1)
    torch.testing.assert_close(dual.leading(n), primal.eigenvalues, atol=1e-13 * scale, rtol=0)
    torch.testing.assert_close(dual.covariance, primal.covariance, atol=1e-13 * scale, rtol=0)
    k = dual.rank - 1
    assert ppca.mle(dual, k).loglik == pytest.approx(ppca.mle(primal, k).loglik, rel=1e-9)
    torch.testing.assert_close(
        ppca.fixed_sigma2(dual, n, 1e-3 * scale).W.abs(), ppca.fixed_sigma2(primal, n, 1e-3 * scale).W.abs()
    )


def test_dual_route_on_tall_data_agrees_too() -> None:
    X = case(5, 2, 9, 1).X
    torch.testing.assert_close(
        covariance_spectrum(X, route="dual").eigenvalues, covariance_spectrum(X, route="primal").eigenvalues
    )


def test_round_off_below_zero_is_clipped_and_a_negative_variance_is_not() -> None:
    Q = rotation(3, 0)
    tiny = Q @ torch.diag(torch.tensor([2.0, 1.0, -1e-12], dtype=torch.float64)) @ Q.T
    assert float(spectrum_of_covariance(tiny).eigenvalues[-1]) == 0
    clear = Q @ torch.diag(torch.tensor([2.0, 1.0, -1e-6], dtype=torch.float64)) @ Q.T
    with pytest.raises(ValueError, match=r"S of shape \(3, 3\) is not a covariance: .* from -1e-06 to 2"):
        spectrum_of_covariance(clear)


def test_float32_and_numpy_input_is_taken_in_float64() -> None:
    X = case(4, 2, 9, 2).X
    from_numpy, from_float32 = covariance_spectrum(X.numpy()), covariance_spectrum(X.float())
    torch.testing.assert_close(from_numpy.eigenvalues, covariance_spectrum(X).eigenvalues, atol=0, rtol=0)
    assert from_float32.eigenvalues.dtype == torch.float64
    torch.testing.assert_close(from_float32.eigenvalues, from_numpy.eigenvalues, atol=1e-5, rtol=1e-5)
    assert ppca.loglik(np.ones((2, 1), np.float32), 1, torch.ones(2)).dtype == torch.float64


# Likelihood -----------------------------------------------------------------------------------------------------------


@given(cases())
def test_loglik_is_the_mean_of_scipys_logpdf(c: Case) -> None:
    S = covariance(c.X, c.mu)
    expected = mean_logpdf(c.X, c.W, c.sigma2, c.mu)
    assert float(ppca.loglik(c.W, c.sigma2, S)) == pytest.approx(expected, rel=1e-9)
    assert float(ppca.loglik_dense(c.W, c.sigma2, S)) == pytest.approx(expected, rel=1e-9)


@given(cases(wide=True))
def test_a_decoder_in_the_span_of_the_data_needs_only_the_eigenvalues(c: Case) -> None:
    spectrum = covariance_spectrum(c.X)
    eigenvalues, U = spectrum.eigenvalues[: spectrum.rank], spectrum.eigenvectors[:, : spectrum.rank]
    inner = torch.from_numpy(np.random.default_rng(0).normal(size=(len(eigenvalues), c.W.shape[1])))
    expected = mean_logpdf(c.X, U @ inner, c.sigma2, spectrum.mean)
    assert float(ppca.loglik(inner, c.sigma2, eigenvalues, spectrum.n)) == pytest.approx(expected, rel=1e-8)
    assert float(ppca.loglik(inner, c.sigma2, torch.diag(eigenvalues), spectrum.n)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("loglik", [ppca.loglik, ppca.loglik_dense])
def test_its_gradient_is_the_slope_of_scipys_logpdf(loglik: Callable[..., Tensor]) -> None:
    c = case(4, 2, 9, 3)

    def value(theta: np.ndarray) -> float:
        return mean_logpdf(c.X, torch.from_numpy(theta[:-1].reshape(4, 2)), theta[-1], c.mu)

    W, sigma2 = c.W.clone().requires_grad_(), torch.tensor(c.sigma2, dtype=torch.float64, requires_grad=True)
    dW, dsigma2 = torch.autograd.grad(loglik(W, sigma2, covariance(c.X, c.mu)), [W, sigma2])
    expected = approx_fprime(np.append(c.W.numpy(), c.sigma2), value, 1e-7)
    np.testing.assert_allclose(np.append(dW.numpy(), float(dsigma2)), expected, rtol=1e-4, atol=1e-5)


@given(cases())
def test_posterior_is_the_conditional_of_the_joint_gaussian(c: Case) -> None:
    n, k = c.W.shape
    gain = c.W.T @ torch.linalg.inv(c.W @ c.W.T + c.sigma2 * torch.eye(n, dtype=torch.float64))
    posterior = ppca.posterior(c.W, c.sigma2, c.mu, c.X)
    torch.testing.assert_close(posterior.mean, (c.X - c.mu) @ gain.T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(posterior.covariance, torch.eye(k, dtype=torch.float64) - gain @ c.W)


# Maxima ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("N", "k"), [(12, 1), (12, 4), (500, 3)])
def test_mle_against_scikit_learn(N: int, k: int) -> None:
    """scikit-learn takes C' = N/(N-1) C from the 1/(N-1) covariance and scores it on the data: tr(C'^-1 S) = n (N-1)/N.

    Its score is therefore LL*_{1/(N-1)} + n/(2N), and LL* of ours is bessel_offset - n/(2N) above it.
    """
    n = 6
    X = case(n, 2, N, 4).X
    pca = PCA(k, svd_solver="full").fit(X.numpy())
    fit = ppca.mle(covariance_spectrum(X), k)
    bessel = N / (N - 1)
    assert fit.sigma2 * bessel == pytest.approx(pca.noise_variance_, rel=1e-10)
    C = fit.W @ fit.W.T + fit.sigma2 * torch.eye(n, dtype=torch.float64)
    np.testing.assert_allclose(bessel * C.numpy(), pca.get_covariance(), rtol=1e-9, atol=1e-9)
    assert fit.loglik == pytest.approx(pca.score(X.numpy()) + ppca.bessel_offset(n, N) - n / (2 * N), rel=1e-10)
    scored = ppca.loglik(bessel**0.5 * fit.W, bessel * fit.sigma2, covariance(X, fit.mu))
    assert float(scored) == pytest.approx(pca.score(X.numpy()), rel=1e-10)


@given(cases(), st.integers(0, 2**32 - 1), st.floats(1e-4, 1))
def test_nothing_near_the_mle_is_likelier(c: Case, seed: int, size: float) -> None:
    n, k = c.W.shape[0], min(c.W.shape)
    fit = ppca.mle(covariance_spectrum(c.X), k - 1)
    assert mean_logpdf(c.X, fit.W, fit.sigma2, fit.mu) == pytest.approx(fit.loglik, rel=1e-8)
    rng = np.random.default_rng(seed)
    W = fit.W + size * torch.from_numpy(rng.normal(size=fit.W.shape))
    mu = fit.mu + size * torch.from_numpy(rng.normal(size=n))
    assert mean_logpdf(c.X, W, fit.sigma2 * np.exp(size * rng.normal()), mu) <= fit.loglik + 1e-9
    assert fit.active == k - 1


@given(cases(), st.floats(0.01, 0.99))
def test_fixed_sigma2_is_the_best_of_all_stationary_points(c: Case, share: float) -> None:
    spectrum, (n, k) = covariance_spectrum(c.X), c.W.shape
    eigenvalues = spectrum.eigenvalues
    sigma2 = float(eigenvalues[-1] + share * (eigenvalues[0] - eigenvalues[-1]))
    fit = ppca.fixed_sigma2(spectrum, k, sigma2)
    assert fit.active == min(k, int((eigenvalues > sigma2).sum())) == int((fit.W.norm(dim=0) > 0).sum())
    assert mean_logpdf(c.X, fit.W, sigma2, fit.mu) == pytest.approx(fit.loglik, rel=1e-8)
    above = [j for j in range(n) if eigenvalues[j] > sigma2]
    subsets = [A for size in range(min(k, len(above)) + 1) for A in combinations(above, size)]
    assert fit.loglik == pytest.approx(max(ppca.stationary_value(spectrum, A, sigma2) for A in subsets), rel=1e-12)


def test_fixed_sigma2_is_flat_beyond_the_last_active_direction_and_touches_the_mle() -> None:
    spectrum = diagonal([5.0, 3.0, 2.0, 0.5, 0.2])
    values = [ppca.fixed_sigma2(spectrum, k, 1.0).loglik for k in range(6)]
    assert values[0] < values[1] < values[2] < values[3]
    assert values[3] == values[4] == values[5]
    for k in range(5):
        best = ppca.mle(spectrum, k)
        assert ppca.fixed_sigma2(spectrum, k, best.sigma2).loglik == pytest.approx(best.loglik, rel=1e-12)
        assert ppca.fixed_sigma2(spectrum, k, 1.1 * best.sigma2).loglik < best.loglik


@pytest.mark.parametrize("used", [(), (0,), (2,), (0, 3), (1, 2, 3)])
def test_stationary_points_are_stationary_in_any_rotation(used: tuple[int, ...]) -> None:
    c = case(6, 1, 20, 5)
    spectrum = covariance_spectrum(c.X)
    sigma2 = 0.9 * float(spectrum.eigenvalues[3])
    W = torch.zeros(6, 4, dtype=torch.float64)
    W[:, : len(used)] = spectrum.eigenvectors[:, used] * (spectrum.eigenvalues[list(used)] - sigma2).sqrt()
    W = W @ rotation(4, 0)
    assert ppca.stationary_value(spectrum, used, sigma2) == pytest.approx(
        mean_logpdf(c.X, W, sigma2, spectrum.mean), rel=1e-10
    )
    assert float(slope(W, sigma2, covariance(c.X, spectrum.mean)).abs().max()) < 1e-12


def test_equal_eigenvalues_leave_nothing_to_explain() -> None:
    fit = ppca.mle(diagonal([2.0, 2.0, 2.0]), 2)
    assert (fit.sigma2, fit.active, float(fit.W.abs().max())) == (2.0, 0, 0.0)
    assert fit.loglik == pytest.approx(-1.5 * (np.log(4 * np.pi) + 1))


def test_bessel_offset_is_what_np_cov_costs() -> None:
    assert ppca.bessel_offset(784, 1000) == pytest.approx(0.392196, abs=1e-6)
    X = case(5, 2, 9, 6).X
    with_np_cov = spectrum_of_covariance(np.cov(X.numpy(), rowvar=False))
    difference = ppca.mle(covariance_spectrum(X), 2).loglik - ppca.mle(with_np_cov, 2).loglik
    assert ppca.bessel_offset(5, 9) == pytest.approx(difference, rel=1e-10)


# Bad input ------------------------------------------------------------------------------------------------------------

W3, S3, X3 = torch.ones(3, 2), torch.eye(3), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: ppca.loglik(W3, 0.0, S3), ValueError, "sigma2 must be positive, got 0"),
        (lambda: ppca.loglik(W3, -1, S3), ValueError, "sigma2 must be positive, got -1"),
        (lambda: ppca.loglik(W3, [1.0], S3), ValueError, r"sigma2 must be one number, got shape \(1,\)"),
        (lambda: ppca.loglik(W3, float("nan"), S3), ValueError, r"sigma2 of shape \(\) has 1 entries that are nan"),
        (lambda: ppca.loglik(W3 / 0, 1.0, S3), ValueError, r"W of shape \(3, 2\) has 6 entries that are nan or inf"),
        (lambda: ppca.loglik(W3.long(), 1.0, S3), TypeError, r"W must hold real .* got torch.int64 of shape \(3, 2\)"),
        (lambda: ppca.loglik(W3.to(torch.cfloat), 1.0, S3), TypeError, r"got torch.complex64 of shape \(3, 2\)"),
        (lambda: covariance_spectrum(np.ones((4, 3), int)), TypeError, r"got int64 of shape \(4, 3\); .*x / 255"),
        (lambda: covariance_spectrum(np.ones((4, 3), complex)), TypeError, r"got complex128 of shape \(4, 3\)"),
        (lambda: ppca.loglik(W3[0], 1.0, S3), ValueError, r"W must have shape \(p, k\), got \(2,\)"),
        (lambda: ppca.loglik(W3[:, :0], 1.0, S3), ValueError, r"W of shape \(p, k\) is empty, got \(3, 0\)"),
        (lambda: ppca.loglik(W3.T, 1.0, S3[:2, :2]), ValueError, r"k = 3 latents .* n = 2: k must lie in 1\.\.2"),
        (lambda: ppca.loglik(W3, 1.0, S3, n=2), ValueError, r"n = 2 is smaller .* \(3, 2\)"),
        (lambda: ppca.loglik(W3, 1.0, S3[:2, :2]), ValueError, r"S has shape \(2, 2\), expected \(3, 3\) or.* \(3,\)"),
        (lambda: ppca.loglik(W3, 1.0, S3.cumsum(0)), ValueError, r"S of shape \(3, 3\) is not symmetric"),
        (lambda: ppca.loglik(W3, 1.0, -S3), ValueError, r"S of shape \(3, 3\) holds a negative variance, -1"),
        (lambda: ppca.loglik(W3, 1.0, -S3[0] + 0.5), ValueError, r"S of shape \(3,\) holds a negative variance, -0\.5"),
        (
            lambda: ppca.loglik(1e9 * W3, 1.0, S3),
            ValueError,
            r"M = .* \(2, 2\) is not positive definite .* sigma2 is too",
        ),
        (lambda: ppca.loglik_dense(W3, 1.0, S3[:2, :2]), ValueError, r"S has shape \(2, 2\)"),
        (
            lambda: ppca.posterior(W3, 1.0, W3[0], X3),
            ValueError,
            r"X has shape \(4, 3\) and mu \(2,\), expected \(N, 3\)",
        ),
        (lambda: ppca.posterior(W3, 1.0, X3[0], W3), ValueError, r"X has shape \(3, 2\) and mu \(3,\)"),
        (lambda: covariance_spectrum(X3[0]), ValueError, r"X must have shape \(N, n\), got \(3,\)"),
        (lambda: covariance_spectrum(X3[:0]), ValueError, r"X of shape \(N, n\) is empty, got \(0, 3\)"),
        (lambda: covariance_spectrum(X3, offset=X3[0, :2]), ValueError, r"offset has shape \(2,\), expected \(3,\)"),
        (lambda: covariance_spectrum(X3, route="svd"), ValueError, "unknown route 'svd': choose 'auto', 'primal' or"),  # type: ignore[arg-type]
        (lambda: diagonal([1.0]).covariance_about(X3[0]), ValueError, r"offset has shape \(3,\), expected \(1,\)"),
        (lambda: spectrum_of_covariance(X3), ValueError, r"S has shape \(4, 3\), expected \(4, 4\)"),
        (lambda: spectrum_of_covariance(S3.cumsum(0)), ValueError, r"S of shape \(3, 3\) is not symmetric"),
        (lambda: spectrum_of_covariance(S3, S3[0, :2]), ValueError, r"mean has shape \(2,\), expected \(3,\)"),
        (lambda: ppca.mle(diagonal([1.0, 0.5]), -1), ValueError, r"k = -1 latents .* k must lie in 0\.\.2"),
        (lambda: ppca.mle(diagonal([1.0, 0.5]), 3), ValueError, r"k = 3 latents"),
        (lambda: ppca.fixed_sigma2(diagonal([1.0, 0.5]), 3, 1.0), ValueError, r"k = 3 latents"),
        (lambda: ppca.fixed_sigma2(diagonal([1.0, 0.5]), 1, 0), ValueError, "sigma2 must be positive"),
        (lambda: ppca.stationary_value(diagonal([1.0, 0.5]), (0, 1), 0.6), ValueError, r"directions \[1\]: .* 0\.6"),
        (lambda: ppca.stationary_value(diagonal([1.0, 0.5]), (0, 0), 0.1), ValueError, r"used = \[0, 0\] .* 0\.\.1"),
        (lambda: ppca.stationary_value(diagonal([1.0, 0.5]), (2,), 0.1), ValueError, r"used = \[2\] must be distinct"),
        (lambda: ppca.stationary_value(diagonal([1.0, 0.5]), (-1,), 0.1), ValueError, r"used = \[-1\] must be"),
        (lambda: ppca.bessel_offset(3, 1), ValueError, "N = 1 images"),
    ],
)
def test_bad_input_says_what_is_wrong(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("k", [2, 3])
def test_an_unbounded_likelihood_names_the_rank_and_the_remedy(k: int) -> None:
    with pytest.raises(ppca.UnboundedLikelihoodError, match=rf"k = {k} .* rank is 2 .* take k < 2.*fixed_sigma2"):
        ppca.mle(diagonal([2.0, 1.0, 0.0, 0.0]), k)


# Printed numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("N", "kind", "k", "loglik", "sigma2"),
    [
        (1000, "raw", 10, 719.733, 0.0086871),
        (1000, "raw", 20, 1125.650, 0.00285),
        (500, "raw", 10, 769.258, 0.0076442),
        (500, "logit", 10, -1146.692, 1.02058),
        (1000, "logit", 10, -1170.993, 1.08681),
    ],
)
def test_digits(N: int, kind: str, k: int, loglik: float, sigma2: float) -> None:
    fit = ppca.mle(images("digits", N, kind).spectrum, k)
    # Upsampled pixels half-way between two grey values may be rounded either way: 1.3e-3 nats.
    assert fit.loglik == pytest.approx(loglik, abs=2e-3)
    assert fit.sigma2 == pytest.approx(sigma2, rel=2e-3 if k == 20 else 1e-4)


def test_digits_eigenvalues() -> None:
    raw, logit = (images("digits", 1000, kind).spectrum.eigenvalues for kind in ("raw", "logit"))
    assert raw[:4].tolist() == pytest.approx([6.170, 5.511, 4.511, 3.994], abs=6e-4)
    assert logit[[0, 4, 5]].tolist() == pytest.approx([609.3, 185.5, 146.2], abs=0.06)


def test_digits_without_rounding_have_the_rank_of_their_8x8_originals() -> None:
    small = torch.from_numpy(load_digits().images[:1000])[:, None] / 16
    X = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False).reshape(1000, 784)
    spectrum = covariance_spectrum(X)
    assert spectrum.rank == 61
    fit = ppca.mle(spectrum, 10)
    assert (fit.loglik, fit.sigma2) == pytest.approx((719.7241, 0.00868724), rel=1e-6)
    with pytest.raises(ppca.UnboundedLikelihoodError, match=r"k = 61 .* rank is 61"):
        ppca.mle(spectrum, 61)


MNIST_RAW = {  # k: LL* with 1/(N-1), LL_fix at sigma2*(50) with 1/(N-1), active, LL* with 1/N, sigma2* with 1/N
    0: (-46.16973, -1297.0634, 0, -45.77753, 0.065802),
    25: (380.18507, 304.4743, 25, 380.57727, 0.019491),
    50: (557.69789, 557.6979, 50, 558.09008, 0.011005),
    100: (754.12850, 683.0671, 100, 754.52070, 0.005346),
    150: (871.39634, 705.3360, 150, 871.78854, 0.003210),
    200: (961.99133, 708.2532, 200, 962.38352, 0.002045),
    250: (1044.36839, 708.2789, 215, 1044.76058, 0.001295),
    300: (1126.17353, 708.2789, 215, 1126.56572, 0.000786),
}


def test_mnist_raw(real_data: Path) -> None:
    """The report's Fig. 6 prints 380.185 .. 1126.174 (with 1/(N-1)); both curves, both conventions."""
    _, spectrum = images("mnist", 1000, "raw", real_data)
    offset, sigma2_50 = ppca.bessel_offset(784, 1000), ppca.mle(spectrum, 50).sigma2
    for k, (printed, fixed, active, loglik, sigma2) in MNIST_RAW.items():
        best, held = ppca.mle(spectrum, k), ppca.fixed_sigma2(spectrum, k, sigma2_50)
        assert (best.loglik, best.loglik - offset) == pytest.approx((loglik, printed), abs=1e-5)
        assert best.sigma2 == pytest.approx(sigma2, abs=6e-7)
        assert held.loglik - offset == pytest.approx(fixed, abs=1e-4)
        assert held.active == active
    assert spectrum.rank == 590
    assert spectrum.trace * 1000 / 999 == pytest.approx(51.6408, abs=6e-5)
    assert (spectrum.eigenvalues[:4] * 1000 / 999).tolist() == pytest.approx([5.129, 4.005, 3.531, 2.802], abs=6e-4)


def test_mnist_raw_cheap_form_equals_dense_form_and_a_missing_mean_costs_two_nats(real_data: Path) -> None:
    X, spectrum = images("mnist", 1000, "raw", real_data)
    fit = ppca.mle(spectrum, 200)
    for value in (ppca.loglik, ppca.loglik_dense):
        assert float(value(fit.W, fit.sigma2, spectrum.covariance)) == pytest.approx(fit.loglik, abs=1e-8)
    without_mean = ppca.mle(covariance_spectrum(X, offset=torch.zeros(784)), 200)
    assert without_mean.loglik == pytest.approx(960.171, abs=6e-4)


def test_mnist_logit(real_data: Path) -> None:
    spectrum = images("mnist", 1000, "logit", real_data).spectrum
    values = {0: -1966.930, 10: -1723.721, 50: -1447.785, 100: -1347.192, 200: -1277.95138, 300: -1234.771}
    noise = {0: 8.84456, 10: 4.50634, 50: 1.87501, 100: 1.23576, 200: 0.81174, 300: 0.56416}
    for k, printed in values.items():
        fit = ppca.mle(spectrum, k)
        assert fit.loglik - ppca.bessel_offset(784, 1000) == pytest.approx(printed, abs=1e-3)
        assert fit.sigma2 * 1000 / 999 == pytest.approx(noise[k], abs=6e-6)
    assert spectrum.trace == pytest.approx(6927.20, abs=6e-3)
    assert [int((spectrum.eigenvalues > s).sum()) for s in (30, 10, 3, 1, 0.3)] == [38, 74, 170, 396, 602]
