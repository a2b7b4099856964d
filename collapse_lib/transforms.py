"""Transforms of image tensors that the documents use: pure functions, random only through their arguments.

Pixels are uint8 (N, H, W) or, in colour, (N, 3, H, W), as `collapse_lib.data.load` gives them; everything else is
floating point. A wrong dtype is a
TypeError, a wrong shape a ValueError. Values are checked only by what runs once (`binarise_static`): a check of values
waits for the device, and the others may stand in a training loop.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Centred(NamedTuple):
    """x: data less its mean, shape of the data; mean: shape of one datum."""

    x: Tensor
    mean: Tensor


class Quadrants(NamedTuple):
    """The four quarters of images (N, H, W), each (N, H/2, W/2): views, not copies."""

    top_left: Tensor
    top_right: Tensor
    bottom_left: Tensor
    bottom_right: Tensor


class Completion(NamedTuple):
    """Images cut for conditional models (arXiv 2306.05023), flattened."""

    x: Tensor  # (N, HW/4) the bottom left quadrant: given
    y: Tensor  # (N, 3HW/4) top left, top right and bottom right, one after the other: to be added


def scale(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """pixels / 255, in [0, 1], of the same shape."""
    _require_uint8(pixels)
    return pixels.to(dtype) / 255


def flatten(x: Tensor) -> Tensor:
    """(N, ...) -> (N, D), row by row."""
    if x.ndim < 2:
        raise ValueError(f"flatten needs (N, ...) with at least two axes, got {_shape(x)}")
    return x.reshape(len(x), -1)


def pad(pixels: Tensor, multiple: int) -> Tensor:
    """A border of zeros around images (..., H, W) of any dtype, so that both sides become multiples of `multiple`.

    The least border that does it; where it is odd, the wider half comes last. A net of L convolutions of stride 2 wants
    multiples of 2^L: with L = 3, 28x28 becomes 32x32, and 64x64 comes back as it is.
    """
    if pixels.ndim < 3 or multiple < 1:
        raise ValueError(
            f"pad needs images (N, H, W) or (N, C, H, W) and a positive multiple, got {_shape(pixels)} and {multiple}"
        )
    height, width = (-side % multiple for side in pixels.shape[-2:])
    return torch.nn.functional.pad(pixels, (width // 2, width - width // 2, height // 2, height - height // 2))


def centre(x: Tensor) -> Centred:
    """x - mean, where mean = 1/N sum_n x_n; x: (N, ...)."""
    _require_floating("centre", x)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"centre needs (N, ...) with N >= 1 and at least two axes, got {_shape(x)}")
    mean = x.mean(dim=0)
    return Centred(x - mean, mean)


def dequantise(pixels: Tensor, u: Tensor) -> Tensor:
    """(pixels + u) / 256, in [0, 1) for noise u in [0, 1) of the same shape; in the dtype of u.

    Turns the probability of a grey value into the density over its cell, so that densities are bounded (Uria et al.
    2013; Papamakarios et al. 2017).
    """
    _require_uint8(pixels)
    _require_floating("dequantise", u)
    if pixels.shape != u.shape:
        raise ValueError(f"dequantise needs noise of the shape of the pixels, got {_shape(u)} for {_shape(pixels)}")
    return (pixels.to(u.dtype) + u) / 256


def logit(y: Tensor, alpha: float) -> Tensor:
    """log(v / (1 - v)) with v = alpha + (1 - 2 alpha) y, for y in [0, 1]; same shape and dtype.

    Bounded by +- log((1 - alpha) / alpha). alpha: 1e-6 for MNIST, 0.05 for natural images (Papamakarios et al. 2017,
    Masked autoregressive flow; Dinh et al. 2017, Real NVP). A likelihood of the result is a density in logit space: no
    log-Jacobian is added anywhere.
    """
    _require_floating("logit", y)
    _require_alpha("logit", alpha)
    return torch.logit(alpha + (1 - 2 * alpha) * y)


def unlogit(x: Tensor, alpha: float) -> Tensor:
    """The y of which x is the `logit`, (sigmoid(x) - alpha) / (1 - 2 alpha); same shape and dtype.

    What a model makes up may lie beyond the bounds of the logit, and then comes out a little below 0 or above 1.
    """
    _require_floating("unlogit", x)
    _require_alpha("unlogit", alpha)
    return (torch.sigmoid(x) - alpha) / (1 - 2 * alpha)


def logit_preprocess(pixels: Tensor, alpha: float = 1e-6, seed: int = 0) -> Tensor:
    """logit(dequantise(pixels, u), alpha), flattened: (N, ...) uint8 -> (N, D) float64 on the device of the pixels.

    The noise is `numpy.random.RandomState(seed).rand(N, D)`, a stream that numpy keeps for good, so that numbers
    computed from it can be compared exactly; the noise of the first images does not depend on N.
    """
    _require_uint8(pixels)
    flat = flatten(pixels)
    return logit(dequantise(flat, _fixed_uniform(flat, seed)), alpha)


def binarise_static(x: Tensor, seed: int) -> Tensor:
    """One draw b ~ Bernoulli(x) for the whole of training; x in [0, 1], result 0 or 1 in its shape and dtype.

    b = [u < x] with u = `numpy.random.RandomState(seed).rand` of the shape of x. The rule of Salakhutdinov and Murray
    2008; their file of binarised MNIST is another draw, so likelihoods differ a little from results on it.
    """
    _require_floating("binarise_static", x)
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(f"binarise_static needs values in [0, 1], got {x.min().item():.4g} to {x.max().item():.4g}")
    return (_fixed_uniform(x, seed) < x).to(x.dtype)


def binarise_dynamic(x: Tensor, u: Tensor) -> Tensor:
    """[u < x], a draw of Bernoulli(x), for uniform noise u in [0, 1) drawn anew at every visit (Burda et al. 2016).

    x in [0, 1] and u of the same shape; result 0 or 1 in the dtype of x.
    """
    _require_floating("binarise_dynamic", x)
    _require_floating("binarise_dynamic", u)
    if x.shape != u.shape:
        raise ValueError(f"binarise_dynamic needs noise of the shape of the data, got {_shape(u)} for {_shape(x)}")
    return (u < x).to(x.dtype)


def random_split(x: Tensor, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Disjoint random parts of `x` (N, ...) of the given sizes, which need not add up to N; the same for a seed.

    The permutation is `numpy.random.RandomState(seed).permutation(N)`, a stream that numpy keeps for good.
    """
    if min(sizes) < 1 or sum(sizes) > len(x):
        raise ValueError(f"random_split needs positive sizes of at most {len(x)} in all, got {list(sizes)}")
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(x))[: sum(sizes)])
    return list(x[order.to(x.device)].split(list(sizes)))


