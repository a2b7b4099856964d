"""LR-VAE (Song, Kim and Lee 2025, arXiv 2508.12530): a VAE whose encoder must find again what its decoder was given.

    L = L_DR + beta L_KL + alpha L_LR
    L_DR = ||x - D(z)||^2, z ~ q(z|x)      L_KL = KL( q(z|x) || N(0, I) )
    L_LR = || E_mu( D(z~) ) - z~ ||^2, z~ ~ N(0, I)

Sums over pixels and latents, means over the batch. E_mu is the encoder's mean. L_DR has no 1/2: without it the loss
at beta is that of a Gaussian likelihood of variance 1/2, so that a linear VAE's channel is active iff the variance of
the data along it exceeds beta / 2 (derived). alpha is a schedule of the member: in the paper it grows linearly from 0.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collapse_lib.convex import BrenierDecoder
from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.nets import mlp
from collapse_lib.objectives import Hyper, NoiseSpec, Posterior, gaussian_kl, reparameterise
from collapse_lib.residual import residual_decoder, residual_encoder, untracked
from collapse_lib.theory.bi_lipschitz import participation_ratio
from collapse_lib.theory.inverse_lipschitz import linearise

Source = Literal["prior", "posterior", "mean"]
Detach = Literal["none", "latent", "image", "encoder"]
Reconstruction = Literal["sum", "mean", "log"]
LatentStatistics = Literal["shared", "none"]


class LatentReconstructionTerms(NamedTuple):
    """What `fit` minimises and records; scalars, means over the batch."""

    loss: Tensor
    data_error: Tensor  # ||x - D(z)||^2
    kl: Tensor
    latent_error: Tensor  # || E_mu( D(z~) ) - z~ ||^2


@dataclass(frozen=True)
class LatentReconstruction:
    """The loss above for a model with `encode` and `decode`. Reads alpha and beta (default 1).

    Without alpha it is a beta-VAE: nothing is decoded from z~, and latent_error is 0, not measured.

    source: where z~ comes from: "prior" N(0, I), the paper's; "posterior" z ~ q(z|x); "mean" E_mu(x). The last two are
        modes of the authors' code.
    detach: what of L_LR trains: "none" detached, the paper's; "latent": z~ is a constant (only with a posterior source
        does that matter); "image": D(z~) is a constant, so that L_LR trains the encoder alone; "encoder": the decoder
        alone learns from L_LR.
    balanced: (1 - alpha) L_DR in the place of L_DR, an older form of the authors' code.
    reconstruction: "sum", the paper's; "mean": the mean over pixels, as if beta were n times larger; "log": n/2 log of
        the batch's mean square error, the profile likelihood of one sigma2 (sigma-VAE, Rybkin et al. 2021).
    latent_statistics: of a net with batch norm. Both passes of a step normalise by their own batch; with "shared", the
        authors', both also move the running statistics, which evaluation mode then applies to data and to decoded
        latents alike, though they are those of a mixture; with "none" the pass of L_LR leaves them to the data.
    """

    source: Source = "prior"
    detach: Detach = "none"
    balanced: bool = False
    reconstruction: Reconstruction = "sum"
    latent_statistics: LatentStatistics = "shared"
    reads: ClassVar[frozenset[str]] = frozenset({"alpha", "beta"})

    def __post_init__(self) -> None:
        for name, options in (
            ("source", Source),
            ("detach", Detach),
            ("reconstruction", Reconstruction),
            ("latent_statistics", LatentStatistics),
        ):
            if getattr(self, name) not in get_args(options):
                raise ValueError(f"{name} is one of {get_args(options)}, got {getattr(self, name)!r}")

    def noise(self, model: Any, batch_size: int) -> dict[str, NoiseSpec]:
        shape = (batch_size, model.n_latents)
        return {"posterior": NoiseSpec("normal", shape), "latent": NoiseSpec("normal", shape)}

    def __call__(
        self, model: Any, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper
    ) -> LatentReconstructionTerms:
        (x,) = data
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        alpha, beta = hyper.get("alpha", zero), hyper.get("beta", zero + 1)
        posterior = model.encode(x)
        data_error = (x - model.decode(reparameterise(posterior, noise["posterior"]))).square().sum(-1).mean()
        kl = gaussian_kl(posterior).mean()
        latent_error = zero
        if "alpha" in hyper:
            with untracked(model) if self.latent_statistics == "none" else nullcontext():
                latent_error = self._latent_error(model, posterior, noise["latent"])
        reconstruction = self._reconstruction(data_error, x.shape[-1])
        if self.balanced:
            reconstruction = (1 - alpha) * reconstruction
        return LatentReconstructionTerms(
            reconstruction + beta * kl + alpha * latent_error, data_error, kl, latent_error
        )

    def _latent_error(self, model: Any, posterior: Posterior, eps: Tensor) -> Tensor:
        z = {"prior": lambda: eps, "posterior": lambda: reparameterise(posterior, eps), "mean": lambda: posterior.mean}[
            self.source
        ]()
        if self.detach == "latent":
            z = z.detach()
        image = model.decode(z)
        found = model.encode(image.detach() if self.detach == "image" else image).mean
        if self.detach == "encoder":
            # E_mu as a constant function: its gradient reaches the image, not the encoder's weights.
            constant = {name: p.detach() for name, p in model.named_parameters()}
            found = torch.func.functional_call(_Mean(model), {f"model.{n}": p for n, p in constant.items()}, (image,))
        return (found - z).square().sum(-1).mean()

    def _reconstruction(self, data_error: Tensor, n: int) -> Tensor:
        if self.reconstruction == "sum":
            return data_error
        if self.reconstruction == "mean":
            return data_error / n
        return 0.5 * n * (data_error / n).log()


class _Mean(nn.Module):
    """x -> E_mu(x) as a module, the form that `functional_call` takes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.encode(x).mean


