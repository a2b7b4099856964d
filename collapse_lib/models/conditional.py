"""Conditional VAEs, linear, MLP and convolutional, and the linear VAE without offsets (Dang et al., ICLR 2024).

    VAE    q(z|x)   = N(W x, Sigma),              p(y|z)   = N(U z, eta_dec^2 I),             p(z) = N(0, eta_enc^2 I)
    CVAE   q(z|x,y) = N(W1 x + W2 y, Sigma),      p(y|x,z) = N(U1 z + U2 x, eta_dec^2 I),     p(z) = N(0, eta_enc^2 I)

eta_dec, eta_enc and `sigma` are standard deviations; in the linear models `sigma` is the same for all data, and their
optima are known in closed form, `theory.conditional`. Here they are trained by minibatches in pixel space, as in the
paper. In `CVAE` networks take the place of the matrices and the encoder's standard deviation depends on the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from collapse_lib.models.noise_scales import NoiseScales
from collapse_lib.nets import mlp, strided_decoder, strided_encoder
from collapse_lib.objectives import (
    ElboTerms,
    Hyper,
    NoiseSpec,
    Posterior,
    elbo_terms,
    gaussian_kl,
    gaussian_log_likelihood,
    posterior_from_std,
    relative_to_prior,
    reparameterise,
)
from collapse_lib.theory.conditional import LinearOptimum
from collapse_lib.transforms import Quadrants, join_quadrants, quadrants


class _LinearLatent(NoiseScales):
    """`sigma` (k,) beside the weights; with `learn_sigma=False` it is a buffer and stays."""

    sigma: Tensor

    def __init__(
        self, weights: Mapping[str, Tensor], sigma: Tensor, *, learn_sigma: bool, eta_dec: float, eta_enc: float
    ) -> None:
        super().__init__(eta_dec, eta_enc)
        self.n_latents, self.learn_sigma = len(sigma), learn_sigma
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))
        if learn_sigma:
            self.sigma = nn.Parameter(sigma)
        else:
            self.register_buffer("sigma", sigma)

    def extra_repr(self) -> str:
        return f"k={self.n_latents}, learn_sigma={self.learn_sigma}"


class UncentredLinearVAE(_LinearLatent):
    """Parameters `W` (k, n), `U` (n, k) and `sigma` (k,)."""

    W: Tensor
    U: Tensor

    @classmethod
    def normal_start(
        cls,
        n: int,
        k: int,
        *,
        sigma: float | list[float] = 1.0,
        learn_sigma: bool = True,
        eta_dec: float = 1.0,
        eta_enc: float = 1.0,
    ) -> "UncentredLinearVAE":
        """W, U ~ N(0, 0.1^2), drawn in this order; `sigma` one number, 1 in the paper, or one a latent."""
        weights = {"W": 0.1 * torch.randn(k, n), "U": 0.1 * torch.randn(n, k)}
        return cls(weights, _stds(sigma, k), learn_sigma=learn_sigma, eta_dec=eta_dec, eta_enc=eta_enc)

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x) for `x` (batch, n): mean (batch, k); log_var (k,), the same for every datum."""
        return posterior_from_std(x @ self.W.mT, self.sigma)

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x|z): (..., k) -> (..., n)."""
        return z @ self.U.mT

    @property
    def loading(self) -> Tensor:
        """(n, k), what the decoder multiplies z by."""
        return self.U


class LinearCVAE(_LinearLatent):
    """Parameters `W1` (k, p), `W2` (k, q), `U1` (q, k), `U2` (q, p) and `sigma` (k,); x has p dimensions, y has q."""

    W1: Tensor
    W2: Tensor
    U1: Tensor
    U2: Tensor

    @classmethod
    def normal_start(
        cls,
        p: int,
        q: int,
        k: int,
        *,
        sigma: float | list[float] = 0.1,
        learn_sigma: bool = True,
        eta_dec: float = 1.0,
        eta_enc: float = 1.0,
    ) -> "LinearCVAE":
        """W1, W2, U1, U2 ~ N(0, 0.1^2), drawn in this order; sigma starts at 0.1 in the paper's code."""
        shapes = {"W1": (k, p), "W2": (k, q), "U1": (q, k), "U2": (q, p)}
        weights = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
        return cls(weights, _stds(sigma, k), learn_sigma=learn_sigma, eta_dec=eta_dec, eta_enc=eta_enc)

    def encode(self, x: Tensor, y: Tensor) -> Posterior:
        """q(z|x,y) for `x` (batch, p), `y` (batch, q): mean (batch, k); log_var (k,), the same for every datum."""
        return posterior_from_std(x @ self.W1.mT + y @ self.W2.mT, self.sigma)

    def decode(self, z: Tensor, x: Tensor) -> Tensor:
        """Mean of p(y|x,z): `z` (..., batch, k), `x` (batch, p) -> (..., batch, q)."""
        return z @ self.U1.mT + x @ self.U2.mT

    @property
    def loading(self) -> Tensor:
        """(q, k), what the decoder multiplies z by."""
        return self.U1


