"""The spectrum of a data covariance: all that the closed forms need to know about the data.

S = (1/N) sum_i (x_i - mu)(x_i - mu)^T with 1/N, NOT 1/(N-1): only then is the exact log-likelihood the mean over the
images that an ELBO is compared with (see `ppca.bessel_offset`). mu is the data mean, or an offset b of the caller's, in
which case S_b = S + (mean - b)(mean - b)^T. Units: squared data units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from collapse_lib.theory._tensors import ROUND_OFF, Array, array, expect_shape, shape_of

Route = Literal["auto", "primal", "dual"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues l_1 >= ... >= l_p >= 0 of S with their eigenvectors; the n - p eigenvalues not stored are zero."""

    mean: Tensor  # (n,) mean of the data
    mu: Tensor  # (n,) point about which S is taken: the mean, or the offset asked for
    eigenvalues: Tensor  # (p,) descending
    eigenvectors: Tensor  # (n, p) orthonormal columns u_j

    @property
    def n(self) -> int:
        """Data dimension."""
        return self.eigenvectors.shape[0]

    @property
    def trace(self) -> float:
        """tr S = sum_j l_j."""
        return float(self.eigenvalues.sum())

    @property
    def rank(self) -> int:
        """Number of eigenvalues above the round-off of the largest one, n * 2.2e-16 * l_1."""
        return int((self.eigenvalues > self.n * torch.finfo(torch.float64).eps * self.eigenvalues[0]).sum())

    @cached_property
    def covariance(self) -> Tensor:
        """S, (n, n), about `mu`."""
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T

    def covariance_about(self, offset: Array) -> Tensor:
        """S_b = S + (mean - b)(mean - b)^T, (n, n), the covariance that a model with offset b (n,) sees."""
        b = expect_shape("offset", array("offset", offset, "n"), (self.n,), "one entry a data dimension")
        new, old = self.mean - b, self.mean - self.mu
        return self.covariance + torch.outer(new, new) - torch.outer(old, old)

    def leading(self, k: int) -> Tensor:
        """The k largest eigenvalues, (k,), zeros included."""
        stored = self.eigenvalues[:k]
        return torch.cat([stored, stored.new_zeros(k - len(stored))])


def covariance_spectrum(X: Array, *, offset: Array | None = None, route: Route = "auto") -> Spectrum:
    """Spectrum of the covariance of the rows of X (N, n), with 1/N, about their mean or about `offset` (n,).

    "primal" diagonalises S (n x n) and stores p = n eigenvalues; "dual" takes l_j = c_j^2 / N from the singular values
    c_j of the centred X and stores p = min(N, n) of them, without ever forming S; "auto" is dual when n > N.

    Raises ValueError for an unknown route, and as all of the package does (see `_tensors`).
    """
    X = array("X", X, "N, n")
    count, n = X.shape
    mean = X.mean(0)
    mu = mean if offset is None else array("offset", offset, "n")
    centred = X - expect_shape("offset", mu, (n,), f"X has shape {shape_of(X)}")
    match "dual" if route == "auto" and n > count else route:
        case "dual":
            _, singular, right = torch.linalg.svd(centred, full_matrices=False)
            return Spectrum(mean, mu, singular.square() / count, right.T.contiguous())
        case "primal" | "auto":
            eigenvalues, eigenvectors = _eigh(centred.T @ centred / count)
            return Spectrum(mean, mu, eigenvalues, eigenvectors)
    raise ValueError(f"unknown route {route!r}: choose 'auto', 'primal' or 'dual'")


def spectrum_of_covariance(S: Array, mean: Array | None = None) -> Spectrum:
    """Spectrum of a covariance (n, n) that is known as a matrix, of data with the given mean (n,), zero by default.

    Raises ValueError if S is not symmetric or has a clearly negative eigenvalue (below -1e-8 of the largest); smaller
    negative ones are set to zero.
    """
    S = array("S", S, "n, n")
    n = S.shape[0]
    expect_shape("S", S, (n, n), "a covariance is square")
    if float((S - S.T).abs().max()) > ROUND_OFF * float(S.abs().max()):
        raise ValueError(f"S of shape {shape_of(S)} is not symmetric")
    centre = S.new_zeros(n) if mean is None else expect_shape("mean", array("mean", mean, "n"), (n,), "S is n x n")
    eigenvalues, eigenvectors = _eigh(S)
    return Spectrum(centre, centre, eigenvalues, eigenvectors)


def _eigh(S: Tensor) -> tuple[Tensor, Tensor]:
    ascending, vectors = torch.linalg.eigh(S)
    if float(ascending[0]) < -ROUND_OFF * float(ascending[-1].abs()):
        raise ValueError(
            f"S of shape {shape_of(S)} is not a covariance: its eigenvalues run from {float(ascending[0]):.6g} to "
            f"{float(ascending[-1]):.6g}; compute it in float64 from centred data"
        )
    return ascending.flip(0).clamp_min(0), vectors.flip(1)