class SoftplusLogVariance(nn.Module):
    """`encoder` (batch, n) -> (batch, 2k) with softplus on its second half, which is then used as the log-variance.

    A quirk of the authors' code: every posterior variance is at least 1. It inflates the KL and counts latents active.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        mean, raw = self.encoder(x).chunk(2, -1)
        return torch.cat([mean, F.softplus(raw)], -1)


def mlp_vae(
    n: int,
    hidden: tuple[int, ...],
    k: int,
    *,
    softplus_log_variance: bool = False,
    activation: type[nn.Module] = nn.ReLU,
) -> GaussianVAE:
    """MLP VAE n-hidden-2k, k-hidden-n with the likelihood that L_DR stands for, N(D(z), I / 2)."""
    encoder: nn.Module = mlp([n, *hidden, 2 * k], activation=activation)
    if softplus_log_variance:
        encoder = SoftplusLogVariance(encoder)
    decoder = mlp([k, *reversed(hidden), n], activation=activation)
    return GaussianVAE(encoder, decoder, k, likelihood="gaussian", sigma2=0.5)


def conv_vae(shape: tuple[int, int, int], channels: tuple[int, ...], k: int) -> GaussianVAE:
    """The authors' convolutional nets with batch norm, flat images of `shape` (C, H, W), likelihood N(D(z), I / 2)."""
    encoder, decoder = residual_encoder(shape, channels, 2 * k), residual_decoder(shape, channels, k)
    return GaussianVAE(encoder, decoder, k, likelihood="gaussian", sigma2=0.5)


def conv_brenier_vae(
    shape: tuple[int, int, int],
    channels: tuple[int, ...],
    B: Tensor,
    *,
    hidden: Sequence[int] = (512,),
    L: float = 0.0,
    output: Tensor | None = None,
) -> GaussianVAE:
    """LIDVAE (L = 0) and IL-LIDVAE with the encoder of `conv_vae`: a `convex.BrenierDecoder` on B (n, k), whose offset
    starts at `output` (n,).
    """
    k = B.shape[1]
    encoder = residual_encoder(shape, channels, 2 * k)
    return GaussianVAE(encoder, BrenierDecoder(B, hidden, L=L, output=output), k, likelihood="gaussian", sigma2=0.5)


class CycleErrors(NamedTuple):
    """Mean over samples of || E_mu( D(z) ) - z ||^2, z from the prior and from the posteriors of data; and of data."""

    prior: float
    posterior: float
    data: float  # || x - D( E_mu(x) ) ||^2


@torch.no_grad()
def cycle_errors(model: Any, x: Tensor, *, n_samples: int = 1000, seed: int = 0, chunk: int = 1000) -> CycleErrors:
    """Both ways round: latent to latent on `n_samples` prior draws and on one posterior sample of each datum, and data
    to data at the posterior mean. A trivial E_mu = 0 has a prior error of k. `chunk` latents or data at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = (n_samples, model.n_latents), (len(x), model.n_latents)
    prior, eps = (torch.randn(shape, generator=generator, dtype=x.dtype).to(x.device) for shape in shapes)

    def error(z: Tensor) -> float:
        return float((model.encode(model.decode(z)).mean - z).square().sum().double())

    cycle = data = 0.0
    for rows, noise in zip(x.split(chunk), eps.split(chunk), strict=True):
        posterior = model.encode(rows)
        cycle += error(reparameterise(posterior, noise))
        data += float((rows - model.decode(posterior.mean)).square().sum().double())
    return CycleErrors(sum(map(error, prior.split(chunk))) / n_samples, cycle / len(x), data / len(x))


class NoiseResponse(NamedTuple):
    """What noise in the latents does to the images; means over data, distances squared."""

    distance: list[float]  # E || D(mu + e) - D(mu) ||^2, one a variance of e
    outside: list[float]  # squared distance of D(mu + e) to the box [0, 1]^n, one a variance
    trace: float  # tr J^T J, J the Jacobian of D at mu: the slope of `distance` at zero
    directions: float  # participation ratio of J^T J
    spectrum: list[float]  # root mean square of each singular value of J, largest first


@torch.no_grad()
def noise_response(
    model: Any, x: Tensor, variances: Sequence[float], *, n_draws: int = 10, seed: int = 0, chunk: int = 100
) -> NoiseResponse:
    """For e ~ N(0, variance I) at mu = E_mu(x), x (N, n): `n_draws` e a datum, the same but for their scale."""
    generator = torch.Generator().manual_seed(seed)
    mean = model.encode(x).mean
    eps = torch.randn(n_draws, *mean.shape, generator=generator, dtype=x.dtype).to(x.device)
    distance, outside, clean = [], [], model.decode(mean)
    for variance in variances:
        total = box = 0.0
        for e in eps:
            image = model.decode(mean + variance**0.5 * e)
            total += float((image - clean).square().sum(-1).double().mean())
            box += float((image - image.clamp(0, 1)).square().sum(-1).double().mean())
        distance.append(total / n_draws)
        outside.append(box / n_draws)
    jacobians = (linearise(model.decoder, rows).J for rows in mean.split(chunk))
    power = torch.cat([torch.linalg.svdvals(J.double()) for J in jacobians]).square()
    return NoiseResponse(
        distance,
        outside,
        float(power.sum(-1).mean()),
        float(participation_ratio(power.sqrt()).mean()),
        power.mean(0).sqrt().tolist(),
    )