def quadrants(x: Tensor) -> Quadrants:
    """The four quarters of images (N, H, W) of any dtype, H and W even.

    The conditional models take `bottom_left` as input and (`top_left`, `top_right`, `bottom_right`) as output
    (arXiv 2306.05023).
    """
    if x.ndim != 3 or x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"quadrants needs images (N, H, W) with even H and W, got {_shape(x)}")
    h, w = x.shape[1] // 2, x.shape[2] // 2
    return Quadrants(x[:, :h, :w], x[:, :h, w:], x[:, h:, :w], x[:, h:, w:])


def join_quadrants(quarters: Quadrants) -> Tensor:
    """The images (N, H, W) whose `quadrants` are these; four quarters of one shape (N, H/2, W/2)."""
    if quarters.top_left.ndim != 3 or len({quarter.shape for quarter in quarters}) > 1:
        raise ValueError(f"join_quadrants needs four quarters (N, H, W) alike, got {[_shape(q) for q in quarters]}")
    top = torch.cat([quarters.top_left, quarters.top_right], 2)
    return torch.cat([top, torch.cat([quarters.bottom_left, quarters.bottom_right], 2)], 1)


def completion_pairs(x: Tensor) -> Completion:
    """What a conditional model is given of images (N, H, W), H and W even, and what it is to add: see `Completion`."""
    quarters = quadrants(x)
    outer = (quarters.top_left, quarters.top_right, quarters.bottom_right)
    return Completion(flatten(quarters.bottom_left), torch.cat([flatten(quarter) for quarter in outer], 1))


def completed_images(x: Tensor, y: Tensor, size: tuple[int, int]) -> Tensor:
    """The images (N, *size) whose `completion_pairs` are `x` and `y`, for a `y` that a model made up too."""
    height, width = size
    top_left, top_right, bottom_right = y.reshape(len(y), 3, height // 2, width // 2).unbind(1)
    return join_quadrants(Quadrants(top_left, top_right, x.reshape(top_left.shape), bottom_right))


def _fixed_uniform(x: Tensor, seed: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).rand(*x.shape)).to(x.device)


def _shape(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)}"


def _require_uint8(pixels: Tensor) -> None:
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels must be uint8, as loaded, got {_shape(pixels)}")


def _require_floating(function: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{function} needs floating point values, got {_shape(x)}; `scale` turns pixels into them")


def _require_alpha(function: str, alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise ValueError(f"{function} needs 0 < alpha < 0.5, got alpha = {alpha}")
