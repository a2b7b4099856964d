"""pythae's VAE around the networks of one of ours, so that both sides have the same weights."""

import torch
from torch import nn

from collapse_lib.models.gaussian import GaussianVAE

try:
    from pythae.models import VAE, VAEConfig  # type: ignore
    from pythae.models.base.base_utils import ModelOutput  # type: ignore
    from pythae.models.nn import BaseDecoder, BaseEncoder  # type: ignore
except ImportError as error:
    raise SystemExit(f"this compares with pythae ({error}): pip install -e '.[bench]'") from None


class _Encoder(BaseEncoder):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> ModelOutput:
        mean, log_var = self.net(x).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class _Decoder(BaseDecoder):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.net(z).sigmoid())


def pythae_vae(model: GaussianVAE, n: int) -> VAE:
    """A Bernoulli VAE of pythae over data of dimension `n` that shares the networks of `model`."""
    config = VAEConfig(input_dim=(n,), latent_dim=model.n_latents, reconstruction_loss="bce")
    return VAE(config, _Encoder(model.encoder), _Decoder(model.decoder))
