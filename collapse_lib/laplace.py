"""The Laplace approximation of a decoder's posterior at its mode, and the true posterior on a grid beside it.

x|z ~ N(D(z), s2 I), z ~ N(0, I_k). At the mode m of p(z|x) the approximation is N(m, Lam^-1), Lam = I + J^T J / s2
(Gauss-Newton: the curvature of D is left out; MacKay, Neural Computation 4, 1992). `theory.bi_lipschitz` has its KL and
the bounds of it, which hold whatever D is; that the *true* posterior keeps them is another matter, and `against_grid`
is there to look at it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.func import vmap

from collapse_lib.quadrature import grid_posterior
from collapse_lib.theory.bi_lipschitz import inverse_floor, laplace_kl
from collapse_lib.theory.inverse_lipschitz import linearise

Decoder = Callable[[Tensor], Tensor]


class Mode(NamedTuple):
    """One entry a datum."""

    z: Tensor  # (M, k)
    J: Tensor  # (M, n, k), the Jacobian there
    gradient: Tensor  # (M,) norm of the gradient of -log p(z|x) in the metric of Lam: standard deviations to go


@torch.no_grad()
def find_mode(decoder: Decoder, x: Tensor, start: Tensor, *, s2: float, steps: int = 50) -> Mode:
    """The mode of p(z|x) uphill from `start` (M, k), for data `x` (M, n): Levenberg-Marquardt, all data at once.

    Minimises ||x - D(z)||^2 / (2 s2) + ||z||^2 / 2, with Lam, its diagonal raised, for the Hessian; a step that does
    not go downhill is not taken. Raises ValueError if the shapes do not fit.
    """
    if x.ndim != 2 or start.ndim != 2 or len(x) != len(start):
        raise ValueError(f"x must be (M, n) and start (M, k), got {tuple(x.shape)} and {tuple(start.shape)}")

    def look(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        f, J = linearise(decoder, z)
        r = x - f
        loss = 0.5 * (r.square().sum(-1) / s2 + z.square().sum(-1)).double()
        return loss, z - torch.einsum("mnk,mn->mk", J, r) / s2, torch.eye(z.shape[1]).to(z) + J.mT @ J / s2, J

    z, damping = start.clone(), torch.full((len(x), 1), 1e-3, dtype=x.dtype, device=x.device)
    loss, gradient, precision, J = look(z)
    for _ in range(steps):
        damped = precision + torch.diag_embed(damping * precision.diagonal(dim1=1, dim2=2))
        proposal = z - torch.linalg.solve(damped, gradient)
        found = look(proposal)
        better = found[0] <= loss
        z = torch.where(better[:, None], proposal, z)
        damping = torch.where(better[:, None], damping / 5, damping * 5).clamp(1e-7, 1e7)
        loss, gradient, precision, J = (
            torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(found, (loss, gradient, precision, J), strict=True)
        )
    left = (gradient * torch.linalg.solve(precision, gradient)).sum(-1).clamp_min(0).sqrt()
    return Mode(z, J, left)


def laplace_table(J: Tensor, z: Tensor, *, s2: float) -> pd.DataFrame:
    """A row a datum for Jacobians `J` (M, n, k) at `z` (M, k), nats:

    laplace, the KL; lower and upper, its bounds by one constant; constant; floor, its bound by the smallest singular
    value alone; smallest and largest singular value.
    """
    sv = torch.linalg.svdvals(J.double())
    found = laplace_kl(sv, z.double(), s2)
    columns = {"laplace": found.kl, "lower": found.lower, "upper": found.upper, "constant": found.constant}
    columns |= {"floor": inverse_floor(sv[:, -1], s2, sv.shape[1]), "smallest": sv[:, -1], "largest": sv[:, 0]}
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


class AgainstGrid(NamedTuple):
    """`table`: that of `laplace_table` at the mode, and exact (the true KL, by quadrature), distance (total variation
    of true posterior and approximation), resolution (of the grid), gradient (see `Mode`); `mode` (M, k)."""

    table: pd.DataFrame
    mode: Tensor


@torch.no_grad()
def against_grid(
    decoder: Decoder, x: Tensor, k: int, *, s2: float, half_width: float, points: int, chunk: int = 16
) -> AgainstGrid:
    """The true posterior of each datum of `x` (M, n) and its Laplace approximation at the highest mode, k = 1 or 2.

    The mode is the grid's maximum, refined. `grid_posterior` says what it cannot do.
    """
    axis = torch.linspace(-half_width, half_width, points, dtype=x.dtype, device=x.device)
    z = torch.cartesian_prod(*[axis] * k).reshape(-1, k)
    found = grid_posterior(
        decoder,
        x,
        k,
        likelihood="gaussian",
        sigma2=s2,
        half_width=half_width,
        points=points,
        chunk=chunk,
        keep_density=True,
        fisher=False,
    )
    density = found.density.flatten(1)
    mode = find_mode(decoder, x, z[density.argmax(-1)], s2=s2)
    table = laplace_table(mode.J, mode.z, s2=s2)
    distance = _total_variation(density, z, mode, s2, (2 * half_width / (points - 1)) ** k)
    extra = {"exact": found.kl_post_prior, "distance": distance, "resolution": found.resolution}
    extra |= {"gradient": mode.gradient.double()}
    return AgainstGrid(table.assign(**{name: values.cpu().numpy() for name, values in extra.items()}), mode.z)


class View(NamedTuple):
    """A window around the mode, two latents."""

    first: Tensor  # (points,) values of z_1
    second: Tensor  # (points,)
    true: Tensor  # (points, points) density of the true posterior over its maximum in the window
    deviations: Tensor  # (points, points) Mahalanobis distance from the mode under the approximation


@torch.no_grad()
def laplace_density(
    decoder: Decoder, x: Tensor, mode: Tensor, *, s2: float, widths: float = 6.0, points: int = 121
) -> View:
    """True posterior and approximation of one datum `x` (n,) around its `mode` (2,), `widths` largest standard
    deviations to either side."""
    J = linearise(decoder, mode[None]).J[0].double()
    precision = torch.eye(2, dtype=torch.float64, device=J.device) + J.mT @ J / s2
    half = widths / float(torch.linalg.eigvalsh(precision)[0].sqrt())
    offsets = torch.linspace(-half, half, points, dtype=torch.float64, device=J.device)
    u = torch.cartesian_prod(offsets, offsets)
    z = mode + u.to(mode)
    log_p = -0.5 * ((x - vmap(decoder)(z)).double().square().sum(-1) / s2 + z.double().square().sum(-1))
    shape = (points, points)
    true = (log_p - log_p.max()).exp().reshape(shape)
    deviations = ((u @ precision) * u).sum(-1).sqrt().reshape(shape)
    return View(mode[0] + offsets, mode[1] + offsets, true, deviations)


def _total_variation(density: Tensor, z: Tensor, mode: Mode, s2: float, cell: float) -> Tensor:
    """1/2 integral |p - q| on the grid, and what of q lies outside it."""
    k, distances = z.shape[1], []
    precision = torch.eye(k, dtype=torch.float64, device=z.device) + mode.J.double().mT @ mode.J.double() / s2
    half_log_det = 0.5 * torch.logdet(precision)
    for p, m, lam, height in zip(density, mode.z.double(), precision, half_log_det, strict=True):
        u = z.double() - m
        q = (height - 0.5 * ((u @ lam) * u).sum(-1) - 0.5 * k * math.log(2 * math.pi)).exp()
        distances.append(0.5 * ((p - q).abs().sum() * cell + (1 - q.sum() * cell).abs()))
    return torch.stack(distances)
