"""The sampled linear MHVAE against the exact loss, and its training against the closed form."""

import math

import pytest
import torch

from collapse_lib.models.linear_hierarchical import LinearMhvae, MhvaeSpectra, SampledMhvae, distance_to_theory
from collapse_lib.sweeps import Sweep
from collapse_lib.theory import hierarchical as h
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
    model = LinearMhvae(5, 3, 2, sigma_1=0.7, sigma_2=sigma_2).double()
    for weight in (model.W1, model.W2, model.U1, model.U2):
        weight.mul_(5)
    weighting = Weighting(0.7, 1.6, 0.8, 1.3)
    many = x.double().repeat(200, 1)
    objective = SampledMhvae()
    noise = {n: torch.randn(spec.shape, dtype=torch.float64) for n, spec in objective.noise(model, len(many)).items()}
    hyper = {name: torch.tensor(value) for name, value in weighting._asdict().items()}
    assert objective.reads == hyper.keys()
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
    sweep = Sweep.grid(lambda: LinearMhvae(5, 2, 2, sigma_1=0.5), seed=[0, 1], lr=1e-2, **weighting)
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
    optimum = h.mhvae_sigma2_learnable(theta, Weighting(**weighting), 0.5, 2)
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
    assert "sigma_2=0.0" in repr(model)
