"""Closed forms around an inverse-Lipschitz decoder (Kinoshita et al., ICML 2023): Fisher divergence, its bounds, KL.

z ~ N(0, I_k); x|z from an exponential family with natural parameter f(z), statistic T(x) and S(z) = E[T(x)|z]. Then
grad log p(z|x) - grad log p(z) = grad log p(x|z) = J(z)^T (T(x) - S(z)), J the Jacobian of f, needs no normaliser. For
N(f(z), sigma2 I) the residual T - S is (x - f(z)) / sigma2, for Bernoulli( sigmoid f(z) ) it is x - sigmoid f(z).

    F(x) = E_w || J(z)^T (T(x) - S(z)) ||^2       relative Fisher divergence; w = p(z): F_prior, w = p(z|x): F_post

If f is L-inverse Lipschitz, ||J^T r|| >= L ||P r|| with P the projector on the range of J. For k = n, P = I and this is
Theorem 3.4; for k < n the theorem without P is false (derived: f(z) = (L z, 0)). L here is the constant of the whole
decoder, `convex.BrenierDecoder.inverse_lipschitz`. What is not marked as the paper's is derived and checked by tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array

Likelihood = Literal["gaussian", "bernoulli"]


class Linearisation(NamedTuple):
    """A decoder at S points."""

    f: Tensor  # (S, n)
    J: Tensor  # (S, n, k)


class PointwiseFisher(NamedTuple):
    """For M data and S points z, (M, S) each: average over z with the weight of your choice."""

    fisher: Tensor  # || J^T r ||^2
    residual: Tensor  # || r ||^2: times L^2 it is the bound of Theorem 3.4, valid for k = n
    projected: Tensor  # || P r ||^2: times L^2 a bound for every k <= n


class SampleBound(NamedTuple):
    """mean_i E_z ||T_i - S||^2 = variance + bias + spread; Theorem 3.7's bound is L^2 (variance + bias)."""

    variance: float  # trace of the covariance of S(z)
    bias: float  # || mean T - E S ||^2
    spread: float  # mean_i || T_i - mean T ||^2, which the theorem drops


class GaussianCase(NamedTuple):
    """The linear Gaussian decoder x|z ~ N(L z, I_m), z ~ N(0, I_m), for one x."""

    fisher_prior: Tensor
    fisher_post: Tensor
    kl_prior_post: Tensor  # KL( p(z) || p(z|x) )
    kl_post_prior: Tensor


class ConstrainedLinear(NamedTuple):
    """The best linear decoder whose singular values are at least L, one entry a principal direction of the data."""

    weight: Tensor  # w_i
    variance: Tensor  # posterior variance
    mean_variance: Tensor  # variance over data of the posterior mean: what active units look at
    kl: Tensor  # mean KL, nats
    nll: Tensor  # of the direction, nats per datum


def linearise(decoder: Callable[[Tensor], Tensor], z: Tensor) -> Linearisation:
    """Values and Jacobians of `decoder`, (k,) -> (n,), at `z` (S, k): k tangents forward, for k is not above n."""

    def twice(u: Tensor) -> tuple[Tensor, Tensor]:
        f = decoder(u)
        return f, f

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about how it loads its forward-mode rules
        J, f = vmap(jacfwd(twice, has_aux=True))(z)
    return Linearisation(f, J)


@torch.no_grad()
def pointwise_fisher(
    decoder: Callable[[Tensor], Tensor],
    x: Tensor,
    z: Tensor,
    *,
    likelihood: Likelihood,
    sigma2: float = 1.0,
    chunk: int = 256,
) -> PointwiseFisher:
    """||J^T r||^2, ||r||^2 and ||P r||^2 for data `x` (M, n) at points `z` (S, k); Jacobians by autograd.

    decoder: (k,) -> (n,), logits for Bernoulli and the mean f for Gaussian.
    """
    if likelihood not in ("gaussian", "bernoulli"):
        raise ValueError(f'likelihood must be "gaussian" or "bernoulli", got {likelihood!r}')
    if x.ndim != 2 or z.ndim != 2:
        raise ValueError(f"x must be (M, n) and z (S, k), got {tuple(x.shape)} and {tuple(z.shape)}")
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for points in z.split(chunk):
        f, J = linearise(decoder, points)
        r = (x[:, None] - f) / sigma2 if likelihood == "gaussian" else x[:, None] - f.sigmoid()
        Q = torch.linalg.qr(J)[0]
        parts.append(
            (
                torch.einsum("snk,msn->msk", J, r).square().sum(-1),
                r.square().sum(-1),
                torch.einsum("snk,msn->msk", Q, r).square().sum(-1),
            )
        )
    return PointwiseFisher(*(torch.cat(columns, 1) for columns in zip(*parts, strict=True)))


