"""Named image sets as uint8 tensors: where they come from, how they are checked, how they are cached.

    images = load("mnist", "train", n=1000)
    x = flatten(scale(images.pixels))                  # collapse_lib.transforms

Raw files are looked for in `root`, else in the folder that COLLAPSE_DATA names, then in `data/` of the cache folder,
and are downloaded there as a last resort (CelebA is not, for its terms; an error says how to get it). The cache folder
is COLLAPSE_CACHE, else the user's own cache folder. Every file is checked against a known sum before it is decoded, so
a name always stands for the same pixels (of CelebA, whose images have no sums, the same list of images); no data set is
ever replaced by another. Decoded tensors are kept in `decoded/` of the cache folder, never beside the raw data.

    python -m collapse_lib.data NAME ...               # downloads and verifies, prints where the files are
"""

import argparse
import functools
import hashlib
import sys
import tempfile
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from collapse_lib import raw_data
from collapse_lib.raw_data import DataError, Decoded, Decoder, Raw

NAMES: tuple[str, ...] = ("digits", "mnist", "fashion_mnist", "omniglot", "olivetti", "celeba")

# Part of the cache's key: raise it whenever a decoder of `raw_data` gives other tensors for the same raw files.
_DECODERS_VERSION = 1


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The first images of one split, in file order.

    pixels: (N, H, W) uint8, in colour (N, 3, H, W), ink or light = 255. labels: (N,) int64.
    checksum: sha256 (hex) of the bytes of `pixels`, then of `labels`, of the WHOLE split, whatever N is.
    """

    name: str
    split: str
    pixels: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    source: str
    licence: str
    checksum: str

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class _Source:
    source: str
    licence: str
    files: Mapping[str, tuple[str, ...]]  # split -> raw files, relative to a data folder; none: embedded in a library
    decode: Decoder
    by_hand: str = ""  # how to get the files, where they are not downloaded from here


def _idx_files(folder: str) -> dict[str, tuple[str, ...]]:
    return {
        split: (f"{folder}/raw/{prefix}-images-idx3-ubyte.gz", f"{folder}/raw/{prefix}-labels-idx1-ubyte.gz")
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


_CELEBA = ("celeba/list_eval_partition.txt", "celeba/img_align_celeba")  # torchvision's layout

_SOURCES = {
    "digits": _Source(
        source="Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (UCI), as embedded in scikit-learn",
        licence="CC BY 4.0",
        files={"train": (), "test": ()},
        decode=raw_data.decode_digits,
    ),
    "mnist": _Source(
        source="LeCun, Cortes and Burges 1998, the MNIST database of handwritten digits",
        licence="CC BY-SA 3.0, as commonly stated",
        files=_idx_files("MNIST"),
        decode=raw_data.decode_idx,
    ),
    "fashion_mnist": _Source(
        source="Xiao, Rasul and Vollgraf 2017, Fashion-MNIST (Zalando)",
        licence="MIT",
        files=_idx_files("FashionMNIST"),
        decode=raw_data.decode_idx,
    ),
    "omniglot": _Source(
        source="Lake, Salakhutdinov and Tenenbaum 2015, Omniglot",
        licence="MIT",
        files={"train": ("omniglot-py/images_background.zip",), "test": ("omniglot-py/images_evaluation.zip",)},
        decode=raw_data.decode_omniglot,
    ),
    "olivetti": _Source(
        source="AT&T Laboratories Cambridge 1992-1994, the Olivetti faces, 64x64 as prepared by S. Roweis",
        licence="no formal licence; AT&T Laboratories Cambridge is to be acknowledged",
        files={"train": ("olivetti/olivettifaces.mat",)},
        decode=raw_data.decode_olivetti,
    ),
    "celeba": _Source(
        source="Liu, Luo, Wang and Tang 2015, CelebA (CUHK), aligned; middle 148x148 at 64x64",
        licence="non-commercial research only, by the agreement on its page",
        files={"train": _CELEBA, "valid": _CELEBA, "test": _CELEBA},
        decode=raw_data.decode_celeba,
        by_hand=(
            "It is not downloaded from here: its terms allow non-commercial research only. Get it into a folder F, by\n"
            "  torchvision.datasets.CelebA(F, download=True)      (which needs the package gdown)\n"
            "or from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html: list_eval_partition.txt into F/celeba, and\n"
            "img_align_celeba.zip unpacked there, as F/celeba/img_align_celeba/000001.jpg and so on.\n"
            "Then set COLLAPSE_DATA to F."
        ),
    ),
}


def load(
    name: str, split: str = "train", n: int | None = None, *, root: str | Path | None = None, download: bool = True
) -> ImageSet:
    """The first `n` images (default: all) of a split ("train", "test", ...) of one of `NAMES`, in file order.

    - digits: scikit-learn's 8x8 digits / 16, bilinear to 28x28 with half-pixel centres, times 255, rounded to uint8;
      train is the first 1500, test the last 297.
    - mnist, fashion_mnist: 28x28; 60,000 train and 10,000 test.
    - omniglot: sorted by path, ink = 255, 105x105 averaged over areas to 28x28 and rounded; train is the background set
      (19,280 drawings of 964 characters), test the evaluation set (13,180 of 659); labels count characters.
    - olivetti: 64x64, 40 people x 10; train only.
    - celeba: in colour, the middle 148x148 of 178x218 at 64x64; 162,770 train, 19,867 valid, 19,962 test; labels are
      the numbers in the file names. Decoded once, in minutes; the train split takes 2 GB of memory and of the cache.

    Raises ValueError for an unknown name or split and for `n` out of range; DataError for data that is missing, damaged
    or not to be fetched, and for a `root` or COLLAPSE_DATA that is no folder.
    """
    source = _source(name)
    if split not in source.files:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(source.files)}")

    if source.files[split]:
        folder = _locate(name, split, root, download)
        (pixels, labels), content_sum = _decode_cached(name, split, raw_data.read(folder, source.files[split]))
    else:
        decoded = source.decode(split, [])
        (pixels, labels), content_sum = decoded, _content_sha256(decoded)

    if n is not None:
        if not isinstance(n, int) or not 1 <= n <= len(pixels):
            raise ValueError(f"n = {n!r}, but {name} {split} has {len(pixels)} images: n must be 1 to {len(pixels)}")
        pixels, labels = pixels[:n].clone(), labels[:n].clone()  # a view would keep the whole split in memory
    return ImageSet(name, split, pixels, labels, source.source, source.licence, content_sum)


def checksum(name: str, *, root: str | Path | None = None) -> str | None:
    """sha256 (hex) of the names and bytes of the raw files of all splits at hand; None if there are none.

    Says which data a run would see without decoding or checking it: meant for the keys of caches. Of a folder of images
    the names and sizes count.
    """
    source, digest = _source(name), hashlib.sha256()
    found, seen = False, set()
    for split, files in source.files.items():
        if not files:
            digest.update(_content_sha256(source.decode(split, [])).encode())
            found = True
        elif files in seen:  # splits of the same files
            continue
        elif folder := raw_data.find(files, raw_data.search_folders(root)):
            digest.update(_raw_sha256(raw_data.read(folder, files)).encode())
            found = True
        seen.add(files)
    return digest.hexdigest() if found else None


def _source(name: str) -> _Source:
    if name not in _SOURCES:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(NAMES)}")
    return _SOURCES[name]


def _locate(name: str, split: str, root: str | Path | None, download: bool) -> Path:
    """The folder that has all raw files of the split, after a download if need be."""
    source, folders = _source(name), raw_data.search_folders(root)
    files = source.files[split]
    if folder := raw_data.find(files, folders):
        return folder
    reason = "no download was asked for"
    if download and not source.by_hand:
        try:
            return raw_data.download(files, split, source.decode)
        except DataError as error:
            reason = str(error)
    looked = "\n".join(
        f"  {folder}: no {', '.join(file for file in files if not (folder / file).exists())}" for folder in folders
    )
    if source.by_hand:
        raise DataError(f"{name} ({split}) is not there; looked in\n{looked}\n{source.by_hand}")
    raise DataError(
        f"{name} ({split}) is not there; looked in\n{looked}\n  and {reason}\n"
        f"Get it on a machine with a network by `python -m collapse_lib.data {name}`, "
        "or set COLLAPSE_DATA to a folder that has the files."
    )


def _raw_sha256(raw: Sequence[Raw]) -> str:
    digest = hashlib.sha256()
    for part in raw:
        digest.update(f"{part.file}\0{hashlib.sha256(part.content).hexdigest()}\0".encode())
    return digest.hexdigest()


def _content_sha256(decoded: Decoded) -> str:
    digest = hashlib.sha256(decoded.pixels.numpy().data)
    digest.update(decoded.labels.numpy().data)
    return digest.hexdigest()


def _crc32(decoded: Decoded, content_sum: str) -> str:
    # Guards the cache against accidents, on every load; seven times as fast as the sha256, which is stored beside it.
    crc = zlib.crc32(decoded.labels.numpy().data, zlib.crc32(decoded.pixels.numpy().data))
    return str(zlib.crc32(content_sum.encode(), crc))


def _decode_cached(name: str, split: str, raw: Sequence[Raw]) -> tuple[Decoded, str]:
    """Decoded tensors and their sha256, from the cache if the same raw bytes were decoded (hence checked) before."""
    path = raw_data.cache_folder() / "decoded" / f"{name}-{split}-v{_DECODERS_VERSION}-{_raw_sha256(raw)}.safetensors"
    if cached := _read_cache(path):
        return cached
    source = _source(name)
    try:
        decoded = source.decode(split, raw)
    except DataError as error:
        again = (
            f".\n{source.by_hand}"
            if source.by_hand
            else f", or remove it and run `python -m collapse_lib.data {name}`."
        )
        raise DataError(f"{error}. The file was left as it is; put a good copy in its place{again}") from error
    content_sum = _content_sha256(decoded)
    _write_cache(path, decoded, content_sum)
    return decoded, content_sum


def _read_cache(path: Path) -> tuple[Decoded, str] | None:
    try:
        with safetensors.safe_open(path, "pt") as file:
            sums = file.metadata() or {}
            decoded = Decoded(file.get_tensor("pixels"), file.get_tensor("labels"))
    except (OSError, safetensors.SafetensorError):
        return None
    content_sum = sums.get("sha256", "")
    return (decoded, content_sum) if sums.get("crc32") == _crc32(decoded, content_sum) else None


def _write_cache(path: Path, decoded: Decoded, content_sum: str) -> None:
    sums = {"sha256": content_sum, "crc32": _crc32(decoded, content_sum)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            whole = Path(temporary) / path.name
            whole.write_bytes(safetensors.torch.save(decoded._asdict(), sums))
            whole.replace(path)
    except OSError as error:
        _warn_uncached(path.parent, str(error))


@functools.cache  # once is enough
def _warn_uncached(folder: Path, reason: str) -> None:
    warnings.warn(
        f"decoded data cannot be kept in {folder} ({reason}), so every load decodes it again; "
        "set COLLAPSE_CACHE to a folder that can be written",
        stacklevel=2,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Downloads what is missing (if it may), verifies all splits of the named data sets and prints where they are."""
    parser = argparse.ArgumentParser(prog="python -m collapse_lib.data", description=main.__doc__)
    parser.add_argument("names", metavar="NAME", nargs="+", choices=NAMES, help=", ".join(NAMES))
    for name in parser.parse_args(arguments).names:
        for split, files in _SOURCES[name].files.items():
            try:
                images = load(name, split)
                where = _locate(name, split, None, download=False) if files else "scikit-learn (embedded)"
            except DataError as error:
                print(error, file=sys.stderr)
                return 1
            shape = "x".join(map(str, images.pixels.shape[1:]))
            print(f"{name} {split}: {len(images)} images of {shape}, sha256 {images.checksum}, from {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
