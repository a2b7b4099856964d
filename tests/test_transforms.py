import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit

from collapse_lib import data, transforms

images = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)).map(torch.from_numpy)
alphas = st.floats(1e-6, 0.4)
seeds = st.integers(0, 2**32 - 1)


@given(images)
def test_scale_is_undone_by_255(pixels):
    for dtype in (torch.float32, torch.float64):
        x = transforms.scale(pixels, dtype)
        assert x.dtype == dtype
        np.testing.assert_allclose(x, pixels.numpy() / 255, rtol=1e-6)
        assert torch.equal((x * 255).round().to(torch.uint8), pixels)
    assert transforms.scale(pixels).dtype == torch.float32


@given(images)
def test_flatten_is_row_by_row(pixels):
    n, h, w = pixels.shape
    flat = transforms.flatten(pixels)
    assert flat.shape == (n, h * w)
    assert all(flat[i, r * w + c] == pixels[i, r, c] for i in range(n) for r in range(h) for c in range(w))


@given(images, st.integers(1, 8))
def test_pad_is_the_least_border_that_divides(pixels, multiple):
    """By writing the images into the middle of zeros; whatever comes before them, H and W are the last two axes."""
    n, h, w = pixels.shape
    padded = transforms.pad(pixels, multiple)
    height, width = padded.shape[1:]
    assert (height % multiple, width % multiple) == (0, 0)
    assert 0 <= height - h < multiple
    assert 0 <= width - w < multiple
    expected = np.zeros((n, height, width), dtype=np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    expected[:, top : top + h, left : left + w] = pixels.numpy()
    np.testing.assert_array_equal(padded, expected)
    colour = transforms.pad(pixels[:, None].expand(n, 3, h, w), multiple)
    assert torch.equal(colour, padded[:, None].expand(n, 3, height, width))


def test_pad_of_digits_and_faces():
    digits = data.load("digits", n=2).pixels
    padded = transforms.pad(digits, 8)
    assert padded.shape == (2, 32, 32)
    assert padded.dtype == torch.uint8
    assert torch.equal(padded[:, 2:30, 2:30], digits)
    assert torch.equal(transforms.pad(torch.ones(1, 64, 64), 16), torch.ones(1, 64, 64))


def test_centre():
    x = torch.tensor([[1.0, 10.0], [3.0, 40.0], [5.0, 10.0]])
    centred = transforms.centre(x)
    assert centred.mean.tolist() == [3.0, 20.0]
    assert centred.x.tolist() == [[-2.0, -10.0], [0.0, 20.0], [2.0, -10.0]]
    assert transforms.centre(torch.rand(3, 4, 5)).mean.shape == (4, 5)


@given(images, seeds)
def test_dequantised_cells_do_not_overlap(pixels, seed):
    u = torch.from_numpy(np.random.default_rng(seed).random(pixels.shape))
    y = transforms.dequantise(pixels, u)
    assert torch.equal((y * 256).floor().to(torch.uint8), pixels)
    np.testing.assert_allclose(y * 256 - pixels, u, atol=1e-12)
    assert transforms.dequantise(pixels, u.float()).dtype == torch.float32


@given(images, alphas, seeds)
def test_logit_is_inverted_by_the_logistic_function(pixels, alpha, seed):
    u = torch.from_numpy(np.random.default_rng(seed).random(pixels.shape))
    y = transforms.dequantise(pixels, u)
    x = transforms.logit(y, alpha)
    np.testing.assert_allclose((expit(x.numpy()) - alpha) / (1 - 2 * alpha), y, atol=1e-12 / (1 - 2 * alpha))
    assert x.abs().max() <= math.log((1 - alpha) / alpha)
    np.testing.assert_allclose(transforms.logit(1 - y, alpha), -x, atol=1e-9)


@given(images, alphas, seeds)
def test_unlogit_undoes_logit(pixels, alpha, seed):
    y = transforms.dequantise(pixels, torch.from_numpy(np.random.default_rng(seed).random(pixels.shape)))
    back = transforms.unlogit(transforms.logit(y, alpha), alpha)
    np.testing.assert_allclose(back, y, atol=1e-9)
    assert transforms.unlogit(torch.tensor([-99.0, 99.0]), 0.05).tolist() == pytest.approx([-0.05 / 0.9, 0.95 / 0.9])


def test_logit_at_its_ends():
    ends = transforms.logit(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 1e-6)
    bound = math.log((1 - 1e-6) / 1e-6)  # 13.8155
    np.testing.assert_allclose(ends, [-bound, 0.0, bound], atol=1e-9)


def test_logit_preprocess_is_its_formula_in_numpy():
    pixels = data.load("digits", n=20).pixels
    u = (pixels.numpy().reshape(20, 784) + np.random.RandomState(3).rand(20, 784)) / 256
    y = 0.05 + 0.9 * u
    x = transforms.logit_preprocess(pixels, alpha=0.05, seed=3)
    assert x.dtype == torch.float64
    np.testing.assert_allclose(x, np.log(y / (1 - y)), rtol=1e-12, atol=1e-12)
    assert torch.equal(transforms.logit_preprocess(pixels[:7], alpha=0.05, seed=3), x[:7])


def leading_eigenvalues(x: torch.Tensor) -> torch.Tensor:
    """Of the covariance with 1/N, in descending order."""
    centred = transforms.centre(x).x
    return torch.linalg.svdvals(centred) ** 2 / len(x)


@pytest.mark.parametrize(("n", "known"), [(500, (557.4, 195.6, 160.9)), (1000, (609.3, 185.5, 146.2))])
def test_logit_preprocess_of_the_digits(n, known):
    """Eigenvalues 1, 5 and 6, measured with other code."""
    eigenvalues = leading_eigenvalues(transforms.logit_preprocess(data.load("digits", n=n).pixels))
    np.testing.assert_allclose(eigenvalues[[0, 4, 5]], known, atol=0.06)


def test_logit_preprocess_of_mnist(real_data):
    """Trace, range, leading eigenvalues (1/N; listed with 1/(N - 1)), measured with other code."""
    x = transforms.logit_preprocess(data.load("mnist", n=1000, root=real_data).pixels, alpha=1e-6, seed=0)
    eigenvalues = leading_eigenvalues(x)
    assert eigenvalues.sum().item() == pytest.approx(6927.20, abs=0.005)
    np.testing.assert_allclose(eigenvalues[:5] * 1000 / 999, (685.7, 527.4, 470.7, 370.8, 329.7), rtol=2e-3)
    assert (x.min().item(), x.max().item()) == pytest.approx((-13.81, 13.79), abs=0.005)


def test_logit_preprocess_of_the_faces(real_data):
    if data.checksum("olivetti", root=real_data) is None:
        pytest.skip("needs real data: COLLAPSE_DATA has no olivetti")
    faces = data.load("olivetti", root=real_data).pixels
    eigenvalues = leading_eigenvalues(transforms.logit_preprocess(faces, alpha=0.05, seed=0))
    np.testing.assert_allclose(eigenvalues[:6], (249.1, 154.6, 86.8, 55.7, 40.8, 33.1), atol=0.06)


@given(seeds)
def test_static_binarisation_is_a_fixed_draw_with_the_right_probability(seed):
    x = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).repeat(4000, 1)
    b = transforms.binarise_static(x, seed)
    assert b.dtype == x.dtype
    assert set(b.unique().tolist()) <= {0.0, 1.0}
    # 6.5 standard errors: once in 10^10 draws by chance
    assert ((b.mean(dim=0) - x[0]).abs() <= 6.5 * (x[0] * (1 - x[0]) / len(x)).sqrt() + 1e-7).all()
    assert torch.equal(transforms.binarise_static(x, seed), b)
    assert not torch.equal(transforms.binarise_static(x, (seed + 1) % 2**32), b)


