"""The deep table: which passes move the running statistics of which row, images chosen, both modes measured."""

from functools import partial

import pandas as pd
import pytest
import torch

from collapse_lib import data
from collapse_lib.deep_table import both_modes, choose, families, modes_compared
from collapse_lib.latent_reconstruction import conv_brenier_vae, conv_vae
from collapse_lib.method_table import train
from collapse_lib.residual import by_batch


def test_each_row_trains_and_counts_its_passes() -> None:
    x = torch.rand(24, 64, generator=torch.Generator().manual_seed(0))
    some = families(
        partial(conv_vae, (1, 8, 8), (2,), 3),
        partial(conv_brenier_vae, (1, 8, 8), (2,), torch.eye(64, 3), hidden=(4,)),
        betas=[0.1, 1.0],
        alpha=1.0,
        other_alphas=[0.4],
        beta=0.1,
        constant=1.0,
    )
    trained = train(some, x, seeds=[0], lr=1e-3, steps=3, batch_size=8, progress=False)
    passes = {one.method: int(one.model.encoder[1].inner[1].num_batches_tracked) // 3 for one in trained}
    twice = {"LR-VAE α=1, β=0.1", "LR-VAE α=1, β=1", "LR-VAE α=0.4, β=0.1", "LR-VAE α=1 constant, β=0.1"}
    assert {name for name, count in passes.items() if count == 2} == twice
    assert {name for name, count in passes.items() if count == 1} == {
        *(f"VAE, β={b}" for b in ("0.1", "1")),
        "LR-VAE α=1, data's statistics, β=0.1",
        "LIDVAE, β=0.1",
        "IL-LIDVAE L=1, β=0.1",
    }


def numbers(**changes: object) -> dict:
    chosen = {"betas": [0.1, 1.0], "alpha": 1.0, "other_alphas": [0.4], "beta": 0.1, "constant": 1.5} | changes
    some = families(torch.nn.Identity, torch.nn.Identity, **chosen)  # type: ignore[arg-type]
    return {name: values for family in some for name, values in family.methods.items()}


def test_every_row_trains_with_what_its_name_says() -> None:
    rows = numbers()
    for name, values in rows.items():
        assert values["beta"] == float(name.rpartition("β=")[2])

    def alpha(name: str) -> list[float]:
        given = rows[name]["alpha"]
        return [given(progress) if callable(given) else given for progress in (0.0, 0.5, 1.0)]

    assert alpha("LR-VAE α=1, β=0.1") == alpha("LR-VAE α=1, data's statistics, β=0.1") == [0.0, 0.5, 1.0]
    assert alpha("LR-VAE α=0.4, β=0.1") == pytest.approx([0.0, 0.2, 0.4])
    assert alpha("LR-VAE α=1 constant, β=0.1") == [1.0, 1.0, 1.0]
    assert [rows[f"{method}, β=0.1"]["decoder.L"] for method in ("LIDVAE", "IL-LIDVAE L=1.5")] == [0.0, 1.5]
    for wrong in ({"beta": 0.2}, {"other_alphas": [1.0]}):
        with pytest.raises(ValueError, match="must be one of"):
            numbers(**wrong)


def test_a_batch_of_one_has_no_statistics() -> None:
    model = conv_vae((1, 8, 8), (2,), 3)
    with pytest.raises(ValueError, match="21 data leave a chunk of one"):
        both_modes(model, torch.rand(21, 64), n_samples=10, chunk=10)


def test_omniglot_is_dark_on_white(monkeypatch: pytest.MonkeyPatch) -> None:
    light = choose("digits", "test", 20)[1]
    monkeypatch.setattr("collapse_lib.deep_table.DARK_ON_WHITE", ("digits",))
    torch.testing.assert_close(choose("digits", "test", 20)[1], 1 - light)


def test_both_modes_are_told_apart() -> None:
    torch.manual_seed(0)
    model, x = conv_vae((1, 8, 8), (2,), 3), torch.rand(20, 64)
    found = both_modes(model, x, n_samples=10)
    with torch.no_grad():
        for name, net in (("data_error", model.eval()), ("batch_data_error", by_batch(model))):
            error = (x - net.decode(net.encode(x).mean)).square().sum(1).mean().item()
            assert found[name] == pytest.approx(error, rel=1e-5)
    assert found["data_error"] != pytest.approx(found["batch_data_error"], rel=1e-3)
    index = pd.MultiIndex.from_tuples([("A", 0), ("A", 1)], names=["method", "seed"])
    frame = pd.DataFrame({"kl": [1.0, 3.0], "batch_kl": [2.0, 2.5]}, index=index)
    assert modes_compared({"digits": frame}, ["kl"]).loc[("digits", "A")].tolist() == [2.0, 2.25]


def test_images_are_drawn_from_the_whole_split() -> None:
    images, x = choose("digits", "train", 100)
    pixels = data.load("digits", "train").pixels.flatten(1).float() / 255
    places = [int((pixels == one).all(1).nonzero()[0]) for one in x]
    assert max(places) > 1000
    assert len(set(places)) > 95
    assert len(choose("digits", "test", 10_000)[1]) == len(data.load("digits", "test").pixels)
    assert images.pixels.shape[0] == 1500
