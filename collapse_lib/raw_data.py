"""Raw data files: where they lie, how they are fetched, how each format is checked and decoded.

`collapse_lib.data` is the door to all this. A raw file is checked against a known sum before it is decoded (CelebA's
images, for which none is published one by one, against their list and size), and nothing here ever writes to a file
that is already there.
"""

import gzip
import hashlib
import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import Tensor

from collapse_lib.progress import Progress

# sha256 of what these files hold (see `omniglot_pngs`, `decode_olivetti`): a repacked copy is as good as the first.
CONTENT_SHA256 = {
    "omniglot-py/images_background.zip": "2a97a1b7cf1ce8a0652808ad5386ee4187fd5a695c02f7288868389720bd77f0",
    "omniglot-py/images_evaluation.zip": "d55490151ba24ee407f3a72f4045f0a5b3d11d92ed1a4e21c539938d283c757a",
    "olivetti/olivettifaces.mat": "b119468c2f13775df12d3950e7c96644811647a6e10d30617777f245bf9b2f8b",
}


class DataError(RuntimeError):
    """A data set is missing, damaged, or cannot be fetched; the text says what to do about it."""


class Raw(NamedTuple):
    """One raw file, read once, so that the bytes which were checked are the bytes which are decoded.

    A folder of many files counts as one: its content is their `listing`, and only decoding reads them.
    """

    folder: Path
    file: str  # relative to the folder, as in `CONTENT_SHA256`
    content: bytes

    @property
    def path(self) -> Path:
        return self.folder / self.file


class Decoded(NamedTuple):
    """pixels: (N, H, W) uint8, in colour (N, 3, H, W), contiguous; labels: (N,) int64."""

    pixels: Tensor
    labels: Tensor


Decoder = Callable[[str, Sequence[Raw]], Decoded]  # (split, its raw files)


def read(folder: Path, files: Sequence[str]) -> list[Raw]:
    """The files as they are, undecoded; of a folder its `listing`. OSError if one is missing."""
    paths = [folder / file for file in files]
    contents = (listing(path) if path.is_dir() else path.read_bytes() for path in paths)
    return [Raw(folder, file, content) for file, content in zip(files, contents, strict=True)]


def listing(folder: Path) -> bytes:
    """Name and size of every file right below a folder, a line each, sorted by name."""
    with os.scandir(folder) as entries:
        lines = sorted(f"{entry.name}\t{entry.stat().st_size}\n" for entry in entries if entry.is_file())
    return "".join(lines).encode()


# Finding and fetching -------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """COLLAPSE_CACHE, else the user's own cache folder of this library."""
    chosen = os.environ.get("COLLAPSE_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("collapse_lib")


def search_folders(root: str | Path | None) -> list[Path]:
    """Where raw files may lie, in the order in which to look: `root`, else COLLAPSE_DATA; then the cache folder."""
    variable = os.environ.get("COLLAPSE_DATA")
    folders = [cache_folder() / "data"]
    if given := root or variable:
        folders.insert(0, Path(given).expanduser())
        if not folders[0].is_dir():
            said, remedy = ("root", "leave it out") if root else ("COLLAPSE_DATA", "unset it")
            raise DataError(f"{said} points at {folders[0]}, which is no folder; correct it or {remedy}")
    return folders


def find(files: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """The first folder that has all of the files (or folders of files)."""
    return next((folder for folder in folders if all((folder / file).exists() for file in files)), None)


def download(files: Sequence[str], split: str, decode: Decoder) -> Path:
    """Fetches the files of a split into the cache folder, where only what passes its check ever gets its name."""
    folder = cache_folder() / "data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "download.lock"), tempfile.TemporaryDirectory(dir=folder) as temporary:
            if find(files, [folder]):  # another process was faster
                return folder
            for file in files:
                _fetch(file, Path(temporary))
            try:
                decode(split, read(Path(temporary), files))
            except DataError as error:
                raise DataError(f"what was downloaded is not the expected data and was thrown away: {error}") from error
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (Path(temporary) / file).replace(folder / file)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}): set COLLAPSE_CACHE to a folder that can") from error
    return folder


def _fetch(file: str, folder: Path) -> None:
    from torchvision.datasets.utils import download_url  # imported late: it takes seconds and is seldom needed

    urls, md5 = origin(file)
    failures = []
    for url in urls:
        try:
            download_url(url, (folder / file).parent, (folder / file).name, md5)
            return
        except (OSError, RuntimeError) as error:  # no network, or not the md5 that torchvision lists
            failures.append(f"{url}: {error}")
    raise DataError(f"the download failed: {'; '.join(failures)}")


