"""One mode of the linear MHVAE: the two-variable problems behind Theorems 3 and 5 of Dang et al. 2024.

`theory.hierarchical` has the model and its symbols. A mode with singular value theta of the data depends on

    s = lambda^2 + sigma_1^2 >= sigma_1^2      lambda: singular value of V1
    q = beta_1 omega^2 + K   >= K              omega:  singular value of U2

and what it adds to eta_dec^2 L is convex in (log s, log q): the Karush-Kuhn-Tucker cases below are global. Two levels
have K = beta_2 c^2 and B = beta_2 eta_dec^2; a third level changes K alone, so both are arguments. sigma_1 and
sigma_2 are standard deviations; theta, K and B broadcast against each other. Derived, the theorems being the paper's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array

CASES = "abc"
"""a: the mode reaches z2. b: V1 ignores the mode, z2 codes noise. c: the mode's part of U2 is zero."""


class Modes(NamedTuple):
    """Solution of the two-variable problem of every mode; shapes as `theta` and `K` broadcast."""

    s: Tensor  # lambda^2 + sigma_1^2
    q: Tensor  # beta_1 omega^2 + K
    value: Tensor  # what the mode adds to eta_dec^2 L, the logarithms of fixed variances apart
    case: Tensor  # int64, position in CASES


class ModeSingularValues(NamedTuple):
    """Singular values of V1 and U2 in every mode; shapes as in `Modes`."""

    lam: Tensor
    omega: Tensor


def mode_sigma2_learnable(
    theta: Array, beta_1: float, K: Array, B: Array, sigma_1: float, *, price: float = 0.0
) -> Modes:
    """Minimum over s >= sigma_1^2 and q >= K of the problem of a mode whose sigma_2 is learned (sigma_2^2 = B / q):

        f = theta^2 sigma_1^2 / s + beta_1 K s / q + B log q + B (1 - log B)  [ + nu s ]

    a (theta >= tau):           s = theta^2 sigma_1^2 / B,  q = beta_1 K s / B
    b (beta_1 sigma_1^2 >= B):  s = sigma_1^2,  q = beta_1 K sigma_1^2 / B
    c (otherwise):              s = max(sigma_1^2, theta sigma_1 / sqrt(beta_1)),  q = K
    with tau from `sigma2_threshold`. theta, K and B broadcast; K and B need not be those of a two-level model.

    `price` nu >= 0 of s, the multiplier of a limit on sum_i s_i (derived): s = 2 theta^2 sigma_1^2
    / (B + sqrt(B^2 + 4 nu theta^2 sigma_1^2)) in case a, beta_1 + nu for beta_1 in case c. `value` is f without nu s.
    """
    theta, K, B, beta_1, sigma_1 = _mode_input(theta, K, B, beta_1, sigma_1)
    noise = sigma_1**2
    a, b = theta >= sigma2_threshold(beta_1, B, sigma_1, price=price), beta_1 * noise >= B
    energy = theta.square() * noise
    s_a = 2 * energy / (B + (B.square() + 4 * price * energy).sqrt())
    s = _by_case(a, b, s_a, theta.new_tensor(noise), _s_without_z2(theta, beta_1 + price, sigma_1))
    q = _by_case(a, b, beta_1 * K * s_a / B, beta_1 * K * noise / B, K)
    value = theta.square() * noise / s + beta_1 * K * s / q + B * q.log() + B * (1 - B.log())
    return _modes(s, q, value, a, b)


def mode_both_fixed(
    theta: Array, beta_1: float, K: Array, sigma_1: float, sigma_2: float, *, as_released: bool = False
) -> Modes:
    """Minimum over s >= sigma_1^2 and q >= K of the problem of a mode whose variances are both fixed:

        f = theta^2 sigma_1^2 / s + beta_1 K s / q + sigma_2^2 q

    a (theta >= tau):                             s = theta^2 sigma_1^2 / v,  q = v / sigma_2^2
    b (sqrt(beta_1) sigma_1 >= sqrt(K) sigma_2):  s = sigma_1^2,  q = sqrt(beta_1 K) sigma_1 / sigma_2
    c (otherwise):                                s = max(sigma_1^2, theta sigma_1 / sqrt(beta_1)),  q = K
    with v = (beta_1 K theta^2 sigma_1^2 sigma_2^2)^(1/3) and tau from `both_fixed_threshold`; theta and K broadcast.

    `as_released`: with the tau of the authors' code, for comparison; no minimum unless beta_1 = 1. For beta_1 > 1 it
    takes modes above tau for b or c, for beta_1 < 1 modes below tau for a, where q < K and omega^2 is negative.
    """
    theta, K, _, beta_1, sigma_1 = _mode_input(theta, K, 1.0, beta_1, sigma_1)
    sigma_2 = float(t.positive("sigma_2", t.scalar("sigma_2", sigma_2)))
    noise_1, noise_2 = sigma_1**2, sigma_2**2
    tau = both_fixed_threshold(beta_1, K, sigma_1, sigma_2, as_released=as_released)
    a, b = theta >= tau, beta_1 * noise_1 >= K * noise_2
    v = (beta_1 * K * noise_1 * noise_2 * theta.square()).clamp_min(torch.finfo(torch.float64).tiny) ** (1 / 3)
    s = _by_case(a, b, theta.square() * noise_1 / v, theta.new_tensor(noise_1), _s_without_z2(theta, beta_1, sigma_1))
    q = _by_case(a, b, v / noise_2, (beta_1 * K).sqrt() * sigma_1 / sigma_2, K)
    return _modes(s, q, theta.square() * noise_1 / s + beta_1 * K * s / q + noise_2 * q, a, b)


