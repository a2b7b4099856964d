"""The trainable linear VAE and CVAE against the expected losses of `theory.conditional`, and trained to its optimum."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from collapse_lib.models.conditional import CVAE, ConditionalElbo, LinearCVAE, OptimumErrors, UncentredLinearVAE
from collapse_lib.objectives import ElboTerms
from collapse_lib.sweeps import Sweep
from collapse_lib.theory import conditional
from collapse_lib.theory.second_moments import cvae_moments
from collapse_lib.theory.spectrum import covariance_spectrum
from collapse_lib.training import fit
from collapse_lib.transforms import quadrants

STDS = [0.3, 0.9, 1.7]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def cvae(learn_sigma: bool = True) -> LinearCVAE:
    return LinearCVAE.normal_start(2, 4, 3, sigma=STDS, learn_sigma=learn_sigma, eta_dec=0.7, eta_enc=1.4).double()


def vae(learn_sigma: bool = True) -> UncentredLinearVAE:
    start = partial(UncentredLinearVAE.normal_start, 4, 3)
    return start(sigma=STDS, learn_sigma=learn_sigma, eta_dec=0.7, eta_enc=1.4).double()


def terms(model: nn.Module, data: tuple[Tensor, ...], beta: float, eps: Tensor | None = None) -> ElboTerms:
    objective = ConditionalElbo(0 if eps is None else len(eps))
    return objective(model, data, {} if eps is None else {"eps": eps}, {"beta": torch.tensor(beta)})


def assert_nats(found: ElboTerms, expected: conditional.Terms, beta: float) -> None:
    """loss = (L + constants) / 2 for n = 4 dimensions and 3 latents, up to the guard of log(sigma^2 + 1e-8)."""
    constants = 4 * np.log(2 * np.pi * 0.7**2) + beta * 3 * (2 * np.log(1.4) - 1)
    assert float(found.loss) == pytest.approx(0.5 * (float(expected.loss) + constants), rel=1e-6)
    assert float(found.kl) == pytest.approx(float(expected.kl), rel=1e-6)
    assert float(found.elbo) == pytest.approx(float(expected.elbo(4, 0.7)), rel=1e-6)


@torch.no_grad()
def test_in_closed_form_the_objectives_are_the_expected_losses() -> None:
    x, y = normal(0, 30, 2), normal(1, 30, 4)
    log_sigma2 = 2 * torch.tensor(STDS, dtype=torch.float64).log()
    setting = {"beta": 1.6, "eta_dec": 0.7, "eta_enc": 1.4}
    model = cvae()
    weights = model.W1, model.W2, model.U1, model.U2
    expected = conditional.cvae_terms(*weights, log_sigma2, cvae_moments(x, y), **setting)
    assert_nats(terms(model, (x, y), 1.6), expected, 1.6)

    plain, spectrum = vae(), covariance_spectrum(y, offset=torch.zeros(4, dtype=torch.float64))
    theta, P = spectrum.eigenvalues.sqrt(), spectrum.eigenvectors
    expected = conditional.vae_terms(P.T @ plain.U, plain.W @ P * theta, log_sigma2, theta, **setting)
    assert_nats(terms(plain, (y,), 1.6), expected, 1.6)


@torch.no_grad()
@pytest.mark.parametrize("model", [cvae(), vae()], ids=["cvae", "vae"])
def test_samples_average_to_the_closed_form(model: nn.Module) -> None:
    x, y = normal(0, 4, 2), normal(1, 4, 4)
    data = (x, y) if isinstance(model, LinearCVAE) else (y,)
    assert ConditionalElbo(5).noise(model, 4)["eps"].shape == (5, 4, 3)
    assert ConditionalElbo(0).noise(model, 4) == {}
    draws = torch.stack([terms(model, data, 1.0, normal(seed, 200, 4, 3)).elbo for seed in range(50)])
    assert abs(float(draws.mean() - terms(model, data, 1.0).elbo)) < 4 * float(draws.std()) / 50**0.5


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_training_arrives_at_theorem_1(learn_sigma: bool) -> None:
    x = normal(2, 40, 6) * torch.tensor([3.0, 2.0, 1.5, 1.0, 0.6, 0.3])
    spectrum = covariance_spectrum(x, offset=torch.zeros(6, dtype=torch.float64))
    sigma = torch.tensor([1.0, 0.5, 0.8], dtype=torch.float64)
    if learn_sigma:
        best = conditional.vae_learnable(spectrum.eigenvalues, 3, beta=1.2)
    else:
        best = conditional.vae_fixed(spectrum.eigenvalues.sqrt(), sigma, beta=1.2)
    root = (spectrum.eigenvectors * spectrum.eigenvalues.sqrt()) @ spectrum.eigenvectors.T
    start = partial(UncentredLinearVAE.normal_start, 6, 3, sigma=[1.0, 0.5, 0.8], learn_sigma=learn_sigma)
    run = fit(
        Sweep.grid(lambda: start().double(), seed=[0, 1], lr=0.02, beta=1.2),
        x,
        ConditionalElbo(0),
        steps=2500,
        evaluate=OptimumErrors(best, root),
        evaluate_every=2500,
        progress=False,
    )
    first, last = (run.evaluations.groupby("member").nth(i) for i in (0, -1))
    assert (last[["omega_error", "lam_error", "sigma_error"]] < 5e-3).all(axis=None)
    assert (first.omega_error > 0.5).all()
    torch.testing.assert_close(run.stacked("sigma").abs().sort().values[0], best.sigma.sort().values, rtol=0, atol=5e-3)


def test_errors_vanish_at_the_optimum_whatever_the_order() -> None:
    best = conditional.vae_learnable(torch.tensor([5.0, 2.0, 0.5]), 3, beta=1.0)
    U = torch.diag(best.omega)[:, [2, 0, 1]]
    state = {"U1": torch.stack([U, U + 0.1 * torch.eye(3)]), "sigma": torch.stack([-best.sigma[[1, 2, 0]], best.sigma])}
    found = OptimumErrors(best)(state, 0)
    assert set(found) == {"omega_error", "sigma_error"}
    assert float(found["omega_error"][0]) < 1e-12
    assert float(found["omega_error"][1]) > 1e-3
    assert found["sigma_error"].tolist() == [0, 0]


def test_a_variance_that_crosses_zero_stays_finite() -> None:
    model = LinearCVAE.normal_start(2, 4, 3, sigma=0.0).double()
    found = terms(model, (normal(0, 5, 2), normal(1, 5, 4)), 1.0)
    found.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_fixed_and_learned_variances_differ_in_print_and_state() -> None:
    assert "learn_sigma=True" in repr(cvae())
    assert "learn_sigma=False" in repr(cvae(learn_sigma=False))
    assert "sigma" in dict(cvae(learn_sigma=False).named_buffers())
    assert "sigma" in dict(vae().named_parameters())


def test_errors() -> None:
    with pytest.raises(ValueError, match="one a latent, 3 of them"):
        LinearCVAE.normal_start(2, 4, 3, sigma=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"must be positive, got 1\.0, 0"):
        UncentredLinearVAE.normal_start(4, 3, eta_enc=0)


BUILDS = [
    partial(CVAE.mlp, 16, 48, 6, 3),
    partial(CVAE.mlp, 16, 48, 6, 3, activation=nn.Identity),
    partial(CVAE.conv, 8, (4, 3), 3),
]


@pytest.mark.parametrize("build", BUILDS, ids=["ReLU", "linear", "conv"])
def test_networks_train_as_a_stack_as_they_do_alone(build: partial) -> None:
    x, y = normal(0, 40, 16).float(), normal(1, 40, 48).float()
    setting = {"seed": 3, "lr": 1e-3, "beta": [0.5, 2.0], "eta_dec": [0.25, 1.0]}
    options = {"steps": 12, "batch_size": 10, "progress": False}
    stacked = fit(Sweep.grid(build, **setting), (x, y), ConditionalElbo(), stack=True, **options)
    assert stacked.summary.stacked.all(), "members that differ in eta_dec are one architecture"
    for member, state in enumerate(stacked.states):
        alone = fit(stacked.sweep[member], (x, y), ConditionalElbo(), stack=False, **options).states[0]
        torch.testing.assert_close(state, alone, rtol=1e-4, atol=1e-5)
        assert float(alone["eta_dec"]) == pytest.approx(stacked.summary.eta_dec[member])


@torch.no_grad()
def test_the_elbo_of_a_network_is_that_of_torchs_distributions() -> None:
    torch.manual_seed(0)
    x, y, eps = normal(0, 9, 16), normal(1, 9, 48), normal(2, 5, 9, 3)
    model = CVAE.mlp(16, 48, 6, 3, eta_dec=0.7, eta_enc=1.4).double()
    found = terms(model, (x, y), 1.6, eps)
    head = model.encode_x(x) + model.encode_y(y)
    q = torch.distributions.Normal(head[:, :3], (head[:, 3:] ** 2 + 1e-8).sqrt())  # the guard against sigma = 0
    z = q.mean + q.stddev * eps
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, model.eta_enc)).sum(-1).mean()
    decoded = torch.distributions.Normal(model.decode_z(z) + model.decode_x(x), model.eta_dec)
    log_likelihood = decoded.log_prob(y).sum(-1).mean()
    assert float(found.kl) == pytest.approx(float(kl), rel=1e-6)
    assert float(found.log_likelihood) == pytest.approx(float(log_likelihood), rel=1e-6)
    assert float(found.loss) == pytest.approx(float(1.6 * kl - log_likelihood), rel=1e-6)


def test_with_the_identity_a_network_is_affine() -> None:
    model = CVAE.mlp(16, 48, 6, 3, activation=nn.Identity).double()
    a, b = (normal(seed, 2, 48) for seed in (0, 1))
    x, z = normal(2, 2, 16), normal(3, 2, 3)
    middle = model.encode(x, (a + b) / 2).mean
    torch.testing.assert_close(middle, (model.encode(x, a).mean + model.encode(x, b).mean) / 2)
    torch.testing.assert_close(model.decode(2 * z, x) - model.decode(z, x), model.decode(z, x) - model.decode(0 * z, x))


@torch.no_grad()
def test_the_conv_model_sees_every_pixel_of_y_in_its_place() -> None:
    """Its encoder reads y as transforms.quadrants cuts it; its decoder writes the same three quadrants."""
    torch.manual_seed(0)
    model = CVAE.conv(28, (4, 3), 2)
    image = torch.rand(1, 28, 28)
    quarters = quadrants(image)
    y = torch.stack([quarters.top_left, quarters.top_right, quarters.bottom_right], 1).reshape(1, -1)
    whole = model.encode_y[0](y).reshape(28, 28)
    expected = image[0].clone()
    expected[14:, :14] = 0
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(model.decode_z[1](image.flatten(1)), y)
    assert model.decode(torch.randn(4, 5, 2), torch.rand(5, 196)).shape == (4, 5, 588)
    paper = CVAE.conv(28, (32, 16), 16)
    assert paper.encode_x[-1].in_features == 256
    assert paper.encode_y[1][-1].in_features == 784


def test_what_does_not_fit_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        CVAE.conv(30, (4, 3), 2)
    with pytest.raises(ValueError, match="n_samples"):
        terms(CVAE.mlp(2, 4, 6, 3), (normal(0, 9, 2).float(), normal(1, 9, 4).float()), 1.0)
