"""The linear Markovian hierarchical VAE (MHVAE) with two latents: its exact objective and its global optima.

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

Per mode it depends on two numbers (`hierarchical_modes`). Theorems 3 and 5 are the paper's; optimal losses, d1 != d2
and the case of a learnable Sigma_1 are derived. Everything is float64; wrong input raises as in `_tensors`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array
from collapse_lib.theory.hierarchical_modes import (
    CASES,
    Modes,
    both_fixed_threshold,
    mode_both_fixed,
    mode_sigma2_learnable,
    mode_without_z2,
    sigma2_threshold,
)
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


class Mhvae(NamedTuple):
    """Weights in whitened coordinates and encoder variances."""

    U1: Tensor  # (Dy, d1)
    V1: Tensor  # (d1, D)
    U2: Tensor  # (d1, d2)
    W2: Tensor  # (d2, d1)
    variance_1: Tensor  # (d1,) diagonal of Sigma_1
    variance_2: Tensor  # (d2,) diagonal of Sigma_2


class LinearMaps(NamedTuple):
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
        beta_1, beta_2, eta_dec, _ = _checked(weighting)
        noise = eta_dec**2
        reconstruction = 0.5 * (n * (LOG_2PI + math.log(noise)) + self.squared_error / noise)
        return reconstruction + beta_1 * self.z1_term + beta_2 * self.kl_2


class MhvaeOptimum(NamedTuple):
    """A global optimum; modes in the order of theta, so that all but the standard deviations decrease."""

    lam: Tensor  # (d1,) singular values of V1
    omega: Tensor  # (d2,) singular values of U2
    u: Tensor  # (d1,) singular values of U1
    w: Tensor  # (d2,) singular values of W2
    sigma_1: Tensor  # (d1,)
    sigma_2: Tensor  # (d2,)
    loss: float  # L*
    cases: str  # a letter of CASES for each of the min(d1, d2) modes that have a coordinate of z2
    threshold: float  # case a from this theta on
    margin: float  # relative distance of the nearest theta_i^2 to a threshold at which its optimum bifurcates
    kl_2: Tensor  # (d2,) KL of z2 along each mode, nats
    information: Tensor  # (d2,) I(x; z2) along each mode if the data were Gaussian, nats
    price: float = 0.0  # what a unit of sum_i lambda_i^2 costs in eta_dec^2 L*, where it is limited

    def weights(self, D: int) -> Mhvae:
        """The optimum whose matrices are diagonal (zeros elsewhere), for D >= d1 whitened data dimensions."""
        d1, d2 = len(self.lam), len(self.omega)
        if d1 > D:
            raise ValueError(f"D = {D} is smaller than d1 = {d1}: V1 (d1, D) has no room for the modes")
        shapes = ((self.u, (D, d1)), (self.lam, (d1, D)), (self.omega, (d1, d2)), (self.w, (d2, d1)))
        U1, V1, U2, W2 = (_diagonal(values, shape) for values, shape in shapes)
        return Mhvae(U1, V1, U2, W2, self.sigma_1.square(), self.sigma_2.square())


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
        _checked(weighting)
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
    prior = _checked(weighting).eta_enc ** 2
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


# ---- the optima ------------------------------------------------------------------------------------------------------


def mhvae_sigma2_learnable(
    theta: Array, weighting: Weighting, sigma_1: float, d1: int, d2: int | None = None, *, power: float = math.inf
) -> MhvaeOptimum:
    """Theorem 3: Sigma_1 = sigma_1^2 I fixed, Sigma_2 diagonal and learned. theta (D,) descending; d2 = d1 by default.

    z2 collapses exactly (omega = 0, sigma_2 = eta_enc) on mode i iff beta_1 sigma_1^2 < beta_2 eta_dec^2 and
    theta_i < beta_2 eta_dec^2 / (sqrt(beta_1) sigma_1). U2 has as many zero columns; V1 is free up to a rotation.
    d2 < d1: modes beyond d2 have no z2 and the lambda of case c. d2 > d1: the surplus of z2 has collapsed.

    `power`: the optimum under sum_i lambda_i^2 = E||W1 x||^2 <= power (derived). An encoder that ends in tanh has at
    most d1. The modes then follow `mode_sigma2_learnable` with the price at which the limit is met: the problem is
    convex in (log s, log q), and rotations of z1, free as before, spread the power evenly over the coordinates.
    """
    theta, beyond, d1, d2, weighting, sigma_1 = _problem(theta, weighting, sigma_1, d1, d2)
    m, K, B = min(d1, d2), weighting.K, weighting.B

    def priced(price: float) -> tuple[Modes, Modes]:
        with_z2 = mode_sigma2_learnable(theta[:m], weighting.beta_1, K, B, sigma_1, price=price)
        return with_z2, mode_without_z2(theta[m:], weighting.beta_1, sigma_1, price=price)

    price = _price_of(lambda each: float((torch.cat([part.s for part in priced(each)]) - sigma_1**2).sum()), power)
    modes, alone = priced(price)
    q = torch.cat([modes.q, modes.q.new_full((d2 - m,), K)])
    fixed = weighting.beta_1 * weighting.eta_dec**2 * d1 * math.log(sigma_1**2)
    total = modes.value.sum() + alone.value.sum() + (d2 - m) * B * (1 + math.log(K / B)) + beyond - fixed
    s, tau = torch.cat([modes.s, alone.s]), float(sigma2_threshold(weighting.beta_1, B, sigma_1, price=price))
    row = math.sqrt(weighting.beta_1 + price) * sigma_1
    margin = _margin(theta, modes.case, tau, row, weighting.beta_1 * sigma_1**2 / B)
    found = _optimum(theta, s, q, torch.full_like(s, sigma_1**2), B / q, total, modes, (tau, margin), weighting)
    return found._replace(price=price)


def mhvae_both_fixed(
    theta: Array, weighting: Weighting, sigma_1: float, sigma_2: float, d1: int, d2: int | None = None
) -> MhvaeOptimum:
    """Theorem 5: Sigma_1 = sigma_1^2 I and Sigma_2 = sigma_2^2 I fixed. theta (D,) descending; d2 = d1 by default.

    U2 and V1 lose rank as in `mode_both_fixed` but are free up to rotations, so that in general no column of U2 and no
    row of V1 is zero. d1 != d2 as in `mhvae_sigma2_learnable`.
    """
    theta, beyond, d1, d2, weighting, sigma_1 = _problem(theta, weighting, sigma_1, d1, d2)
    m, K = min(d1, d2), weighting.K
    modes = mode_both_fixed(theta[:m], weighting.beta_1, K, sigma_1, sigma_2)
    alone = mode_without_z2(theta[m:], weighting.beta_1, sigma_1)
    q = torch.cat([modes.q, modes.q.new_full((d2 - m,), K)])
    fixed = weighting.beta_1 * weighting.eta_dec**2 * d1 * math.log(sigma_1**2)
    fixed += weighting.B * d2 * math.log(sigma_2**2)
    total = modes.value.sum() + alone.value.sum() + (d2 - m) * sigma_2**2 * K + beyond - fixed
    s, tau = torch.cat([modes.s, alone.s]), float(both_fixed_threshold(weighting.beta_1, K, sigma_1, sigma_2))
    ratio = weighting.beta_1 * sigma_1**2 / (K * sigma_2**2)
    margin = _margin(theta, modes.case, tau, math.sqrt(weighting.beta_1) * sigma_1, ratio)
    variances = torch.full_like(s, sigma_1**2), torch.full_like(q, sigma_2**2)
    return _optimum(theta, s, q, *variances, total, modes, (tau, margin), weighting)


def mhvae_sigma1_learnable(
    theta: Array, weighting: Weighting, sigma_2: float, d1: int, d2: int | None = None
) -> MhvaeOptimum:
    """Sigma_1 diagonal and learned, Sigma_2 = sigma_2^2 I fixed (derived). theta (D,) descending; d2 = d1 by default.

    r_i  = sigma_1i^2 / s_i = min(1, beta_1 eta_dec^2 / theta_i^2): zero rows of V1 for theta_i <= sqrt(beta_1) eta_dec
    s, q = beta_1 eta_dec^2 eta_enc^2 / (beta_2 sigma_2^2), beta_1 eta_dec^2 / sigma_2^2
           if beta_1 eta_enc^2 >= beta_2 sigma_2^2; else (and for a mode without z2) s = eta_dec^2, q = K
    eta_dec^2 L* = sum_i [ theta_i^2 r_i + beta_1 K s/q + sigma_2^2 q - beta_1 eta_dec^2 log(r_i s) ]
                 - beta_2 eta_dec^2 d2 log sigma_2^2

    omega is the same for every mode, whatever theta. d2 < d1: which d2 modes have a z2 makes no difference to the loss;
    here it is the leading ones.
    """
    sigma_2 = float(t.positive("sigma_2", t.scalar("sigma_2", sigma_2)))
    theta, beyond, d1, d2, weighting, _ = _problem(theta, weighting, 1.0, d1, d2)
    beta_1, noise_2, K = weighting.beta_1, sigma_2**2, weighting.K
    noise = weighting.eta_dec**2
    m, q_used = min(d1, d2), max(K, beta_1 * noise / noise_2)
    with_z2 = torch.arange(d1) < m
    s = torch.where(with_z2, theta.new_tensor(noise * q_used / K), noise)
    r = (beta_1 * noise / theta.square().clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1)
    q = torch.where(torch.arange(d2) < m, theta.new_tensor(q_used), K)
    value = theta.square() * r + beta_1 * noise - beta_1 * noise * (r * s).log()
    total = value.sum() + beyond + noise_2 * q.sum() - weighting.B * d2 * math.log(noise_2)
    active, reached = theta[:m].square() > beta_1 * noise, torch.full((m,), q_used > K)
    case = torch.where(reached, torch.where(active, 0, 1), 2)
    modes = Modes(s[:m], q[:m], value[:m], case)
    row = math.sqrt(beta_1 * noise)
    margin = min(_distance(theta, row), abs(beta_1 * noise / (noise_2 * K) - 1))
    limits = row if q_used > K else math.inf, margin
    return _optimum(theta, s, q, r * s, torch.full_like(q, noise_2), total, modes, limits, weighting)


# ---- the pieces ------------------------------------------------------------------------------------------------------


def _checked(weighting: Weighting) -> Weighting:
    for name, value in zip(Weighting._fields, weighting, strict=True):
        t.positive(name, t.scalar(name, value))
    return weighting


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


def _problem(
    theta: Array, weighting: Weighting, sigma_1: float, d1: int, d2: int | None
) -> tuple[Tensor, float, int, int, Weighting, float]:
    """theta of the d1 modes (zeros where there are no more), the squares of the others, and everything checked."""
    theta = t.array("theta", theta, "D")
    d1, d2 = operator.index(d1), operator.index(d1 if d2 is None else d2)
    if min(d1, d2) < 1:
        raise ValueError(f"need d1 >= 1 and d2 >= 1, got {d1} and {d2}")
    if bool((theta[1:] > theta[:-1]).any()):
        raise ValueError(f"theta of shape {t.shape_of(theta)} must be sorted in decreasing order")
    used = torch.cat([theta[:d1], theta.new_zeros(max(0, d1 - len(theta)))])
    sigma_1 = float(t.positive("sigma_1", t.scalar("sigma_1", sigma_1)))
    return used, float(theta[d1:].square().sum()), d1, d2, _checked(weighting), sigma_1


def _price_of(used: Callable[[float], float], power: float) -> float:
    """The least price >= 0 at which `used`, which falls with it to zero, is no more than `power`."""
    if not power > 0:
        raise ValueError(f"power is an upper limit on E||W1 x||^2 and must be positive, got {power}")
    if used(0.0) <= power:
        return 0.0
    high = 1.0
    while used(high) > power:
        high *= 2
    return float(brentq(lambda price: used(price) - power, 0.0, high, xtol=1e-14, rtol=1e-14))


def _distance(theta: Tensor, threshold: float) -> float:
    return float(((theta / threshold).square() - 1).abs().min()) if len(theta) else math.inf


def _margin(theta: Tensor, case: Tensor, tau: float, row: float, ratio: float) -> float:
    """Of all modes to tau; of those in case c, or without z2, to `row`; where one is in b or c, of `ratio` to 1."""
    m = len(case)
    without_omega = torch.cat([theta[:m][case == CASES.index("c")], theta[m:]])
    between = abs(ratio - 1) if bool((case != CASES.index("a")).any()) else math.inf
    return min(_distance(theta[:m], tau), _distance(without_omega, row), between)


def _optimum(
    theta: Tensor,
    s: Tensor,
    q: Tensor,
    variance_1: Tensor,
    variance_2: Tensor,
    total: Tensor,
    modes: Modes,
    limits: tuple[float, float],
    weighting: Weighting,
) -> MhvaeOptimum:
    """All that follows from s (d1,) and q (d2,); `total` is eta_dec^2 L*, `limits` threshold and margin."""
    lam2 = (s - variance_1).clamp_min(0)
    omega2 = (q - weighting.K).clamp_min(0) / weighting.beta_1
    omega = omega2.sqrt()
    # omega / (omega^2 + (beta_2 / beta_1) c^2)
    w = weighting.beta_1 * omega / q
    m, d2 = len(modes.s), len(q)

    def in_z2(values: Tensor) -> Tensor:
        return torch.cat([values[:m], values.new_zeros(d2 - m)])

    prior = weighting.eta_enc**2
    kl_2 = 0.5 * ((w.square() * in_z2(s) + variance_2) / prior - 1 - (variance_2 / prior).log())
    noise = w.square() * in_z2(variance_1) + variance_2
    return MhvaeOptimum(
        lam2.sqrt(),
        omega,
        theta * lam2.sqrt() / s,
        w,
        variance_1.sqrt(),
        variance_2.sqrt(),
        float(total) / weighting.eta_dec**2,
        "".join(CASES[i] for i in modes.case.tolist()),
        *limits,
        kl_2,
        0.5 * torch.log1p(w.square() * in_z2(lam2) / noise),
    )


def _diagonal(values: Tensor, shape: tuple[int, int]) -> Tensor:
    matrix = values.new_zeros(shape)
    count = min(len(values), *shape)
    matrix.diagonal()[:count] = values[:count]
    return matrix
