"""Building blocks of encoders and decoders."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(widths: Sequence[int], *, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Affine layers widths[0] -> ... -> widths[-1] with `activation` between them and none after the last."""
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must name at least an input and an output width, all positive; got {tuple(widths)}")
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])