class CVAE(NoiseScales):
    """q(z|x,y) = N(m, diag sigma^2), (m, sigma) = e_x(x) + e_y(y);  p(y|x,z) = N(d_z(z) + d_x(x), eta_dec^2 I).

    Four networks, two branches a side, as in the paper's code: `encode_x`, `encode_y` -> (batch, 2k), m and sigma side
    by side; `decode_z`, `decode_x` -> (batch, q). sigma is their plain output: data-dependent, its sign free.
    """

    def __init__(
        self,
        encode_x: nn.Module,
        encode_y: nn.Module,
        decode_z: nn.Module,
        decode_x: nn.Module,
        k: int,
        *,
        eta_dec: float = 1.0,
        eta_enc: float = 1.0,
    ) -> None:
        super().__init__(eta_dec, eta_enc)
        self.n_latents = k
        self.encode_x, self.encode_y, self.decode_z, self.decode_x = encode_x, encode_y, decode_z, decode_x

    @classmethod
    def mlp(
        cls,
        p: int,
        q: int,
        hidden: int,
        k: int,
        *,
        activation: type[nn.Module] = nn.ReLU,
        eta_dec: float = 1.0,
        eta_enc: float = 1.0,
    ) -> "CVAE":
        """One hidden layer a branch; `activation=nn.Identity` is the paper's linear model with offsets."""
        encode_x, encode_y, decode_z, decode_x = (
            mlp(widths, activation=activation)
            for widths in ([p, hidden, 2 * k], [q, hidden, 2 * k], [k, hidden, q], [p, hidden, q])
        )
        return cls(encode_x, encode_y, decode_z, decode_x, k, eta_dec=eta_dec, eta_enc=eta_enc)

    @classmethod
    def conv(
        cls, side: int, channels: tuple[int, int], k: int, *, eta_dec: float = 1.0, eta_enc: float = 1.0
    ) -> "CVAE":
        """For quadrants of `side` x `side` images, x the bottom left one and y the other three in reading order.

        `channels` are those of the two encoder convolutions, (32, 16) in the paper's code. x is seen as a quadrant, y
        as a whole image without its bottom left quadrant; d_x ends in an affine layer (all from the paper's code).
        """
        if side % 4:
            raise ValueError(f"the decoder doubles twice: the images' side must be divisible by 4, got {side}")
        h = side // 2
        quadrant, image = (1, h, h), (1, side, side)
        encode_x = strided_encoder(quadrant, channels, 2 * k)
        encode_y = nn.Sequential(_ThreeQuadrants(h), strided_encoder(image, channels, 2 * k))
        decode_z = nn.Sequential(strided_decoder(image, channels, k), _WithoutFourth(h))
        decode_x = nn.Sequential(
            nn.Unflatten(-1, quadrant),
            nn.ConvTranspose2d(1, channels[0], 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels[0], 1, 3, padding=1),
            nn.Flatten(),
            nn.Linear(side**2, 3 * h**2),
        )
        return cls(encode_x, encode_y, decode_z, decode_x, k, eta_dec=eta_dec, eta_enc=eta_enc)

    def extra_repr(self) -> str:
        return f"k={self.n_latents}"

    def encode(self, x: Tensor, y: Tensor) -> Posterior:
        """q(z|x,y) for `x` (batch, p), `y` (batch, q): mean and log_var (batch, k)."""
        return posterior_from_std(*(self.encode_x(x) + self.encode_y(y)).chunk(2, dim=-1))

    def decode(self, z: Tensor, x: Tensor) -> Tensor:
        """Mean of p(y|x,z): `z` (..., batch, k), `x` (batch, p) -> (..., batch, q)."""
        flat = self.decode_z(z.reshape(-1, self.n_latents))  # convolutions take one batch axis
        return flat.reshape(*z.shape[:-1], -1) + self.decode_x(x)


