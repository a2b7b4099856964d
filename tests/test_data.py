"""Every loader on small files in the real formats (offline), then the facts of the real data where it is at hand."""

import dataclasses
import gzip
import hashlib
import io
import shutil
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from collapse_lib import data, raw_data
from collapse_lib.replication import fingerprint

MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def no_network(request, *args, **kwargs):
    raise urllib.error.URLError("no route to host")


@pytest.fixture(autouse=True)
def isolation(monkeypatch, tmp_path):
    """No test sees the network, the user's cache, or real data that it did not ask for; each may warn anew."""
    monkeypatch.setenv("COLLAPSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    data._warn_uncached.cache_clear()


# Small files in the real formats --------------------------------------------------------------------------------------


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


# What is loaded -------------------------------------------------------------------------------------------------------


def test_digits_are_the_bilinear_formula_in_exact_arithmetic():
    train, test = data.load("digits"), data.load("digits", "test")
    assert (len(train), len(test)) == (1500, 297)
    raw = load_digits()
    np.testing.assert_array_equal(torch.cat([train.labels, test.labels]), raw.target)

    # Half-pixel centres: target i lies at (i + 1/2) 8/28 - 1/2 on the source grid, which is held at its border.
    weights = [[Fraction(0)] * 8 for _ in range(28)]
    for i in range(28):
        position = max(Fraction(2 * i + 1, 2) * Fraction(8, 28) - Fraction(1, 2), Fraction(0))
        low = min(int(position), 7)
        weights[i][low] += 1 - (position - low)
        weights[i][min(low + 1, 7)] += position - low
    scaled = np.array([[int(w * 14) for w in row] for row in weights])
    assert (scaled.sum(axis=1) == 14).all()  # the weights are whole 14ths
    numerator = 255 * np.einsum("ij,njk,lk->nil", scaled, raw.images.astype(int), scaled)
    whole, rest = np.divmod(numerator, 16 * 14 * 14)
    ties = 2 * rest == 16 * 14 * 14
    assert ties.any()
    expected = whole + np.where(ties, whole % 2, 2 * rest > 16 * 14 * 14)
    np.testing.assert_array_equal(torch.cat([train.pixels, test.pixels]), expected)


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files(fake, name, folder):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = data.load(name, split, root=fake.root)
        assert (images.pixels.dtype, images.labels.dtype) == (torch.uint8, torch.int64)
        np.testing.assert_array_equal(images.pixels, fake.idx[folder][f"{prefix}-images-idx3-ubyte"])
        np.testing.assert_array_equal(images.labels, fake.idx[folder][f"{prefix}-labels-idx1-ubyte"])


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


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_torchvision_reads_the_same(fake, tmp_path, name, folder):
    assert_torchvision_reads_the_same(fake.root, name, folder, tmp_path / "unpacked")


@pytest.mark.parametrize(("split", "stem"), [("train", "images_background"), ("test", "images_evaluation")])
def test_omniglot_is_sorted_inverted_and_averaged_over_areas(fake, split, stem):
    images = data.load("omniglot", split, root=fake.root)
    papers = [fake.paper[stem][name] for name in sorted(fake.paper[stem])]
    np.testing.assert_array_equal(images.pixels, np.stack([area_mean(~paper) for paper in papers]))
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]  # alphabet A, which the archive has last, then B


def test_a_repacked_archive_is_the_same_data(fake):
    before = data.load("omniglot", root=fake.root)
    pngs = fake.pngs["images_background"]
    write_zip(fake.path("omniglot"), dict(sorted(pngs.items())), zipfile.ZIP_STORED)
    after = data.load("omniglot", root=fake.root)
    assert torch.equal(after.pixels, before.pixels)
    assert after.checksum == before.checksum


def test_olivetti_is_turned_upright(fake):
    images = data.load("olivetti", root=fake.root)
    np.testing.assert_array_equal(images.pixels, fake.faces)
    assert images.labels.tolist() == [0] * 10 + [1] * 10
    assert images.pixels.is_contiguous()