def test_static_binarisation_stream():
    x = torch.rand(5, 7)
    expected = np.random.RandomState(4).rand(5, 7) < x.double().numpy()
    np.testing.assert_array_equal(transforms.binarise_static(x, 4), expected)


def test_dynamic_binarisation_is_one_where_the_noise_is_below():
    x = torch.tensor([[0.0, 0.3, 0.3, 0.3, 1.0]])
    u = torch.tensor([[0.0, 0.29, 0.3, 0.31, 0.999]])
    assert transforms.binarise_dynamic(x, u).tolist() == [[0, 1, 0, 0, 1]]
    assert transforms.binarise_dynamic(x.double(), u).dtype == torch.float64


def test_dynamic_binarisation_maps_over_members():
    x, u = torch.rand(4, 6), torch.rand(3, 4, 6)
    mapped = torch.func.vmap(transforms.binarise_dynamic, in_dims=(None, 0))(x, u)
    assert torch.equal(mapped, torch.stack([transforms.binarise_dynamic(x, one) for one in u]))


def test_quadrants():
    x = torch.arange(2 * 4 * 6).reshape(2, 4, 6)
    q = transforms.quadrants(x)
    assert q.bottom_left[0].tolist() == [[12, 13, 14], [18, 19, 20]]
    assert q.top_right[1].tolist() == [[27, 28, 29], [33, 34, 35]]
    top, bottom = torch.cat([q.top_left, q.top_right], dim=2), torch.cat([q.bottom_left, q.bottom_right], dim=2)
    assert torch.equal(torch.cat([top, bottom], dim=1), x)


