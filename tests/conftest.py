"""What every test stands on: fixed seeds, one thread a worker, no windows, a cache of its own, the real data if any."""

import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Not by MPLBACKEND: kernels that tests start would inherit it and draw nothing.
mpl.use("agg")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# No deadline and no limit on slow generation: on a busy machine they fail what is right.
settings.register_profile(
    "project", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("project")

# One file stands for the data set: whether all are there and whole is for the tests to find out.
_MNIST = "MNIST/raw/train-images-idx3-ubyte.gz"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The global generators, for what draws from them; the library itself has a generator a purpose."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - scikit-learn's and scipy's default


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def real_data() -> Path:
    """The folder of the real data sets, MNIST among them; a test that needs it says why where it is skipped."""
    chosen = os.environ.get("COLLAPSE_DATA")
    if not chosen:
        pytest.skip("needs real data: COLLAPSE_DATA is not set")
    folder = Path(chosen).expanduser()
    if not (folder / _MNIST).is_file():
        pytest.skip(f"needs real data: COLLAPSE_DATA is {folder}, which has no {_MNIST}")
    return folder