@pytest.mark.parametrize(("name", "split"), ALL_SPLITS)
def test_the_first_n_and_the_checksum_of_the_whole(fake, name, split):
    whole, first = data.load(name, split, root=fake.root), data.load(name, split, 3, root=fake.root)
    assert len(first) == 3
    assert torch.equal(first.pixels, whole.pixels[:3])
    assert torch.equal(first.labels, whole.labels[:3])
    expected = hashlib.sha256(whole.pixels.numpy().tobytes() + whole.labels.numpy().tobytes()).hexdigest()
    assert whole.checksum == first.checksum == expected
    assert whole.source
    assert whole.licence
    assert len(repr(whole)) < 400  # no pixels
    assert len(data.load(name, split, len(whole), root=fake.root)) == len(whole)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_celeba_is_what_torchvision_makes_of_the_images(fake, split):
    images = data.load("celeba", split, root=fake.root)
    assert images.pixels.shape == (len(fake.celeba[split]), 3, 64, 64)
    assert (images.pixels.dtype, images.labels.dtype) == (torch.uint8, torch.int64)
    assert images.pixels.is_contiguous()
    assert images.labels.tolist() == [int(name[:6]) for name in fake.celeba[split]]
    theirs = torchvision.transforms.Compose(
        [
            torchvision.transforms.CenterCrop(148),
            torchvision.transforms.Resize(64),
            torchvision.transforms.PILToTensor(),
        ]
    )
    for name, pixels in zip(fake.celeba[split], images.pixels, strict=True):
        assert torch.equal(pixels, theirs(Image.open(fake.root / "celeba/img_align_celeba" / name)))


def test_a_celeba_image_is_averaged_by_a_triangle_in_its_middle(tmp_path):
    """By the definition of the filter, weights falling linearly to zero over 148/64 pixels to either side."""
    values = np.random.default_rng(3).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "x.png")  # without loss, so that the pixels are known
    scale = 148 / 64
    centres = (np.arange(64)[:, None] + 0.5) * scale - 0.5
    weights = (1 - np.abs(np.arange(148) - centres) / scale).clip(min=0)
    weights /= weights.sum(1, keepdims=True)
    middle = values[35 : 35 + 148, 15 : 15 + 148].astype(float)
    expected = np.einsum("ri,ijc,sj->crs", weights, middle, weights)
    assert np.abs(raw_data.celeba_face(tmp_path / "x.png") - expected).max() < 1.01  # it rounds twice


# Where files are looked for -------------------------------------------------------------------------------------------


def test_the_folders_in_their_order(fake, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "data"
    shutil.copytree(fake.root, cache)
    shutil.copytree(fake.root, tmp_path / "named")
    (tmp_path / "empty").mkdir()

    def folder_of_error(folder: Path, **arguments) -> None:
        """Whichever folder has the damaged file is the one that was read: nothing falls through to a good copy."""
        path = folder / "MNIST/raw/train-images-idx3-ubyte.gz"
        good = path.read_bytes()
        path.write_bytes(b"damaged")
        with pytest.raises(data.DataError, match="damaged or altered") as error:
            data.load("mnist", **arguments)
        assert str(path) in str(error.value)
        path.write_bytes(good)

    monkeypatch.delenv("COLLAPSE_DATA", raising=False)
    folder_of_error(cache)
    monkeypatch.setenv("COLLAPSE_DATA", "")
    folder_of_error(cache)
    monkeypatch.setenv("COLLAPSE_DATA", str(tmp_path / "named"))
    folder_of_error(tmp_path / "named")
    folder_of_error(fake.root, root=fake.root)
    folder_of_error(fake.root, root=str(fake.root))
    folder_of_error(cache, root=tmp_path / "empty")


def test_a_data_folder_is_only_read(fake):
    def state():
        return {path: path.stat().st_mtime_ns for path in fake.root.rglob("*")}

    before = state()
    for name, split in ALL_SPLITS:
        data.load(name, split, root=fake.root)
    assert state() == before


@pytest.mark.parametrize("name", FILE_SETS)
def test_missing_data_without_a_network(name, tmp_path, monkeypatch):
    named = tmp_path / "named"
    named.mkdir()
    monkeypatch.setenv("COLLAPSE_DATA", str(named))
    with pytest.raises(data.DataError) as error:
        data.load(name)
    text = str(error.value)
    for file in data._SOURCES[name].files["train"]:
        assert file in text
    for part in (
        str(named),
        str(tmp_path / "cache" / "data"),
        "no route to host",
        f"python -m collapse_lib.data {name}",
    ):
        assert part in text
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "download.lock"]


