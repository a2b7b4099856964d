"""The linear VAE and CVAE of `theory.conditional` minimised directly over all weights: what closed forms must meet.

No sampling and no minibatches: the expected loss is known from second moments. Weights start at N(0, 0.1^2) and
log sigma^2 at 0; a given `sigma` is held fixed. `options` go to `solver.minimise`, over the defaults below.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from collapse_lib.solver import minimise
from collapse_lib.theory._tensors import Array, array
from collapse_lib.theory.conditional import Terms, cvae_terms, vae_terms
from collapse_lib.theory.second_moments import ConditionalMoments, CvaeWeights

WEIGHT_STD = 0.1

# Losses agree with their minima to ten digits by then; more takes L-BFGS to the end of double precision.
DEFAULTS = {"gradient_tolerance": 1e-6}

# A coordinate is active if its decoder column is longer than this share of the longest one ...
COLUMN_SHARE = 0.02
# ... and, where sigma is learned, if sigma differs by more than this share from eta_enc.
SIGMA_SHARE = 0.01


class VaeSolution(NamedTuple):
    """A minimum of `vae_terms`: whitened weights, posterior standard deviations, and the terms there."""

    U: Tensor  # (q, d)
    V: Tensor  # (d, p)
    sigma: Tensor  # (d,)
    terms: Terms


class CvaeSolution(NamedTuple):
    """A minimum of `cvae_terms`: weights, posterior standard deviations, and the terms there."""

    weights: CvaeWeights
    sigma: Tensor  # (d,)
    terms: Terms


def solve_vae(
    Z: Array,
    d: int,
    *,
    beta: float,
    eta_dec: float = 1.0,
    eta_enc: float = 1.0,
    sigma: Array | None = None,
    seed: int = 0,
    **options: Any,
) -> VaeSolution:
    """Minimum of `vae_terms(...).loss` over U, V and, unless `sigma` (d,) fixes it, Sigma. Z (q, p) or its diagonal."""
    Z = torch.as_tensor(Z, dtype=torch.float64)
    q, p = (len(Z), len(Z)) if Z.ndim == 1 else Z.shape
    shapes, setting = {"U": (q, d), "V": (d, p)}, _setting(beta, eta_dec, eta_enc)

    def terms(w: dict[str, Tensor], log_sigma2: Tensor) -> Terms:
        return vae_terms(w["U"], w["V"], log_sigma2, Z, **setting)

    weights, log_sigma2 = _solve(terms, shapes, d, sigma, seed, options)
    found = terms(weights, log_sigma2)
    return VaeSolution(weights["U"], weights["V"], (0.5 * log_sigma2).exp(), found)


def solve_cvae(
    moments: ConditionalMoments,
    d: int,
    *,
    beta: float,
    eta_dec: float = 1.0,
    eta_enc: float = 1.0,
    sigma: Array | None = None,
    seed: int = 0,
    **options: Any,
) -> CvaeSolution:
    """Minimum of `cvae_terms(...).loss` over W1, W2, U1, U2 and, unless `sigma` (d,) fixes it, Sigma."""
    p, q = moments.C.shape
    shapes = {"W1": (d, p), "W2": (d, q), "U1": (q, d), "U2": (q, p)}
    setting = _setting(beta, eta_dec, eta_enc)

    def terms(w: dict[str, Tensor], log_sigma2: Tensor) -> Terms:
        return cvae_terms(**w, log_sigma2=log_sigma2, moments=moments, **setting)

    weights, log_sigma2 = _solve(terms, shapes, d, sigma, seed, options)
    found = terms(weights, log_sigma2)
    return CvaeSolution(CvaeWeights(**weights), (0.5 * log_sigma2).exp(), found)


def used_columns(U: Tensor) -> Tensor:
    """Which columns of a decoder U (q, d) are longer than COLUMN_SHARE of the longest one, (d,) bool."""
    length = U.norm(dim=0)
    return length > COLUMN_SHARE * length.max()


def active_coordinates(U: Tensor, sigma: Tensor, eta_enc: float = 1.0, *, learnable: bool = True) -> Tensor:
    """Which coordinates a decoder U (q, d) uses, (d,) bool: those of `used_columns` and, where sigma (d,) is learned,
    of these those off eta_enc by more than SIGMA_SHARE of it."""
    used = used_columns(U)
    return used & ((sigma / eta_enc - 1).abs() > SIGMA_SHARE) if learnable else used


def _setting(beta: float, eta_dec: float, eta_enc: float) -> dict[str, Tensor]:
    """As tensors once and for all: the losses are evaluated thousands of times."""
    given = {"beta": beta, "eta_dec": eta_dec, "eta_enc": eta_enc}
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in given.items()}


def _solve(
    terms: Callable[[dict[str, Tensor], Tensor], Terms],
    shapes: dict[str, tuple[int, int]],
    d: int,
    sigma: Array | None,
    seed: int,
    options: dict[str, Any],
) -> tuple[dict[str, Tensor], Tensor]:
    generator, options = torch.Generator().manual_seed(seed), DEFAULTS | options
    start = {
        name: WEIGHT_STD * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    if sigma is None:
        start["log_sigma2"] = torch.zeros(d, dtype=torch.float64)
        found = minimise(lambda p: terms({n: p[n] for n in shapes}, p["log_sigma2"]).loss, start, **options)
        log_sigma2 = found.parameters["log_sigma2"]
    else:
        log_sigma2 = 2 * array("sigma", sigma, "d").log()
        found = minimise(lambda p: terms(p, log_sigma2).loss, start, **options)
    return {name: found.parameters[name] for name in shapes}, log_sigma2