def origin(file: str) -> tuple[list[str], str | None]:
    """URLs and md5 of a raw file as torchvision lists them; for the faces, where scikit-learn gets them."""
    from torchvision import datasets

    folder, name = Path(file).parts[0], Path(file).name
    if folder in ("MNIST", "FashionMNIST"):
        listed = getattr(datasets, folder)
        return [f"{mirror}{name}" for mirror in listed.mirrors], dict(listed.resources)[name]
    if folder == "omniglot-py":
        return [f"{datasets.Omniglot.download_url_prefix}/{name}"], datasets.Omniglot.zips_md5[Path(name).stem]
    return ["https://ndownloader.figshare.com/files/5976027"], None


# Formats --------------------------------------------------------------------------------------------------------------


def _damaged(raw: Raw, found: str, expected: str) -> DataError:
    return DataError(f"{raw.path} is damaged or altered: it has {found}, expected {expected}")


def decode_digits(split: str, raw: Sequence[Raw]) -> Decoded:
    """scikit-learn's 8x8 digits / 16, bilinear to 28x28 with half-pixel centres, times 255, rounded (half to even)."""
    from sklearn.datasets import load_digits  # imported late: only the embedded set needs it

    digits = load_digits()
    part = slice(None, 1500) if split == "train" else slice(1500, None)
    images = torch.from_numpy(digits.images[part])[:, None] / 16
    large = torch.nn.functional.interpolate(images, size=(28, 28), mode="bilinear", align_corners=False)[:, 0] * 255
    # One pixel in 700 is 127.5 up to an error of 1e-13 whose sign depends on the processor: drop it before rounding.
    pixels = large.round(decimals=6).round().to(torch.uint8)
    return Decoded(pixels, torch.from_numpy(digits.target[part].astype(np.int64)))


def decode_idx(split: str, raw: Sequence[Raw]) -> Decoded:
    """An images and a labels file, gzipped: two zeros, 8 (uint8), rank; sizes as big-endian int32; values. Sum: md5."""
    tensors = []
    for part in raw:
        found, expected = hashlib.md5(part.content, usedforsecurity=False).hexdigest(), origin(part.file)[1]
        if found != expected:
            raise _damaged(part, f"md5 {found}", f"md5 {expected} (torchvision's list)")
        content = bytearray(gzip.decompress(part.content))
        rank = content[3]
        shape = np.frombuffer(content, dtype=">i4", count=rank, offset=4).tolist()
        tensors.append(torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * rank).view(shape))
    images, labels = tensors
    return Decoded(images, labels.long())


def decode_omniglot(split: str, raw: Sequence[Raw]) -> Decoded:
    """One-bit PNGs of 105x105, paper = 1, to the mean ink of areas, 28x28: round(255 W ink Wᵀ / 105²).

    W[i, j] is the overlap of the target interval [105 i, 105 (i + 1)) with the source interval [28 j, 28 (j + 1)), in
    1/28 of a source pixel. All sums are integers below 2²⁴, so float32 holds them exactly.
    """
    from PIL import Image

    target, source = 105 * np.arange(28)[:, None], 28 * np.arange(105)
    overlap = np.minimum(target + 105, source + 28) - np.maximum(target, source)
    W = overlap.clip(min=0).astype(np.float32)

    (archive,) = raw
    pngs = omniglot_pngs(archive)
    characters: dict[str, int] = {}
    pixels = np.empty((len(pngs), 28, 28), dtype=np.uint8)
    labels = np.empty(len(pngs), dtype=np.int64)
    for i, (name, png) in enumerate(pngs.items()):
        ink = ~np.asarray(Image.open(io.BytesIO(png)))
        pixels[i] = np.rint(W @ ink @ W.T * (255 / 105**2))
        labels[i] = characters.setdefault(name.rpartition("/")[0], len(characters))
    return Decoded(torch.from_numpy(pixels), torch.from_numpy(labels))


