"""The table of LR-VAE with convolutional nets on several data sets, measured with either statistics of batch norm.

Rows and columns are those of `latent_reconstruction_table`; a column of the second measurement begins with "batch_".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from collapse_lib import data, transforms
from collapse_lib.latent_reconstruction import LatentReconstruction
from collapse_lib.latent_reconstruction_table import il_lidvae, lr_vae, row, worth
from collapse_lib.method_table import Family, Number
from collapse_lib.objectives import SampledElbo
from collapse_lib.residual import by_batch
from collapse_lib.sweeps import Ramp

DARK_ON_WHITE = ("omniglot",)  # as the authors read it: the paper is 1, the ink 0


def choose(name: str, split: str, n: int, *, seed: int = 0) -> tuple[data.ImageSet, Tensor]:
    """A split of a named data set and `n` of its images as (n, C H W) in [0, 1]: all if there are no more than `n`.

    They are drawn without replacement: Omniglot's files are in the order of the alphabets, of which its first images
    hold a few only.
    """
    images = data.load(name, split)
    order = torch.randperm(len(images.pixels), generator=torch.Generator().manual_seed(seed))[:n]
    x = transforms.flatten(transforms.scale(images.pixels[order]))
    return images, 1 - x if name in DARK_ON_WHITE else x


def own_statistics(alpha: float) -> str:
    """Name of the LR-VAE whose running statistics are of data alone."""
    return f"{lr_vae(alpha)}, data's statistics"


def constant_weight(alpha: float) -> str:
    """Name of the LR-VAE without a warm-up."""
    return f"{lr_vae(alpha)} constant"


def families(
    plain: Callable[..., nn.Module],
    convex: Callable[..., nn.Module],
    *,
    betas: Sequence[float],
    alpha: float,
    other_alphas: Sequence[float],
    beta: float,
    constant: float,
) -> list[Family]:
    """VAE and LR-VAE, whose alpha grows linearly from 0, at all `betas`; the other rows at `beta` alone.

    Those are LR-VAE with `other_alphas`, with the constant weight `alpha` and with running statistics of data alone,
    and LIDVAE and IL-LIDVAE from `convex`. All minimise one loss, the Gaussian ELBO of variance 1/2 with weight beta;
    the models without alpha have no second pass, which would put decoded prior samples into their running statistics.
    Raises ValueError for a `beta` that `betas` has not, and for `alpha` among the others.
    """
    if beta not in betas or alpha in other_alphas:
        raise ValueError(f"beta={beta} must be one of {betas}, and other_alphas={other_alphas} must leave out {alpha}")
    ramps: dict[str, Mapping[str, Number]] = {
        row(lr_vae(alpha), b): {"alpha": Ramp(0.0, alpha), "beta": b} for b in betas
    }
    ramps |= {row(lr_vae(other), beta): {"alpha": Ramp(0.0, other), "beta": beta} for other in other_alphas}
    ramps[row(constant_weight(alpha), beta)] = {"alpha": alpha, "beta": beta}
    of_data: dict[str, Mapping[str, Number]] = {
        row(own_statistics(alpha), beta): {"alpha": Ramp(0.0, alpha), "beta": beta}
    }
    constants = {"LIDVAE": 0.0, il_lidvae(constant): constant}
    return [
        Family(plain, SampledElbo(), {row("VAE", b): {"beta": b} for b in betas}),
        Family(plain, LatentReconstruction(), ramps),
        Family(plain, LatentReconstruction(latent_statistics="none"), of_data),
        Family(convex, SampledElbo(), {row(m, beta): {"decoder.L": L, "beta": beta} for m, L in constants.items()}),
    ]


def both_modes(model: Any, x: Tensor, *, n_samples: int, chunk: int = 1000) -> dict[str, float]:
    """`worth` of a model on `x` (N, n), by its running statistics and, "batch_...", by those of each `chunk` it sees.

    Raises ValueError if a chunk would be a single datum or draw, which has no statistics.
    """
    for name, n in (("data", len(x)), ("prior draws", n_samples)):
        if n % chunk == 1:
            raise ValueError(f"{n} {name} leave a chunk of one, which has no batch statistics: take one more or fewer")
    by_running = worth(model.eval(), x, n_samples=n_samples, chunk=chunk)
    by_its_batch = worth(by_batch(model), x, n_samples=n_samples, chunk=chunk)
    return by_running | {f"batch_{name}": value for name, value in by_its_batch.items()}


def modes_compared(tables: dict[str, pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """Means over seeds, a row a data set and method: each column by running statistics, then by the batch's."""
    table = pd.concat(tables, names=["data"])
    means = table.groupby(["data", "method"], sort=False)[[n for c in columns for n in (c, f"batch_{c}")]].mean()
    means.columns = pd.MultiIndex.from_product([columns, ["running", "batch"]])
    return means
