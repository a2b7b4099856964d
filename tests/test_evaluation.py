"""What trained VAEs are worth, against closed forms of the linear VAE and against counting."""

from functools import partial

import pandas as pd
import pytest
import torch
from torch.distributions import MultivariateNormal

from collapse_lib.evaluation import (
    PerMember,
    activity,
    evaluate_gaussian,
    evaluate_members,
    gaussian_nll,
    late_change,
    measure_gaussian,
    measure_vae,
)
from collapse_lib.models.conditional import ConditionalElbo, LinearCVAE, UncentredLinearVAE
from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.models.linear import LinearVAE, Moments
from collapse_lib.models.mixture import MixturePriorVAE, MonteCarloElbo
from collapse_lib.objectives import SampledElbo
from collapse_lib.sweeps import Sweep
from collapse_lib.theory import linear_vae
from collapse_lib.training import fit


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    scales = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    return torch.randn(60, 6, generator=generator, dtype=torch.float64) * scales


def test_a_linear_vae_has_its_closed_form(x: torch.Tensor) -> None:
    """Within four standard errors of the exact ELBO; the KL and the identity between the terms exactly."""
    torch.manual_seed(1)
    model = LinearVAE.tied_start(Moments.of(x), 2, weight_std=1.0).double().requires_grad_(False)
    S = Moments.of(x).covariance
    exact = linear_vae.elbo(model.W, model.V, model.log_d.exp(), model.log_sigma2.exp(), S)
    found = evaluate_gaussian(model, x, n_samples=4000, seed=2, chunk=17)
    spread = linear_vae.single_sample_variance(
        model.W, model.V, model.log_d.exp(), model.log_sigma2.exp(), model.mu, x
    ).mean()
    assert abs(found.elbo - float(exact.elbo)) < 4 * float(spread / (4000 * 60)) ** 0.5
    assert found.kl == pytest.approx(float(exact.kl), rel=1e-12)
    sigma2 = float(model.log_sigma2.exp())
    rebuilt = -3 * torch.log(torch.tensor(2 * torch.pi * sigma2)) - found.squared_error / (2 * sigma2) - found.kl
    assert found.elbo == pytest.approx(float(rebuilt), rel=1e-6)


def test_the_numbers_are_those_of_the_images_one_by_one(x: torch.Tensor) -> None:
    torch.manual_seed(2)
    model = GaussianVAE.mlp(6, (5,), 3, likelihood="gaussian", sigma2=0.4).double().requires_grad_(False)
    posterior = model.encode(x)
    prior = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, (0.5 * posterior.log_var).exp()), prior
    )
    got = measure_gaussian(model, x, epsilon=[0.01, 0.05], delta=0.1)
    for epsilon in (0.01, 0.05):
        collapsed = [(kl[:, i] < epsilon).double().mean() >= 0.9 for i in range(3)]
        assert got[f"collapsed_{epsilon:g}"] == pytest.approx(sum(collapsed) / 3)
    assert got["kl"] == pytest.approx(float(kl.sum(1).mean()))
    assert got["tuned_sigma2"] == pytest.approx(got["squared_error"] / 6)
    retuned = got["log_likelihood"] - got["kl"], got["tuned_elbo"]
    assert retuned[0] == pytest.approx(got["elbo"])
    assert retuned[1] >= got["elbo"]


def test_members_keep_their_rows_and_learned_numbers_do_not_hide_the_start(x: torch.Tensor) -> None:
    build = partial(GaussianVAE.mlp, 6, (5,), 2, likelihood="gaussian", learn_sigma2=True)
    sweep = Sweep.grid(build, seed=[0, 1], sigma2=[3.0, 0.3], lr=1e-2)
    worth = partial(measure_gaussian, x=x.float(), epsilon=[0.1])
    result = fit(
        sweep,
        x.float(),
        SampledElbo(),
        steps=20,
        evaluate=PerMember(sweep.make(0), worth),
        evaluate_every=10,
        progress=False,
    )
    table = evaluate_members(result, worth)
    assert table.sigma2_start.tolist() == [3.0, 0.3, 3.0, 0.3]
    for member in range(4):
        assert table.sigma2[member] == pytest.approx(float(result.states[member]["log_sigma2"].exp()))
        last = result.evaluations.query("member == @member and step == 20").iloc[0]
        for name in ("elbo", "kl", "sigma2", "collapsed_0.1"):
            assert last[name] == pytest.approx(table.loc[member, name], rel=1e-5)
    untrained = result.evaluations.query("step == 0").sigma2.tolist()
    assert untrained == pytest.approx([3.0, 0.3, 3.0, 0.3], rel=1e-6)