def test_missing_data_when_no_download_is_wanted(monkeypatch):
    monkeypatch.delenv("COLLAPSE_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: pytest.fail("the network was asked"))
    with pytest.raises(data.DataError, match="no download was asked for"):
        data.load("mnist", download=False)


@pytest.mark.parametrize("name", FILE_SETS)
def test_a_download_is_kept(fake, name, tmp_path, monkeypatch):
    monkeypatch.delenv("COLLAPSE_DATA", raising=False)
    asked = serve(monkeypatch, fake.root)
    images = data.load(name)
    assert asked
    file = data._SOURCES[name].files["train"][0]
    assert (tmp_path / "cache" / "data" / file).read_bytes() == (fake.root / file).read_bytes()

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    again = data.load(name)
    assert torch.equal(again.pixels, images.pixels)
    assert torch.equal(images.pixels, data.load(name, root=fake.root).pixels)


@pytest.mark.parametrize("name", FILE_SETS)
def test_a_bad_download_is_thrown_away(fake, name, tmp_path, monkeypatch):
    monkeypatch.delenv("COLLAPSE_DATA", raising=False)
    fake.path(name).write_bytes(b"<html>moved</html>")
    serve(monkeypatch, fake.root)
    with pytest.raises(data.DataError, match=r"corrupted|not the expected data"):
        data.load(name)
    kept = [path.name for path in (tmp_path / "cache" / "data").rglob("*")]
    assert kept == ["download.lock"]


def test_a_folder_for_downloads_that_cannot_be_written(fake, tmp_path, monkeypatch):
    monkeypatch.delenv("COLLAPSE_DATA", raising=False)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("COLLAPSE_CACHE", str(tmp_path / "file"))
    serve(monkeypatch, fake.root)
    with pytest.raises(data.DataError, match="COLLAPSE_CACHE"):
        data.load("mnist")


def test_folders_that_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_DATA", str(tmp_path / "nowhere"))
    for call in (data.load, data.checksum):
        with pytest.raises(data.DataError, match=r"COLLAPSE_DATA points at .*nowhere, which is no folder.*unset it"):
            call("mnist")
        with pytest.raises(data.DataError, match=r"root points at .*elsewhere, which is no folder"):
            call("mnist", root=tmp_path / "elsewhere")
    assert len(data.load("digits")) == 1500  # embedded: reads no folder


# Damaged files --------------------------------------------------------------------------------------------------------


def truncate(fake: Fake, name: str) -> None:
    path = fake.path(name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(fake: Fake, name: str) -> None:
    """A file whole in its format, with one value changed."""
    path = fake.path(name)
    if name == "omniglot":
        pngs = dict(fake.pngs["images_background"])
        first, second, *_ = pngs
        write_zip(path, pngs | {first: pngs[second]})
    elif name == "olivetti":
        faces = scipy.io.loadmat(path)["faces"]
        faces[0, 0] ^= 1
        scipy.io.savemat(path, {"faces": faces})
    else:
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[-1] ^= 1
        path.write_bytes(gzip.compress(bytes(content)))


def rename(fake: Fake, name: str) -> None:
    """A drawing moved to another character: all drawings are there, but a label is not what it was."""
    pngs = dict(fake.pngs["images_background"])
    first = next(iter(pngs))
    pngs[first.replace("character01", "character09")] = pngs.pop(first)
    write_zip(fake.path(name), pngs)


@pytest.mark.parametrize(
    ("name", "damage"), [(name, damage) for name in FILE_SETS for damage in (truncate, alter)] + [("omniglot", rename)]
)
def test_a_damaged_file(fake, name, damage):
    data.load(name, root=fake.root)  # a cache of the good file must not hide the damage
    damage(fake, name)
    path = fake.path(name)
    content = path.read_bytes()
    with pytest.raises(data.DataError) as error:
        data.load(name, root=fake.root)
    text = str(error.value)
    expected, found = {
        "mnist": lambda: (dict(torchvision.datasets.MNIST.resources)[path.name], hashlib.md5(content).hexdigest()),
        "fashion_mnist": lambda: (
            dict(torchvision.datasets.FashionMNIST.resources)[path.name],
            hashlib.md5(content).hexdigest(),
        ),
        "omniglot": lambda: (raw_data.CONTENT_SHA256["omniglot-py/images_background.zip"], omniglot_sum(path)),
        "olivetti": lambda: (raw_data.CONTENT_SHA256["olivetti/olivettifaces.mat"], olivetti_sum(path)),
    }[name]()
    for part in (str(path), expected, found, "left as it is", f"python -m collapse_lib.data {name}"):
        assert part in text
    assert expected != found
    assert path.read_bytes() == content


def omniglot_sum(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            return content_sha256({name: archive.read(name) for name in archive.namelist() if name.endswith(".png")})
    except zipfile.BadZipFile:
        return hashlib.sha256(path.read_bytes()).hexdigest()


def olivetti_sum(path: Path) -> str:
    try:
        return hashlib.sha256(scipy.io.loadmat(path)["faces"].tobytes(order="F")).hexdigest()
    except Exception:  # as in the library: scipy raises anything
        return hashlib.sha256(path.read_bytes()).hexdigest()


def test_damage_inside_a_zip(fake):
    """The directory at the end of the archive is whole; a drawing's bytes are not."""
    path = fake.path("omniglot")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(data.DataError, match="is no whole zip archive"):
        data.load("omniglot", root=fake.root)


def celeba_error(fake: Fake, split: str = "train") -> str:
    with pytest.raises(data.DataError) as error:
        data.load("celeba", split, root=fake.root)
    text = str(error.value)
    for part in ("left as it is", "torchvision.datasets.CelebA(F, download=True)", "COLLAPSE_DATA"):
        assert part in text
    assert "python -m collapse_lib.data" not in text  # it would not fetch it
    return text


def test_missing_images_are_named(fake):
    folder = fake.root / "celeba/img_align_celeba"
    first, second, *_ = fake.celeba["train"]
    for name in (second, first):
        (folder / name).unlink()
    assert f"{folder} lacks 2 of {len(fake.celeba['train'])} images, the first of them {first}" in celeba_error(fake)
    assert len(data.load("celeba", "test", root=fake.root)) == len(fake.celeba["test"])  # another split is whole


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-500]), "cannot be decoded (image file is truncated"),
        (lambda path: path.write_bytes(b"<html>moved</html>"), "cannot be decoded (cannot identify image file"),
        (lambda path: path.write_bytes(b""), "cannot be decoded (cannot identify image file"),
        (lambda path: Image.new("RGB", (218, 178)).save(path), "measures 218x178, expected 178x218"),
    ],
    ids=["truncated", "page", "empty", "turned"],
)
def test_a_damaged_image_is_named(fake, spoil, says):
    data.load("celeba", root=fake.root)  # a cache of the good images must not hide the damage
    path = fake.root / "celeba/img_align_celeba" / fake.celeba["train"][2]
    spoil(path)
    text = celeba_error(fake)
    assert str(path) in text
    assert says in text


