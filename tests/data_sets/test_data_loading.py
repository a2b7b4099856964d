"""What each loader makes of small files in the real formats."""

import hashlib
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from raw_files import ALL_SPLITS, area_mean, assert_torchvision_reads_the_same, write_zip
from sklearn.datasets import load_digits

from collapse_lib import data, raw_data


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
