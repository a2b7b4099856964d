"""Second moments of inputs and targets: all that the linear conditional VAE knows of its data, and in few coordinates.

Data are not centred: moments are taken about 0 and divided by N. See `conditional` for the model,
that of Dang et al. (ICLR 2024); the reduction to few coordinates is derived.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array
from collapse_lib.theory.spectrum import Spectrum, spectrum_of_covariance

# Directions of the input whose second moment is below this share of the largest one are taken to carry nothing.
RANK_CUTOFF = 1e-10

# Eigenvalues of a difference of matrices that are known to double precision.
ROUND_OFF = 1e-13


@dataclass(frozen=True, eq=False)
class ConditionalMoments:
    """All that the linear CVAE knows of its data: A = E[x x^T] (p, p), B = E[y y^T] (q, q), C = E[x y^T] (p, q)."""

    A: Tensor
    B: Tensor
    C: Tensor

    @cached_property
    def whitening(self) -> Tensor:
        """T (rank, p) with T A T^T = I: x~ = T x = Phi^(-1/2) P_A^T x, directions below RANK_CUTOFF left out."""
        modes = spectrum_of_covariance(self.A)
        kept = modes.eigenvalues > RANK_CUTOFF * modes.eigenvalues[0]
        return (modes.eigenvectors[:, kept] / modes.eigenvalues[kept].sqrt()).T

    @cached_property
    def predictor(self) -> Tensor:
        """C^T A^-1 (q, p): the linear regression of y on x; it is the optimal U2 (Theorem 2)."""
        return (self.whitening @ self.C).T @ self.whitening

    @cached_property
    def residual(self) -> Spectrum:
        """Spectrum of E = B - C^T A^-1 C, the second moments of y - C^T A^-1 x: the matrix that decides on collapse.

        Eigenvalues below ROUND_OFF of tr B are what the difference leaves of a zero, and are set to zero.
        """
        cross = self.whitening @ self.C
        ascending, vectors = torch.linalg.eigh(self.B - cross.T @ cross)
        values = torch.where(ascending > ROUND_OFF * self.B.trace(), ascending, 0.0).flip(0)
        origin = values.new_zeros(len(values))
        return Spectrum(origin, origin, values, vectors.flip(1))


class CvaeWeights(NamedTuple):
    """Encoder mean W1 x + W2 y, decoder mean U1 z + U2 x; x has p dimensions, y has q, z has d."""

    W1: Tensor  # (d, p)
    W2: Tensor  # (d, q)
    U1: Tensor  # (q, d)
    U2: Tensor  # (q, p)


class ReducedCvae(NamedTuple):
    """The same problem in few coordinates: x'' = x_map x with E[x'' x''^T] = I, y'' = y_map y in the eigenbasis of E.

    For all weights, L of the `lift`ed ones = L of the reduced ones + dropped / eta_dec^2: nothing is approximated.
    """

    moments: ConditionalMoments
    x_map: Tensor  # (s, p), s <= r
    y_map: Tensor  # (r, q), orthonormal rows
    dropped: float  # sum of e_i over i > r
    predictor: Tensor  # (q, p) of the full problem: dropped directions of y are predicted from x alone

    def lift(self, W1: Tensor, W2: Tensor, U1: Tensor, U2: Tensor) -> CvaeWeights:
        """Weights of the full problem, for x (p,) and y (q,)."""
        rest = self.predictor - self.y_map.T @ (self.y_map @ self.predictor)
        return CvaeWeights(W1 @ self.x_map, W2 @ self.y_map, self.y_map.T @ U1, self.y_map.T @ U2 @ self.x_map + rest)


def cvae_moments(x: Array, y: Array) -> ConditionalMoments:
    """Second moments of inputs x (N, p) and targets y (N, q) about 0, divided by N.

    Raises ValueError if x and y differ in length.
    """
    x, y = t.array("x", x, "N, p"), t.array("y", y, "N, q")
    if len(x) != len(y):
        raise ValueError(f"x has shape {t.shape_of(x)} and y {t.shape_of(y)}: they need equally many rows")
    return ConditionalMoments(x.T @ x / len(x), y.T @ y / len(x), x.T @ y / len(x))


def reduce_cvae(moments: ConditionalMoments, r: int) -> ReducedCvae:
    """The r leading eigen-directions of E, and the at most r directions of whitened x that are correlated with them.

    Exact: see `ReducedCvae`. With r >= d the optimum is the one of the full problem. Raises ValueError unless
    1 <= r <= q.
    """
    r, q = operator.index(r), len(moments.B)
    if not 1 <= r <= q:
        raise ValueError(f"r = {r} directions of a target of dimension {q}: r must lie in 1..{q}")
    modes = moments.residual
    y_map = modes.eigenvectors[:, :r].T
    cross = moments.whitening @ moments.C @ y_map.T
    directions, values, rows = torch.linalg.svd(cross, full_matrices=False)
    reduced = ConditionalMoments(
        torch.eye(len(values), dtype=cross.dtype, device=cross.device),
        y_map @ moments.B @ y_map.T,
        values[:, None] * rows,
    )
    return ReducedCvae(
        reduced,
        directions.T @ moments.whitening,
        y_map,
        float(modes.eigenvalues[r:].sum()),
        moments.predictor,
    )