def test_an_altered_list_of_celeba(fake):
    path = fake.root / "celeba/list_eval_partition.txt"
    path.write_text(path.read_text().replace("000001.jpg 0", "000001.jpg 2"))
    text = celeba_error(fake)
    assert (
        f"{path} is damaged or altered: it has md5 {hashlib.md5(path.read_bytes()).hexdigest()}, expected md5" in text
    )
    assert {name: md5 for _, md5, name in torchvision.datasets.CelebA.file_list}[path.name] in text


def test_celeba_images_left_in_a_file(fake):
    folder = fake.root / "celeba/img_align_celeba"
    shutil.rmtree(folder)
    folder.write_bytes(b"a zip archive under the name of the folder")
    assert f"{folder} is no folder; the images belong into it, unpacked" in celeba_error(fake)


@pytest.mark.parametrize("gone", ["list_eval_partition.txt", "img_align_celeba"])
def test_missing_celeba_says_how_to_get_it_and_asks_no_network(fake, gone, monkeypatch, capsys):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: pytest.fail("the network was asked"))
    (fake.root / "celeba" / gone).rename(fake.root / "celeba/elsewhere")
    monkeypatch.setenv("COLLAPSE_DATA", str(fake.root))
    assert data.checksum("celeba") is None
    with pytest.raises(data.DataError) as error:
        data.load("celeba")
    text = str(error.value)
    assert f"celeba (train) is not there; looked in\n  {fake.root}: no celeba/{gone}\n" in text
    for part in ("non-commercial", "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html", "list_eval_partition.txt"):
        assert part in text
    assert data.main(["celeba"]) == 1
    assert text in capsys.readouterr().err


