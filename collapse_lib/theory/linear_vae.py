"""The linear VAE in closed form: its ELBO, the best encoder, and what separates an ELBO from the pPCA likelihood.

Model: p(x|z) = N(W z + mu, sigma2 I_n), z ~ N(0, I_k), q(z|x) = N( V (x - mu), diag(d) ), d shared by all images.
W (p, k), V (k, p), d (k,), sigma2 (); S is the data covariance about the model's mu, with 1/N, as (p, p) or (p,). The
conventions are those of `ppca`: nats per image, constants included, n counts data dimensions outside the span of W too.

The identity behind everything here: for given (W, sigma2) and M = W^T W + sigma2 I the best encoder, V* = M^-1 W^T and
d_i* = sigma2 / M_ii, attains
    ELBO*(W, sigma2) = LL(W, sigma2) - G(W, sigma2),   G = 1/2 [ sum_i log M_ii - log det M ] >= 0,
and G = 0 iff the columns of W are orthogonal. So max ELBO = max LL although the encoder's covariance is diagonal.

Source: Lucas, Tucker, Grosse and Norouzi, "Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse",
NeurIPS 2019, for the model and the result; the closed forms are derived.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory import ppca
from collapse_lib.theory._tensors import Array
from collapse_lib.theory.ppca import LOG_2PI
from collapse_lib.theory.spectrum import Spectrum


class ELBO(NamedTuple):
    """elbo = -(n/2) log(2 pi sigma2) - squared_error / (2 sigma2) - kl, each averaged over the images."""

    elbo: Tensor
    squared_error: Tensor  # E ||x - xhat||^2 over data and posterior sample
    kl: Tensor


class Encoder(NamedTuple):
    """q(z|x) = N( V (x - mu), diag(d) ): the same variances for every image."""

    V: Tensor  # (k, p)
    d: Tensor  # (k,)


class ProfileGrad(NamedTuple):
    """The ELBO at the best encoder, nats, with its gradient."""

    elbo: Tensor  # ()
    W: Tensor  # (p, k)
    log_sigma2: Tensor  # ()


class Shortfall(NamedTuple):
    """LL* - ELBO, split into three terms >= 0, nats per image."""

    decoder: float  # LL* - LL(W, sigma2, mu): the generative model is not the best one
    rotation: float  # G(W, sigma2): the decoder's columns are not orthogonal
    encoder: float  # ELBO*(W, sigma2, mu) - ELBO: the encoder lags behind its decoder

    @property
    def total(self) -> float:
        return self.decoder + self.rotation + self.encoder


def elbo(W: Array, V: Array, d: Array, sigma2: Array, S: Array, n: int | None = None) -> ELBO:
    """ELBO in covariance form; the cost does not depend on the number of images.

    R    = tr(A S A^T) + sum_i d_i ||w_i||^2,  A = I - W V                       expected squared error
    KL   = 1/2 [ sum_i (d_i - log d_i - 1) + tr(V S V^T) ]
    ELBO = -(n/2) log(2 pi sigma2) - R / (2 sigma2) - KL

    with tr(A S A^T) = tr S - 2 sum(W * P) + sum( (W^T W) * (V P) ), P = S V^T. S is taken about the model's mu
    (`Spectrum.covariance_about`). Raises ValueError if a d_i <= 0.
    """
    W, n = t.decoder(W, n)
    V, d = _encoder(V, d, W)
    sigma2, S = t.variance("sigma2", sigma2), t.covariance(S, W.shape[0])
    P = t.times(S, V.T)
    code_covariance = V @ P
    gram = W.T @ W
    squared_error = t.trace(S) - 2 * (W * P).sum() + (gram * code_covariance).sum() + (d * gram.diagonal()).sum()
    kl = 0.5 * ((d - d.log() - 1).sum() + code_covariance.diagonal().sum())
    return ELBO(-0.5 * (n * (LOG_2PI + sigma2.log()) + squared_error / sigma2) - kl, squared_error, kl)


def elbo_per_image(W: Array, V: Array, d: Array, sigma2: Array, mu: Array, X: Array) -> ELBO:
    """The terms of `elbo` for every image, each (N,); X (N, n), mu (n,), y = x - mu.

    squared_error = ||y - W V y||^2 + sum_i d_i ||w_i||^2,   kl = 1/2 [ sum_i (d_i - log d_i - 1) + ||V y||^2 ]
    """
    W, n = t.decoder(W, None)
    V, d = _encoder(V, d, W)
    sigma2, Y = t.variance("sigma2", sigma2), t.centred(X, mu, n)
    code = Y @ V.T
    squared_error = (Y - code @ W.T).square().sum(1) + (d * W.square().sum(0)).sum()
    kl = 0.5 * ((d - d.log() - 1).sum() + code.square().sum(1))
    return ELBO(-0.5 * (n * (LOG_2PI + sigma2.log()) + squared_error / sigma2) - kl, squared_error, kl)


def best_encoder(W: Array, sigma2: Array) -> Encoder:
    """The encoder that maximises the ELBO for a given decoder: V* = M^-1 W^T, d_i* = sigma2 / (||w_i||^2 + sigma2).

    Unique up to null directions of S. V* gives the exact posterior mean of pPCA; 1/d* is the diagonal of its precision.
    """
    W, _ = t.decoder(W, None)
    sigma2 = t.variance("sigma2", sigma2)
    M = t.gram(W, sigma2)
    return Encoder(torch.cholesky_solve(W.T, t.cholesky("M = W^T W + sigma2 I", M)), sigma2 / M.diagonal())


def rotation_gap(W: Array, sigma2: Array) -> Tensor:
    """G = 1/2 [ sum_i log M_ii - log det M ] >= 0 (Hadamard), zero iff W^T W is diagonal; invariant under an offset.

    Computed as -1/2 log det of M scaled to unit diagonal, so that a small gap is not lost between two logarithms.
    """
    W, _ = t.decoder(W, None)
    M = t.gram(W, t.variance("sigma2", sigma2))
    scale = M.diagonal().rsqrt()
    # With ones to the last bit no pivot exceeds 1, and round-off cannot make the gap negative.
    scaled = torch.diagonal_scatter(scale[:, None] * M * scale, torch.ones_like(scale))
    return -0.5 * t.log_det(t.cholesky("M, scaled to unit diagonal,", scaled))


def profile_elbo(W: Array, sigma2: Array, S: Array, n: int | None = None) -> Tensor:
    """ELBO at the best encoder, ELBO*(W, sigma2) = LL - G, shape ().

    log det M of LL and of G cancel, which leaves
    -1/2 [ n log(2 pi) + (n - k) log sigma2 + sum_i log M_ii + ( tr S - tr(M^-1 W^T S W) ) / sigma2 ]
    """
    W, n = t.decoder(W, n)
    sigma2, S = t.variance("sigma2", sigma2), t.covariance(S, W.shape[0])
    M = t.gram(W, sigma2)
    explained = torch.cholesky_solve(W.T @ t.times(S, W), t.cholesky("M = W^T W + sigma2 I", M)).diagonal().sum()
    log_det = (n - W.shape[1]) * sigma2.log() + M.diagonal().log().sum()
    return -0.5 * (n * LOG_2PI + log_det + (t.trace(S) - explained) / sigma2)


@torch.no_grad()
def profile_elbo_and_grad(W: Array, log_sigma2: Array, S: Array, n: int | None = None) -> ProfileGrad:
    """`profile_elbo` with its gradient in W and log sigma2, at four products of cost p k^2 when S is diagonal.

    With Q = W^T S W:
    d/dW          = S W M^-1 / sigma2 - W [ M^-1 Q M^-1 / sigma2 + diag(1/M_ii) ]
    d/dlog sigma2 = 1/2 [ ( tr S - tr(M^-1 Q) ) / sigma2 - tr(M^-1 Q M^-1) - (n - k) - sigma2 sum_i 1/M_ii ]

    The terms W M^-1 and tr M^-1 of LL and of G cancel. Made for a quasi-Newton fit in the eigenbasis of S
    (S = eigenvalues); records no autograd graph.
    """
    W, n = t.decoder(W, n)
    sigma2 = t.variance("sigma2 = exp(log_sigma2)", t.scalar("log_sigma2", log_sigma2).exp())
    S = t.covariance(S, W.shape[0])
    k = W.shape[1]
    M = t.gram(W, sigma2)
    precision = M.diagonal().reciprocal()
    inverse = torch.cholesky_inverse(t.cholesky("M = W^T W + sigma2 I", M))
    SW = t.times(S, W)
    whitened = inverse @ (W.T @ SW)
    curved = whitened @ inverse / sigma2  # M^-1 Q M^-1 / sigma2
    unexplained = (t.trace(S) - whitened.diagonal().sum()) / sigma2
    value = -0.5 * (n * LOG_2PI + (n - k) * sigma2.log() + M.diagonal().log().sum() + unexplained)
    grad_W = SW @ (inverse / sigma2) - W @ (curved + torch.diag(precision))
    grad_log = 0.5 * (unexplained - sigma2 * curved.diagonal().sum() - (n - k) - sigma2 * precision.sum())
    return ProfileGrad(value, grad_W, grad_log)


def shortfall(W: Array, V: Array, d: Array, sigma2: Array, spectrum: Spectrum, mu: Array | None = None) -> Shortfall:
    """LL* - ELBO = decoder gap + rotation gap + encoder gap, for a model with offset `mu` (n,), default the spectrum's.

    LL* is the maximum of pPCA with k latents on the spectrum; LL(W, sigma2, mu) and both ELBOs see S about the model's
    mu. With the spectrum taken about the data mean every term is >= 0 for every mu. Full-size W (n, k), V (k, n).
    Raises `ppca.UnboundedLikelihoodError` if k >= rank S.
    """
    W, _ = t.decoder(W, None)
    t.expect_shape("W", W, (spectrum.n, W.shape[1]), f"the data have n = {spectrum.n} dimensions")
    S = spectrum.covariance if mu is None else spectrum.covariance_about(mu)
    attained = float(ppca.loglik(W, sigma2, S))
    rotation = float(rotation_gap(W, sigma2))
    encoder = attained - rotation - float(elbo(W, V, d, sigma2, S).elbo)
    return Shortfall(ppca.mle(spectrum, W.shape[1]).loglik - attained, rotation, encoder)


def single_sample_variance(W: Array, V: Array, d: Array, sigma2: Array, mu: Array, X: Array) -> Tensor:
    """Variance of the single-sample ELBO (analytic KL, one z = V y + sqrt(d) eps) of every image, (N,), nats^2.

    Var = ||g||^2 / sigma2^2 + ||B||_F^2 / (2 sigma2^2)
    with g = D^(1/2) W^T (y - W V y),  B = D^(1/2) W^T W D^(1/2),  D = diag(d)
    """
    W, n = t.decoder(W, None)
    V, d = _encoder(V, d, W)
    sigma2, Y = t.variance("sigma2", sigma2), t.centred(X, mu, n)
    scaled = W * d.sqrt()
    g = (Y - Y @ V.T @ W.T) @ scaled
    return (g.square().sum(1) + 0.5 * (scaled.T @ scaled).square().sum()) / sigma2.square()


def optimal_single_sample_variance(spectrum: Spectrum, k: int, sigma2: Array) -> float:
    """Mean of `single_sample_variance` over the images at the optimum: 1/2 sum_{j<=r} (1 - (sigma2/l_j)^2)."""
    sigma2 = t.variance("sigma2", sigma2)
    eigenvalues = spectrum.leading(t.latents(k, spectrum.n, least=1))
    return float(0.5 * (1 - (sigma2 / eigenvalues[eigenvalues > sigma2]).square()).sum())


def _encoder(V: Array, d: Array, W: Tensor) -> Encoder:
    p, k = W.shape
    V = t.expect_shape("V", t.array("V", V, "k, p"), (k, p), f"W has shape {t.shape_of(W)}")
    d = t.expect_shape("d", t.array("d", d, "k"), (k,), f"W has shape {t.shape_of(W)}")
    return Encoder(V, t.positive("d", d))
