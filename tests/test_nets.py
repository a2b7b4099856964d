"""Networks: shapes, counts of weights from the papers' descriptions, stacking, and what is refused."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.nets import GlobalVariance, LatentScale, conv_decoder, conv_encoder, mlp
from collapse_lib.objectives import Posterior, SampledElbo, gaussian_kl
from collapse_lib.sweeps import Sweep
from collapse_lib.training import fit


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_higgins_encoder_has_the_weights_that_its_description_gives() -> None:
    """Conv 32x4x4, 32x4x4, 64x4x4, 64x4x4, FC 256, heads: weights and biases counted by hand."""
    encoder = conv_encoder((3, 64, 64), (32, 32, 64, 64), 256, 64)
    by_hand = 16 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 192 + (64 * 16 + 1) * 256 + 257 * 64
    assert weights(encoder) == by_hand
    assert encoder(torch.zeros(2, 3 * 64 * 64)).shape == (2, 64)
    assert conv_decoder((3, 64, 64), (32, 32, 64, 64), 256, 32)(torch.zeros(2, 32)).shape == (2, 3 * 64 * 64)


def test_every_pixel_is_seen_and_reached() -> None:
    """No pixel of the input is ignored by the encoder, none of the output is constant in z."""
    torch.manual_seed(0)
    x = torch.randn(8, 256, requires_grad=True)
    conv_encoder((1, 16, 16), (4, 4), 32, 6)(x).square().sum().backward()
    assert (x.grad != 0).any(0).all()
    outputs = conv_decoder((1, 16, 16), (4, 4), 32, 3)(torch.randn(8, 3))
    assert (outputs.std(0) > 0).all()


def test_a_convolution_keeps_the_images_layout() -> None:
    """Flat images are rows of (C, H, W): a bright top-left corner moves the encoder's top-left features only."""
    encoder = conv_encoder((1, 8, 8), (2,), 4, 2)
    image = torch.zeros(1, 1, 8, 8)
    image[..., 0, 0] = 1
    change = encoder[:2](image.flatten(1)) - encoder[:2](torch.zeros(1, 64))
    assert change[0, :, 0, 0].abs().sum() > 0
    assert change[0, :, 1:, 1:].abs().sum() == 0


def test_conv_decode_carries_leading_axes() -> None:
    model = GaussianVAE.conv((1, 8, 8), (2, 3), 5, 2, likelihood="gaussian")
    z = torch.randn(4, 3, 2)
    together = model.decode(z)
    assert together.shape == (4, 3, 64)
    torch.testing.assert_close(together[2, 1], model.decode(z[2, 1]))


def test_conv_members_stacked_equal_conv_members_alone() -> None:
    build = partial(GaussianVAE.conv, (1, 8, 8), (2, 3), 5, 2, likelihood="gaussian")
    sweep = Sweep.grid(build, seed=[0, 1], sigma2=[1.0, 0.3], lr=1e-2)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    stacked, alone = (
        fit(sweep, x, SampledElbo(), steps=8, batch_size=5, stack=s, progress=False) for s in (True, False)
    )
    for a, b in zip(stacked.states, alone.states, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_the_output_bias_can_start_at_the_mean() -> None:
    mean = torch.arange(6.0)
    model = GaussianVAE.mlp(6, (4,), 2, likelihood="gaussian", output_mean=mean)
    assert torch.equal(model.decoder[-1].bias, mean)
    mean += 1
    assert torch.equal(model.decoder[-1].bias, mean - 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv_encoder((1, 28, 28), (4, 4, 4), 8, 2), "divisible by 8, got 28x28: pad the images"),
        (lambda: conv_decoder((1, 8, 8), (), 8, 2), "one convolution at least"),
        (lambda: GaussianVAE.mlp(6, (4,), 2, output_mean=torch.zeros(5)), r"output_mean must be \(6,\), got \(5,\)"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_latent_scale_is_the_prior_s_standard_deviation() -> None:
    """A linear decoder after it has the marginal that it has under the prior N(0, diag s^2)."""
    scale, decoder, s = LatentScale(2), nn.Linear(2, 3, bias=False), torch.tensor([0.5, 2.0])
    torch.testing.assert_close(scale(torch.ones(4, 2)), torch.ones(4, 2))
    with torch.no_grad():
        scale.log_scale.copy_(s.log())
        z = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
        covariance = decoder(scale(z)).T.cov()
        torch.testing.assert_close(covariance, decoder.weight @ s.square().diag() @ decoder.weight.T, atol=0.02, rtol=0)


def global_vae(sigma: float = 1.0, *, learn: bool = True) -> GaussianVAE:
    encoder = GlobalVariance(mlp([12, 8, 3]), 3, sigma=sigma, learn=learn)
    return GaussianVAE(encoder, mlp([3, 8, 12]), 3, likelihood="gaussian")


def test_a_global_variance_is_that_of_every_posterior() -> None:
    model, x = global_vae(0.5), torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    mean, log_var = model.encode(x)
    torch.testing.assert_close(mean, model.encoder.mean(x))
    by_torch = kl_divergence(Normal(mean, torch.tensor(0.5)), Normal(torch.tensor(0.0), torch.tensor(1.0))).sum(1)
    torch.testing.assert_close(gaussian_kl(Posterior(mean, log_var)), by_torch)


def test_a_global_variance_that_is_searched_for_gets_its_own_rate_and_a_fixed_one_stays() -> None:
    """Adam's first step is the rate, whatever the gradient; members that start elsewhere run as one program."""
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    step = partial(fit, data=x, objective=SampledElbo(), steps=1, batch_size=10, progress=False)
    sigmas = [0.1, 1.0, 3.0]
    free = step(Sweep.grid(global_vae, sigma=sigmas, seed=0, lr=1e-4), groups={"encoder.log_var": {"lr": 1e-2}})
    moved = free.stacked("encoder.log_var") - 2 * torch.tensor(sigmas).log()[:, None]
    torch.testing.assert_close(moved.abs(), torch.full((3, 3), 1e-2), rtol=1e-3, atol=0)
    held = step(Sweep.grid(partial(global_vae, learn=False), sigma=sigmas, seed=0, lr=1e-4))
    torch.testing.assert_close(held.stacked("encoder.log_var"), 2 * torch.tensor(sigmas).log()[:, None].expand(3, 3))
    assert free.summary.stacked.all()
    assert held.summary.stacked.all()


def test_a_rectified_mean_is_never_negative() -> None:
    encoder = GlobalVariance(nn.Sequential(*mlp([12, 8, 3]), nn.ReLU()), 3)
    mean, log_var = encoder(torch.randn(50, 12)).chunk(2, -1)
    assert mean.min() == 0
    assert (log_var == 0).all()


def test_a_global_variance_needs_a_positive_sigma() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        GlobalVariance(mlp([12, 3]), 3, sigma=0.0)
