"""Deterministic autoencoder: no noise model and no prior, only a code and its reconstruction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from collapse_lib.nets import mlp
from collapse_lib.objectives import Hyper, NoiseSpec


class Autoencoder(nn.Module):
    """`encoder` (batch, n) -> (batch, k), `decoder` (batch, k) -> (batch, n)."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    @classmethod
    def mlp(cls, n: int, hidden: Sequence[int], k: int) -> "Autoencoder":
        """Encoder n-hidden-k, decoder k-reversed(hidden)-n, ReLU between the layers; affine without `hidden`."""
        return cls(mlp([n, *hidden, k]), mlp([k, *reversed(hidden), n]))

    def encode(self, x: Tensor) -> Tensor:
        """The code of `x` (batch, n): (batch, k)."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """The reconstruction from a code: (batch, k) -> (batch, n)."""
        return self.decoder(z)


class ReconstructionTerms(NamedTuple):
    """What `fit` minimises: E ||x - xhat||^2, summed over pixels, mean over images."""

    loss: Tensor


@dataclass(frozen=True)
class SquareError:
    """E ||x - decode(encode(x))||^2, summed over dimensions, mean over the batch; `data` is one tensor (batch, n)."""

    reads: ClassVar[frozenset[str]] = frozenset()

    def noise(self, model: Autoencoder, batch_size: int) -> dict[str, NoiseSpec]:
        return {}

    def __call__(
        self, model: Autoencoder, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper
    ) -> ReconstructionTerms:
        (x,) = data
        return ReconstructionTerms((x - model.decode(model.encode(x))).square().sum(-1).mean())
