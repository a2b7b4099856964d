"""The autoencoder's loss against PCA, and `fit` on it."""

from functools import partial

import numpy as np
import torch
from sklearn.decomposition import PCA

from collapse_lib.models.autoencoder import Autoencoder, SquareError
from collapse_lib.sweeps import Sweep
from collapse_lib.training import fit


def data() -> torch.Tensor:
    scales = torch.tensor([3.0, 2.0, 1.2, 0.3, 0.2, 0.1])
    return scales * torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) + 0.4


def test_the_loss_of_a_pca_autoencoder_is_the_pca_error():
    x = data().double()
    pca = PCA(2, svd_solver="full").fit(x.numpy())
    model = Autoencoder.mlp(6, [], 2).double()
    U, mean = torch.from_numpy(pca.components_), torch.from_numpy(pca.mean_)
    model.encoder[0].load_state_dict({"weight": U, "bias": -(U @ mean)})
    model.decoder[0].load_state_dict({"weight": U.T, "bias": mean})
    with torch.no_grad():
        loss = SquareError()(model, (x,), {}, {}).loss
    back = pca.inverse_transform(pca.transform(x.numpy()))
    np.testing.assert_allclose(loss, np.square(x.numpy() - back).sum(1).mean(), rtol=1e-12)


def test_training_a_linear_one_approaches_pca_and_a_nonlinear_one_has_its_widths():
    x = data()
    result = fit(
        Sweep.grid(partial(Autoencoder.mlp, 6, [], 2), seed=[0, 1], lr=2e-2),
        x,
        SquareError(),
        steps=600,
        progress=False,
    )
    dropped = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[:4].sum()
    np.testing.assert_allclose(result.history.groupby("member").loss.last(), dropped, rtol=1e-2)
    shapes = [tuple(p.shape) for p in Autoencoder.mlp(6, [5, 4], 2).parameters() if p.ndim == 2]
    assert shapes == [(5, 6), (4, 5), (2, 4), (4, 2), (5, 4), (6, 5)]