def mode_without_z2(theta: Array, beta_1: float, sigma_1: float, *, price: float = 0.0) -> Modes:
    """Minimum over s >= sigma_1^2 of f = theta^2 sigma_1^2 / s + beta_1 s, a mode of z1 without a coordinate of z2.

    s = max(sigma_1^2, theta sigma_1 / sqrt(beta_1 + price)), case c; q does not exist and is nan. `price` as in
    `mode_sigma2_learnable`.
    """
    theta, _, _, beta_1, sigma_1 = _mode_input(theta, 1.0, 1.0, beta_1, sigma_1)
    s = _s_without_z2(theta, beta_1 + price, sigma_1)
    off = torch.zeros_like(theta, dtype=torch.bool)
    return _modes(s, torch.full_like(s, math.nan), theta.square() * sigma_1**2 / s + beta_1 * s, off, off)


def mode_singular_values(modes: Modes, beta_1: float, K: Array, sigma_1: float) -> ModeSingularValues:
    """lambda = sqrt(s - sigma_1^2) and omega = sqrt((q - K) / beta_1), nan where a wrong rule has q < K."""
    K = t.positive("K", t.real("K", K))
    return ModeSingularValues((modes.s - sigma_1**2).sqrt(), ((modes.q - K) / beta_1).sqrt())


def sigma2_threshold(beta_1: float, B: Array, sigma_1: float, *, price: float = 0.0) -> Tensor:
    """tau of Theorem 3, max{ sqrt(B), B / (sqrt(beta_1) sigma_1) }; B = beta_2 eta_dec^2 of any shape.

    With a `price` nu of s: max{ sqrt(B + nu sigma_1^2), B sqrt(1 + nu / beta_1) / (sqrt(beta_1) sigma_1) } (derived).
    """
    B = t.positive("B", t.real("B", B))
    free = (B + price * sigma_1**2).sqrt()
    return torch.maximum(free, B * math.sqrt(1 + price / beta_1) / (math.sqrt(beta_1) * sigma_1))


def both_fixed_threshold(
    beta_1: float, K: Array, sigma_1: float, sigma_2: float, *, as_released: bool = False
) -> Tensor:
    """tau of Theorem 5, max{ (beta_1 K)^(1/4) sqrt(sigma_1 sigma_2), K sigma_2^2 / (sqrt(beta_1) sigma_1) }, for any K.

    `as_released`: as the authors' code computes it, multiplying by sqrt(beta_1) where it should divide.
    """
    K = t.positive("K", t.real("K", K))
    first, second = (beta_1 * K) ** 0.25 * math.sqrt(sigma_1 * sigma_2), K * sigma_2**2 / sigma_1
    root = math.sqrt(beta_1)
    return torch.maximum(first, second * root if as_released else second / root)


def switch_off_beta_2(theta: Array, beta_1: float, eta_dec: float, sigma_1: float) -> Tensor:
    """The beta_2 above which z2 has collapsed on a mode (Theorem 3), in the shape of theta:

    max{ beta_1 sigma_1^2, sqrt(beta_1) sigma_1 theta } / eta_dec^2
    """
    theta = t.real("theta", theta)
    return (math.sqrt(beta_1) * sigma_1 * theta).clamp_min(beta_1 * sigma_1**2) / eta_dec**2


def switch_on_beta_1(theta: Array, beta_2: float, eta_dec: float, sigma_1: float) -> Tensor:
    """The beta_1 above which z2 has not collapsed on a mode (Theorem 3), in the shape of theta:

    min{ B / sigma_1^2, ( B / (theta sigma_1) )^2 } with B = beta_2 eta_dec^2; the first from theta = sqrt(B) downwards
    """
    theta, B = t.real("theta", theta), beta_2 * eta_dec**2
    return (B / (theta.clamp_min(math.sqrt(B)) * sigma_1)).square()


def _mode_input(
    theta: Array, K: Array, B: Array, beta_1: float, sigma_1: float
) -> tuple[Tensor, Tensor, Tensor, float, float]:
    theta = t.real("theta", theta)
    if bool((theta < 0).any()):
        raise ValueError(f"theta holds singular values and must not be negative, got {float(theta.min()):.6g}")
    K, B = t.positive("K", t.real("K", K)), t.positive("B", t.real("B", B))
    beta_1 = float(t.positive("beta_1", t.scalar("beta_1", beta_1)))
    return theta, K, B, beta_1, float(t.positive("sigma_1", t.scalar("sigma_1", sigma_1)))


def _s_without_z2(theta: Tensor, beta_1: float, sigma_1: float) -> Tensor:
    return (theta * sigma_1 / math.sqrt(beta_1)).clamp_min(sigma_1**2)


def _by_case(a: Tensor, b: Tensor, in_a: Tensor, in_b: Tensor, in_c: Tensor) -> Tensor:
    return torch.where(a, in_a, torch.where(b, in_b, in_c))


def _modes(s: Tensor, q: Tensor, value: Tensor, a: Tensor, b: Tensor) -> Modes:
    s, q = torch.broadcast_to(s, value.shape), torch.broadcast_to(q, value.shape)
    return Modes(s, q, value, torch.where(a, 0, torch.where(b, 1, 2)).expand(value.shape))
