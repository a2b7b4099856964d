"""The linear Markovian hierarchical VAE (MHVAE) with two latents: its exact objective.

    q(z1|x) = N(W1 x, Sigma_1)      p(y|z1)  = N(U1 z1, eta_dec^2 I)       x -> z1 (d1) -> z2 (d2)
    q(z2|z1) = N(W2 z1, Sigma_2)    p(z1|z2) = N(U2 z2, eta_dec^2 I)       p(z2) = N(0, eta_enc^2 I)

Dang et al. 2024 (arXiv 2306.05023). eta_dec, eta_enc and sigma are standard deviations, beta_1 weights the z1 term of
the ELBO and beta_2 the z2 term, the data are not centred and nothing has a bias. With x = (E x x^T)^(1/2) x~, only
Z = E[y x~^T] and V1 = W1 (E x x^T)^(1/2) enter; theta_i are the singular values of Z, for y = x the roots of the
eigenvalues of E[x x^T] (`uncentred_theta`), and Z may be taken as diag(theta).

The loss is the paper's, L = -2 ELBO + constants (`MhvaeTerms.negative_elbo` has them):
    eta_dec^2 L = ||U1 V1 - Z||^2 + tr(U1 Sigma_1 U1^T)
                + beta_1 [ tr((U2 W2 - I) C1 (U2 W2 - I)^T) + tr(U2 Sigma_2 U2^T) ]
                + beta_2 c^2 [ tr(W2 C1 W2^T) + tr Sigma_2 ] - eta_dec^2 sum_k beta_k log|Sigma_k|
with C1 = V1 V1^T + Sigma_1 and c = eta_dec / eta_enc. If y is no linear function of x, E||y||^2 - ||Z||^2 comes on top.

Its global optima are in `hierarchical_theorems`. Everything is float64; wrong input raises as in `_tensors`.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array
from collapse_lib.theory.ppca import LOG_2PI


class Weighting(NamedTuple):
    """The numbers of an MHVAE that are neither learned nor a variance of the encoder; all positive."""

    beta_1: float = 1.0
    beta_2: float = 1.0
    eta_dec: float = 1.0
    eta_enc: float = 1.0

    @property
    def K(self) -> float:  # noqa: N802
        """beta_2 c^2, the least value of q."""
        return self.beta_2 * (self.eta_dec / self.eta_enc) ** 2

    @property
    def B(self) -> float:  # noqa: N802
        """beta_2 eta_dec^2."""
        return self.beta_2 * self.eta_dec**2

    def checked(self) -> Self:
        """Itself; ValueError unless all four are positive."""
        for name, value in zip(self._fields, self, strict=True):
            t.positive(name, t.scalar(name, value))
        return self


class Mhvae(NamedTuple):
    """Weights in whitened coordinates and encoder variances."""

    U1: Tensor  # (Dy, d1)
    V1: Tensor  # (d1, D)
    U2: Tensor  # (d1, d2)
    W2: Tensor  # (d2, d1)
    variance_1: Tensor  # (d1,) diagonal of Sigma_1
    variance_2: Tensor  # (d2,) diagonal of Sigma_2


class LinearMaps(NamedTuple):
    """The best maps that are linear regressions: the decoder of z1 and the encoder of z2."""

    U1: Tensor  # (Dy, d1)
    W2: Tensor  # (d2, d1)


class MhvaeTerms(NamedTuple):
    """Scalars. The z1 term is E_q[log q(z1|x) - log p(z1|z2)], which is no KL divergence and may be negative."""

    loss: Tensor  # L
    squared_error: Tensor  # E ||y - U1 z1||^2
    z1_term: Tensor  # nats
    kl_2: Tensor  # E KL( q(z2|z1) || p(z2) ), nats

    def negative_elbo(self, weighting: Weighting, n: int) -> Tensor:
        """-ELBO in nats, constants included, for y of dimension n:
        n/2 log(2 pi eta_dec^2) + squared_error / (2 eta_dec^2) + beta_1 z1_term + beta_2 kl_2.
        """
        beta_1, beta_2, eta_dec, _ = weighting.checked()
        noise = eta_dec**2
        reconstruction = 0.5 * (n * (LOG_2PI + math.log(noise)) + self.squared_error / noise)
        return reconstruction + beta_1 * self.z1_term + beta_2 * self.kl_2


# ---- the objective ---------------------------------------------------------------------------------------------------


def mhvae_terms(weights: Mhvae, Z: Array, weighting: Weighting, *, check: bool = True) -> MhvaeTerms:
    """The loss and its three parts for any weights (see the module's formula).

    squared_error = ||U1 V1 - Z||^2 + tr(U1 Sigma_1 U1^T)
    2 z1_term = [ tr((U2 W2 - I) C1 (U2 W2 - I)^T) + tr(U2 Sigma_2 U2^T) ] / eta_dec^2 - log|Sigma_1|
              + d1 (log eta_dec^2 - 1)
    2 kl_2    = [ tr(W2 C1 W2^T) + tr Sigma_2 ] / eta_enc^2 - log|Sigma_2| + d2 (log eta_enc^2 - 1)

    Z (Dy, D), or (D,) for diag(Z). Differentiable. Raises ValueError for a variance that is not positive. `check=False`
    takes float64 tensors, Z as a matrix, as they are: a third of the time inside a solver.
    """
    if check:
        weights, Z = _fitting(weights, Z)
        weighting.checked()
    beta_1, beta_2, eta_dec, eta_enc = weighting
    (U1, V1, U2, W2, variance_1, variance_2), Z = weights, torch.as_tensor(Z)
    C1 = V1 @ V1.T + torch.diag(variance_1)
    miss = U2 @ W2 - torch.eye(len(U2), dtype=U2.dtype)
    squared_error = (U1 @ V1 - Z).square().sum() + (U1.square() * variance_1).sum()
    z1_square = ((miss @ C1) * miss).sum() + (U2.square() * variance_2).sum()
    z2_square = ((W2 @ C1) * W2).sum() + variance_2.sum()
    log_1, log_2 = variance_1.log().sum(), variance_2.log().sum()
    noise, prior = eta_dec**2, eta_enc**2
    loss = (squared_error + beta_1 * z1_square) / noise + beta_2 * z2_square / prior - beta_1 * log_1 - beta_2 * log_2
    z1_term = 0.5 * (z1_square / noise - log_1 + len(variance_1) * (math.log(noise) - 1))
    kl_2 = 0.5 * (z2_square / prior - log_2 + len(variance_2) * (math.log(prior) - 1))
    return MhvaeTerms(loss, squared_error, z1_term, kl_2)


def best_linear_maps(V1: Tensor, U2: Tensor, variance_1: Tensor, Z: Array, weighting: Weighting) -> LinearMaps:
    """The U1 and W2 that minimise the loss, convex and quadratic in each, for given V1, U2 and variances (derived).

    U1 = Z V1^T (V1 V1^T + Sigma_1)^-1,   W2 = U2^T ( U2 U2^T + (beta_2 / beta_1) c^2 I )^-1;  differentiable.
    """
    Z = t.real("Z", Z)
    coded = V1 * Z if Z.ndim == 1 else V1 @ Z.T  # V1 Z^T
    ridge = weighting.K / weighting.beta_1 * torch.eye(len(U2), dtype=U2.dtype)
    U1 = torch.linalg.solve(V1 @ V1.T + torch.diag(variance_1), coded).T
    return LinearMaps(U1, torch.linalg.solve(U2 @ U2.T + ridge, U2).T)


def latent_kl(weights: Mhvae, weighting: Weighting) -> Tensor:
    """KL of every coordinate of z2, mean over q(z1|x) and the data, (d2,), nats; they sum to `MhvaeTerms.kl_2`.

    2 KL_i = ( w_i C1 w_i^T + sigma_2i^2 ) / eta_enc^2 - 1 - log(sigma_2i^2 / eta_enc^2),  w_i = row i of W2
    """
    prior = weighting.checked().eta_enc ** 2
    C1 = weights.V1 @ weights.V1.T + torch.diag(weights.variance_1)
    second_moment = ((weights.W2 @ C1) * weights.W2).sum(1) + weights.variance_2
    return 0.5 * (second_moment / prior - 1 - (weights.variance_2 / prior).log())


def latent_information(weights: Mhvae) -> Tensor:
    """I(x; z2_i) of every coordinate of z2 if the data were Gaussian, (d2,), nats.

    1/2 log( 1 + ||w_i V1||^2 / (w_i Sigma_1 w_i^T + sigma_2i^2) ). Zero exactly if the coordinate says nothing on x.
    """
    signal = (weights.W2 @ weights.V1).square().sum(1)
    noise = (weights.W2.square() * weights.variance_1).sum(1) + weights.variance_2
    return 0.5 * torch.log1p(signal / noise)


def total_information(weights: Mhvae) -> Tensor:
    """I(x; z2) of the whole of z2 if the data were Gaussian, (), nats; the same in every rotation of z2.

    1/2 log( |W2 C1 W2^T + Sigma_2| / |W2 Sigma_1 W2^T + Sigma_2| )
    """
    noise = (weights.W2 * weights.variance_1) @ weights.W2.T + torch.diag(weights.variance_2)
    coded = weights.W2 @ weights.V1
    return 0.5 * (torch.logdet(noise + coded @ coded.T) - torch.logdet(noise))


def squared_error_from_z2(weights: Mhvae, Z: Array) -> Tensor:
    """E ||y - U1 U2 z2||^2, z2 ~ q(z2|z1) and z1 ~ q(z1|x): what z2 alone knows of y, ().

    ||U1 U2 W2 V1 - Z||^2 + tr(M Sigma_1 M^T) + tr(U1 U2 Sigma_2 (U1 U2)^T),  M = U1 U2 W2.  Z as in `mhvae_terms`.
    """
    (U1, V1, U2, W2, variance_1, variance_2), Z = _fitting(weights, Z)
    decoder = U1 @ U2
    whole = decoder @ W2
    noise = (whole.square() * variance_1).sum() + (decoder.square() * variance_2).sum()
    return (whole @ V1 - Z).square().sum() + noise


def uncentred_theta(x: Array) -> Tensor:
    """theta_i for y = x: the roots of the eigenvalues of (1/N) sum_i x_i x_i^T, descending, (n,); x (N, n)."""
    x = t.array("x", x, "N, n")
    return torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0).clamp_min(0).sqrt()


# ---- the pieces ------------------------------------------------------------------------------------------------------


def _fitting(weights: Mhvae, Z: Array) -> tuple[Mhvae, Tensor]:
    """`weights` and Z as a matrix, float64, with shapes that fit each other."""
    named = {name: t.real(name, value) for name, value in weights._asdict().items()}
    Z = t.real("Z", Z)
    Z = torch.diag(Z) if Z.ndim == 1 else t.array("Z", Z, "Dy, D")
    d1, d2 = t.array("U2", named["U2"], "d1, d2").shape
    shapes = ((Z.shape[0], d1), (d1, Z.shape[1]), (d1, d2), (d2, d1), (d1,), (d2,))
    for (name, value), shape in zip(named.items(), shapes, strict=True):
        t.expect_shape(name, value, shape, f"U2 is {t.shape_of(named['U2'])} and Z {t.shape_of(Z)}")
    t.positive("variance_1", named["variance_1"])
    t.positive("variance_2", named["variance_2"])
    return Mhvae(**named), Z
