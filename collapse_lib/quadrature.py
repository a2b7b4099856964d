"""The true posterior of a decoder with one or two latents, by quadrature on a grid: no encoder, no sampling.

z ~ N(0, I_k), k = 1 or 2, on a regular grid over [-half_width, half_width]^k. What it costs is `points`^k decodings and
Jacobians. `resolution` says whether the grid was fine enough: posterior standard deviation in grid steps.

    p(x) = sum_cells p(x|z) p(z) step^k,    E_{p(z|x)} g(z) = sum_cells g(z) p(x|z) p(z) step^k / p(x)

Such sums converge faster than any power of the step for smooth densities that vanish at the edge. The divergences are
those of Kinoshita et al. (ICML 2023), as `theory.inverse_lipschitz` has them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from collapse_lib.theory.inverse_lipschitz import Likelihood, linearise


class GridPosterior(NamedTuple):
    """One entry a datum, float64, nats."""

    nll: Tensor  # -log p(x)
    kl_post_prior: Tensor  # KL( p(z|x) || p(z) )
    kl_prior_post: Tensor  # KL( p(z) || p(z|x) )
    fisher_post: Tensor  # E_{p(z|x)} || grad_z log p(x|z) ||^2
    fisher_prior: Tensor  # E_{p(z)} of the same
    residual_prior: Tensor  # E_{p(z)} || T(x) - S(z) ||^2: times L^2 the bound of Theorem 3.4
    mean: Tensor  # (M, k)
    variance: Tensor  # (M, k)
    resolution: Tensor  # least posterior standard deviation over the grid's step: below 1, distrust
    density: Tensor  # (M, points, ...) p(z|x) on the grid if asked for, else empty


@torch.no_grad()
def grid_posterior(
    decoder: Callable[[Tensor], Tensor],
    x: Tensor,
    k: int,
    *,
    likelihood: Likelihood,
    sigma2: float = 1.0,
    half_width: float = 6.0,
    points: int = 241,
    chunk: int = 16,
    keep_density: bool = False,
    fisher: bool = True,
) -> GridPosterior:
    """Everything about p(z|x) for data `x` (M, n) under `decoder`, (k,) -> (n,), logits or the Gaussian's mean.

    Without `fisher` the two divergences and the residual are nan, no Jacobian is taken, and it is many times faster.
    Raises ValueError for k > 2, or if more than 1e-3 of a posterior's mass lies in the outermost cells of the grid.
    """
    if k not in (1, 2):
        raise ValueError(f"a grid is for one or two latents, got k={k}; sample instead")
    if x.ndim != 2 or points < 3:
        raise ValueError(f"x must be (M, n) and points at least 3, got {tuple(x.shape)} and {points}")
    axis = torch.linspace(-half_width, half_width, points, dtype=x.dtype, device=x.device)
    z = torch.cartesian_prod(*[axis] * k).reshape(-1, k)
    step = float(axis[1] - axis[0])
    if fisher:
        f, J = (torch.cat(parts) for parts in zip(*(linearise(decoder, rows) for rows in z.split(4096)), strict=True))
    else:
        f = torch.cat([vmap(decoder)(rows) for rows in z.split(4096)])
    missing = torch.full((chunk,), math.nan, dtype=torch.float64, device=x.device)
    log_prior = (-0.5 * z.square().sum(-1) - 0.5 * k * math.log(2 * math.pi)).double()
    log_cell = k * math.log(step)
    prior = (log_prior + log_cell).exp()
    at_edge = (z.abs() > half_width - step / 2).any(-1)
    rows, densities = [], []
    for part in x.split(chunk):
        if likelihood == "gaussian":
            distance = part.square().sum(-1, keepdim=True) - 2 * part @ f.mT + f.square().sum(-1)
            log_p = (-0.5 * distance / sigma2 - 0.5 * f.shape[1] * math.log(2 * math.pi * sigma2)).double()
        else:
            log_p = (part @ f.mT - torch.nn.functional.softplus(f).sum(-1)).double()
        divergences = [missing[: len(part)]] * 3
        evidence = (log_p + log_prior + log_cell).logsumexp(-1, keepdim=True)
        log_ratio = log_p - evidence  # log p(z|x) - log p(z)
        posterior = (log_ratio + log_prior + log_cell).exp()
        if fisher:
            r = (part[:, None] - f) / sigma2 if likelihood == "gaussian" else part[:, None] - f.sigmoid()
            score = torch.einsum("gnk,mgn->mgk", J, r).double().square().sum(-1)
            divergences = [(posterior * score).sum(-1), score @ prior, r.square().sum(-1).double() @ prior]
        if (lost := float(posterior[:, at_edge].sum(-1).max())) > 1e-3:
            raise ValueError(f"{lost:.2g} of a posterior's mass lies at the edge of the grid: widen it (half_width)")
        mean = posterior @ z.double()
        variance = (posterior @ z.double().square() - mean.square()).clamp_min(0)
        rows.append(
            (
                -evidence.squeeze(-1),
                (posterior * log_ratio).sum(-1),
                -(prior * log_ratio).sum(-1),
                *divergences,
                mean,
                variance,
                variance.sqrt().amin(-1) / step,
            )
        )
        if keep_density:
            densities.append((posterior / step**k).reshape(-1, *[points] * k))
    columns = {
        name: torch.cat(column) for name, column in zip(GridPosterior._fields, zip(*rows, strict=True), strict=False)
    }
    return GridPosterior(**columns, density=torch.cat(densities) if densities else torch.empty(0))


@torch.no_grad()
def model_information(
    decoder: Callable[[Tensor], Tensor],
    k: int,
    n: int,
    *,
    sigma2: float = 1.0,
    draws: int = 512,
    seed: int = 0,
    half_width: float = 6.0,
    points: int = 241,
) -> float:
    """I(x; z) of the model's own x ~ N(f(z), sigma2 I), z ~ N(0, I_k), nats: the mean of KL( p(z|x) || p(z) ) over x.

    `draws` pairs of z and noise from a scrambled Sobol sequence (float64), far less noisy than independent ones; the
    posteriors are those of `grid_posterior`.
    """
    uniform = torch.quasirandom.SobolEngine(k + n, scramble=True, seed=seed).draw(draws, dtype=torch.float64)
    normal = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
    x = vmap(decoder)(normal[:, :k]) + math.sqrt(sigma2) * normal[:, k:]
    found = grid_posterior(decoder, x, k, likelihood="gaussian", sigma2=sigma2, half_width=half_width, points=points)
    return float(found.kl_post_prior.mean())
