"""Input checks and linear algebra that the closed forms share.

Every public function of this package takes torch tensors, numpy arrays or floats, works in float64 on the device of
its tensors, and lets autograd through. float32 (and half) input is converted; integers and complex numbers raise
TypeError; a wrong shape, an empty or non-finite array, or a variance that is not positive raises ValueError.
"""

from __future__ import annotations

import operator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Array: TypeAlias = Tensor | ArrayLike

# Eigenvalues (or variances) below zero by less than this share of the largest one are round-off and are set to zero.
ROUND_OFF = 1e-8


def shape_of(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def real(name: str, value: Array) -> Tensor:
    """`value` as a finite float64 tensor of any shape; a Python int passes for a float, an integer array does not."""
    if isinstance(value, Tensor):
        tensor, dtype, is_real = value, str(value.dtype), value.is_floating_point()
    else:
        plain = np.asarray(float(value) if isinstance(value, int) else value)
        dtype, is_real = str(plain.dtype), plain.dtype.kind == "f"
        # np.array copies: from_numpy would warn on a read-only array and share a writable one.
        tensor = torch.from_numpy(np.array(plain, dtype=np.float64)) if is_real else torch.empty(plain.shape)
    if not is_real:
        raise TypeError(
            f"{name} must hold real floating-point numbers, got {dtype} of shape {shape_of(tensor)}; "
            "convert it first (pixels: x / 255)"
        )
    tensor = tensor.to(torch.float64)
    bad = int((~torch.isfinite(tensor.detach())).sum())
    if bad:
        raise ValueError(f"{name} of shape {shape_of(tensor)} has {bad} entries that are nan or infinite")
    return tensor


def array(name: str, value: Array, dims: str) -> Tensor:
    """`value` as a float64 tensor with as many axes as `dims` names, e.g. "N, n"; no axis may be empty."""
    tensor = real(name, value)
    if tensor.ndim != len(dims.split(",")):
        raise ValueError(f"{name} must have shape ({dims}), got {shape_of(tensor)}")
    if tensor.numel() == 0:
        raise ValueError(f"{name} of shape ({dims}) is empty, got {shape_of(tensor)}")
    return tensor


def scalar(name: str, value: Array) -> Tensor:
    tensor = real(name, value)
    if tensor.ndim:
        raise ValueError(f"{name} must be one number, got shape {shape_of(tensor)}")
    return tensor


def positive(name: str, tensor: Tensor) -> Tensor:
    if bool((tensor.detach() <= 0).any()):
        raise ValueError(f"{name} must be positive, got {float(tensor.detach().min()):.6g} (shape {shape_of(tensor)})")
    return tensor


def variance(name: str, value: Array) -> Tensor:
    return positive(name, scalar(name, value))


def expect_shape(name: str, tensor: Tensor, shape: tuple[int, ...], why: str) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {shape_of(tensor)}, expected {shape}: {why}")
    return tensor


def centred(X: Array, mu: Array, n: int) -> Tensor:
    """X - mu for images X (N, n) and an offset mu (n,)."""
    mu, X = array("mu", mu, "n"), array("X", X, "N, n")
    if tuple(mu.shape) != (n,) or X.shape[1] != n:
        raise ValueError(f"X has shape {shape_of(X)} and mu {shape_of(mu)}, expected (N, {n}) and ({n},)")
    return X - mu


def latents(k: int, n: int, least: int) -> int:
    k = operator.index(k)
    if not least <= k <= n:
        raise ValueError(f"k = {k} latents for data of dimension n = {n}: k must lie in {least}..{n}")
    return k


def decoder(W: Array, n: int | None) -> tuple[Tensor, int]:
    """W as (p, k) tensor and the data dimension n >= p (p by default), with 1 <= k <= n."""
    W = array("W", W, "p, k")
    p, k = W.shape
    n = p if n is None else operator.index(n)
    if n < p:
        raise ValueError(f"n = {n} is smaller than the number of rows of W, whose shape is {shape_of(W)}")
    latents(k, n, least=1)
    return W, n


def covariance(S: Array, p: int) -> Tensor:
    """S as (p, p) symmetric tensor, or (p,) when it is diagonal: its eigenvalues, with W written in its eigenbasis."""
    S = real("S", S)
    if tuple(S.shape) not in {(p, p), (p,)}:
        raise ValueError(f"S has shape {shape_of(S)}, expected ({p}, {p}) or, if diagonal, ({p},): W has {p} rows")
    values = S.detach()
    size = float(values.abs().max())
    if S.ndim == 2 and float((values - values.T).abs().max()) > ROUND_OFF * size:
        raise ValueError(f"S of shape {shape_of(S)} is not symmetric")
    variances = values if S.ndim == 1 else values.diagonal()
    if float(variances.min()) < -ROUND_OFF * size:
        raise ValueError(f"S of shape {shape_of(S)} holds a negative variance, {float(variances.min()):.6g}")
    return S


def times(S: Tensor, matrix: Tensor) -> Tensor:
    """S @ matrix, at the cost of a scaling when S is diagonal."""
    return S[:, None] * matrix if S.ndim == 1 else S @ matrix


def trace(S: Tensor) -> Tensor:
    return S.sum() if S.ndim == 1 else S.diagonal().sum()


def gram(W: Tensor, sigma2: Tensor) -> Tensor:
    """M = W^T W + sigma2 I, (k, k)."""
    return W.T @ W + sigma2 * torch.eye(W.shape[1], dtype=W.dtype, device=W.device)


def cholesky(name: str, matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise ValueError(
            f"{name} of shape {shape_of(matrix)} is not positive definite in float64: sigma2 is too small against W, "
            "whose columns are nearly dependent; raise sigma2 or take fewer latents"
        )
    return factor


def log_det(factor: Tensor) -> Tensor:
    """log det of the matrix whose Cholesky factor is given."""
    return 2 * factor.diagonal().log().sum()
