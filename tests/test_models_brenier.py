"""The models of the inverse-Lipschitz tables: their pieces, that they train, that a constraint keeps latents."""

import math
from functools import partial

import pytest
import torch

from collapse_lib.convex import BrenierDecoder, basis
from collapse_lib.evaluation import measure_vae
from collapse_lib.models.brenier import LOG_VAR, ClampedEncoder, brenier_vae, mean_image_logits, plain_vae, skip_vae
from collapse_lib.models.mixture import MixturePriorVAE, MonteCarloElbo
from collapse_lib.objectives import SampledElbo
from collapse_lib.sweeps import Sweep
from collapse_lib.training import fit

SMALL = {"encoder_hidden": (16,), "decoder_hidden": (16,)}


@pytest.fixture
def x() -> torch.Tensor:
    """Two dim clusters of binary images whose structure is weaker than the noise: a plain VAE collapses."""
    generator = torch.Generator().manual_seed(0)
    p = 0.5 + 0.05 * torch.randn(400, 2, generator=generator) @ torch.randn(2, 12, generator=generator).sign()
    return torch.bernoulli(p.clamp(0, 1), generator=generator)


def test_a_constraint_keeps_the_latents_that_a_plain_vae_loses(x: torch.Tensor) -> None:
    B, output = basis("pca", 12, 2, x=x), mean_image_logits(x)
    options = {"steps": 400, "batch_size": 100, "progress": False}
    setting = {"seed": [0, 1], "lr": 1e-2}
    plain = fit(Sweep.grid(partial(plain_vae, 12, 2, output=output, **SMALL), **setting), x, SampledElbo(), **options)
    held = fit(
        Sweep.grid(partial(brenier_vae, B, output=output, **SMALL), L=[0.0, 1.2], **setting),
        x,
        SampledElbo(),
        **options,
    )
    lost = [measure_vae(plain.model(i), x) for i in range(2)]
    kept = [measure_vae(held.model(i), x) for i in (2, 3)]
    assert all(row["kl"] < 0.1 for row in lost)
    floor = math.log1p(1.44**2 / 4)  # of two latents at logits near 0, whose Fisher information is 1/4 (Gaussian limit)
    assert all(row["kl"] > 0.7 * floor and row["au_share"] == 1 for row in kept)
    assert held.model(2).decoder.inverse_lipschitz == pytest.approx(1.44, rel=1e-4)


def test_a_mixture_trains_on_its_own_elbo(x: torch.Tensor) -> None:
    build = partial(brenier_vae, basis("orthonormal", 12, 2), components=3, L=1.0, **SMALL)
    found = fit(Sweep.grid(build, seed=0, lr=1e-2), x, MonteCarloElbo(), steps=100, batch_size=100, progress=False)
    model = found.model(0)
    assert isinstance(model, MixturePriorVAE)
    start = found.sweep.make(0)
    assert measure_vae(model, x)["elbo"] > measure_vae(start, x)["elbo"]
    assert (model.prior_means - start.prior_means).abs().max() > 1e-3


def test_the_pieces_start_where_they_say(x: torch.Tensor) -> None:
    logits = mean_image_logits(x)
    torch.testing.assert_close(logits.sigmoid(), x.mean(0).clamp(0.01, 0.99))
    B = basis("eye", 12, 2)
    assert torch.equal(plain_vae(12, 2, output=logits, **SMALL).decoder[-1].bias, logits)
    skip = skip_vae(B, scale=4.0, output=logits, **SMALL).decoder
    z = torch.randn(5, 2)
    torch.testing.assert_close(skip(z) - skip.net(z), 4 * z @ B.T + logits)
    decoder = brenier_vae(B, output=logits, **SMALL).decoder
    assert isinstance(decoder, BrenierDecoder)
    assert torch.equal(decoder.c, logits)
    log_var = ClampedEncoder(12, (16,), 2)(1e4 * x)[:, 2:]
    assert log_var.min() >= LOG_VAR[0]
    assert log_var.max() <= LOG_VAR[1]
