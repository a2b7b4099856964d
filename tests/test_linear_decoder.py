"""VAEs with a linear decoder: against the linear VAE, Monte Carlo, and the bound that no encoder lifts."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from theory_cases import case
from torch import Tensor, nn

from collapse_lib.evaluation import PerMember
from collapse_lib.models.linear import AnalyticElbo, LinearVAE, Moments, ShortfallSplit
from collapse_lib.models.linear_decoder import LinearDecoderElbo, LinearDecoderVAE, SharedVariance, measure_shortfall
from collapse_lib.nets import mlp
from collapse_lib.objectives import SampledElbo
from collapse_lib.sweeps import Sweep
from collapse_lib.theory import linear_vae, ppca
from collapse_lib.theory.spectrum import covariance_spectrum
from collapse_lib.training import fit

N, K = 9, 3


@pytest.fixture
def x() -> Tensor:
    scales = torch.linspace(2.5, 0.2, N, dtype=torch.float64)
    return 0.7 + scales * torch.randn(60, N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def nonlinear(x: Tensor, seed: int = 0, **options) -> LinearDecoderVAE:
    torch.manual_seed(seed)
    encoder = partial(mlp, [N, 7, 2 * K])
    return LinearDecoderVAE.centred_start(encoder, Moments.of(x), K, weight_std=0.5, **options).double()


def as_linear_decoder(vae: LinearVAE) -> LinearDecoderVAE:
    """The same model, written as an affine mean and a shared variance."""
    mean = nn.Linear(N, K).double()
    mean.weight.data, mean.bias.data = vae.V.detach().clone(), -(vae.V @ vae.mu).detach()
    encoder = SharedVariance(mean, K).double()
    encoder.log_var.data = vae.log_d.detach().clone()
    return LinearDecoderVAE(encoder, vae.W.detach(), vae.mu.detach(), vae.log_sigma2.item())


def random_linear(seed: int = 1) -> LinearVAE:
    torch.manual_seed(seed)
    return LinearVAE.normal_start(N, K, log_sigma2=-0.3).double()


def test_an_affine_encoder_with_shared_variance_is_the_linear_vae(x):
    vae = random_linear()
    model = as_linear_decoder(vae)
    torch.testing.assert_close(model.elbo(x), vae.elbo(x))
    terms = LinearDecoderElbo()(model, (x,), {}, {"beta": torch.tensor(0.3).double()})
    for mine, theirs in zip(terms, AnalyticElbo()(vae, Moments.of(x), {}, {"beta": 0.3}), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_exact_elbo_is_the_mean_of_the_sampled_one(x):
    model = nonlinear(x)
    eps = torch.randn(20000, len(x), K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        exact = LinearDecoderElbo()(model, (x,), {}, {})
        draws = [SampledElbo(200)(model, (x,), {"eps": block}, {}).elbo for block in eps.split(200)]
    error = torch.stack(draws).std() / math.sqrt(len(draws))
    assert abs(torch.stack(draws).mean() - exact.elbo) < 4 * error
    assert error < 0.01


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 4), scale=st.floats(0.1, 20))
def test_no_encoder_lifts_the_elbo_above_the_profile(seed, k, scale):
    """Whatever encoder, decoder and offset: no gap is negative, and together they are LL* - ELBO."""
    X = case(6, k, 14, seed).X
    torch.manual_seed(seed)
    encoder = mlp([6, 5, 2 * k])
    model = LinearDecoderVAE(
        encoder, torch.randn(6, k), torch.randn(6), torch.randn(()).item(), input_mean=torch.randn(6), input_scale=scale
    ).double()
    spectrum = covariance_spectrum(X)
    gaps = measure_shortfall(model, X, spectrum)
    assert min(gaps["decoder"], gaps["rotation"], gaps["encoder"]) >= -1e-9
    missing = ppca.mle(spectrum, k).loglik - model.elbo(X).mean().item()
    np.testing.assert_allclose(gaps["decoder"] + gaps["rotation"] + gaps["encoder"], missing, rtol=1e-9)
    assert gaps["log_sigma2"] == pytest.approx(model.log_sigma2.item())


def test_the_best_affine_encoder_closes_the_encoder_gap(x):
    """Spec: the posterior mean M^-1 W^T (x - b) and d = sigma2 / M_ii, about the trained offset b."""
    vae = random_linear()
    V, d = linear_vae.best_encoder(vae.W.detach(), vae.log_sigma2.detach().exp())
    best = LinearVAE(vae.W.detach(), V, d.log(), vae.mu.detach(), vae.log_sigma2.item())
    spectrum = covariance_spectrum(x)
    assert measure_shortfall(best, x, spectrum)["encoder"] == pytest.approx(0, abs=1e-10)
    assert measure_shortfall(vae, x, spectrum)["encoder"] > 1


def test_the_split_of_a_linear_vae_is_that_of_its_moments(x):
    """`ShortfallSplit` knows the same model by its covariance alone; on the stacked float32 state of two members."""
    sweep = Sweep.grid(partial(LinearVAE.normal_start, N, K), seed=[0, 1], lr=1e-2)
    spectrum = covariance_spectrum(x)
    models = [sweep.make(i) for i in range(2)]
    state = {name: torch.stack([m.state_dict()[name] for m in models]) for name in models[0].state_dict()}
    want = ShortfallSplit(spectrum)(state, 0)
    before = copy.deepcopy(models[0].state_dict())
    found = PerMember(models[0], partial(measure_shortfall, x=x, spectrum=spectrum))(state, 0)
    for name in ("decoder", "rotation", "encoder"):
        torch.testing.assert_close(found[name], want[name], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(models[0].state_dict(), before)  # measured on copies
    assert models[0].W.dtype == torch.float32


@pytest.mark.parametrize("stack", [True, False])
def test_fit_approaches_the_likelihood_of_ppca(x, stack):
    spectrum = covariance_spectrum(x)
    sweep = Sweep.grid(partial(nonlinear, x, input_scale=3.0), seed=[0, 1], lr=1e-2)
    gaps = PerMember(sweep.make(0), partial(measure_shortfall, x=x, spectrum=spectrum))
    result = fit(
        sweep, x, LinearDecoderElbo(), steps=800, stack=stack, evaluate=gaps, evaluate_every=800, progress=False
    )
    short = result.evaluations[["decoder", "rotation", "encoder"]].sum(axis=1)
    assert (short[result.evaluations.step == 0] > 1).all()
    assert (short[result.evaluations.step == 800] < 0.5).all()
    last = result.history[result.history.step == result.history.step.max()].elbo
    assert (last <= ppca.mle(spectrum, K).loglik).all()
    torch.testing.assert_close(result.model(0).input_mean, x.mean(0))  # buffers are not trained


def test_input_is_standardised_by_buffers(x):
    model = nonlinear(x, input_scale=5.0)
    mean, log_var = model.encode(x)
    raw = model.encoder((x - x.mean(0)) / 5)
    torch.testing.assert_close(torch.cat([mean, log_var], -1), raw)
    assert {"input_mean", "input_scale"} <= dict(model.named_buffers()).keys()
    torch.testing.assert_close(model.log_sigma2.exp(), x.var(0, correction=0).mean())
    torch.testing.assert_close(model.decode(torch.zeros(K).double()), x.mean(0))


def test_plain_start_is_torchs_affine_layer_at_sigma2_e():
    torch.manual_seed(0)
    model = LinearDecoderVAE.plain_start(partial(mlp, [N, 2 * K]), N, K)
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(N, 2 * K), nn.Linear(K, N)
    z, x = torch.randn(4, K), torch.randn(4, N)
    torch.testing.assert_close(model.decode(z), decoder(z))
    torch.testing.assert_close(torch.cat(model.encode(x), -1), encoder(x))
    assert model.log_sigma2.item() == 1.0
    assert not LinearDecoderVAE.plain_start(partial(mlp, [N, 2 * K]), N, K, learn_sigma2=False).log_sigma2.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b": torch.zeros(4)}, r"W \(5, 2\) wants b and input_mean \(5,\); got \(4,\)"),
        ({"input_mean": torch.zeros(3)}, r"got \(5,\), \(3,\)"),
        ({"input_scale": 0.0}, "must be positive, got 0.0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        LinearDecoderVAE(mlp([5, 4]), **{"W": torch.zeros(5, 2), "b": torch.zeros(5), "log_sigma2": 0.0} | options)
