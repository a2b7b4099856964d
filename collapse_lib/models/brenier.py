"""LIDVAE, IL-LIDVAE, their mixture-prior variants, and what they are held against: plain VAE and skip control.

    brenier_vae(B, L=0)                     LIDVAE (Wang, Blei, Cunningham 2021)
    brenier_vae(B, L=1)                     IL-LIDVAE (Kinoshita et al., ICML 2023); "decoder.L": Ramp(...) anneals it
    brenier_vae(B, L=1, components=10)      IL-LIDMVAE
    plain_vae(n, k)                         the rivals' net (`rivals`)
    skip_vae(B, scale=1)                    an MLP decoder plus a linear skip along B, with no guarantee (ours)

All share the encoder n-hidden-2k with ReLU and log-variances clamped to `LOG_VAR` (ours), and data flat, (batch, n).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from collapse_lib.convex import BrenierDecoder, Gates
from collapse_lib.models.gaussian import GaussianVAE, Likelihood
from collapse_lib.models.mixture import MixturePriorVAE
from collapse_lib.nets import mlp

LOG_VAR = (-10.0, 4.0)


class ClampedEncoder(nn.Module):
    """`mlp` n-hidden-2k, the second half of its output, the log-variances, clamped to `LOG_VAR`."""

    def __init__(self, n: int, hidden: Sequence[int], k: int) -> None:
        super().__init__()
        self.net = mlp([n, *hidden, 2 * k])

    def forward(self, x: Tensor) -> Tensor:
        mean, log_var = self.net(x).chunk(2, -1)
        return torch.cat([mean, log_var.clamp(*LOG_VAR)], -1)


class SkipDecoder(nn.Module):
    """f(z) = net(z) + scale B z + c, `scale` learned: the linear part of a Brenier decoder without its constraint."""

    B: Tensor

    def __init__(self, net: nn.Module, B: Tensor, *, scale: float = 1.0, output: Tensor | None = None) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("B", B.clone())
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.c = nn.Parameter(torch.zeros(len(B)) if output is None else output.clone())

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z) + self.scale * (z @ self.B.mT) + self.c


def brenier_vae(
    B: Tensor,
    *,
    encoder_hidden: Sequence[int] = (512, 512),
    decoder_hidden: Sequence[int] = (512,),
    L: float = 0.0,
    gates: Gates = "smooth",
    output: Tensor | None = None,
    components: int = 0,
    likelihood: Likelihood = "bernoulli",
    sigma2: float = 1.0,
) -> GaussianVAE:
    """A VAE with a `convex.BrenierDecoder` on B (n, k); `components` > 0 puts a mixture in the place of N(0, I)."""
    n, k = B.shape
    encoder = ClampedEncoder(n, encoder_hidden, k)
    decoder = BrenierDecoder(B, decoder_hidden, L=L, gates=gates, output=output)
    if components:
        return MixturePriorVAE(encoder, decoder, k, components=components, likelihood=likelihood, sigma2=sigma2)
    return GaussianVAE(encoder, decoder, k, likelihood=likelihood, sigma2=sigma2)


def plain_vae(
    n: int,
    k: int,
    *,
    encoder_hidden: Sequence[int] = (512, 512),
    decoder_hidden: Sequence[int] = (512, 512),
    output: Tensor | None = None,
    likelihood: Likelihood = "bernoulli",
    sigma2: float = 1.0,
) -> GaussianVAE:
    """A VAE with an MLP decoder k-decoder_hidden-n, whose last bias starts at `output`."""
    decoder = mlp([k, *decoder_hidden, n])
    if output is not None:
        decoder[-1].load_state_dict({"weight": decoder[-1].weight, "bias": output})
    encoder = ClampedEncoder(n, encoder_hidden, k)
    return GaussianVAE(encoder, decoder, k, likelihood=likelihood, sigma2=sigma2)


def skip_vae(
    B: Tensor,
    *,
    encoder_hidden: Sequence[int] = (512, 512),
    decoder_hidden: Sequence[int] = (512, 512),
    scale: float = 1.0,
    output: Tensor | None = None,
    likelihood: Likelihood = "bernoulli",
    sigma2: float = 1.0,
) -> GaussianVAE:
    """A VAE with a `SkipDecoder` whose scale starts at `scale`: the control for B = PCA, where L^2 B z is PCA."""
    n, k = B.shape
    decoder = SkipDecoder(mlp([k, *decoder_hidden, n]), B, scale=scale, output=output)
    return GaussianVAE(ClampedEncoder(n, encoder_hidden, k), decoder, k, likelihood=likelihood, sigma2=sigma2)


def mean_image_logits(x: Tensor, *, margin: float = 0.01) -> Tensor:
    """logit of the mean of x (N, n), clipped to [margin, 1 - margin]: where a decoder's offset starts (ours)."""
    return x.mean(0).clamp(margin, 1 - margin).logit()
