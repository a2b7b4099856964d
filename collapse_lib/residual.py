"""Residual convolutional encoders and decoders with batch norm, and what of a batch such a net remembers.

`residual_encoder` and `residual_decoder` are the nets in the code of Song et al. 2025. In training
mode batch norm uses the batch's own mean and variance and moves its running statistics towards them; in evaluation mode
it uses those. Where a training step passes two kinds of batch, the running statistics are a mixture of both:
`untracked` keeps one kind out of them, `by_batch` evaluates without them.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Model = TypeVar("Model", bound=nn.Module)

SLOPE = 0.01  # of every LeakyReLU


class ResidualBlock(nn.Module):
    """(batch, n_in, H, W) -> (batch, n_out, H/stride, W/stride), odd sides halved upwards: LeakyReLU( f(x) + s(x) ).

    f = conv3x3(stride)-BN-LeakyReLU-conv3x3-BN; s = identity, or conv1x1(stride)-BN where the shape changes.
    """

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1),
            nn.BatchNorm2d(n_out),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(n_out, n_out, 3, padding=1),
            nn.BatchNorm2d(n_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if n_in != n_out or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=stride), nn.BatchNorm2d(n_out))
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.inner(x) + self.shortcut(x))


def residual_encoder(shape: tuple[int, int, int], channels: Sequence[int], out: int) -> nn.Sequential:
    """Flat images (batch, C H W) -> (batch, out): a block of stride 2 and one of stride 1 for each of `channels`, then
    Linear(out)-BN-LeakyReLU-Linear(out).

    Every stride halves the image, upwards where a side is odd (28 -> 14 -> 7 -> 4). With (1, 28, 28), channels (32, 64,
    128) and out = 64 it has 822,112 weights.
    """
    (height, width), *_ = reversed(_sides(shape, channels))
    layers: list[nn.Module] = [nn.Unflatten(-1, shape)]
    for n_in, n_out in pairwise([shape[0], *channels]):
        layers += [ResidualBlock(n_in, n_out, 2), ResidualBlock(n_out, n_out)]
    layers += [nn.Flatten(), nn.Linear(channels[-1] * height * width, out), nn.BatchNorm1d(out), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.Linear(out, out))


def residual_decoder(shape: tuple[int, int, int], channels: Sequence[int], k: int) -> nn.Sequential:
    """(batch, k) -> flat images (batch, C H W), without an output activation; `channels` are those of the encoder.

    Linear-BN-LeakyReLU to the encoder's smallest maps, a block, then 3x3 transposed convolutions of stride 2 with
    BN-LeakyReLU through the reversed channels back to H x W, and one of stride 1 to C. With (1, 28, 28), channels (32,
    64, 128) and k = 32 it has 469,409 weights.
    """
    sides = _sides(shape, channels)[::-1]
    first, (height, width) = channels[-1], sides[0]
    flat = first * height * width
    layers: list[nn.Module] = [nn.Linear(k, flat), nn.BatchNorm1d(flat), nn.LeakyReLU(SLOPE)]
    layers += [nn.Unflatten(-1, (first, height, width)), ResidualBlock(first, first)]
    widths = [*reversed(channels), channels[0]]
    for (n_in, n_out), (small, large) in zip(pairwise(widths), pairwise(sides), strict=True):
        extra = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
        layers.append(nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=extra))
        layers += [nn.BatchNorm2d(n_out), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels[0], shape[0], 3, padding=1), nn.Flatten())


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Inside, passes in training mode leave running statistics and counts of batches alone; what they give is the same.

    Evaluation mode is not affected.
    """
    tracking = [module for module in _norms(model) if module.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def by_batch(model: Model) -> Model:
    """A copy of `model` in evaluation mode, but whose batch norm uses every batch's own mean and variance, as in
    training, and remembers none. Its outputs depend on which data come together.
    """
    model = copy.deepcopy(model).eval()
    for module in _norms(model):
        module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def averages_by_count(model: nn.Module) -> str | None:
    """The name of a batch norm that divides by its count of batches, read as a Python number: `vmap` refuses that."""
    return next((n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.momentum is None), None)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _sides(shape: tuple[int, int, int], channels: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width of the image and after every stride, largest first."""
    if len(shape) != 3 or not channels:
        raise ValueError(f"shape must be (C, H, W) and channels name one stride at least; got {shape}, {channels}")
    sides = [(shape[1], shape[2])]
    for _ in channels:
        height, width = sides[-1]
        sides.append((-(-height // 2), -(-width // 2)))
    return sides
