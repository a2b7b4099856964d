"""Building blocks of encoders and decoders."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(widths: Sequence[int], *, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Affine layers widths[0] -> ... -> widths[-1] with `activation` between them and none after the last."""
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must name at least an input and an output width, all positive; got {tuple(widths)}")
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


class LatentScale(nn.Module):
    """z (..., k) -> exp(log_scale) z, in front of a decoder: a learned prior N(0, diag exp(2 log_scale)), whitened."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(k))

    def forward(self, z: Tensor) -> Tensor:
        return self.log_scale.exp() * z


class GlobalVariance(nn.Module):
    """An encoder with one variance for all data: `mean` (batch, n) -> (batch, k), beside it log_var (k,): (batch, 2k).

    It is what `models.gaussian.GaussianVAE` takes for an encoder. `sigma` is the standard deviation that every latent
    starts with; with `learn=False` it stays. `mean` may be any network: one that ends in a ReLU gives the means of the
    VAE in the code of Dang et al. 2024.
    """

    log_var: Tensor

    def __init__(self, mean: nn.Module, k: int, *, sigma: float = 1.0, learn: bool = True) -> None:
        super().__init__()
        if sigma <= 0:
            raise ValueError(f"sigma is a standard deviation and must be positive, got {sigma}")
        self.mean, self.k, self.learn = mean, k, learn
        log_var = torch.full((k,), 2 * math.log(sigma))
        if learn:
            self.log_var = nn.Parameter(log_var)
        else:
            self.register_buffer("log_var", log_var)

    def extra_repr(self) -> str:
        return f"k={self.k}, learn={self.learn}"

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return torch.cat([mean, self.log_var.expand_as(mean)], -1)


def conv_encoder(shape: tuple[int, int, int], channels: Sequence[int], features: int, out: int) -> nn.Sequential:
    """Flat images (batch, C H W) -> (batch, out): 4x4 convolutions of stride 2, a layer of `features`, an output.

    ReLU between them. Every convolution halves the image: (C, H, W) -> (channels[0], H/2, W/2) -> ... With shape
    (3, 64, 64), channels (32, 32, 64, 64) and 256 features it is the encoder of Higgins et al. 2017 (beta-VAE, CelebA).
    Raises ValueError unless H and W are divisible by 2^len(channels).
    """
    height, width = _smallest(shape, channels)
    layers: list[nn.Module] = [nn.Unflatten(-1, shape)]
    for n_in, n_out in pairwise([shape[0], *channels]):
        layers += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
    flat = channels[-1] * height * width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, features), nn.ReLU(), nn.Linear(features, out))


def conv_decoder(shape: tuple[int, int, int], channels: Sequence[int], features: int, k: int) -> nn.Sequential:
    """The mirror image of `conv_encoder` by transposed convolutions: (batch, k) -> flat images (batch, C H W).

    `channels` are the encoder's, in its order.
    """
    height, width = _smallest(shape, channels)
    flat = channels[-1] * height * width
    layers: list[nn.Module] = [nn.Linear(k, features), nn.ReLU(), nn.Linear(features, flat), nn.ReLU()]
    layers.append(nn.Unflatten(-1, (channels[-1], height, width)))
    for n_in, n_out in pairwise([*reversed(channels), shape[0]]):
        layers += [nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Flatten())


def strided_encoder(shape: tuple[int, int, int], channels: tuple[int, int], out: int) -> nn.Sequential:
    """Flat images (batch, C H W) -> (batch, out): two 3x3 convolutions of stride 2 with ReLU, then an affine layer.

    A side of odd length is halved upwards (14 -> 7 -> 4). With (1, 28, 28) and channels (64, 32) it is the encoder of
    the convolutional MHVAE in the code of Dang et al. 2024.
    """
    height, width = (-(-side // 4) for side in shape[1:])
    layers: list[nn.Module] = [nn.Unflatten(-1, shape)]
    for n_in, n_out in pairwise([shape[0], *channels]):
        layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * height * width, out))


def strided_decoder(shape: tuple[int, int, int], channels: tuple[int, int], k: int) -> nn.Sequential:
    """(batch, k) -> flat images (batch, C H W): an affine layer, then three 3x3 transposed convolutions with ReLU
    between them; the first two double the image. `channels` are those of `strided_encoder`, in its order.

    Raises ValueError unless H and W are divisible by 4.
    """
    height, width = _smallest(shape, channels)
    first, last = channels
    return nn.Sequential(
        nn.Linear(k, last * height * width),
        nn.Unflatten(-1, (last, height, width)),
        nn.ConvTranspose2d(last, first, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(first, last, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(last, shape[0], 3, padding=1),
        nn.Flatten(),
    )


def _smallest(shape: tuple[int, int, int], channels: Sequence[int]) -> tuple[int, int]:
    """Height and width after the last convolution."""
    if len(shape) != 3 or not channels:
        raise ValueError(f"shape must be (C, H, W) and channels name one convolution at least; got {shape}, {channels}")
    factor = 2 ** len(channels)
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"{len(channels)} convolutions of stride 2 need sides divisible by {factor}, got {shape[1]}x{shape[2]}: "
            "pad the images (transforms.pad) or take fewer"
        )
    return shape[1] // factor, shape[2] // factor
