"""How collapsed is a posterior: KL, active units, (epsilon, delta)-collapse, mutual information, subspace alignment.

Everything here takes the posterior's numbers, never a model: `mean` and `var` (..., N, k) of q(z|x) = N(mean, diag var)
for N data. The prior is N(0, I); for N(0, s I) pass mean / sqrt(s) and var / s, since KL and mutual information do not
change under a rescaling of z. Leading axes (members of a sweep) are carried along. Values are float64, in nats; sums
run over latent dimensions, means over data.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from scipy.linalg import subspace_angles
from torch import Tensor


class ActiveUnits(NamedTuple):
    """`active` is `score` > threshold, both (..., k); `n_active` counts it, (...)."""

    n_active: Tensor
    active: Tensor
    score: Tensor


class MutualInformation(NamedTuple):
    """Estimate of I_q(x; z) in nats, its standard error, and the samples of z drawn for each datum."""

    nats: float
    standard_error: float
    n_samples: int


def check_posterior(mean: Tensor, var: Tensor) -> None:
    """Raise ValueError unless `mean` and `var` are equal in shape (..., N, k), finite, and the variances positive."""
    if mean.shape != var.shape or mean.ndim < 2 or mean.numel() == 0:
        raise ValueError(
            f"mean and var must both be (..., N, k) and not empty, got {tuple(mean.shape)} and {tuple(var.shape)}"
        )
    _check_finite(mean, "mean")
    _check_finite(var, "var")
    if (var <= 0).any():
        raise ValueError(
            f"var holds variances and must be positive, but its least is {var.min():.3g}; was it a log-variance?"
        )


def standard_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) noise with the dtype and device of `like`, drawn on the generator's device if there is one."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def posterior_kl(mean: Tensor, var: Tensor) -> Tensor:
    """KL( q(z_i|x) || N(0, 1) ) = 1/2 ( m_i^2 + v_i - log v_i - 1 ): per datum and dimension, (..., N, k), nats.

    `.sum(-1)` is the KL of each datum, `.mean(-2)` that of each dimension, `.sum(-1).mean(-1)` the ELBO's term.
    """
    check_posterior(mean, var)
    mean, var = mean.double(), var.double()
    return 0.5 * (mean.square() + var - var.log() - 1)


def active_units(mean: Tensor, threshold: float = 0.01, *, correction: int = 0) -> ActiveUnits:
    """Unit i is active if Cov_x( E_q[z_i|x] ) > `threshold` (Burda et al. 2016, section 5.2): `mean` is (..., N, k).

    The covariance divides by N, as Burda et al.'s code does (`np.var`); `correction=1` divides by N - 1, as later code
    does (He et al. 2019). A unit whose mean moves little is inactive by this rule even where its KL is large.
    """
    if mean.ndim < 2 or mean.shape[-2] < 2:
        raise ValueError(f"mean must be (..., N, k) with at least two data, got {tuple(mean.shape)}")
    _check_finite(mean, "mean")
    return _active(mean.double().var(-2, correction=correction), threshold)


def active_units_by_kl(kl: Tensor, threshold: float = 0.01) -> ActiveUnits:
    """Unit i is active if its mean KL over the data, 1/N sum_x KL_i(x), exceeds `threshold` nats.

    `kl` is (..., N, k) of `posterior_kl`. Raises ValueError if it is empty or not finite.
    """
    _check_kl(kl)
    return _active(kl.mean(-2), threshold)


def collapse_epsilon(kl: Tensor, delta: float = 0.01) -> Tensor:
    """The epsilon above which each dimension is (epsilon, delta)-collapsed: `kl` (..., N, k) -> (..., k).

    Dimension i is (epsilon, delta)-collapsed if P_x[ KL_i(x) < epsilon ] >= 1 - delta (Lucas et al. 2019): if KL_i lies
    below epsilon for at least m = ceil((1 - delta) N) data, so if its m-th smallest value, returned here, does.
    """
    _check_kl(kl)
    if not 0 <= delta < 1:
        raise ValueError(f"delta is a share of the data in [0, 1), got {delta}")
    # delta as the decimal that was written: the floating-point ceil((1 - 0.95) * 20) is 2.
    m = math.ceil((1 - Fraction(str(delta))) * kl.shape[-2])
    return kl.kthvalue(m, dim=-2).values


def collapsed_share(kl: Tensor, epsilon: Tensor | float, delta: float = 0.01) -> Tensor:
    """Share of the k dimensions that are (epsilon, delta)-collapsed (see `collapse_epsilon`): `kl` is (..., N, k).

    For a number `epsilon` the result is (...); for a vector of E of them it is the collapse curve, (..., E).
    """
    threshold = collapse_epsilon(kl, delta)
    epsilon = torch.as_tensor(epsilon, dtype=kl.dtype, device=kl.device)
    threshold = threshold[(..., *[None] * epsilon.ndim, slice(None))]
    return (threshold < epsilon.unsqueeze(-1)).double().mean(-1)


@torch.no_grad()
def mutual_information(
    mean: Tensor, var: Tensor, n_samples: int = 1, *, generator: torch.Generator | None = None, chunk: int = 1024
) -> MutualInformation:
    """I_q(x; z) = E_x E_q(z|x) [ log q(z|x) - log q(z) ],  q(z) = 1/N sum_j q(z|x_j)  over all N data given.

    `n_samples` z are drawn for each datum and held against all N components, so the true value lies in [0, log N].
    Mean KL - I = KL( q(z) || p(z) ) is the part of the KL that is no information (Hoffman and Johnson 2016). The
    standard error is that of a mean over data: it holds the spread between data too, so for these very data it is on
    the large side. The cost is of the order of N^2 n_samples k.

    Args:
        mean, var: (N, k).
        n_samples: samples of z a datum.
        generator: source of the noise, drawn on its device; default: the default generator of `mean`'s device.
        chunk: samples and components held against each other at once; memory is a few chunk^2 float64. No effect on the
            samples drawn.
    """
    check_posterior(mean, var)
    if mean.ndim != 2 or len(mean) < 2:
        raise ValueError(f"mean and var must be (N, k) with at least two data, got {tuple(mean.shape)}")
    if n_samples < 1 or chunk < 1:
        raise ValueError(f"n_samples and chunk must be at least 1, got {n_samples} and {chunk}")
    mean, var = mean.double(), var.double()
    mean = mean - mean.mean(0)  # nearer to 0 the expanded square below loses less to rounding
    half_log_det = 0.5 * (2 * math.pi * var).log().sum(-1)
    # One matrix product: log q(z|x_j) = [z^2, z] . [-1/(2 v_j), m_j/v_j] - 1/2 sum_i m_ji^2/v_ji - half_log_det_j
    components = torch.cat([-0.5 / var, mean / var], 1)
    constants = -0.5 * (mean.square() / var).sum(-1) - half_log_det

    def log_aggregate(z: Tensor) -> Tensor:
        features = torch.cat([z.square(), z], 1)
        log_sum = z.new_full((len(z),), -math.inf)
        for component, constant in zip(components.split(chunk), constants.split(chunk), strict=True):
            log_sum = log_sum.logaddexp(torch.addmm(constant, features, component.mT).logsumexp(1))
        return log_sum - math.log(len(mean))

    information = torch.zeros_like(constants)
    for _ in range(n_samples):
        eps = standard_normal(mean.shape, mean, generator)
        log_q_given_x = -0.5 * eps.square().sum(-1) - half_log_det
        z = torch.addcmul(mean, var.sqrt(), eps)
        information += (log_q_given_x - torch.cat([log_aggregate(rows) for rows in z.split(chunk)])) / n_samples
    return MutualInformation(information.mean().item(), (information.std() / math.sqrt(len(mean))).item(), n_samples)


def principal_angles(A: Tensor, B: Tensor) -> Tensor:
    """Principal angles between the column spans of `A` (n, a) and `B` (n, b), radians, largest first, all in [0, pi/2].

    cos(angle_i) are the singular values of Q_A^T Q_B, for orthonormal bases Q of the spans (Bjorck and Golub 1973).
    There are as many as the smaller span has dimensions; numerically dependent columns count once. A collapsed latent's
    column still has a direction: leave it out first. To pair single columns use `theory.alignment.match_columns`.
    """
    if A.ndim != 2 or B.ndim != 2 or len(A) != len(B) or A.numel() == 0 or B.numel() == 0:
        raise ValueError(f"A and B must be matrices with equally many rows, got {tuple(A.shape)} and {tuple(B.shape)}")
    _check_finite(A, "A")
    _check_finite(B, "B")
    if not (A.any() and B.any()):
        raise ValueError("the span of a matrix of zeros has no angle to another; drop collapsed columns first")
    angles = subspace_angles(A.detach().double().cpu().numpy(), B.detach().double().cpu().numpy())
    return torch.from_numpy(angles).to(A.device)


def _active(score: Tensor, threshold: float) -> ActiveUnits:
    active = score > threshold
    return ActiveUnits(active.sum(-1), active, score)


def _check_kl(kl: Tensor) -> None:
    if kl.ndim < 2 or kl.numel() == 0:
        raise ValueError(f"kl must be (..., N, k) and not empty, as posterior_kl gives it, got {tuple(kl.shape)}")
    _check_finite(kl, "kl")


def _check_finite(tensor: Tensor, name: str) -> None:
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise ValueError(f"{name} {tuple(tensor.shape)} has {bad} nan or infinite entries; leave diverged members out")
