"""Damaged and incomplete files are refused by name."""

import gzip
import hashlib
import shutil
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
import scipy.io
import torchvision
from PIL import Image
from raw_files import FILE_SETS, Fake, content_sha256, write_zip

from collapse_lib import data, raw_data


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
