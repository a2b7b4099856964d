"""VAE with a diagonal Gaussian posterior and an MLP encoder and decoder (Kingma and Welling 2014)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from collapse_lib.nets import mlp
from collapse_lib.objectives import Posterior, bernoulli_log_likelihood, gaussian_log_likelihood


class GaussianVAE(nn.Module):
    """Encoder n-hidden-2k (mean and log-variance heads), decoder k-reversed(hidden)-n.

    `likelihood` is "bernoulli" (the decoder gives logits) or "gaussian" (it gives the mean; one observation variance
    `sigma2`, learned as log sigma2 or fixed).
    """

    def __init__(
        self,
        n: int,
        hidden: Sequence[int],
        k: int,
        *,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        sigma2: float = 1.0,
        learn_sigma2: bool = False,
    ) -> None:
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f'likelihood must be "bernoulli" or "gaussian", got {likelihood!r}')
        if sigma2 <= 0:
            raise ValueError(f"sigma2 is a variance and must be positive, got {sigma2}")
        if learn_sigma2 and likelihood == "bernoulli":
            raise ValueError("a Bernoulli likelihood has no sigma2 to learn; set learn_sigma2=False or use gaussian")
        self.n_latents, self.likelihood, self.learn_sigma2 = k, likelihood, learn_sigma2
        self.encoder = mlp([n, *hidden, 2 * k])
        self.decoder = mlp([k, *reversed(hidden), n])
        log_sigma2 = torch.tensor(float(sigma2)).log()
        if learn_sigma2:
            self.log_sigma2 = nn.Parameter(log_sigma2)
        else:
            self.register_buffer("log_sigma2", log_sigma2)

    def extra_repr(self) -> str:
        return f"likelihood={self.likelihood}, learn_sigma2={self.learn_sigma2}"

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x) for `x` (batch, n): mean and log_var (batch, k)."""
        return Posterior(*self.encoder(x).chunk(2, dim=-1))

    def decode(self, z: Tensor) -> Tensor:
        """Logits (Bernoulli) or mean (Gaussian) of p(x|z): (..., k) -> (..., n)."""
        return self.decoder(z)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z): `x` (batch, n), `z` (..., batch, k) -> (..., batch), nats."""
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(self.decode(z), x)
        return gaussian_log_likelihood(self.decode(z), x, self.log_sigma2.exp())
