"""What the tests of the closed forms share: random small linear VAEs, and the images behind the printed numbers."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from collapse_lib import data as image_data
from collapse_lib import transforms
from collapse_lib.theory import ppca
from collapse_lib.theory.spectrum import Spectrum, covariance_spectrum, spectrum_of_covariance


class Case(NamedTuple):
    """Data and a linear VAE that has nothing to do with them."""

    X: Tensor  # (N, n)
    W: Tensor  # (n, k)
    V: Tensor  # (k, n)
    d: Tensor  # (k,)
    sigma2: float
    mu: Tensor  # (n,), not the mean of X


def case(n: int, k: int, N: int, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(N, n)) @ rng.normal(size=(n, n)) + rng.normal(size=n)
    model = rng.normal(size=(n, k)), rng.normal(size=(k, n)) / n, np.exp(rng.normal(size=k)), rng.normal(size=n)
    X, W, V, d, mu = (torch.from_numpy(array) for array in (data, *model))
    return Case(X, W, V, d, float(np.exp(rng.normal())), mu)


@st.composite
def cases(draw: st.DrawFn, wide: bool = False) -> Case:
    """Small random cases with N > n, so that S has full rank; `wide`: N < n."""
    n = draw(st.integers(4, 7) if wide else st.integers(2, 6))
    N = draw(st.integers(2, n - 1)) if wide else n + draw(st.integers(2, 8))
    return case(n, draw(st.integers(1, n)), N, draw(st.integers(0, 2**32 - 1)))


def covariance(X: Tensor, mu: Tensor) -> Tensor:
    return torch.from_numpy(np.einsum("ij,ik->jk", X - mu, X - mu) / len(X))


def diagonal(eigenvalues: list[float]) -> Spectrum:
    """A spectrum with given eigenvalues (descending) along the coordinate axes."""
    return spectrum_of_covariance(torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)))


def rotation(k: int, seed: int) -> Tensor:
    Q, R = np.linalg.qr(np.random.default_rng(seed).normal(size=(k, k)))
    return torch.from_numpy(Q * np.sign(np.diag(R)))


def slope(W: Tensor, sigma2: float, S: Tensor) -> Tensor:
    """d LL / d W of the dense log-likelihood, by automatic differentiation, (n, k)."""
    W = W.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ppca.loglik_dense(W, sigma2, S), W)
    return gradient


class Images(NamedTuple):
    X: Tensor  # (N, 784)
    spectrum: Spectrum


@lru_cache
def images(name: str, N: int, kind: str, root: Path | None = None) -> Images:
    """The first N images, "raw" / 255 or "logit" (alpha 1e-6, RandomState(0))."""
    pixels = image_data.load(name, n=N, root=root).pixels
    raw = transforms.flatten(transforms.scale(pixels, torch.float64))
    X = raw if kind == "raw" else transforms.logit_preprocess(pixels, 1e-6, 0)
    return Images(X, covariance_spectrum(X))
