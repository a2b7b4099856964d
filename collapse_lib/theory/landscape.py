"""The likelihood surface of pPCA around its stationary points, at fixed sigma2.

With s = sigma2: at a stationary point the columns of W are sqrt(l_j - s) u_j for j in a used set A (all with l_j > s),
up to a rotation, and the rest are zero: collapsed latents. A zero column sees curvature (l_j - s)/s^2 along an unused
u_j, so a collapsed point is a saddle as long as some unused l_j > s, and no zero column can grow once s exceeds them
all: it is a LARGE s that stabilises collapse. Nats per image; derived, where no source is named.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory import linear_vae, ppca
from collapse_lib.theory._tensors import Array
from collapse_lib.theory.ppca import used_mask
from collapse_lib.theory.spectrum import Spectrum


class HessianSpectrum(NamedTuple):
    """All n k eigenvalues of the Hessian of LL in W, by direction; z = number of zero columns, A = used set."""

    zero_column: Tensor  # (n - |A|,) zero column towards the unused u_j; each z times
    swing: Tensor  # (|A|, n - |A|) used column i turns towards the unused u_j
    radial: Tensor  # (|A|,) length of a used column
    shear: Tensor  # (|A| (|A| - 1) / 2,) two used columns change their angle
    zero_columns: int  # z
    flat: int  # zero eigenvalues: rotations among used columns, and zero columns towards used u_i

    @property
    def positive(self) -> int:
        """Number of ascent directions: z #{ j unused: l_j > sigma2 } + #{ (i in A, j unused): l_j > l_i }."""
        return self.zero_columns * int((self.zero_column > 0).sum()) + int((self.swing > 0).sum())

    @property
    def eigenvalues(self) -> Tensor:
        """(n k,), ascending."""
        flat = self.radial.new_zeros(self.flat)
        parts = [self.zero_column.repeat(self.zero_columns), self.swing.flatten(), self.radial, self.shear, flat]
        return torch.cat(parts).sort().values


class NumericalSpectra(NamedTuple):
    """Eigenvalues of three Hessians at one point, each ascending; nats per image."""

    loglik: Tensor  # (n k,) LL in W
    profile: Tensor  # (n k,) ELBO at the best encoder, in W
    elbo: Tensor  # (2 n k + k,) ELBO in W, V and log d, the encoder being the best one


def stationary_decoder(spectrum: Spectrum, used: Iterable[int], zero_columns: int, sigma2: Array) -> Tensor:
    """W (n, |A| + z): the columns sqrt(l_j - sigma2) u_j for j in A = `used` (indices from 0, in order), then z zeros.

    A stationary point of LL and, with its best encoder, of the ELBO; its value is `ppca.stationary_value`.
    Raises ValueError unless l_j > sigma2 on A and 1 <= |A| + z <= n. Tipping and Bishop (1999), appendix A.
    """
    variance = t.variance("sigma2", sigma2)
    mask = used_mask(spectrum, used, float(variance))
    if zero_columns < 0:
        raise ValueError(f"zero_columns = {zero_columns} is negative")
    t.latents(int(mask.sum()) + zero_columns, spectrum.n, least=1)
    mask = mask[: len(spectrum.eigenvalues)]
    columns = spectrum.eigenvectors[:, mask] * (spectrum.eigenvalues[mask] - variance).sqrt()
    return torch.cat([columns, columns.new_zeros(spectrum.n, zero_columns)], 1)


def curvature(eigenvalue: Array, sigma2: Array) -> Tensor:
    """d2 LL/dt2 at t = 0 of a zero column moved to t u_j, j unused: (l_j - s)/s^2. `eigenvalue` of any shape.

    Positive: an ascent direction, the collapsed latent comes alive. Lucas et al. (2019) make
    the argument; the value is derived.
    """
    eigenvalue, sigma2 = _eigenvalue("eigenvalue", eigenvalue), t.variance("sigma2", sigma2)
    return (eigenvalue - sigma2) / sigma2.square()


def slice_1d(step: Array, eigenvalue: Array, sigma2: Array, *, used: bool = False) -> Tensor:
    """LL(t) - LL(0) when a zero column of W moves to t u_j, for every t in `step`.

    j unused: -1/2 [ log(1 + t^2/s) + l_j/(s + t^2) - l_j/s ]
    j used:   -1/2 [ log(1 + t^2/l_j) + 1/(1 + t^2/l_j) - 1 ] = -t^4/(4 l_j^2) + O(t^6): no curvature

    Exact for every t. Raises ValueError if a used eigenvalue is not above sigma2.
    """
    squared = t.real("step", step).square()
    eigenvalue, sigma2 = _eigenvalue("eigenvalue", eigenvalue), t.variance("sigma2", sigma2)
    if not used:
        # l/(s + t^2) - l/s, written without the cancellation
        return -0.5 * (torch.log1p(squared / sigma2) - eigenvalue * squared / (sigma2 * (sigma2 + squared)))
    if bool((eigenvalue <= sigma2).any()):
        raise ValueError(
            f"a used direction has an eigenvalue above sigma2 = {float(sigma2):.6g}, got {eigenvalue.tolist()}"
        )
    ratio = squared / eigenvalue
    return -0.5 * (torch.log1p(ratio) - ratio / (1 + ratio))