def test_a_diverged_member_has_no_row(x: torch.Tensor) -> None:
    build = partial(GaussianVAE.mlp, 6, (5,), 2, likelihood="gaussian")
    sweep = Sweep.grid(build, seed=0, sigma2=[1.0, 1e-45], lr=1e-2)
    result = fit(sweep, x.float(), SampledElbo(), steps=5, progress=False)
    assert result.summary.status.tolist() == ["finished", "diverged"]
    assert evaluate_members(result, partial(measure_gaussian, x=x.float())).index.tolist() == [0]


def test_what_still_moves_at_the_end() -> None:
    """By hand: flat, a straight line (a tenth of its climb), and a member that stopped early."""
    steps = list(range(0, 101, 5))
    rows = [{"member": 0, "step": t, "elbo": 7.0} for t in steps] + [
        {"member": 2, "step": t, "elbo": 3.0 * t} for t in steps
    ]
    rows += [{"member": 5, "step": t, "elbo": float(t > 45)} for t in steps if t <= 50]
    change = late_change(pd.DataFrame(rows), "elbo")
    assert change.index.tolist() == [0, 2, 5]
    assert change.tolist() == pytest.approx([0.0, 30.0, 1.0])
    with pytest.raises(ValueError, match=r"too few rows for a tail of 0\.01"):
        late_change(pd.DataFrame(rows), "elbo", tail=0.01)


def test_errors(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="Bernoulli likelihood"):
        evaluate_gaussian(GaussianVAE.mlp(6, (5,), 2), x)
    with pytest.raises(ValueError, match="n_samples must be at least 1"):
        evaluate_gaussian(GaussianVAE.mlp(6, (5,), 2, likelihood="gaussian"), x, n_samples=0)


def test_a_conditional_model_has_its_closed_form(x: torch.Tensor) -> None:
    """A linear CVAE with eta_enc != 1 against its objective, which takes the expectation over z exactly."""
    torch.manual_seed(1)
    model = LinearCVAE.normal_start(2, 4, 3, sigma=[0.3, 0.9, 1.7], eta_dec=0.7, eta_enc=1.4).double()
    model.requires_grad_(False)
    given, decoded = x.split([2, 4], -1)
    exact = ConditionalElbo(0)(model, (given, decoded), {}, {})
    found = evaluate_gaussian(model, (given, decoded), n_samples=4000, chunk=17)
    assert found.kl == pytest.approx(float(exact.kl), rel=1e-9)
    assert found.elbo == pytest.approx(float(exact.elbo), abs=0.02)
    assert found.latent_mean.shape == (60, 3)
    torch.testing.assert_close(found.latent_mean, model.encode(given, decoded).mean)


@torch.no_grad()
def test_the_importance_sampled_nll_is_the_exact_one(x: torch.Tensor) -> None:
    """p(x) = N(0, eta_enc^2 U U^T + eta_dec^2 I), and for the CVAE p(y|x) = N(U2 x, the same with U1)."""
    torch.manual_seed(0)
    plain = UncentredLinearVAE.normal_start(6, 2, eta_dec=0.7, eta_enc=1.4).double()
    exact = MultivariateNormal(torch.zeros(6).double(), covariance(plain.U, 0.7, 1.4)).log_prob(x)
    found = gaussian_nll(plain, x, 2000, seed=3)
    assert found.nll == pytest.approx(-float(exact.mean()), abs=4 * found.standard_error + 1e-6)

    given, decoded = x.split([2, 4], -1)
    cvae = LinearCVAE.normal_start(2, 4, 3, sigma=0.9, eta_dec=0.7, eta_enc=1.4).double()
    exact = MultivariateNormal(given @ cvae.U2.T, covariance(cvae.U1, 0.7, 1.4)).log_prob(decoded)
    found = gaussian_nll(cvae, (given, decoded), 2000, seed=3)
    assert found.nll == pytest.approx(-float(exact.mean()), abs=4 * found.standard_error + 1e-6)
    assert found.n_samples == 2000


def covariance(U: torch.Tensor, eta_dec: float, eta_enc: float) -> torch.Tensor:
    return eta_enc**2 * U @ U.T + eta_dec**2 * torch.eye(len(U), dtype=U.dtype)


