"""Tables of methods: rows, the same training for all, dynamic binarisation."""

from functools import partial

import pandas as pd
import pytest
import torch

from collapse_lib.evaluation import measure_vae
from collapse_lib.method_table import Binarised, Family, Trained, measure, reconstructions, train
from collapse_lib.models.brenier import plain_vae
from collapse_lib.objectives import SampledElbo
from collapse_lib.rivals import FreeBits
from collapse_lib.sweeps import Sweep
from collapse_lib.training import fit

BUILD = partial(plain_vae, 6, 2, encoder_hidden=(8,), decoder_hidden=(8,))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(40, 6, generator=torch.Generator().manual_seed(0))


def test_rows_are_methods_and_seeds_trained_as_fit_would(x: torch.Tensor) -> None:
    families = [
        Family(BUILD, SampledElbo(), {"VAE": {"beta": 1.0}, "beta-VAE": {"beta": 0.2}}),
        Family(BUILD, FreeBits(0.1), {"free bits": {}}),
    ]
    options = {"steps": 10, "batch_size": 10, "progress": False}
    trained = train(families, x, seeds=[3, 4], lr=1e-2, **options)
    table = measure(trained, partial(measure_vae, x=x, nll_samples=16))
    assert table.index.tolist() == [(m, s) for m in ("VAE", "beta-VAE", "free bits") for s in (3, 4)]
    alone = fit(Sweep.grid(BUILD, seed=4, lr=1e-2, beta=0.2), x, SampledElbo(), **options)
    assert table.loc[("beta-VAE", 4), "elbo"] == pytest.approx(measure_vae(alone.model(0), x)["elbo"], rel=1e-5)
    images = reconstructions(trained, x[:5], seed=3)
    assert list(images) == ["VAE", "beta-VAE", "free bits"]
    assert images["VAE"].shape == (5, 6)
    with pytest.raises(ValueError, match="twice"):
        train([families[0], families[0]], x, seeds=[0], lr=1e-2, **options)


def test_a_diverged_member_is_a_row_of_nan(x: torch.Tensor) -> None:
    good, bad = (
        Trained("VAE", seed, BUILD(), status, 1.0, pd.DataFrame())
        for seed, status in ((0, "finished"), (1, "diverged"))
    )
    table = measure([good, bad], partial(measure_vae, x=x))
    assert table.loc[("VAE", 0)].notna().all()
    assert table.loc[("VAE", 1)].drop("seconds").isna().all()


def test_images_are_binarised_anew_at_every_step(x: torch.Tensor) -> None:
    """The objective sees zeros and ones whose mean over steps is the grey value."""
    seen = []

    class Spy(SampledElbo):
        def __call__(self, model, data, noise, hyper):  # type: ignore[no-untyped-def]
            seen.append(data[0].detach().clone())
            return super().__call__(model, data, noise, hyper)

    objective = Binarised(Spy(), 6)
    assert objective.reads == {"beta"}
    fit(Sweep.grid(BUILD, seed=0, lr=0.0), x, objective, steps=3000, progress=False)
    images = torch.stack(seen)
    assert set(images.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(images.mean(0), x, rtol=0, atol=0.05)
