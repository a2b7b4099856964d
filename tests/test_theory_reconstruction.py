"""Reconstruction errors against dense computation on data and scikit-learn's PCA."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from theory_cases import case, cases, diagonal, rotation

from collapse_lib.theory import ppca
from collapse_lib.theory.reconstruction import pca_error, posterior_mean_error, shrinkage, unshrink
from collapse_lib.theory.spectrum import covariance_spectrum


@given(cases())
def test_pca_error_is_that_of_scikit_learn(c):
    k, X = c.W.shape[1], c.X.numpy()
    pca = PCA(k, svd_solver="full").fit(X)
    error = np.square(X - pca.inverse_transform(pca.transform(X))).sum(1).mean()
    spectrum = covariance_spectrum(c.X)
    np.testing.assert_allclose(pca_error(spectrum, k), error, rtol=1e-8, atol=1e-10 * spectrum.trace)


@settings(max_examples=50)
@given(cases(), st.floats(0.01, 3), st.integers(0, 2**31))
def test_posterior_mean_error_is_that_of_the_images(c, share, seed):
    """At the optimum for a fixed sigma2, whatever the rotation of its columns; collapsed directions included."""
    spectrum, k = covariance_spectrum(c.X), c.W.shape[1]
    sigma2 = share * float(spectrum.eigenvalues[0])
    W = ppca.fixed_sigma2(spectrum, k, sigma2).W @ rotation(k, seed)
    back = spectrum.mu + ppca.posterior(W, sigma2, spectrum.mu, c.X).mean @ W.T
    error = (c.X - back).square().sum(1).mean()
    np.testing.assert_allclose(posterior_mean_error(spectrum, k, sigma2), error, rtol=1e-8)
    scores, kept = ((y - spectrum.mu) @ spectrum.eigenvectors[:, :k] for y in (c.X, back))
    np.testing.assert_allclose(kept, scores * shrinkage(spectrum, k, sigma2), atol=1e-7 * float(scores.abs().max()))


def test_by_hand():
    spectrum = diagonal([4.0, 2.0, 1.0, 0.5])
    assert pca_error(spectrum, 0) == 7.5
    assert pca_error(spectrum, 3) == 0.5
    torch.testing.assert_close(shrinkage(spectrum, 3, 1.0), torch.tensor([0.75, 0.5, 0.0], dtype=torch.float64))
    assert posterior_mean_error(spectrum, 3, 1.0) == pytest.approx(1 / 4 + 1 / 2 + 1 + 0.5)
    assert posterior_mean_error(spectrum, 3, 10.0) == pytest.approx(7.5)  # all collapsed: the data mean
    assert posterior_mean_error(spectrum, 3, 1e-9) == pytest.approx(0.5)


@settings(max_examples=50)
@given(cases(), st.floats(1e-3, 10))
def test_unshrinking_projects_on_the_span(c, sigma2):
    """For any decoder with independent columns, against numpy's least squares."""
    mean = ppca.posterior(c.W, sigma2, c.mu, c.X).mean
    if np.linalg.cond(c.W) > 1e3:
        return
    y = (c.X - c.mu).numpy()
    coefficients, *_ = np.linalg.lstsq(c.W.numpy(), y.T, rcond=None)
    scale = np.abs(y).max()
    np.testing.assert_allclose(mean @ unshrink(c.W, sigma2).T, (c.W.numpy() @ coefficients).T, atol=1e-7 * scale)


def test_unshrunk_ppca_is_pca():
    c = case(6, 3, 20, 0)
    fit = ppca.mle(covariance_spectrum(c.X), 3)
    back = fit.mu + ppca.posterior(fit.W, fit.sigma2, fit.mu, c.X).mean @ unshrink(fit.W, fit.sigma2).T
    pca = PCA(3, svd_solver="full").fit(c.X.numpy())
    np.testing.assert_allclose(back, pca.inverse_transform(pca.transform(c.X.numpy())), atol=1e-12)


def test_errors():
    with pytest.raises(ValueError, match="has rank 1: leave collapsed columns out"):
        unshrink(np.array([[1.0, 0.0], [2.0, 0.0], [0.5, 0.0]]), 1.0)
    with pytest.raises(ValueError, match=r"k must lie in 0\.\.4"):
        pca_error(diagonal([4.0, 2.0, 1.0, 0.5]), 5)
    with pytest.raises(ValueError, match="sigma2"):
        shrinkage(diagonal([4.0, 2.0]), 1, -1.0)
