"""VAE with a diagonal Gaussian posterior (Kingma and Welling 2014), MLP or convolutional, Bernoulli or Gaussian.

    p(z) = N(0, I),   q(z|x) = N( m(x), diag v(x) ),   p(x|z) = Bernoulli( sigmoid f(z) )  or  N( f(z), sigma2 I )

`GaussianVAE.mlp` and `GaussianVAE.conv` build the two families; data are flat, (batch, n), in both.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from collapse_lib.nets import conv_decoder, conv_encoder, mlp
from collapse_lib.objectives import Posterior, bernoulli_log_likelihood, gaussian_log_likelihood

Likelihood = Literal["bernoulli", "gaussian"]


class GaussianVAE(nn.Module):
    """`encoder` (batch, n) -> (batch, 2k), mean and log-variance side by side; `decoder` (batch, k) -> (batch, n).

    `likelihood` is "bernoulli" (the decoder gives logits) or "gaussian" (it gives the mean; one observation variance
    `sigma2`, learned as log sigma2 or fixed).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        k: int,
        *,
        likelihood: Likelihood = "bernoulli",
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
        self.encoder, self.decoder = encoder, decoder
        log_sigma2 = torch.tensor(float(sigma2)).log()
        if learn_sigma2:
            self.log_sigma2 = nn.Parameter(log_sigma2)
        else:
            self.register_buffer("log_sigma2", log_sigma2)

    @classmethod
    def mlp(
        cls,
        n: int,
        hidden: Sequence[int],
        k: int,
        *,
        likelihood: Likelihood = "bernoulli",
        sigma2: float = 1.0,
        learn_sigma2: bool = False,
        output_mean: Tensor | None = None,
    ) -> "GaussianVAE":
        """Encoder n-hidden-2k, decoder k-reversed(hidden)-n, ReLU between the layers.

        `output_mean` (n,) is where the decoder's last bias starts, instead of torch's small random values. With the
        data mean and a small decoder the start is next to the collapsed saddle, the best model without z (derived).
        """
        encoder, decoder = mlp([n, *hidden, 2 * k]), mlp([k, *reversed(hidden), n])
        model = cls(encoder, decoder, k, likelihood=likelihood, sigma2=sigma2, learn_sigma2=learn_sigma2)
        if output_mean is not None:
            if output_mean.shape != (n,):
                raise ValueError(f"output_mean must be ({n},), got {tuple(output_mean.shape)}")
            decoder[-1].load_state_dict({"weight": decoder[-1].weight, "bias": output_mean})
        return model

    @classmethod
    def conv(
        cls,
        shape: tuple[int, int, int],
        channels: Sequence[int],
        features: int,
        k: int,
        *,
        likelihood: Likelihood = "bernoulli",
        sigma2: float = 1.0,
        learn_sigma2: bool = False,
    ) -> "GaussianVAE":
        """`nets.conv_encoder` and `nets.conv_decoder` on flat images of `shape` (C, H, W)."""
        encoder, decoder = conv_encoder(shape, channels, features, 2 * k), conv_decoder(shape, channels, features, k)
        return cls(encoder, decoder, k, likelihood=likelihood, sigma2=sigma2, learn_sigma2=learn_sigma2)

    def extra_repr(self) -> str:
        return f"likelihood={self.likelihood}, learn_sigma2={self.learn_sigma2}"

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x) for `x` (batch, n): mean and log_var (batch, k)."""
        return Posterior(*self.encoder(x).chunk(2, dim=-1))

    def decode(self, z: Tensor) -> Tensor:
        """Logits (Bernoulli) or mean (Gaussian) of p(x|z): (..., k) -> (..., n)."""
        return self.decoder(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)  # convolutions take one batch axis

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z): `x` (batch, n), `z` (..., batch, k) -> (..., batch), nats."""
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(self.decode(z), x)
        return gaussian_log_likelihood(self.decode(z), x, self.log_sigma2.exp())
