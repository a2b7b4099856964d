"""Decoded tensors are cached, and never served stale."""

import warnings

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from raw_files import FILE_SETS, cached_file, forbid_decoding, write_idx

from collapse_lib import data


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
