"""Small files in the real formats, a network that serves them, and what tests of several modules ask of the data."""

import dataclasses
import gzip
import hashlib
import io
import struct
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from collapse_lib import data

MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def no_network(request, *args, **kwargs):
    raise urllib.error.URLError("no route to host")


def idx(array: np.ndarray) -> bytes:
    """The idx format, from its definition: 0, 0, type (8 = uint8), rank, big-endian sizes, values."""
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(root: Path, folder: str, seed: int) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """Writes the four archives; returns the arrays and torchvision's kind of list (name, md5)."""
    rng = np.random.default_rng(seed)
    arrays, listed = {}, []
    for file in MNIST_FILES:
        count = 7 if file.startswith("train") else 4
        shape = (count, 28, 28) if "images" in file else (count,)
        arrays[file] = rng.integers(0, 256 if "images" in file else 10, shape, dtype=np.uint8)
        packed = gzip.compress(idx(arrays[file]), mtime=0)
        path = root / folder / "raw" / f"{file}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed)
        listed.append((path.name, hashlib.md5(packed).hexdigest()))
    return arrays, listed


def write_zip(path: Path, pngs: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{path.stem}/", b"")  # the original archives list their folders too
        for name, png in pngs.items():
            archive.writestr(name, png)


def content_sha256(pngs: dict[str, bytes]) -> str:
    return hashlib.sha256(b"".join(f"{k}\0{len(pngs[k])}\0".encode() + pngs[k] for k in sorted(pngs))).hexdigest()


@dataclasses.dataclass
class Fake:
    root: Path
    idx: dict[str, dict[str, np.ndarray]]
    paper: dict[str, dict[str, np.ndarray]]  # archive -> path -> (105, 105), True = paper, not in the order of paths
    pngs: dict[str, dict[str, bytes]]
    faces: np.ndarray  # (20, 64, 64)
    celeba: dict[str, list[str]]  # split -> names

    def path(self, name: str, split: str = "train") -> Path:
        return self.root / data._SOURCES[name].files[split][0]


def write_celeba(root: Path, monkeypatch, size: tuple[int, int] = (178, 218)) -> dict[str, list[str]]:
    """Twelve coloured JPEGs and their list in torchvision's layout; returns the names by split."""
    rng = np.random.default_rng(7)
    folder = root / "celeba/img_align_celeba"
    folder.mkdir(parents=True)
    parts = [0, 1, 2, 0, 0, 2, 1, 0, 1, 2, 0, 1]
    names = [f"{10 * i + 1:06}.jpg" for i in range(len(parts))]
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / name, "JPEG", quality=90)
    write_celeba_list(root, "".join(f"{name} {part}\n" for name, part in zip(names, parts, strict=True)), monkeypatch)
    return {
        split: [name for name, part in zip(names, parts, strict=True) if part == code]
        for code, split in enumerate(("train", "valid", "test"))
    }


def write_celeba_list(root: Path, text: str, monkeypatch) -> None:
    """The list, and its md5 in torchvision's table."""
    (root / "celeba/list_eval_partition.txt").write_text(text)
    entry = ("id", hashlib.md5(text.encode()).hexdigest(), "list_eval_partition.txt")
    monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", [("id", "0" * 32, "img_align_celeba.zip"), entry])


class Served(io.BytesIO):
    """What urlopen returns, as far as torchvision uses it."""

    def __init__(self, url: str, content: bytes) -> None:
        super().__init__(content)
        self.url, self.length = url, len(content)


def serve(monkeypatch, root: Path) -> list[str]:
    """A network that has the files of `root`; returns the list of the addresses it is asked for."""
    asked: list[str] = []

    def urlopen(request, *args, **kwargs):
        url = request.full_url
        asked.append(url)
        if url == "https://ndownloader.figshare.com/files/5976027":
            path = root / "olivetti/olivettifaces.mat"
        else:
            places = {"fashion-mnist": "FashionMNIST/raw", "mnist": "MNIST/raw", "omniglot": "omniglot-py"}
            folder = next(folder for part, folder in places.items() if part in url)
            path = root / folder / url.rsplit("/", 1)[-1]
        return Served(url, path.read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


FILE_SETS = ("mnist", "fashion_mnist", "omniglot", "olivetti")
ALL_SPLITS = [(name, split) for name in data.NAMES for split in data._SOURCES[name].files]


def area_mean(ink: np.ndarray) -> np.ndarray:
    """(105, 105) to (28, 28) by brute force: pixels cut into 28x28 equal parts, means over 105x105 of those."""
    fine = np.kron(ink.astype(np.uint8), np.ones((28, 28), dtype=np.uint8))
    return np.rint(255 * fine.reshape(28, 105, 28, 105).mean(axis=(1, 3))).astype(np.uint8)


def unpacked_for_torchvision(root: Path, folder: str, target: Path) -> Path:
    (target / folder / "raw").mkdir(parents=True)
    for file in MNIST_FILES:
        (target / folder / "raw" / file).write_bytes(
            gzip.decompress((root / folder / "raw" / f"{file}.gz").read_bytes())
        )
    return target


def assert_torchvision_reads_the_same(root: Path, name: str, folder: str, target: Path) -> None:
    unpacked_for_torchvision(root, folder, target)
    for split in ("train", "test"):
        theirs = getattr(torchvision.datasets, folder)(target, train=split == "train", download=False)
        ours = data.load(name, split, root=root)
        assert torch.equal(ours.pixels, theirs.data)
        assert torch.equal(ours.labels, theirs.targets)


def forbid_decoding(monkeypatch, name: str) -> None:
    source = dataclasses.replace(data._SOURCES[name], decode=lambda split, raw: pytest.fail("decoded again"))
    monkeypatch.setitem(data._SOURCES, name, source)


def cached_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "decoded").iterdir()  # exactly one: no temporary file is left behind
    return path