def test_quadrants_are_joined_where_they_were():
    x = torch.arange(2 * 4 * 6).reshape(2, 4, 6)
    assert torch.equal(transforms.join_quadrants(transforms.quadrants(x)), x)
    with pytest.raises(ValueError, match="four quarters"):
        transforms.join_quadrants(transforms.quadrants(x)._replace(top_left=x))


def test_completion_pairs_are_cut_as_in_the_paper_and_put_back():
    images = torch.arange(2 * 4 * 6).reshape(2, 4, 6)
    x, y = transforms.completion_pairs(images)
    assert x[0].tolist() == [12, 13, 14, 18, 19, 20]
    assert y[0].tolist() == [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11, 15, 16, 17, 21, 22, 23]
    assert torch.equal(transforms.completed_images(x, y, (4, 6)), images)


def test_errors_tell_dtypes_and_shapes():
    pixels, x = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4)
    for call in (transforms.scale, transforms.logit_preprocess, lambda p: transforms.dequantise(p, x)):
        with pytest.raises(TypeError, match=r"must be uint8, as loaded, got torch.float32 \(2, 4, 4\)"):
            call(x)
    for call in (
        transforms.centre,
        lambda p: transforms.dequantise(p, p),
        lambda p: transforms.logit(p, 0.1),
        lambda p: transforms.unlogit(p, 0.1),
        lambda p: transforms.binarise_static(p, 0),
        lambda p: transforms.binarise_dynamic(p, x),
        lambda p: transforms.binarise_dynamic(x, p),
    ):
        with pytest.raises(TypeError, match=r"needs floating point values, got torch.uint8 \(2, 4, 4\); `scale`"):
            call(pixels)
    for call in (lambda u: transforms.dequantise(pixels, u), lambda u: transforms.binarise_dynamic(x, u)):
        with pytest.raises(ValueError, match=r"got torch.float32 \(2, 16\) for torch\.\w+ \(2, 4, 4\)"):
            call(torch.zeros(2, 16))
    for call in (transforms.flatten, transforms.centre):
        with pytest.raises(ValueError, match=r"got torch.float32 \(3,\)"):
            call(torch.zeros(3))
    with pytest.raises(ValueError, match=r"N >= 1 .* got torch.float32 \(0, 3\)"):
        transforms.centre(torch.zeros(0, 3))
    for wrong in (torch.zeros(4, 4), 4), (x, 0):
        with pytest.raises(ValueError, match=r"pad needs images .* got torch.float32 \(.*4, 4\) and"):
            transforms.pad(*wrong)
    for wrong in ((2, 16), (2, 5, 4), (2, 4, 5), (2, 1, 4, 4)):
        with pytest.raises(ValueError, match=r"needs images \(N, H, W\) with even H and W, got torch.float32 \(2, "):
            transforms.quadrants(torch.zeros(wrong))
    for alpha in (0.0, 0.5, -0.1, math.nan):
        for call in (transforms.logit, transforms.unlogit):
            with pytest.raises(ValueError, match=r"0 < alpha < 0\.5, got alpha"):
                call(x, alpha)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"needs values in \[0, 1\]"):
            transforms.binarise_static(torch.full((2, 2), value), 0)


def test_a_random_split_is_disjoint_and_stays_the_same():
    x = torch.arange(20.0)[:, None]
    train, test = transforms.random_split(x, [12, 5], 3)
    assert (train.shape, test.shape) == ((12, 1), (5, 1))
    both = torch.cat([train, test]).flatten().tolist()
    assert len(set(both)) == 17
    assert both != sorted(both)
    again = transforms.random_split(x, [12, 5], 3)
    assert torch.equal(again[0], train)
    assert not torch.equal(transforms.random_split(x, [12, 5], 4)[0], train)
    for sizes in ([12, 9], [0, 3]):
        with pytest.raises(ValueError, match="random_split"):
            transforms.random_split(x, sizes, 0)
