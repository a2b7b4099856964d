"""What a decoder's Jacobian says about collapse: the Laplace posterior's KL and its bounds (LR-VAE, Theorem 2.3).

x|z ~ N(D(z), s2 I), z ~ N(0, I_k), J the Jacobian of D at the mode m. The Laplace approximation of p(z|x) is
N(m, Lam^-1) with Lam = I + J^T J / s2 (Gauss-Newton), and with the singular values sv_i of J and g(l) = 1/l - 1 + log l

    KL( Laplace || N(0, I) ) = 1/2 [ sum_i g(1 + sv_i^2 / s2) + ||m||^2 ]

If D is locally bi-Lipschitz at m with the constant L >= 1, all sv_i lie in [1/L, L], and
    k/2 g(1 + 1 / (L^2 s2))  <=  KL  <=  k/2 g(1 + L^2 / s2) + ||m||^2 / 2.
The smallest singular value alone says more: KL >= k/2 g(1 + sv_min^2 / s2) (`inverse_floor`).
The document's own constant could not be read; this version is derived.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array


class LaplaceKL(NamedTuple):
    """One entry a datum, nats."""

    kl: Tensor
    lower: Tensor  # from the local constant
    upper: Tensor
    constant: Tensor  # L = max(largest sv, 1 / smallest sv, 1)


def gap(precision: Array) -> Tensor:
    """g(l) = 1/l - 1 + log l, twice the KL of N(0, 1/l) to N(0, 1); increasing for l >= 1, 0 at l = 1."""
    precision = t.positive("precision", t.real("precision", precision))
    return 1 / precision - 1 + precision.log()


def laplace_kl(singular_values: Array, mean: Array, s2: Array) -> LaplaceKL:
    """For Jacobians' singular values (N, k) at modes `mean` (N, k). Raises ValueError for a negative singular value."""
    sv, m = t.array("singular_values", singular_values, "N, k"), t.array("mean", mean, "N, k")
    t.expect_shape("mean", m, tuple(sv.shape), "a mode for each Jacobian")
    s2 = t.positive("s2", t.scalar("s2", s2))
    if (sv < 0).any():
        raise ValueError(f"singular values are not negative, the least is {float(sv.min()):.3g}")
    k, square = sv.shape[1], m.square().sum(-1)
    largest, smallest = sv.amax(-1), sv.amin(-1)
    constant = torch.maximum(largest, 1 / smallest).clamp_min(1.0)
    kl = 0.5 * (gap(1 + sv.square() / s2).sum(-1) + square)
    lower = 0.5 * k * gap(1 + 1 / (constant.square() * s2))
    upper = 0.5 * (k * gap(1 + constant.clamp_max(1e150).square() / s2) + square)
    return LaplaceKL(kl, lower, upper, constant)


def inverse_floor(smallest: Array, s2: Array, k: int) -> Tensor:
    """k/2 g(1 + smallest^2 / s2), nats: what the KL is at least if no direction is stretched by less than `smallest`.

    It does not weaken as the largest singular value grows, as the bound by one bi-Lipschitz constant does. The best
    diagonal posterior of the linearised decoder keeps it too: diagonal entries of Lam are not below its eigenvalues.
    """
    s2 = t.positive("s2", t.scalar("s2", s2))
    return 0.5 * k * gap(1 + t.real("smallest", smallest).square() / s2)


def participation_ratio(singular_values: Array) -> Tensor:
    """(sum_i sv_i^2)^2 / sum_i sv_i^4 for (..., k): how many directions J^T J uses, 1 to k; nan if all are zero."""
    power = t.real("singular_values", singular_values).square()
    return power.sum(-1).square() / power.square().sum(-1)