def sample_bound(statistics: Array, expected: Array) -> SampleBound:
    """The three parts for `statistics` T_i (M, n) of data and `expected` S(z_j) (J, n) at prior samples."""
    T, S = t.array("statistics", statistics, "M, n"), t.array("expected", expected, "J, n")
    if T.shape[1] != S.shape[1]:
        raise ValueError(f"statistics {t.shape_of(T)} and expected {t.shape_of(S)} differ in n")
    return SampleBound(
        float((S - S.mean(0)).square().sum(-1).mean()),
        float((T.mean(0) - S.mean(0)).square().sum()),
        float((T - T.mean(0)).square().sum(-1).mean()),
    )


def linear_gaussian(L: Array, x_square: Array, m: int) -> GaussianCase:
    """x|z ~ N(L z, I_m) for an x with ||x||^2 = x_square: everything in closed form (any common shape).

    p(z|x) = N(L x / (1 + L^2), I / (1 + L^2)). F_prior = L^2 (||x||^2 + L^2 m) meets Theorem 3.4 with equality. Both
    KLs lie strictly below the log-Sobolev bound F / (2 delta) (delta = 1 + L^2 for the posterior, 1 for the prior).
    """
    L, x_square, m = _non_negative("L", L), _non_negative("x_square", x_square), _count("m", m)
    precision = 1 + L.square()
    fisher_prior = L.square() * (x_square + L.square() * m)
    fisher_post = L.square() * (x_square / precision.square() + L.square() * m / precision)
    kl_prior_post = 0.5 * (m * (L.square() - precision.log()) + L.square() * x_square / precision)
    second = (m / precision) + L.square() * x_square / precision.square()
    kl_post_prior = 0.5 * (second - m + m * precision.log())
    return GaussianCase(fisher_prior, fisher_post, kl_prior_post, kl_post_prior)


def information_floor(L: Array, sigma2: Array, k: int) -> Tensor:
    """k/2 log(1 + L^2 / sigma2): a floor of the mutual information I(x; z) of the model itself, nats.

    For k = n, noise N(0, sigma2 I), z ~ N(0, I) and f with |det J| >= L^k, by the entropy power inequality; equality
    for f = L z. It is an average over the model's own x, not over data.
    """
    return 0.5 * _count("k", k) * torch.log1p(_non_negative("L", L).square() / _positive("sigma2", sigma2))


def constrained_linear(eigenvalues: Array, sigma2: Array, L: Array) -> ConstrainedLinear:
    """Maximum likelihood of x ~ N(W z, sigma2 I) with singular values of at least L: w_i^2 = max(l_i - sigma2, L^2).

    eigenvalues: l_i of the data covariance (any shape, `sigma2` and `L` broadcast). L = 0 is probabilistic PCA. When
    the constraint binds, the variance of the posterior mean, w^2 l / (w^2 + sigma2)^2, first rises, then falls with L:
    the count of active units at a fixed threshold is no monotone function of L (`active_window`).
    """
    lam, s, L = _non_negative("eigenvalues", eigenvalues), _positive("sigma2", sigma2), _non_negative("L", L)
    w2 = torch.maximum(lam - s, L.square())
    total = w2 + s
    variance, mean_variance = s / total, w2 * lam / total.square()
    kl = 0.5 * (variance + mean_variance - 1 - variance.log())
    nll = 0.5 * ((2 * torch.pi * total).log() + lam / total)
    return ConstrainedLinear(w2.sqrt(), variance, mean_variance, kl, nll)


def active_window(eigenvalue: Array, sigma2: Array, threshold: float = 0.01) -> tuple[Tensor, Tensor]:
    """The L between which a direction whose constraint binds is active, mean_variance >= `threshold`: its two ends.

    L / (L^2 + sigma2) >= sqrt(threshold / l). Raises ValueError if the direction is active for no L.
    """
    lam, s = _positive("eigenvalue", eigenvalue), _positive("sigma2", sigma2)
    q = (threshold / lam).sqrt()
    root = 1 - 4 * q.square() * s
    if (root < 0).any():
        raise ValueError(f"no L makes the direction active: 4 threshold sigma2 = {4 * threshold * s} exceeds {lam}")
    return (1 - root.sqrt()) / (2 * q), (1 + root.sqrt()) / (2 * q)


def _positive(name: str, value: Array) -> Tensor:
    return t.positive(name, t.real(name, value))


def _non_negative(name: str, value: Array) -> Tensor:
    tensor = t.real(name, value)
    if (tensor < 0).any():
        raise ValueError(f"{name} must not be negative, its least entry is {float(tensor.min()):.3g}")
    return tensor


def _count(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is a number of dimensions, at least 1, got {value}")
    return value
