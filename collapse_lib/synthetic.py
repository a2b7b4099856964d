"""Data drawn from a known law, where a notebook needs a correlation or a noise level of its own choice."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Inputs and the targets that go with them, float64."""

    x: Tensor  # (n, p) inputs
    y: Tensor  # (n, q) targets


def shared_factors(n: int, p: int, noise_stds: Sequence[float], *, factors: int, seed: int) -> Pairs:
    """x = F a + n_x / 2, y = F b + diag(noise_stds) n_y with `factors` shared N(0, 1) factors F; float64.

    Loadings a (factors, p) ~ N(0, 1) and b (factors, q) ~ N(0, 1 / factors), so that y has variances of about
    1 + noise_stds^2, of which x can tell the first part only, and not all of it.
    """
    generator = torch.Generator().manual_seed(seed)
    q = len(noise_stds)
    a, b = _normal(generator, factors, p), _normal(generator, factors, q) / factors**0.5
    F, noise_x, noise_y = _normal(generator, n, factors), _normal(generator, n, p), _normal(generator, n, q)
    return Pairs(F @ a + 0.5 * noise_x, F @ b + noise_y * torch.tensor(noise_stds, dtype=torch.float64))


def correlated(n: int, dim: int, rho: float | Sequence[float], *, seed: int) -> Pairs:
    """y ~ N(0, I), x = rho y + sqrt(1 - rho^2) noise: x_i has correlation rho with y_i and none with others; float64.

    rho: one number, or one a coordinate. For many data the residual of y after regression on x has second moments
    diag(1 - rho^2). The same seed gives the same y and noise for every rho (Dang et al., ICLR 2024, appendix).
    """
    rhos = torch.tensor([rho] * dim if isinstance(rho, float | int) else list(rho), dtype=torch.float64)
    if rhos.shape != (dim,):
        raise ValueError(f"rho must be one number or one a coordinate, {dim} of them; got {tuple(rhos.shape)}")
    if bool((rhos.abs() > 1).any()):
        raise ValueError(f"rho = {rho} is a correlation: it must lie in -1..1")
    generator = torch.Generator().manual_seed(seed)
    y, noise = _normal(generator, n, dim), _normal(generator, n, dim)
    return Pairs(rhos * y + (1 - rhos.square()).sqrt() * noise, y)


def two_clusters(n: int, d: float, std: float, *, seed: int) -> Tensor:
    """(n, 2) from 1/2 N((d, 0), std^2 I) + 1/2 N((-d, 0), std^2 I), whose covariance is diag(d^2 + std^2, std^2).

    float64. The same seed gives the same sides and noise for every d.
    """
    if std <= 0:
        raise ValueError(f"std is a standard deviation and must be positive, got {std}")
    generator = torch.Generator().manual_seed(seed)
    side = 2 * torch.randint(2, (n, 1), generator=generator, dtype=torch.float64) - 1
    return side * torch.tensor([d, 0.0], dtype=torch.float64) + std * _normal(generator, n, 2)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