# The cache of decoded tensors -----------------------------------------------------------------------------------------


def forbid_decoding(monkeypatch, name: str) -> None:
    source = dataclasses.replace(data._SOURCES[name], decode=lambda split, raw: pytest.fail("decoded again"))
    monkeypatch.setitem(data._SOURCES, name, source)


def cached_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "decoded").iterdir()  # exactly one: no temporary file is left behind
    return path


@pytest.mark.parametrize("name", [*FILE_SETS, "celeba"])
def test_the_second_load_does_not_decode(fake, name, tmp_path, monkeypatch):
    first = data.load(name, root=fake.root)
    forbid_decoding(monkeypatch, name)
    monkeypatch.setattr(Image, "open", lambda *arguments: pytest.fail("an image was read"))
    second = data.load(name, root=fake.root)
    assert torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.labels, second.labels)
    assert first.checksum == second.checksum
    cached_file(tmp_path)


def test_changed_raw_data_is_never_served_stale(fake, monkeypatch):
    old = data.load("mnist", root=fake.root)
    arrays, listed = write_idx(fake.root, "MNIST", seed=99)
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", listed)
    new = data.load("mnist", root=fake.root)
    np.testing.assert_array_equal(new.pixels, arrays["train-images-idx3-ubyte"])
    assert new.checksum != old.checksum


def flip_a_pixel(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def flip_a_label(content: bytes) -> bytes:
    start = 8 + int.from_bytes(content[:8], "little")  # the header's length, the header, then the tensors: labels first
    return content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]


def alter_the_checksum(content: bytes) -> bytes:
    start = content.index(b'"sha256":"') + len(b'"sha256":"')
    return content[:start] + (b"0" if content[start : start + 1] != b"0" else b"1") + content[start + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        flip_a_pixel,
        flip_a_label,
        alter_the_checksum,
        lambda content: content[:-100],
        lambda content: b"",
        lambda content: b"no" * 99,
    ],
    ids=["pixel", "label", "checksum", "truncated", "empty", "garbage"],
)
def test_a_corrupt_cache_is_decoded_anew(fake, tmp_path, monkeypatch, spoil):
    first = data.load("mnist", root=fake.root)
    expected, labels = first.pixels.clone(), first.labels.clone()
    path = cached_file(tmp_path)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(spoil(content))
    decoded = data.load("mnist", root=fake.root)
    assert torch.equal(decoded.pixels, expected)
    assert torch.equal(decoded.labels, labels)

    forbid_decoding(monkeypatch, "mnist")  # and repaired
    again = data.load("mnist", root=fake.root)
    assert torch.equal(again.pixels, expected)
    assert again.checksum == first.checksum


