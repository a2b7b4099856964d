"""What the optimal linear VAE predicts for a sweep over sigma2: collapse curves, tuned sigma2, the reference column.

At the optimum for a given sigma2 = s (s = sigma2* when it is learned), latent j <= k has
l_j >  s:  posterior variance v_j = s/l_j, mean m_j(x) = sqrt(l_j - s)/l_j u_j^T (x - mu)
l_j <= s:  v_j = 1, m_j = 0: it has collapsed, its KL is zero for every image
Latent i is (epsilon, delta)-collapsed if KL( q(z_i|x) || N(0,1) ) < epsilon for a share of at least 1 - delta of the
images (Lucas et al. 2019). KLs and ELBOs in nats per image; the closed forms are derived.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from collapse_lib.metrics import collapsed_share
from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array
from collapse_lib.theory.ppca import LOG_2PI, fixed_sigma2
from collapse_lib.theory.spectrum import Spectrum


class TunedSigma2(NamedTuple):
    """The best sigma2 for fixed networks, and the ELBO there, nats."""

    sigma2: float
    elbo: float


class LinearReference(NamedTuple):
    """The optimal linear VAE for a fixed sigma2: what a deep VAE with k latents is to be held against."""

    elbo: float
    active: int
    squared_error: float  # E ||x - xhat||^2 over data and posterior sample
    kl: float
    tuned_sigma2: float
    tuned_elbo: float


def latent_kl(X: Array, spectrum: Spectrum, k: int, sigma2: Array) -> Tensor:
    """KL_j(x) = 1/2 ( m_j(x)^2 + v_j - log v_j - 1 ) of the optimal linear VAE for every image and latent, (N, k).

    X (N, n). A collapsed latent has KL exactly 0.
    """
    v = _active_variances(spectrum, k, sigma2)
    active = len(v)
    scores = t.centred(X, spectrum.mu, spectrum.n) @ spectrum.eigenvectors[:, :active]
    squared_mean = (1 - v) / spectrum.eigenvalues[:active] * scores.square()
    kl = scores.new_zeros(scores.shape[0], k)
    kl[:, :active] = 0.5 * (squared_mean + v - v.log() - 1)
    return kl


def collapse_curve(X: Array, spectrum: Spectrum, k: int, sigma2: Array, epsilon: Array, delta: float = 0.01) -> Tensor:
    """Share of the k latents of the optimal linear VAE that are collapsed on X (N, n), for every epsilon (any shape).

    At least 1 - r(k, sigma2)/k for every epsilon > 0. Raises ValueError unless 0 <= delta < 1.
    """
    return collapsed_share(latent_kl(X, spectrum, k, sigma2), t.real("epsilon", epsilon), delta)


def tuned_sigma2(squared_error: Array, kl: Array, n: int) -> TunedSigma2:
    """Best sigma2 for any Gaussian VAE whose networks are held fixed, and the ELBO there.

    sigma2_t = R/n,   L(sigma2_t) = -KL - (n/2) ( log(2 pi sigma2_t) + 1 ),   R = squared_error = E ||x - xhat||^2 > 0
    L(sigma2_t) - L(sigma2) = (n/2) [ sigma2_t/sigma2 - 1 - log(sigma2_t/sigma2) ] >= 0
    """
    best = float(t.variance("squared_error", squared_error)) / n
    return TunedSigma2(best, -float(t.scalar("kl", kl)) - 0.5 * n * (LOG_2PI + math.log(best) + 1))


def linear_reference(spectrum: Spectrum, k: int, sigma2: Array) -> LinearReference:
    """The optimal linear VAE for a fixed sigma2 = s, with r = #{ j <= k : l_j > s } active latents.

    ELBO = LL at the best W for s (`ppca.fixed_sigma2`),  KL = 1/2 sum_{j<=r} log(l_j/s),  R = r s + sum_{j>r} l_j
    """
    optimum = fixed_sigma2(spectrum, k, sigma2)
    v = _active_variances(spectrum, k, sigma2)
    squared_error = optimum.active * optimum.sigma2 + float(spectrum.eigenvalues[optimum.active :].sum())
    kl = float(-0.5 * v.log().sum())
    return LinearReference(
        optimum.loglik, optimum.active, squared_error, kl, *tuned_sigma2(squared_error, kl, spectrum.n)
    )


def _active_variances(spectrum: Spectrum, k: int, sigma2: Array) -> Tensor:
    """v_j = sigma2/l_j of the r active latents, (r,)."""
    variance = t.variance("sigma2", sigma2)
    eigenvalues = spectrum.leading(t.latents(k, spectrum.n, least=1))
    return variance / eigenvalues[eigenvalues > variance]
