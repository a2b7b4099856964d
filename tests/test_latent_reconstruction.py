"""The LR loss: against its formula, what each option trains, what it reduces to, and stacked against alone."""

import pytest
import torch
from torch import Tensor

from collapse_lib.latent_reconstruction import (
    LatentReconstruction,
    SoftplusLogVariance,
    cycle_errors,
    mlp_vae,
    noise_response,
)
from collapse_lib.objectives import SampledElbo
from collapse_lib.sweeps import Ramp, Sweep
from collapse_lib.training import fit


def setting(seed: int = 0, **options: bool):
    torch.manual_seed(seed)
    model = mlp_vae(6, (8,), 3, **options).double()
    x = torch.rand(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    noise = {name: torch.randn(40, 3, dtype=torch.float64, generator=generator) for name in ("posterior", "latent")}
    return model, x, noise


def numbers(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


@torch.no_grad()
def test_the_terms_are_the_formula() -> None:
    model, x, noise = setting()
    found = LatentReconstruction()(model, (x,), noise, numbers(alpha=0.4, beta=0.2))
    q = torch.distributions.Normal(model.encode(x).mean, (0.5 * model.encode(x).log_var).exp())
    dr = (x - model.decode(q.mean + q.stddev * noise["posterior"])).square().sum(1).mean()
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    lr = (model.encode(model.decode(noise["latent"])).mean - noise["latent"]).square().sum(1).mean()
    expected = (dr + 0.2 * kl + 0.4 * lr, dr, kl, lr)
    for got, want in zip(found, expected, strict=True):
        assert float(got) == pytest.approx(float(want))
    balanced = LatentReconstruction(balanced=True)(model, (x,), noise, numbers(alpha=0.4, beta=0.2))
    assert float(balanced.loss) == pytest.approx(float(0.6 * dr + 0.2 * kl + 0.4 * lr))
    mean = LatentReconstruction(reconstruction="mean")(model, (x,), noise, numbers(beta=0.2))
    assert float(mean.loss) == pytest.approx(float(dr / 6 + 0.2 * kl))


def test_the_log_form_is_the_best_sigma2s_likelihood() -> None:
    """n/2 log R + constants = min over sigma2 of n/2 log sigma2 + n R / (2 sigma2), and so have their gradients."""
    model, x, noise = setting()
    loss = LatentReconstruction(reconstruction="log")(model, (x,), noise, numbers(beta=0.0))
    R = loss.data_error.detach() / 6
    fixed = loss.data_error / (2 * R)
    parameters = [p for n, p in model.named_parameters() if n.startswith("decoder")]
    for a, b in zip(*(torch.autograd.grad(v, parameters, retain_graph=True) for v in (loss.loss, fixed)), strict=True):
        torch.testing.assert_close(a, b)


def test_without_alpha_it_is_a_vae_of_variance_one_half() -> None:
    model, x, noise = setting()
    ours = LatentReconstruction()(model, (x,), noise, numbers(beta=0.7)).loss
    elbo = SampledElbo()(model, (x,), {"eps": noise["posterior"][None]}, numbers(beta=0.7)).loss
    parameters = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(v, parameters) for v in (ours, elbo)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("source", "detach", "encoder", "decoder"),
    [
        ("prior", "none", True, True),
        ("prior", "image", True, False),
        ("prior", "encoder", False, True),
        ("posterior", "none", True, True),
        ("posterior", "latent", True, True),
        ("mean", "none", True, True),
    ],
)
def test_each_option_trains_what_it_says(source: str, detach: str, encoder: bool, decoder: bool) -> None:
    model, x, noise = setting()
    objective = LatentReconstruction(source=source, detach=detach)  # type: ignore[arg-type]
    latent = objective(model, (x,), noise, numbers(alpha=1.0)).latent_error
    gradients = torch.autograd.grad(latent, list(model.parameters()), allow_unused=True)
    moved = {"encoder": False, "decoder": False}
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        if gradient is not None and gradient.abs().max() > 0:
            moved[name.split(".")[0]] = True
    assert moved == {"encoder": encoder, "decoder": decoder}
    plain = LatentReconstruction(source=source)(model, (x,), noise, numbers(alpha=1.0)).latent_error  # type: ignore[arg-type]
    assert float(latent.detach()) == pytest.approx(float(plain.detach())), "detaching changes no value"


def test_a_warm_up_of_alpha_is_a_schedule_and_a_stack_equals_its_members() -> None:
    x = setting()[1].float()
    sweep = Sweep.grid(lambda: mlp_vae(6, (8,), 3), seed=[0, 1], lr=1e-3, beta=[0.1, 1.0], alpha=Ramp(0.0, 1.0))
    for objective in (LatentReconstruction(), LatentReconstruction(source="posterior", detach="encoder")):
        options = {"steps": 8, "batch_size": 10, "progress": False}
        stacked = fit(sweep, x, objective, stack=True, **options)
        assert stacked.summary.stacked.all()
        for member in range(4):
            alone = fit(sweep[member], x, objective, stack=False, **options).states[0]
            torch.testing.assert_close(alone, stacked.states[member], rtol=1e-4, atol=1e-6)


def test_it_closes_the_cycle() -> None:
    """Trained with alpha, prior draws come back; without, they do not. The trivial encoder has an error of k."""
    x = torch.rand(200, 6, generator=torch.Generator().manual_seed(1))
    sweep = Sweep.grid(lambda: mlp_vae(6, (32,), 2), seed=0, lr=3e-3, beta=1.0, alpha=[0.0, 1.0])
    found = fit(sweep, x, LatentReconstruction(), steps=400, batch_size=50, progress=False)
    without, with_alpha = (cycle_errors(found.model(i), x) for i in (0, 1))
    assert with_alpha.prior < 0.5 * without.prior
    torch.manual_seed(0)
    trivial = mlp_vae(6, (8,), 2)
    with torch.no_grad():
        for parameter in trivial.encoder.parameters():
            parameter.zero_()
    assert cycle_errors(trivial, x, n_samples=20_000).prior == pytest.approx(2, rel=0.03)


def test_without_alpha_nothing_is_decoded_from_the_prior() -> None:
    model, x, noise = setting()
    passes = []
    model.encoder.register_forward_hook(lambda *_: passes.append(1))
    without = LatentReconstruction()(model, (x,), noise, numbers(beta=0.3))
    assert (len(passes), float(without.latent_error)) == (1, 0.0)
    with_none = LatentReconstruction()(model, (x,), noise, numbers(alpha=0.0, beta=0.3))
    assert float(with_none.latent_error.detach()) > 0
    torch.testing.assert_close(without.loss, with_none.loss)


def test_softplus_keeps_every_variance_above_one() -> None:
    model, x, _ = setting(softplus_log_variance=True)
    assert isinstance(model.encoder, SoftplusLogVariance)
    assert (model.encode(x).log_var > 0).all()
    with pytest.raises(ValueError, match="source"):
        LatentReconstruction(source="data")  # type: ignore[arg-type]


def test_noise_in_the_latents_of_a_linear_decoder() -> None:
    """E || W e ||^2 = variance tr W^T W; two equal directions of three count as two."""
    model = mlp_vae(4, (), 3).double()
    with torch.no_grad():
        model.decoder[0].weight.copy_(2 * torch.eye(4, 3) * torch.tensor([1.0, 1.0, 0.0]))
        model.decoder[0].bias.fill_(0.5)
    x = torch.rand(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = noise_response(model, x, [0.0, 0.1, 0.4], n_draws=200)
    assert found.trace == pytest.approx(8)
    assert found.directions == pytest.approx(2)
    assert found.spectrum == pytest.approx([2, 2, 0])
    assert found.distance[0] == 0
    assert found.distance[1] == pytest.approx(0.8, rel=0.05)
    assert found.distance[2] == pytest.approx(4 * found.distance[1])
    assert 0 <= found.outside[1] < found.outside[2]
