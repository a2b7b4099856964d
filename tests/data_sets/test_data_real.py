"""The facts of the real data where it is at hand."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from raw_files import area_mean, assert_torchvision_reads_the_same, idx

from collapse_lib import data


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def real(real_data, module_cache, monkeypatch, isolation) -> Path:
    monkeypatch.setenv("COLLAPSE_CACHE", str(module_cache))  # each data set is decoded once a module, not once a test
    return Path(real_data)


def need(root: Path, name: str) -> None:
    if data.checksum(name, root=root) is None:
        pytest.skip(f"needs real data: COLLAPSE_DATA has no {name}")


def test_real_mnist_facts(real):
    images = data.load("mnist", root=real)
    assert len(images) == 60_000
    # md5 of the uncompressed file, and facts of its first 1000 images, measured with other code
    assert hashlib.md5(idx(images.pixels.numpy())).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    assert images.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    x = data.load("mnist", n=1000, root=real).pixels.reshape(1000, 784).double() / 255
    assert torch.trace(torch.cov(x.T)).item() == pytest.approx(51.6408, abs=5e-5)
    assert int((x == x[0]).all(dim=0).sum()) == 175
    assert int(torch.linalg.matrix_rank(x - x.mean(dim=0))) == 590


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_torchvision_reads_the_same_real_files(real, tmp_path, name, folder):
    need(real, name)
    assert_torchvision_reads_the_same(real, name, folder, tmp_path)
    assert (len(data.load(name, root=real)), len(data.load(name, "test", root=real))) == (60_000, 10_000)


@pytest.mark.parametrize(
    ("split", "stem", "drawings", "characters"),
    [("train", "images_background", 19_280, 964), ("test", "images_evaluation", 13_180, 659)],
)
def test_real_omniglot(real, split, stem, drawings, characters):
    need(real, "omniglot")
    images = data.load("omniglot", split, root=real)
    assert images.pixels.shape == (drawings, 28, 28)
    assert torch.bincount(images.labels).tolist() == [20] * characters
    with zipfile.ZipFile(real / "omniglot-py" / f"{stem}.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        for i in (0, 1, 777, drawings - 1):
            paper = np.asarray(Image.open(archive.open(names[i])).convert("L"))
            np.testing.assert_array_equal(images.pixels[i], area_mean(paper == 0))
    assert images.pixels.float().mean() < 30  # ink is the small part


def test_real_olivetti(real):
    need(real, "olivetti")
    images = data.load("olivetti", root=real)
    assert images.pixels.shape == (400, 64, 64)
    assert torch.bincount(images.labels).tolist() == [10] * 40
    faces = scipy.io.loadmat(real / "olivetti/olivettifaces.mat")["faces"]
    for i, row, column in ((0, 0, 1), (0, 1, 0), (17, 40, 5), (399, 63, 62)):
        assert images.pixels[i, row, column] == faces[64 * column + row, i]
    # The first values that scikit-learn's copy is known for: a quotient by the largest value, 242
    assert int(images.pixels.max()) == 242
    known = [0.30991736, 0.3677686, 0.41735536, 0.44214877, 0.5289256]
    assert (images.pixels[0, 0, :5] / 242).tolist() == pytest.approx(known, abs=1e-6)
