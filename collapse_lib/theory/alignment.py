"""Which rotation of the principal directions a decoder has found, and what a rotation costs.

The likelihood of pPCA does not see W -> W R; the ELBO of the linear VAE does, through the rotation gap G. For distinct
eigenvalues its optima are the columns sqrt(l_j - sigma2) u_j in any order and with any sign, and nothing else; between
near-equal eigenvalues a rotation is almost free. So compare decoders after matching order and sign. Derived.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array


class CanonicalRotation(NamedTuple):
    """A decoder turned so that its columns are orthogonal, which the likelihood does not see."""

    W: Tensor  # (p, k) the decoder with orthogonal columns, longest first
    Q: Tensor  # (k, k) orthogonal, W_given Q = W


class ColumnMatch(NamedTuple):
    """`W[:, order] * sign` lines up with the reference columns."""

    order: Tensor  # (m,) int64, the column of W matched to each reference column
    sign: Tensor  # (m,) +1 or -1
    cosine: Tensor  # (m,) |cos| of each pair, in [0, 1]


def pair_gap(eigenvalue_i: Array, eigenvalue_j: Array, angle: Array) -> Tensor:
    """Rotation gap when the optimal columns i and j (both active) are rotated into each other by `angle` (radians).

    G = 1/2 log( 1 + (l_i - l_j)^2 sin^2(2 angle) / (4 l_i l_j) ), whatever sigma2; nats per image; arguments broadcast.
    Raises ValueError if an eigenvalue is not positive.
    """
    l_i = t.positive("eigenvalue_i", t.real("eigenvalue_i", eigenvalue_i))
    l_j = t.positive("eigenvalue_j", t.real("eigenvalue_j", eigenvalue_j))
    sine = (2 * t.real("angle", angle)).sin()
    return 0.5 * torch.log1p(((l_i - l_j) * sine).square() / (4 * l_i * l_j))


def canonical_rotation(W: Array) -> CanonicalRotation:
    """The rotation that makes the columns of W (p, k) orthogonal: W = P diag(c) Q^T (SVD), W Q = P diag(c).

    It keeps the likelihood and removes the rotation gap, so ELBO*(W Q) = LL(W).
    """
    W, _ = t.decoder(W, None)
    # Q has to be square also where a restricted W has fewer rows than columns.
    _, _, rows = torch.linalg.svd(W, full_matrices=W.shape[0] < W.shape[1])
    return CanonicalRotation(W @ rows.T, rows.T)


def match_columns(W: Array, reference: Array) -> ColumnMatch:
    """Pair each column of `reference` (n, m) with a column of its own of W (n, k), m <= k: the largest sum of |cos|.

    Hungarian method (scipy). A zero column has cosine 0 with everything, and sign +1.
    Raises ValueError if the row counts differ or m > k.
    """
    W, reference = t.array("W", W, "n, k"), t.array("reference", reference, "n, m")
    if W.shape[0] != reference.shape[0] or W.shape[1] < reference.shape[1]:
        raise ValueError(
            f"W has shape {t.shape_of(W)} and reference {t.shape_of(reference)}: "
            "they need equally many rows, and W no fewer columns"
        )
    cosine = torch.nn.functional.normalize(reference, dim=0).T @ torch.nn.functional.normalize(W, dim=0)
    rows, columns = linear_sum_assignment(cosine.detach().abs().cpu().numpy(), maximize=True)
    order = torch.as_tensor(columns, device=W.device)
    paired = cosine[torch.as_tensor(rows, device=W.device), order]
    return ColumnMatch(order, torch.where(paired < 0, -1.0, 1.0).to(paired), paired.abs().clamp_max(1))


def mutual_coherence(W: Array) -> float:
    """Largest |cos| between two different columns of W (p, k), in [0, 1]: zero iff W^T W is diagonal.

    A zero column has cosine 0 with everything; 0 for a single column. The name is that of sparse coding.
    """
    columns = torch.nn.functional.normalize(t.array("W", W, "p, k"), dim=0)
    return float((columns.T @ columns).fill_diagonal_(0).abs().max().clamp_max(1))


def sorted_gap(learned: Array, theory: Array) -> float:
    """Relative error of sorted singular values: max_i |a_i - b_i| / max_i b_i, both (m,) sorted decreasingly.

    If all b_i are 0: max_i |a_i|. Raises ValueError if the lengths differ.
    """
    learned, theory = t.array("learned", learned, "m"), t.array("theory", theory, "m")
    t.expect_shape("learned", learned, tuple(theory.shape), "one value each")
    a, b = (values.sort(descending=True).values for values in (learned, theory))
    largest = float(b.abs().max())
    return float((a - b).abs().max()) / (largest if largest > 0 else 1.0)
