"""Global optima of the linear MHVAE: Theorems 3 and 5 of Dang et al. 2024 (arXiv 2306.05023), and one case more.

`hierarchical` has the model, its symbols and its loss; per mode the loss depends on two numbers, and their two-variable
problems are in `hierarchical_modes`. Theorems 3 and 5 are the paper's; optimal losses, d1 != d2 and the case of a
learnable Sigma_1 are derived. theta (D,) are singular values of Z, descending; sigma_1, sigma_2 and the eta are
standard deviations. Everything is float64; wrong input raises as in `_tensors`.
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
from collapse_lib.theory.hierarchical import Mhvae, Weighting
from collapse_lib.theory.hierarchical_modes import (
    CASES,
    Modes,
    both_fixed_threshold,
    mode_both_fixed,
    mode_sigma2_learnable,
    mode_without_z2,
    sigma2_threshold,
)


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
    return used, float(theta[d1:].square().sum()), d1, d2, weighting.checked(), sigma_1


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
