"""Where files are looked for, and what is fetched."""

import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from raw_files import ALL_SPLITS, FILE_SETS, no_network, serve

from collapse_lib import data


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
