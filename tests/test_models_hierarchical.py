"""The sampled linear MHVAE against the exact loss, and its training against the closed form."""

import math
from functools import partial

import pytest
import torch

from collapse_lib.models.hierarchical import MHVAE, LinearMhvae, MhvaeSpectra, SampledMhvae, distance_to_theory
from collapse_lib.sweeps import Sweep
from collapse_lib.theory import hierarchical as h
from collapse_lib.theory import hierarchical_theorems as theorems
from collapse_lib.theory.hierarchical import Mhvae, Weighting
from collapse_lib.training import fit


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    axes = torch.diag(torch.tensor([3.0, 2.0, 0.7, 0.3, 0.1]))
    return torch.randn(2000, 5, generator=generator) @ axes @ torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]


@torch.no_grad()
@pytest.mark.parametrize("sigma_2", [None, 0.6])
def test_the_sampled_loss_is_the_exact_one_on_average(x, sigma_2):
    torch.manual_seed(1)
    weighting = Weighting(0.7, 1.6, 0.8, 1.3)
    model = LinearMhvae(5, 3, 2, sigma_1=0.7, sigma_2=sigma_2, eta_dec=0.8, eta_enc=1.3).double()
    for weight in (model.W1, model.W2, model.U1, model.U2):
        weight.mul_(5)
    many = x.double().repeat(200, 1)
    objective = SampledMhvae()
    noise = {n: torch.randn(spec.shape, dtype=torch.float64) for n, spec in objective.noise(model, len(many)).items()}
    hyper = {name: torch.tensor(getattr(weighting, name)) for name in objective.reads}
    found = objective(model, (many,), noise, hyper)

    root = MhvaeSpectra.of(x.double()).root
    weights = Mhvae(model.U1, model.W1 @ root, model.U2, model.W2, torch.full((3,), 0.49), model.sigma_2.square())
    exact = h.mhvae_terms(weights, root, weighting)
    assert float(found.squared_error) == pytest.approx(float(exact.squared_error), rel=5e-3)
    assert float(found.z1_term) == pytest.approx(float(exact.z1_term), rel=5e-3)
    assert float(found.kl_2) == pytest.approx(float(exact.kl_2), rel=5e-3)
    constants = 0.64 * (0.7 * 3 * (math.log(0.64) - 1) + 1.6 * 2 * (2 * math.log(1.3) - 1))
    assert float(found.loss) == pytest.approx(0.64 * float(exact.loss) + constants, rel=5e-3)


def test_training_comes_near_the_closed_form(x):
    theta = h.uncentred_theta(x.double())
    weighting = {"beta_1": 1.0, "beta_2": 1.5, "eta_dec": 0.5, "eta_enc": 0.5}
    sweep = Sweep.grid(partial(LinearMhvae, 5, 2, 2, sigma_1=0.5), seed=[0, 1], lr=1e-2, **weighting)
    found = fit(
        sweep,
        x,
        SampledMhvae(),
        steps=1000,
        batch_size=200,
        evaluate=MhvaeSpectra.of(x),
        evaluate_every=500,
        progress=False,
    )
    optimum = theorems.mhvae_sigma2_learnable(theta, Weighting(**weighting), 0.5, 2)
    distance = distance_to_theory(found.evaluations, [optimum, optimum])
    assert distance.step.tolist() == [0, 500, 1000] * 2
    first, last = (distance[distance.step == step][["lam", "omega", "sigma_2"]].mean() for step in (0, 1000))
    assert (last < 0.2 * first).all()
    torch.testing.assert_close(MhvaeSpectra.of(x).root @ MhvaeSpectra.of(x).root, x.double().T @ x.double() / len(x))


def test_the_guard_keeps_the_loss_finite_where_sigma_2_is_zero(x):
    model = LinearMhvae(5, 2, 2, sigma_1=0.5, sigma_2=0.0)
    noise = {n: torch.randn(spec.shape) for n, spec in SampledMhvae().noise(model, len(x)).items()}
    hyper = {name: torch.tensor(1.0) for name in SampledMhvae.reads}
    assert SampledMhvae()(model, (x,), noise, hyper).loss.isfinite()


def test_standard_deviations_must_be_positive():
    with pytest.raises(ValueError, match="sigma_1"):
        LinearMhvae(5, 2, 2, sigma_1=0.0)
    with pytest.raises(ValueError, match="eta_dec"):
        MHVAE.mlp(5, 3, 2, 2, eta_dec=-1.0)


@pytest.mark.parametrize(
    "model", [partial(MHVAE.mlp, 64, 7, 3, 2), partial(MHVAE.conv, (1, 8, 8), (4, 3), 7, 3, 2)], ids=["mlp", "conv"]
)
def test_networks_train_as_a_stack_as_they_do_alone(model):
    x = torch.rand(40, 64, generator=torch.Generator().manual_seed(2))
    setting = {"seed": 3, "lr": 1e-3, "beta_1": [0.5, 2.0], "beta_2": 1.0, "eta_dec": [0.25, 1.0]}
    options = {"steps": 12, "batch_size": 10, "progress": False}
    stacked = fit(Sweep.grid(model, **setting), x, SampledMhvae(), stack=True, **options)
    assert stacked.summary.stacked.all(), "members that differ in eta_dec are one architecture"
    for member, state in enumerate(stacked.states):
        alone = fit(stacked.sweep[member], x, SampledMhvae(), stack=False, **options).states[0]
        torch.testing.assert_close(state, alone, rtol=1e-4, atol=1e-5)
        assert float(alone["eta_dec"]) == stacked.summary.eta_dec[member]


def test_networks_have_the_layers_of_the_papers_code():
    conv = MHVAE.conv((1, 28, 28), (64, 32), 64, 16, 16)
    assert conv.to_z1[0][-1].in_features == 1568
    z = torch.randn(5, 2, 16)
    assert conv.decode_1(z).shape == (5, 2, 784)
    torch.testing.assert_close(conv.decode_1(z)[3], conv.decode_1(z[3]))
    assert conv.decode_1(100 * z).abs().max() <= 1
    mean, log_var = MHVAE.mlp(784, 256, 16, 16).encode_2(z)
    assert mean.shape == log_var.shape == (5, 2, 16)
    assert log_var.max() <= 1e-6, "tanh bounds the standard deviation by 1"
    free = MHVAE.mlp(784, 256, 16, 16, tanh=False)
    assert free.decode_2(1000 * z).abs().max() > 1, "without tanh the code of z1 is unbounded"
