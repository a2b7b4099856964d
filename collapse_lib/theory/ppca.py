"""Probabilistic PCA in closed form.

Model: z ~ N(0, I_k), x | z ~ N(W z + mu, sigma2 I_n), hence x ~ N(mu, C) with C = W W^T + sigma2 I_n. Throughout,
M = W^T W + sigma2 I_k.

Conventions of this module and of `linear_vae`:
- Log-likelihoods are in nats per image (the mean over the data), every constant included.
- S is the data covariance about mu, with 1/N: a matrix (p, p), or the vector (p,) of its eigenvalues when W is written
  in its eigenbasis, which saves the product with S.
- W has p rows. n, the data dimension, is p unless given: W may live in the span of the centred data (a p-dimensional
  subspace that holds all of the variance) while the constants count all n dimensions.
- Errors: see `_tensors`; k < 1, k > n and sigma2 <= 0 raise ValueError.

Source: Tipping and Bishop, "Probabilistic Principal Component Analysis", J. R. Statist. Soc. B 61 (1999).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array
from collapse_lib.theory.spectrum import Spectrum

LOG_2PI = math.log(2 * math.pi)


class UnboundedLikelihoodError(ValueError):
    """The data lie in a subspace of at most k dimensions: sigma2* = 0 and the likelihood has no maximum."""


class PPCA(NamedTuple):
    """A stationary point of the likelihood with columns along the principal directions (rotation R = I)."""

    W: Tensor  # (n, k) columns sqrt(l_j - sigma2) u_j; collapsed columns are zero
    sigma2: float
    mu: Tensor  # (n,)
    loglik: float  # nats per image
    active: int  # r = number of columns that are not zero; k - r latents have collapsed


class Posterior(NamedTuple):
    """p(z|x) of every image, a Gaussian."""

    mean: Tensor  # (N, k)
    covariance: Tensor  # (k, k), the same for every image


def loglik(W: Array, sigma2: Array, S: Array, n: int | None = None) -> Tensor:
    """Log-likelihood at cost O(p k^2) beyond S W, without any n x n factorisation.

    LL = -1/2 [ n log(2 pi) + (n - k) log sigma2 + log det M + ( tr S - tr(M^-1 W^T S W) ) / sigma2 ]

    W (p, k), S (p, p) or (p,), result () in nats per image. Tipping and Bishop (1999), eq. (4), with the determinant
    and the inverse of C rewritten through M.
    """
    W, n = t.decoder(W, n)
    sigma2, S = t.variance("sigma2", sigma2), t.covariance(S, W.shape[0])
    factor = t.cholesky("M = W^T W + sigma2 I", t.gram(W, sigma2))
    explained = torch.cholesky_solve(W.T @ t.times(S, W), factor).diagonal().sum()
    log_det = (n - W.shape[1]) * sigma2.log() + t.log_det(factor)
    return -0.5 * (n * LOG_2PI + log_det + (t.trace(S) - explained) / sigma2)


def loglik_dense(W: Array, sigma2: Array, S: Array) -> Tensor:
    """LL = -1/2 [ n log(2 pi) + log det C + tr(C^-1 S) ] through the n x n matrix C: slow, and a check on `loglik`.

    W (n, k), S (n, n) or (n,), result () in nats per image. Tipping and Bishop (1999), eq. (4).
    """
    W, n = t.decoder(W, None)
    sigma2, S = t.variance("sigma2", sigma2), t.covariance(S, n)
    S = torch.diag(S) if S.ndim == 1 else S
    factor = t.cholesky("C = W W^T + sigma2 I", t.gram(W.T, sigma2))
    return -0.5 * (n * LOG_2PI + t.log_det(factor) + torch.cholesky_solve(S, factor).diagonal().sum())


def posterior(W: Array, sigma2: Array, mu: Array, X: Array) -> Posterior:
    """p(z | x) = N( M^-1 W^T (x - mu), sigma2 M^-1 ).

    W (n, k), mu (n,), X (N, n). Tipping and Bishop (1999), eq. (6).
    """
    W, n = t.decoder(W, None)
    sigma2 = t.variance("sigma2", sigma2)
    inverse = torch.cholesky_inverse(t.cholesky("M = W^T W + sigma2 I", t.gram(W, sigma2)))
    return Posterior(t.centred(X, mu, n) @ W @ inverse, sigma2 * inverse)


def mle(spectrum: Spectrum, k: int) -> PPCA:
    """Maximum of the likelihood over W, mu and sigma2.

    sigma2* = 1/(n - k) sum_{j>k} l_j,   W* = U_k diag( sqrt(l_j - sigma2*) ),
    LL*     = -1/2 [ n log(2 pi) + sum_{j<=k} log l_j + (n - k) log sigma2* + n ]

    k = 0 is the isotropic Gaussian. If the spectrum was taken about an offset, mu is held there.
    Raises UnboundedLikelihoodError if k >= rank S. Tipping and Bishop (1999), eqs. (7) and (8).
    """
    k = t.latents(k, spectrum.n, least=0)
    if k >= spectrum.rank:
        raise UnboundedLikelihoodError(
            f"k = {k} latents explain the whole covariance, whose rank is {spectrum.rank} (n = {spectrum.n}): "
            f"sigma2* = 0 and the likelihood is unbounded; take k < {spectrum.rank}, dequantise the data so that every "
            "direction has noise, or hold sigma2 fixed (fixed_sigma2)"
        )
    sigma2 = float(spectrum.eigenvalues[k:].sum()) / (spectrum.n - k)
    return _principal(spectrum, k, k, sigma2)


def fixed_sigma2(spectrum: Spectrum, k: int, sigma2: Array) -> PPCA:
    """Maximum of the likelihood over W and mu for a given sigma2.

    r = #{ j <= k : l_j > sigma2 } columns sqrt(l_j - sigma2) u_j are active, the other k - r are zero, and
    LL = -1/2 [ n log(2 pi) + sum_{j<=r} log l_j + (n - r) log sigma2 + r + sum_{j>r} l_j / sigma2 ],
    constant in k once k >= #{ j : l_j > sigma2 }. k = 0 is the isotropic Gaussian. Derived; stationary points as in
    Tipping and Bishop (1999), appendix A.
    """
    k = t.latents(k, spectrum.n, least=0)
    variance = float(t.variance("sigma2", sigma2))
    active = int((spectrum.eigenvalues[:k] > variance).sum())
    return _principal(spectrum, k, active, variance)


def stationary_value(spectrum: Spectrum, used: Iterable[int], sigma2: Array) -> float:
    """Log-likelihood of the stationary point whose columns are sqrt(l_j - sigma2) u_j for j in `used` (and zeros).

    LL_A = -1/2 [ n log(2 pi) + sum_{j in A} log l_j + (n - |A|) log sigma2 + |A| + sum_{j not in A} l_j / sigma2 ]

    `used` holds distinct indices that count from 0; the number of zero columns does not matter. Nats per image.
    Raises ValueError unless l_j > sigma2 for all j in A. Derived from Tipping and Bishop (1999), appendix A.
    """
    variance = float(t.variance("sigma2", sigma2))
    return _stationary_value(spectrum, used_mask(spectrum, used, variance), variance)


def used_mask(spectrum: Spectrum, used: Iterable[int], sigma2: float) -> Tensor:
    """Boolean (n,), true for the eigenvector indices in `used`, all of which must have l_j > sigma2."""
    indices = [operator.index(j) for j in used]
    if len(set(indices)) != len(indices) or not all(0 <= j < spectrum.n for j in indices):
        raise ValueError(f"used = {indices} must be distinct indices in 0..{spectrum.n - 1}")
    mask = torch.zeros(spectrum.n, dtype=torch.bool, device=spectrum.eigenvalues.device)
    mask[indices] = True
    low = mask & (spectrum.leading(spectrum.n) <= sigma2)
    if bool(low.any()):
        raise ValueError(
            f"no stationary point uses the directions {low.nonzero().flatten().tolist()}: "
            f"their eigenvalues do not exceed sigma2 = {sigma2:.6g}"
        )
    return mask


def bessel_offset(n: int, N: int) -> float:
    """What LL* loses when the covariance is taken with 1/(N-1): LL*_{1/N} - LL*_{1/(N-1)} = (n/2) log( N/(N-1) ).

    An ELBO is a mean over the N images, so it seems to exceed an "exact" value that was computed from `np.cov` by up to
    this much. Nats per image; derived. Raises ValueError if n < 1 or N < 2.
    """
    if n < 1 or N < 2:
        raise ValueError(f"n = {n} dimensions and N = {N} images: needs n >= 1 and N >= 2")
    return -0.5 * n * math.log1p(-1 / N)


def _stationary_value(spectrum: Spectrum, used: Tensor, sigma2: float) -> float:
    eigenvalues, active = spectrum.leading(spectrum.n), int(used.sum())
    logs = float(eigenvalues[used].log().sum()) + (spectrum.n - active) * math.log(sigma2)
    return -0.5 * (spectrum.n * LOG_2PI + logs + active + float(eigenvalues[~used].sum()) / sigma2)


def _principal(spectrum: Spectrum, k: int, used: int, sigma2: float) -> PPCA:
    """The stationary point that uses the first `used` eigenvectors, padded with zero columns to k."""
    # The clamp is for sigma2* = l_k (equal eigenvalues), where rounding may leave the difference just below zero.
    lengths = (spectrum.eigenvalues[:used] - sigma2).clamp_min(0).sqrt()
    W = spectrum.eigenvectors.new_zeros(spectrum.n, k)
    W[:, :used] = spectrum.eigenvectors[:, :used] * lengths
    mask = torch.arange(spectrum.n, device=W.device) < used
    return PPCA(W, sigma2, spectrum.mu, _stationary_value(spectrum, mask, sigma2), int((lengths > 0).sum()))