def test_active_units_are_counted_by_three_rules() -> None:
    mean = torch.tensor([[1.0, 0.0, 0.1], [-1.0, 0.0, 0.1], [1.0, 0.0, 0.1], [-1.0, 0.0, 0.1]])
    kl = torch.tensor([[0.5, 0.0, 0.02], [0.5, 0.0, 0.02], [0.5, 0.0, 0.0], [0.5, 0.03, 0.0]])
    assert activity(kl, mean) == {"au_burda": 1, "au_kl": 1, "au_code": pytest.approx(7 / 12)}


def linear_decoder(prior_means: torch.Tensor | None) -> GaussianVAE:
    """x = W z + noise of variance 0.3, with an encoder that is no optimum."""
    torch.manual_seed(0)
    parts = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6, bias=False), 2
    if prior_means is None:
        return GaussianVAE(*parts, likelihood="gaussian", sigma2=0.3).double().requires_grad_(False)
    mixture = MixturePriorVAE(*parts, components=len(prior_means), likelihood="gaussian", sigma2=0.3).double()
    mixture.requires_grad_(False).prior_means.copy_(prior_means)
    return mixture


@pytest.mark.parametrize(
    "means", [None, [[0.0, 0.0]], [[1.5, 0.0], [0.5, 1.0]]], ids=["normal", "one component", "two components"]
)
def test_a_row_of_a_table_is_that_of_the_exact_density(x: torch.Tensor, means: list[list[float]] | None) -> None:
    """p(x) is a mixture of N(W m_c, W W^T + sigma2 I), the NLL and the gap of the ELBO are known from it."""
    x = 0.3 * x
    centres = None if means is None else torch.tensor(means, dtype=torch.float64)
    model = linear_decoder(centres)
    W = model.decoder.weight
    at = torch.zeros(1, 2, dtype=torch.float64) if centres is None else centres
    each = [MultivariateNormal(m @ W.T, W @ W.T + 0.3 * torch.eye(6).double()).log_prob(x) for m in at]
    log_p = torch.stack(each).logsumexp(0) - torch.tensor(float(len(at))).log()
    row = measure_vae(model, x, nll_samples=4000, n_samples=2000, nll_data=40)
    assert row["nll_4000"] == pytest.approx(-float(log_p[:40].mean()), abs=0.02)
    assert row["elbo"] == pytest.approx(row["log_likelihood"] - row["kl"])
    assert row["elbo"] < float(log_p.mean())
    assert row["mi"] + row["kl_to_aggregate"] == pytest.approx(row["kl"])
    assert row["au_share"] == row["au_burda"] / 2
    if centres is None:
        found = evaluate_gaussian(model, x)
        assert row["kl"] == pytest.approx(found.kl)
    else:
        eps = torch.randn(2000, len(x), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        objective = MonteCarloElbo(2000)(model, (x,), {"eps": eps}, {})
        assert row["elbo"] == pytest.approx(float(objective.elbo), abs=0.05)


def test_a_mixture_of_one_centred_component_is_the_plain_vae(x: torch.Tensor) -> None:
    plain, mixture = linear_decoder(None), linear_decoder(torch.zeros(1, 2).double())
    for name in ("elbo", "kl", "mi", "log_likelihood"):
        assert measure_vae(mixture, x)[name] == pytest.approx(measure_vae(plain, x)[name], rel=1e-9)
    with pytest.raises(ValueError, match="component"):
        MixturePriorVAE(torch.nn.Linear(6, 4), torch.nn.Linear(2, 6), 2, components=0)


def test_activity_does_not_depend_on_the_scale_of_z(x: torch.Tensor) -> None:
    """z with the prior N(0, 1) against 5 z with the prior N(0, 25): the same model in other units."""
    torch.manual_seed(0)
    unit = UncentredLinearVAE.normal_start(6, 2, sigma=0.5).double().requires_grad_(False)
    scaled = UncentredLinearVAE.normal_start(6, 2, sigma=2.5, eta_enc=5.0).double().requires_grad_(False)
    scaled.W.copy_(5 * unit.W)
    scaled.U.copy_(unit.U / 5)
    a, b = (measure_gaussian(model, 0.3 * x) for model in (unit, scaled))
    assert {name: b[name] for name in a} == pytest.approx(a, rel=1e-5)
