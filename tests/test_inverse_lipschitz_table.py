"""What the inverse-Lipschitz tables are made of."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from collapse_lib import inverse_lipschitz_table as il
from collapse_lib.convex import basis
from collapse_lib.evaluation import measure_vae
from collapse_lib.method_table import measure, train
from collapse_lib.models.brenier import mean_image_logits


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(60, 16, generator=torch.Generator().manual_seed(0)).square()


@pytest.fixture(scope="module")
def trained(x):
    families = il.families(
        basis("pca", 16, 2, x=x),
        eye=basis("eye", 16, 2),
        output=mean_image_logits(x),
        hidden=[8],
        icnn_hidden=[8],
        Ls=[0.0, 1.0],
        annealed_from=2.0,
        components=3,
        mixture_L=1.0,
        skip_scale=1.0,
    )
    return train(families, x, seeds=[0, 1], lr=1e-2, steps=6, batch_size=20, progress=False)


def test_every_method_is_trained_and_measured(x, trained):
    table = measure(trained, lambda model: measure_vae(model, x.round(), nll_samples=16))
    methods = list(dict.fromkeys(table.index.get_level_values("method")))
    assert methods[:4] == ["VAE", "β-VAE (0.2)", "KL warm-up", "cyclical warm-up"]
    assert {"LIDVAE", "IL-LIDVAE L=1", "IL-LIDVAE L=2→0", "LIDMVAE", "IL-LIDMVAE L=1", "skip control"} <= set(methods)
    assert len(table) == 2 * len(methods)
    assert table.notna().all(axis=None)
    ends = {one.method: float(one.model.decoder.L) for one in trained if "LID" in one.method}
    assert ends["IL-LIDVAE L=2→0"] == 0
    assert ends["IL-LIDVAE L=1"] == ends["IL-LIDVAE L=1, B = eye"] == 1


def test_the_constant_is_kept_and_asked_of_its_own_kind_only(x, trained):
    of = {one.method: one.model for one in trained}
    assert il.constant_kept(of["IL-LIDVAE L=1"], x, n_points=20) >= 0.9999
    row = il.snapshot(of["IL-LIDVAE L=1"], x, n_points=20)
    assert row["promised"] == pytest.approx(1.0)
    assert row["least"] == pytest.approx(il.constant_kept(of["IL-LIDVAE L=1"], x, n_points=20))
    assert row["kl"] == measure_vae(of["IL-LIDVAE L=1"], x)["kl"]
    for method in ("VAE", "LIDVAE"):
        with pytest.raises(ValueError, match="promises"):
            il.constant_kept(of[method], x)


def test_the_entropy_of_the_pixels_is_the_nll_of_who_knows_the_grey_values(x):
    u = torch.rand(4000, *x.shape, generator=torch.Generator().manual_seed(1))
    bits = (u < x).double()
    nll = -torch.distributions.Bernoulli(x.double()).log_prob(bits).sum(-1).mean()
    assert il.pixel_entropy(x) == pytest.approx(float(nll), rel=1e-2)
    assert il.pixel_entropy(x.round()) == 0


def test_latents_are_sorted_and_drawn(x, trained):
    profile = il.latent_profile(trained, x, ["VAE", "LIDVAE"], seed=1)
    assert list(profile.columns) == [(m, q) for m in ("VAE", "LIDVAE") for q in ("KL", "variance of the mean")]
    assert (np.diff(profile.to_numpy(), axis=0) <= 0).all()
    panels = Figure().subplots(1, 2)
    il.latent_panels(panels, profile)
    for ax, quantity in zip(panels, ("KL", "variance of the mean"), strict=True):
        for line, method in zip(ax.lines, ("VAE", "LIDVAE"), strict=False):
            assert line.get_label() == method
            assert (line.get_ydata() == profile[method, quantity]).all()
    assert panels[1].lines[-1].get_ydata() == [0.01, 0.01]
    table = measure(trained, lambda model: measure_vae(model, x.round()))
    axes = Figure().subplots(1, 3)
    il.constraint_panels(axes[:2], table, [0.0, 1.0], {"kl": "KL", "mi": "MI"})
    il.method_bars(axes[2], table, "mi", reported=1.0)
    order = [label.get_text() for label in axes[2].get_yticklabels()]
    assert order == list(table.groupby("method").mi.mean().sort_values().index)


def test_ways_of_measuring_are_rows(x, trained):
    models = {one.method: one.model for one in trained if one.seed == 0 and one.method in ("VAE", "LIDVAE")}
    ways = il.sensitivity(models, x, n_samples=16, many=32)
    assert isinstance(ways, pd.DataFrame)
    assert list(ways.columns) == ["VAE", "LIDVAE"]
    assert "one draw, negative ELBO" in ways.index
    assert (ways.loc["one draw, 32 samples"] < ways.loc["one draw, negative ELBO"]).all()