def surface_2d(a: Array, b: Array, eigenvalue_a: Array, eigenvalue_b: Array, sigma2: Array) -> Tensor:
    """LL(a, b) - LL(0, 0) when a zero column of W moves to a u_i + b u_j, i and j unused; a and b broadcast.

    With q = a^2 + b^2:  -1/2 [ log(1 + q/s) - (l_i a^2 + l_j b^2) / (s (s + q)) ]

    Exact for every (a, b); the perturbation is that of Lucas et al. (2019).
    """
    squared_a, squared_b = t.real("a", a).square(), t.real("b", b).square()
    l_a, l_b = _eigenvalue("eigenvalue_a", eigenvalue_a), _eigenvalue("eigenvalue_b", eigenvalue_b)
    sigma2 = t.variance("sigma2", sigma2)
    q = squared_a + squared_b
    return -0.5 * (torch.log1p(q / sigma2) - (l_a * squared_a + l_b * squared_b) / (sigma2 * (sigma2 + q)))


def hessian_spectrum(spectrum: Spectrum, used: Iterable[int], zero_columns: int, sigma2: Array) -> HessianSpectrum:
    """Hessian of LL in W (n k eigenvalues) where A = `used` (indices from 0), z = `zero_columns`, columns orthogonal.

    zero column towards unused u_j               (l_j - s)/s^2, z times each
    used column swings from u_i to unused u_j    (l_j - l_i)/(s l_i)
    length of used column i                      -2 (l_i - s)/l_i^2
    used columns i and j towards each other      -(l_i + l_j - 2 s)/(l_i l_j)
    rotations; zero column towards used u_i      0

    The profile ELBO and the full ELBO of a linear VAE have the same number of positive eigenvalues there. Derived.
    Raises ValueError unless l_j > sigma2 on A and 1 <= |A| + z <= n.
    """
    sigma2 = t.variance("sigma2", sigma2)
    mask = used_mask(spectrum, used, float(sigma2))
    zero_columns, size = operator.index(zero_columns), int(mask.sum())
    if zero_columns < 0:
        raise ValueError(f"zero_columns = {zero_columns} is negative")
    t.latents(size + zero_columns, spectrum.n, least=1)
    eigenvalues = spectrum.leading(spectrum.n)
    inside, outside = eigenvalues[mask], eigenvalues[~mask]
    i, j = torch.triu_indices(size, size, offset=1, device=inside.device)
    return HessianSpectrum(
        zero_column=(outside - sigma2) / sigma2.square(),
        swing=(outside - inside[:, None]) / (sigma2 * inside[:, None]),
        radial=-2 * (inside - sigma2) / inside.square(),
        shear=-(inside[i] + inside[j] - 2 * sigma2) / (inside[i] * inside[j]),
        zero_columns=zero_columns,
        flat=size * (size - 1) // 2 + zero_columns * size,
    )


def numerical_spectra(spectrum: Spectrum, used: Iterable[int], zero_columns: int, sigma2: Array) -> NumericalSpectra:
    """What `hessian_spectrum` predicts, by brute force: automatic differentiation of LL and of both ELBOs.

    LL goes through the dense n x n covariance. Meant for small n: the last Hessian has (2 n k + k)^2 entries.
    Raises ValueError as `stationary_decoder` does.
    """
    sigma2, S = t.variance("sigma2", sigma2), spectrum.covariance
    W = stationary_decoder(spectrum, used, zero_columns, sigma2)
    V, d = linear_vae.best_encoder(W, sigma2)

    def full(x: Tensor) -> Tensor:
        w, v, log_d = x.split([W.numel(), V.numel(), len(d)])
        return linear_vae.elbo(w.view_as(W), v.view_as(V), log_d.exp(), sigma2, S).elbo

    def eigenvalues(value: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(torch.autograd.functional.hessian(value, x))

    return NumericalSpectra(
        eigenvalues(lambda w: ppca.loglik_dense(w.view_as(W), sigma2, S), W.flatten()),
        eigenvalues(lambda w: linear_vae.profile_elbo(w.view_as(W), sigma2, S), W.flatten()),
        eigenvalues(full, torch.cat([W.flatten(), V.flatten(), d.log()])),
    )


def elbo_escape_rate(eigenvalue: Array, sigma2: Array) -> Tensor:
    """Top Hessian eigenvalue of the full ELBO at a collapsed latent (w = 0, v = 0, d = 1), `eigenvalue` of any shape.

    In the plane (decoder along u_j, encoder along u_j) the Hessian is [[-1/s, l_j/s], [l_j/s, -l_j]], so the rate is
    1/2 [ -(1/s + l_j) + sqrt( (1/s - l_j)^2 + 4 l_j^2/s^2 ) ], positive iff l_j > s: how fast gradient ascent leaves.
    """
    eigenvalue, sigma2 = _eigenvalue("eigenvalue", eigenvalue), t.variance("sigma2", sigma2)
    decay = 1 / sigma2 + eigenvalue
    root = ((1 / sigma2 - eigenvalue).square() + 4 * (eigenvalue / sigma2).square()).sqrt()
    # -det / (minus the bottom eigenvalue): the same number without cancellation near l_j = s
    return 2 * eigenvalue * (eigenvalue - sigma2) / sigma2.square() / (decay + root)


def _eigenvalue(name: str, value: Array) -> Tensor:
    tensor = t.real(name, value)
    if bool((tensor.detach() < 0).any()):
        raise ValueError(f"{name} must not be negative, got {float(tensor.detach().min()):.6g}")
    return tensor