def omniglot_pngs(archive: Raw) -> dict[str, bytes]:
    """The drawings by path, in sorted order. Sum: sha256 over (path, 0, length in digits, 0, bytes) of each in turn."""
    expected = f"content sha256 {CONTENT_SHA256[archive.file]}"
    try:
        with zipfile.ZipFile(io.BytesIO(archive.content)) as file:
            pngs = {name: file.read(name) for name in sorted(file.namelist()) if name.endswith(".png")}
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        found = f"file sha256 {hashlib.sha256(archive.content).hexdigest()} and is no whole zip archive ({error})"
        raise _damaged(archive, found, expected) from error
    digest = hashlib.sha256()
    for name, png in pngs.items():
        digest.update(f"{name}\0{len(png)}\0".encode())
        digest.update(png)
    found = f"content sha256 {digest.hexdigest()}"
    if found != expected:
        raise _damaged(archive, found, expected)
    return pngs


def decode_olivetti(split: str, raw: Sequence[Raw]) -> Decoded:
    """MATLAB's `faces`, (4096, 400): a column is an image, column by column. Sum: sha256 of the columns in turn."""
    from scipy.io import loadmat

    (file,) = raw
    expected = f"content sha256 {CONTENT_SHA256[file.file]}"
    try:
        faces = np.ascontiguousarray(loadmat(io.BytesIO(file.content))["faces"].T, dtype=np.uint8)
    except Exception as error:  # on a broken file scipy raises whatever its parser stumbles over
        found = f"file sha256 {hashlib.sha256(file.content).hexdigest()} and cannot be read ({error!r})"
        raise _damaged(file, found, expected) from error
    found = f"content sha256 {hashlib.sha256(faces.data).hexdigest()}"
    if found != expected:
        raise _damaged(file, found, expected)
    pixels = np.ascontiguousarray(faces.reshape(-1, 64, 64).transpose(0, 2, 1))
    return Decoded(torch.from_numpy(pixels), torch.arange(len(pixels)) // 10)


_CELEBA_PARTS = {"train": "0", "valid": "1", "test": "2"}


def decode_celeba(split: str, raw: Sequence[Raw]) -> Decoded:
    """The list of partitions ("000001.jpg 0", one image a line) and the folder of aligned JPEGs: (N, 3, 64, 64).

    Each image is cut to its middle 148x148 and made smaller as `celeba_face` says; labels are the numbers in the names.
    The list's sum is torchvision's md5. No sums of single images are published: each must be there, decode, and measure
    178x218. They are read one at a time.
    """
    from torchvision.datasets import CelebA

    partition, folder = raw
    found, expected = (
        hashlib.md5(partition.content, usedforsecurity=False).hexdigest(),
        next(md5 for _, md5, name in CelebA.file_list if name == Path(partition.file).name),
    )
    if found != expected:
        raise _damaged(partition, f"md5 {found}", f"md5 {expected} (torchvision's list)")
    if not folder.path.is_dir():
        raise DataError(f"{folder.path} is no folder; the images belong into it, unpacked")
    lines = (line.split() for line in partition.content.decode().splitlines())
    names = [name for name, part in lines if part == _CELEBA_PARTS[split]]
    there = {line.partition("\t")[0] for line in folder.content.decode().splitlines()}
    if missing := [name for name in names if name not in there]:
        raise DataError(f"{folder.path} lacks {len(missing)} of {len(names)} images, the first of them {missing[0]}")
    pixels = np.empty((len(names), 3, 64, 64), dtype=np.uint8)
    with Progress(len(names), f"decode CelebA, {split}") as bar:
        for i, name in enumerate(names):
            pixels[i] = celeba_face(folder.path / name)
            bar.update(1)
    return Decoded(torch.from_numpy(pixels), torch.tensor([int(Path(name).stem) for name in names]))


def celeba_face(path: Path) -> np.ndarray:
    """The middle 148x148 of a JPEG of 178x218, at 64x64: (3, 64, 64) uint8.

    The crop and Pillow's bilinear filter, which averages over the area that a new pixel covers, are what torchvision's
    CenterCrop(148) and Resize(64) do to an image; that papers on CelebA use them is recalled, not confirmed.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            size, whole = image.size, image.convert("RGB")
    except Exception as error:  # on a broken file Pillow raises whatever its parser stumbles over
        raise DataError(f"{path} is damaged: it cannot be decoded ({error})") from error
    if size != (178, 218):
        raise DataError(f"{path} is damaged or altered: it measures {size[0]}x{size[1]}, expected 178x218")
    small = whole.crop((15, 35, 163, 183)).resize((64, 64), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)
