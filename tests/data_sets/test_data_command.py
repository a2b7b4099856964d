"""Checksums, bad arguments, the command line."""

import dataclasses
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from raw_files import (
    FILE_SETS,
    forbid_decoding,
    serve,
)

from collapse_lib import data
from collapse_lib.replication import fingerprint


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