class _ThreeQuadrants(nn.Module):
    """(batch, 3 h^2), quadrants in reading order without the bottom left -> whole images (batch, 4 h^2), zero there."""

    def __init__(self, h: int) -> None:
        super().__init__()
        self.h = h

    def extra_repr(self) -> str:
        return f"h={self.h}"

    def forward(self, y: Tensor) -> Tensor:
        top_left, top_right, bottom_right = y.reshape(-1, 3, self.h, self.h).unbind(1)
        return join_quadrants(Quadrants(top_left, top_right, torch.zeros_like(top_left), bottom_right)).flatten(1)


class _WithoutFourth(_ThreeQuadrants):
    """The way back: whole images (batch, 4 h^2) -> (batch, 3 h^2)."""

    def forward(self, image: Tensor) -> Tensor:
        quarters = quadrants(image.reshape(-1, 2 * self.h, 2 * self.h))
        return torch.stack([quarters.top_left, quarters.top_right, quarters.bottom_right], 1).flatten(1)


@dataclass(frozen=True)
class ConditionalElbo:
    """ELBO of the models of this module, nats per datum; `data` is (x,) for the VAE, (x, y) for the CVAEs.

    n_samples: reparameterised samples of z a datum; 0 takes the expectation over z in closed form (linear models). With
    beta from the member (default 1), loss = beta KL - E log p(y|.): for the linear models half of the paper's loss and
    its constants on top, a factor that Adam does not see; for its networks see `objectives.effective_beta`.
    """

    n_samples: int = 1
    reads: ClassVar[frozenset[str]] = frozenset({"beta"})

    def noise(self, model: _LinearLatent | CVAE, batch_size: int) -> dict[str, NoiseSpec]:
        return {"eps": NoiseSpec("normal", (self.n_samples, batch_size, model.n_latents))} if self.n_samples else {}

    def __call__(
        self,
        model: UncentredLinearVAE | LinearCVAE | CVAE,
        data: tuple[Tensor, ...],
        noise: dict[str, Tensor],
        hyper: Hyper,
    ) -> ElboTerms:
        *condition, y = data
        posterior, variance = model.encode(*data), model.eta_dec.square()
        kl = gaussian_kl(relative_to_prior(posterior, model.eta_enc))
        if self.n_samples:
            z = reparameterise(posterior, noise["eps"])
            log_likelihood = gaussian_log_likelihood(model.decode(z, *condition), y, variance)
        elif isinstance(model, CVAE):
            raise ValueError("only a linear decoder has the expectation over z in closed form; take n_samples >= 1")
        else:
            spread = (posterior.log_var.exp() * model.loading.square().sum(0)).sum()
            at_mean = gaussian_log_likelihood(model.decode(posterior.mean, *condition), y, variance)
            log_likelihood = at_mean - spread / (2 * variance)
        return elbo_terms(log_likelihood, kl, hyper.get("beta", 1.0))


@dataclass(frozen=True)
class OptimumErrors:
    """An `evaluate` of `training.fit` for these models: how far each member is from `best`, in float64.

    `omega_error` and `sigma_error` are the mean of |theory - learned| over sorted singular values of U (U1) and sorted
    |sigma|, the paper's verification errors; the VAE's `lam_error` is that of V = W A^(1/2), given `root` = A^(1/2).
    """

    best: LinearOptimum
    root: Tensor | None = None  # (n, n)

    def __call__(self, state: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        state = {name: values.double().cpu() for name, values in state.items()}
        found = {
            "omega_error": (torch.linalg.svdvals(state["U1" if "U1" in state else "U"]), self.best.omega),
            "sigma_error": (state["sigma"].abs(), self.best.sigma),
        }
        if self.root is not None:
            found["lam_error"] = (torch.linalg.svdvals(state["W"] @ self.root), self.best.lam)
        return {
            name: (learned.sort(descending=True).values - theory.sort(descending=True).values).abs().mean(-1)
            for name, (learned, theory) in found.items()
        }


def _stds(sigma: float | list[float], k: int) -> Tensor:
    stds = torch.tensor(sigma if isinstance(sigma, list) else [sigma] * k, dtype=torch.get_default_dtype())
    if stds.shape != (k,):
        raise ValueError(f"sigma must be one number or one a latent, {k} of them; got {tuple(stds.shape)}")
    return stds
