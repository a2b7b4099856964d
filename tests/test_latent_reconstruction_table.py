"""The LR-VAE table: what each row trains with, what a model is worth where that is known, and where the numbers go."""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from collapse_lib import latent_reconstruction_table as lr_table
from collapse_lib.latent_reconstruction import mlp_vae
from collapse_lib.method_table import measure, train
from collapse_lib.models.brenier import brenier_vae

BETAS = [0.1, 1.0]


def small_table() -> tuple[pd.DataFrame, list]:
    x = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    convex = partial(
        brenier_vae, torch.eye(6, 2), encoder_hidden=[4], decoder_hidden=[4], likelihood="gaussian", sigma2=0.5
    )
    families = lr_table.families(partial(mlp_vae, 6, (4,), 2), convex, betas=BETAS, alphas=[0.4, 1.0], constant=1.5)
    trained = train(families, x, seeds=[0, 1], lr=1e-3, steps=2, batch_size=20, progress=False)
    return measure(trained, partial(lr_table.worth, x=x, n_samples=50)), trained


def test_there_is_a_row_for_every_method_beta_and_seed() -> None:
    table, trained = small_table()
    methods = ["VAE", "LR-VAE α=0.4", "LR-VAE α=1", "LIDVAE", "IL-LIDVAE L=1.5"]
    assert set(table.index) == {(f"{m}, β={b:g}", s) for m in methods for b in BETAS for s in (0, 1)}
    assert set(lr_table.LABELS) <= set(table.columns)
    constants = {one.method: float(one.model.decoder.L) for one in trained if "LID" in one.method}
    assert constants == {
        "LIDVAE, β=0.1": 0.0,
        "LIDVAE, β=1": 0.0,
        "IL-LIDVAE L=1.5, β=0.1": 1.5,
        "IL-LIDVAE L=1.5, β=1": 1.5,
    }
    found = lr_table.values(table, "LIDVAE", BETAS, "kl")
    assert found.shape == (2, 2)
    assert found[1, 0] == table.loc[("LIDVAE, β=0.1", 1), "kl"]


def test_every_row_trains_with_what_its_name_says() -> None:
    build = torch.nn.Identity
    families = lr_table.families(build, build, betas=BETAS, alphas=[0.4, 1.0], constant=1.5)
    rows = {name: numbers for family in families for name, numbers in family.methods.items()}
    released = lr_table.lidvae_as_released(build, build, betas=BETAS)
    rows |= {name: numbers for family in released for name, numbers in family.methods.items()}
    assert {name: numbers["beta"] for name, numbers in rows.items()} == {
        name: float(name.rpartition("β=")[2]) for name in rows
    }
    constants = {name.partition(", β")[0]: numbers["decoder.L"] for name, numbers in rows.items() if "LID" in name}
    assert constants.pop("IL-LIDVAE L=1.5") == 1.5
    assert len(constants) == 4
    assert set(constants.values()) == {0.0}
    assert not any("alpha" in numbers for name, numbers in rows.items() if not name.startswith("LR-VAE"))


def test_alpha_of_a_row_grows_to_its_value() -> None:
    families = lr_table.families(torch.nn.Identity, torch.nn.Identity, betas=BETAS, alphas=[0.4], constant=1.0)
    numbers = next(f.methods["LR-VAE α=0.4, β=1"] for f in families if "LR-VAE α=0.4, β=1" in f.methods)
    alpha = numbers["alpha"]
    assert callable(alpha)
    assert [alpha(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.2, 0.4])
    assert numbers["beta"] == 1.0


def test_lidvae_as_released_changes_one_thing_at_a_time() -> None:
    convex, unit = (
        partial(brenier_vae, B, encoder_hidden=[4], decoder_hidden=[4], likelihood="gaussian", sigma2=0.5)
        for B in (torch.ones(6, 1), torch.eye(6, 1))
    )
    log, softplus, vectors = lr_table.lidvae_as_released(convex, unit, betas=BETAS)
    assert set(log.methods) == {"LIDVAE, log of the mean, β=0.1", "LIDVAE, log of the mean, β=1"}
    x = torch.rand(8, 6)
    with torch.no_grad():
        assert (softplus.build().encode(x).log_var > 0).all()
        assert not (log.build().encode(x).log_var > 0).all()
    assert [tuple(f.build().decoder.B[:, 0].tolist()) for f in (softplus, vectors)] == [(1.0,) * 6, (1.0, *(0.0,) * 5)]
    assert log.objective.reconstruction == "log"


def test_worth_of_a_perfect_and_of_a_useless_encoder() -> None:
    """With D = E^-1 both cycles are closed; an encoder that says 0 is off by k on the prior and by ||x - D(0)||^2."""
    model = mlp_vae(3, (), 3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.decoder[0].weight.copy_(2 * torch.eye(3))
        model.encoder[0].weight[:3] = torch.eye(3) / 2
    x = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    perfect = lr_table.worth(model, x, n_samples=20_000)
    assert perfect["prior_cycle"] == pytest.approx(0, abs=1e-12)
    assert perfect["data_error"] == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        model.encoder[0].weight.zero_()
    useless = lr_table.worth(model, x, n_samples=20_000)
    assert useless["prior_cycle"] == pytest.approx(3, rel=0.03)
    assert useless["posterior_cycle"] == pytest.approx(3, rel=0.1)
    assert useless["data_error"] == pytest.approx(float(x.square().sum(1).mean()))
    assert useless["au_share"] == 0
    assert useless["kl"] == pytest.approx(0)
    assert useless["carrying_share"] == 0
    with torch.no_grad():  # N(0, v) with log v = -4 in one latent of three: 1/2 (e^-4 + 4 - 1) = 1.51 nats
        model.encoder[0].bias[3] = -4.0
    assert lr_table.worth(model, x)["carrying_share"] == pytest.approx(1 / 3)
    chunked, whole = (lr_table.worth(model, x, n_samples=50, chunk=chunk) for chunk in (7, 1000))
    for name in ("data_error", "prior_cycle", "posterior_cycle", "kl", "carrying_share"):
        assert chunked[name] == pytest.approx(whole[name]), name


def test_the_figures_show_the_table() -> None:
    table, _ = small_table()
    table.loc[("VAE, β=0.1", 0), "kl"] = np.nan  # a member that diverged
    fig, axes = plt.subplots(1, 2)
    lr_table.beta_panels(axes[:1], table, ["VAE", "LIDVAE"], BETAS, {"kl": "KL"})
    lines = {line.get_label(): line.get_ydata() for line in axes[0].lines}
    assert np.isnan(lines["VAE"][0])
    expected = [table.xs(f"LIDVAE, β={b:g}", level="method").kl.mean() for b in BETAS]
    assert lines["LIDVAE"] == pytest.approx(expected)
    lr_table.cycle_scatter(axes[1], table, ["VAE", "LIDVAE"], BETAS)
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in axes[1].collections])
    kept = table[[m.startswith(("VAE", "LIDVAE")) for m, _ in table.index]]
    assert sorted(drawn[:, 0]) == pytest.approx(sorted(kept.prior_cycle))
    plt.close(fig)
