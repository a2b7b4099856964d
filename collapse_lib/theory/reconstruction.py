"""Reconstruction errors of PCA and its relatives: who shares the subspace, who shrinks, and how to undo it.

Errors are E ||x - xhat||^2, summed over dimensions, mean over images, in squared data units. W is (n, k),
M = W^T W + sigma2 I. PCA, the linear autoencoder, pPCA and the linear VAE span the same k directions at their optima;
pPCA and the linear VAE pull every coordinate along u_j towards the mean by the factor 1 - sigma2/l_j.

Sources: Tipping and Bishop, J. R. Statist. Soc. B 61 (1999), section 3.3, for the shrinkage and its removal; Baldi and
Hornik, Neural Networks 2 (1989), for the linear autoencoder; the error formulas are derived.
"""

from __future__ import annotations

import torch
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array
from collapse_lib.theory.spectrum import Spectrum


def pca_error(spectrum: Spectrum, k: int) -> float:
    """The least error of any linear code of size k: sum_{j>k} l_j."""
    return float(spectrum.eigenvalues[t.latents(k, spectrum.n, least=0) :].sum())


def shrinkage(spectrum: Spectrum, k: int, sigma2: Array) -> Tensor:
    """Factors (k,) by which the optimal pPCA multiplies the coordinates along u_1..u_k: 1 - sigma2/l_j, else 0.

    For sigma2 = sigma2* (learned) or any fixed one; a direction with l_j <= sigma2 has collapsed and gets 0.
    """
    variance = t.variance("sigma2", sigma2)
    eigenvalues = spectrum.leading(t.latents(k, spectrum.n, least=1))
    active = eigenvalues > variance
    return torch.where(active, 1 - variance / eigenvalues.where(active, torch.ones_like(eigenvalues)), 0.0)


def posterior_mean_error(spectrum: Spectrum, k: int, sigma2: Array) -> float:
    """Error of the optimal pPCA for a given sigma2 when it decodes the posterior mean.

    sum_{j>k} l_j + sum_{j<=k} sigma2^2 / l_j; a direction with l_j <= sigma2 costs l_j. Never below `pca_error`.
    """
    lost = 1 - shrinkage(spectrum, k, sigma2)
    return pca_error(spectrum, k) + float((lost.square() * spectrum.leading(k)).sum())


def unshrink(W: Array, sigma2: Array) -> Tensor:
    """The decoder (n, k) that turns posterior means into projections on the span of W: W (W^T W)^-1 M.

    unshrink(W, sigma2) m(x) = P (x - mu), P the orthogonal projection: the PCA reconstruction if W spans u_1..u_k.
    Raises ValueError if the columns of W are linearly dependent (a collapsed latent): leave those out first.
    """
    W, _ = t.decoder(W, None)
    sigma2 = t.variance("sigma2", sigma2)
    rank = int(torch.linalg.matrix_rank(W.detach()))
    if rank < W.shape[1]:
        raise ValueError(f"W {t.shape_of(W)} has rank {rank}: leave collapsed columns out, they carry no direction")
    # W (W^T W)^-1 is the transposed pseudo-inverse; by QR, whose condition is that of W, not its square.
    Q, R = torch.linalg.qr(W)
    return W + sigma2 * torch.linalg.solve_triangular(R, Q.T, upper=True).T