def test_a_cache_that_cannot_be_written_warns_once(fake, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("COLLAPSE_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            images = data.load("mnist", root=fake.root)
    np.testing.assert_array_equal(images.pixels, fake.idx["MNIST"]["train-images-idx3-ubyte"])
    (warning,) = caught
    assert "COLLAPSE_CACHE" in str(warning.message)


def test_writing_into_a_loaded_tensor_stays_there(fake):
    data.load("mnist", root=fake.root)
    cached = data.load("mnist", root=fake.root)
    expected = cached.pixels.clone()
    cached.pixels.zero_()
    assert torch.equal(data.load("mnist", root=fake.root).pixels, expected)


# Identity, bad arguments, command -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILE_SETS)
def test_checksum_is_that_of_the_raw_files(fake, name, tmp_path, monkeypatch):
    monkeypatch.delenv("COLLAPSE_DATA", raising=False)
    assert data.checksum(name) is None
    forbid_decoding(monkeypatch, name)
    before = data.checksum(name, root=fake.root)
    assert before is not None
    assert len(before) == 64
    moved = shutil.copytree(fake.root, tmp_path / "moved")
    assert data.checksum(name, root=moved) == before
    for split, files in data._SOURCES[name].files.items():
        for file in files:
            content = (moved / file).read_bytes()
            (moved / file).write_bytes(content + b"x")
            assert data.checksum(name, root=moved) != before, (split, file)
            (moved / file).write_bytes(content)
    assert len({data.checksum(other, root=fake.root) for other in data.NAMES}) == len(data.NAMES)


def test_the_checksum_of_celeba_is_that_of_its_list_and_of_the_names_and_sizes(fake, tmp_path, monkeypatch):
    """No image is read for it, however many there are; any change of the folder counts."""
    monkeypatch.setattr(Image, "open", lambda *arguments: pytest.fail("an image was read"))
    before = data.checksum("celeba", root=fake.root)
    named = {"dataset": "mnist", "others": ["celeba", 3], "name": "no data set"}
    assert fingerprint.data(named) is None
    moved = shutil.copytree(fake.root, tmp_path / "moved")
    monkeypatch.setenv("COLLAPSE_DATA", str(moved))
    assert data.checksum("celeba") == before
    with_all = fingerprint.data(named)
    assert None not in {with_all, fingerprint.data({"dataset": "mnist"})}
    assert len({with_all, fingerprint.data({"dataset": "mnist"}), fingerprint.data({"dataset": "celeba"})}) == 3
    partition, folder = moved / "celeba/list_eval_partition.txt", moved / "celeba/img_align_celeba"
    image = folder / fake.celeba["valid"][0]
    content = image.read_bytes()
    sums = {before}
    for change in (
        lambda: partition.write_text(partition.read_text() + "000112.jpg 0\n"),
        lambda: image.write_bytes(content + b"x"),
        lambda: image.rename(folder / "000002.jpg"),
        lambda: (folder / "000002.jpg").unlink(),
    ):
        change()
        sums.add(data.checksum("celeba"))
    assert len(sums) == 5


def test_digits_always_have_a_checksum():
    assert data.checksum("digits") == data.checksum("digits")
    assert len(data.checksum("digits")) == 64


def test_unknown_data_set():
    for call in (data.load, data.checksum):
        with pytest.raises(
            ValueError, match="unknown data set 'cifar'; there are digits, mnist, fashion_mnist, omniglot"
        ):
            call("cifar")


def test_unknown_split(fake):
    with pytest.raises(ValueError, match="mnist has no split 'validation'; it has train, test"):
        data.load("mnist", "validation")
    with pytest.raises(ValueError, match="olivetti has no split 'test'; it has train"):
        data.load("olivetti", "test", root=fake.root)


@pytest.mark.parametrize("n", [0, -1, 298, 10.0, "10"])
def test_bad_n(n):
    with pytest.raises(ValueError, match="digits test has 297 images: n must be 1 to 297"):
        data.load("digits", "test", n)


def test_an_image_set_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.load("digits", n=1).name = "mnist"


def test_command_fetches_verifies_and_tells_where(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COLLAPSE_DATA", raising=False)
    serve(monkeypatch, fake.root)
    assert data.main(["mnist", "olivetti", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    monkeypatch.setenv("COLLAPSE_DATA", str(fake.root))
    assert data.main(["celeba"]) == 0
    in_colour = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in in_colour] == [
        "celeba train: 5 images of 3x64x64",
        "celeba valid: 4 images of 3x64x64",
        "celeba test: 3 images of 3x64x64",
    ]
    assert all(line.endswith(f"from {fake.root}") for line in in_colour)
    monkeypatch.delenv("COLLAPSE_DATA")
    checksum = data.load("mnist", "test").checksum
    assert lines[1] == f"mnist test: 4 images of 28x28, sha256 {checksum}, from {tmp_path / 'cache' / 'data'}"
    assert lines[2].startswith("olivetti train: 20 images of 64x64")
    assert lines[4].endswith("from scikit-learn (embedded)")


def test_command_without_a_network(monkeypatch, capsys):
    monkeypatch.delenv("COLLAPSE_DATA", raising=False)
    assert data.main(["fashion_mnist"]) == 1
    assert "fashion_mnist (train) is not there" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        data.main(["cifar"])
    assert stop.value.code == 2


def test_command_as_a_module():
    command = [sys.executable, "-m", "collapse_lib.data", "digits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("digits train: 1500 images of 28x28")
    assert done.stderr == ""  # such as runpy's warning, were the package to import this module


# The real data --------------------------------------------------------------------------------------------------------


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
