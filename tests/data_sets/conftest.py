"""A data folder in miniature; no network, no cache of the user's."""

import hashlib
import io
import urllib.error
import urllib.request

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image
from raw_files import Fake, content_sha256, no_network, write_celeba, write_idx, write_zip

from collapse_lib import data, raw_data


@pytest.fixture(autouse=True)
def isolation(monkeypatch, tmp_path):
    """No test sees the network, the user's cache, or real data that it did not ask for; each may warn anew."""
    monkeypatch.setenv("COLLAPSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    data._warn_uncached.cache_clear()


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Fake:
    """A data folder with every data set in miniature, the expected sums being those of the miniatures."""
    root, rng = tmp_path / "raw", np.random.default_rng(0)
    made = Fake(root, {}, {}, {}, rng.integers(0, 256, (20, 64, 64), dtype=np.uint8), {})
    for seed, folder in enumerate(("MNIST", "FashionMNIST")):
        made.idx[folder], listed = write_idx(root, folder, seed)
        monkeypatch.setattr(getattr(torchvision.datasets, folder), "resources", listed)

    for stem in ("images_background", "images_evaluation"):
        names = [f"{stem}/{place}_{i:02}.png" for place in ("B/character01/07", "A/character02/05") for i in (2, 1, 3)]
        made.paper[stem] = {name: rng.random((105, 105)) < 0.8 for name in names}
        made.pngs[stem] = {}
        for name, paper in made.paper[stem].items():
            buffer = io.BytesIO()
            Image.fromarray(paper).save(buffer, "PNG")
            made.pngs[stem][name] = buffer.getvalue()
        archive = root / "omniglot-py" / f"{stem}.zip"
        write_zip(archive, made.pngs[stem])
        monkeypatch.setitem(raw_data.CONTENT_SHA256, f"omniglot-py/{stem}.zip", content_sha256(made.pngs[stem]))
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setitem(torchvision.datasets.Omniglot.zips_md5, stem, md5)

    columns = np.stack([face.flatten(order="F") for face in made.faces], axis=1)
    (root / "olivetti").mkdir()
    scipy.io.savemat(root / "olivetti/olivettifaces.mat", {"faces": columns, "p": np.zeros(3)})
    expected = hashlib.sha256(columns.tobytes(order="F")).hexdigest()
    monkeypatch.setitem(raw_data.CONTENT_SHA256, "olivetti/olivettifaces.mat", expected)
    made.celeba = write_celeba(root, monkeypatch)
    return made
