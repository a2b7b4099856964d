"""The look of figures: told apart by everyone, readable, deterministic, and drawing what is said."""

import base64
import io
import itertools
import struct

import matplotlib.colors
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from collapse_lib.plotting import (
    CORRECTED,
    REPORTED,
    RUNS,
    THEORY,
    TOTAL,
    collapse_panels,
    curve_with_band,
    curves_by,
    gap_curves,
    image_grid,
    learned_against_theory,
    level_line,
    matrix_map,
    member_lines,
    mode_values,
    slope_line,
    use_style,
)

ROLES = (THEORY, REPORTED, CORRECTED, TOTAL)
COLOURS = [*RUNS, *(role.color for role in ROLES)]

# Machado, Oliveira and Fernandes 2009, table 1, severity 1.0; they act on linear RGB.
SEEN_BY = {
    "normal": np.eye(3),
    "protanope": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranope": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
# Linear sRGB to CIE XYZ, D65.
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour):
    channels = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(linear_rgb):
    """CIE L*a*b*."""
    xyz = TO_XYZ @ np.clip(linear_rgb, 0, 1) / np.array([0.95047, 1, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(colour, ground):
    """WCAG 2: 1 to 21."""
    low, high = sorted(TO_XYZ[1] @ linear(each) for each in (colour, ground))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(autouse=True)
def _style():
    """The style is on in every test, and neither it nor a figure is left behind."""
    with plt.rc_context():
        use_style()
        yield
        plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


# --- the look


def test_the_colour_measures_are_right():
    """Known values: Lab of red, contrast of black, and red and green that a deuteranope confuses."""
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    assert contrast("black", "white") == pytest.approx(21)
    red, green = (SEEN_BY["deuteranope"] @ linear(colour) for colour in ("#B33C00", "#6E6E00"))
    assert np.linalg.norm(lab(red) - lab(green)) < 15


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_all_colours_are_told_apart(eyes):
    seen = {colour: lab(SEEN_BY[eyes] @ linear(colour)) for colour in COLOURS}
    distances = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(COLOURS, 2)}
    closest = min(distances, key=distances.get)
    assert distances[closest] > 15, closest


def test_lines_and_text_stand_out_from_the_ground():
    ground = plt.rcParams["axes.facecolor"]
    assert plt.rcParams["figure.facecolor"] == plt.rcParams["savefig.facecolor"] == ground
    for colour in COLOURS:
        assert contrast(colour, ground) >= 3, colour
    for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"):
        assert contrast(plt.rcParams[key], ground) >= 7, key


def test_lines_of_a_figure_come_in_the_colours_of_runs_then_in_another_dash(ax):
    lines = [ax.plot([0, 1], label=str(index))[0] for index in range(2 * len(RUNS))]
    assert [line.get_color() for line in lines] == [*RUNS, *RUNS]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines)


def test_roles_differ_in_dash_too():
    assert len({role.linestyle for role in (THEORY, REPORTED, CORRECTED)}) == 3
    assert THEORY[:2] == ("#000000", "--")


# --- the drawings


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, list])
def test_mean_and_spread(ax, kind):
    steps = np.arange(4.0)
    values = np.array([[1.0, 2, 3, 4], [3, 2, 1, 0], [2, 2, 5, 2]])
    line = curve_with_band(ax, steps, kind(values), label="ELBO")
    assert line.get_label() == "ELBO"
    np.testing.assert_allclose(line.get_xydata(), np.stack([steps, [2, 2, 3, 2]], axis=1))
    (band,) = ax.collections
    assert matplotlib.colors.to_hex(band.get_facecolor()[0]) == line.get_color().lower()
    corners = band.get_paths()[0].vertices
    spread = np.array([1.0, 0, 2, 2])  # by hand: the squares of the deviations add up to 2, 0, 8, 8
    for step in steps:
        column = corners[corners[:, 0] == step, 1]
        mean = line.get_ydata()[int(step)]
        assert (column.min(), column.max()) == pytest.approx((mean - spread[int(step)], mean + spread[int(step)]))


def test_one_member_has_no_band(ax):
    line = curve_with_band(ax, [0, 1, 2], [3.0, 4, 5], label="one", color="#123456")
    assert list(line.get_ydata()) == [3, 4, 5]
    assert line.get_color() == "#123456"
    assert len(ax.collections) == 0


def test_a_curve_ends_where_a_member_diverges(ax):
    line = curve_with_band(ax, [0, 1, 2], [[1.0, 1, 1], [1, 3, np.nan]], label="two")
    np.testing.assert_array_equal(line.get_ydata(), [1, 2, np.nan])


@pytest.mark.parametrize("values", [np.ones((3, 2)), np.ones((2, 3, 4)), np.ones(2)])
def test_a_curve_of_the_wrong_shape(ax, values):
    with pytest.raises(ValueError, match=r"values must be \(member, step\) over x \(step,\); have .* and \(4,\)"):
        curve_with_band(ax, range(4), values, label="x")


def test_a_curve_for_each_value_of_a_column_dark_to_light(ax):
    rows = [(s, seed, t, 10 * s + seed + t) for s in (3.0, 0.3, 30.0) for seed in (0, 2) for t in (0, 5)]
    frame = pd.DataFrame(rows, columns=["sigma2", "seed", "step", "elbo"])
    lines = curves_by(ax, frame, x="step", y="elbo", by="sigma2")
    assert [line.get_label() for line in lines] == ["0.3", "3", "30"]
    np.testing.assert_allclose(lines[1].get_xydata(), [[0, 31], [5, 36]])  # the mean of seeds 0 and 2
    assert len(ax.collections) == 3
    many = pd.concat([frame.assign(sigma2=frame.sigma2 * scale) for scale in (1, 1e3)])
    assert {line.get_linestyle() for line in curves_by(ax, many, x="step", y="elbo", by="sigma2")} == {"-"}
    contrasts = [contrast(line.get_color(), "white") for line in lines]
    assert contrasts == sorted(contrasts, reverse=True)
    assert min(contrasts) >= 3


@pytest.mark.parametrize(("panels", "across"), [(5, 3), (3, 3), (8, 4)])
def test_collapse_curves_panel_by_panel(panels, across):
    epsilon = [0.5, 1.0, 2.0]
    sigma2s = [30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01][:panels]
    curves = {s: {"end": torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.4, 0.5]]), "early": [0.0, 0.1, 0.2]} for s in sigma2s}
    predicted = {s: torch.tensor([0.0, 0.5, 1.0]) for s in sigma2s}
    figure = collapse_panels(
        epsilon, curves, predicted=predicted, reported={30.0: [(0.5, 0.9), (2.0, 0.95)]}, title="from {:g}"
    )
    assert [ax.get_title() for ax in figure.axes] == [f"from {s:g}" for s in sigma2s]
    assert figure.axes[0].get_gridspec().ncols == across
    end, early, theory, dots = figure.axes[0].lines
    np.testing.assert_allclose(end.get_ydata(), [20, 30, 40])
    np.testing.assert_allclose(early.get_ydata(), [0, 10, 20])
    np.testing.assert_allclose(theory.get_ydata(), [0, 50, 100])
    assert (theory.get_color(), theory.get_linestyle()) == THEORY[:2]
    np.testing.assert_allclose(dots.get_xydata(), [[0.5, 90], [2, 95]])
    assert len(figure.axes[1].lines) == 3, "nothing reported, no points"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["end", "early", "optimal linear VAE", "report, read off"]
    figure.draw_without_rendering()
    labelled = [bool(ax.xaxis.get_tick_params()["labelbottom"]) for ax in figure.axes]
    assert sum(labelled) == across, "every column ends in an axis with numbers"


@pytest.mark.parametrize("role", ROLES)
def test_lines_of_a_role(ax, role):
    level = level_line(ax, torch.tensor(2.5), "level", role=role)
    slope = slope_line(ax, (1.0, 2.0), -0.5, "slope", role=role)
    assert list(level.get_ydata()) == [2.5, 2.5]
    assert (slope.get_xy1(), slope.get_slope()) == ((1.0, 2.0), -0.5)
    for line in (level, slope):
        assert (line.get_color(), line.get_linestyle(), line.get_linewidth()) == role
    assert ax.get_legend_handles_labels()[1] == ["level", "slope"]


def test_lines_are_theory_unless_said(ax):
    assert level_line(ax, 0, "a").get_color() == slope_line(ax, (0, 0), 1, "b").get_color() == THEORY.color


def test_gaps_and_their_sum(ax):
    gap_curves(ax, [0, 1, 2], {"decoder": [100.0, 1, 0], "encoder": torch.tensor([10.0, 1e-3, -1e-9])}, total="short")
    assert ax.get_yscale() == "log"
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert list(drawn) == ["short", "decoder", "encoder"]
    np.testing.assert_allclose(drawn["short"], [110, 1.001, np.nan])
    np.testing.assert_allclose(drawn["decoder"], [100, 1, np.nan])
    np.testing.assert_allclose(drawn["encoder"], [10, 1e-3, np.nan])
    assert [line.get_color() for line in ax.lines] == [TOTAL.color, *RUNS[:2]]


def test_members_share_a_colour_and_a_name(ax):
    member_lines(ax, [0, 1, 2], torch.tensor([[1.0, 2, 3], [3, 2, 9]]), label="omega")
    second = member_lines(ax, [0, 1, 2], [4.0, 5, 6], label="sigma")
    drawn = [(line.get_color(), line.get_linestyle(), list(line.get_ydata())) for line in ax.lines]
    assert drawn == [(RUNS[0], "-", [1, 2, 3]), (RUNS[0], "-", [3, 2, 9]), (RUNS[1], "-", [4, 5, 6])]
    assert second is ax.lines[2]
    assert ax.get_legend_handles_labels()[1] == ["omega", "sigma"]
    assert ax.get_ylim()[1] > 9
    with pytest.raises(ValueError, match=r"values must be \(member, step\)"):
        member_lines(ax, [0, 1], [1.0, 2, 3], label="x")


def test_learned_modes_lie_on_bars_of_the_theory(ax):
    dots = mode_values(ax, [1.0, 3, 2], torch.tensor([[2.1, 1.1, 3.1], [3.2, 2.2, 1.2]]), label="omega")
    mode_values(ax, [0.5, 0, 0], [0.0, 0.0, 0.4], label="again", color="#123456")
    np.testing.assert_allclose(dots.get_ydata(), [3.1, 2.1, 1.1, 3.2, 2.2, 1.2])
    assert all(dots.get_xdata().round() == [1, 2, 3, 1, 2, 3])
    assert dots.get_xdata()[0] < 1 < dots.get_xdata()[3]
    bars = [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()]
    assert bars == [[3, 3], [2, 2], [1, 1]]
    assert list(ax.lines[1].get_xdata()) == [1, 2, 3]
    assert ax.get_legend_handles_labels()[1] == ["theory", "omega", "again"]
    with pytest.raises(ValueError, match=r"learned must be \(member, mode\) for theory \(mode,\); have \(1, 2\)"):
        mode_values(ax, [1.0, 2, 3], [1.0, 2], label="x")


def test_images_in_rows(ax):
    images = torch.arange(5 * 2 * 3).reshape(5, 2, 3)
    shown = image_grid(ax, images, columns=3)
    sheet = np.ma.filled(shown.get_array(), np.nan)
    assert sheet.shape == (2 * 3 - 1, 3 * 4 - 1)
    np.testing.assert_array_equal(sheet[0:2, 0:3], images[0])
    np.testing.assert_array_equal(sheet[0:2, 8:11], images[2])
    np.testing.assert_array_equal(sheet[3:5, 4:7], images[4])
    assert np.isnan(sheet[2]).all()
    assert np.isnan(sheet[:, 3]).all()
    assert np.isnan(sheet[3:, 8:]).all()
    assert shown.get_clim() == (0, 29)
    assert image_grid(ax, images, limits=(0, 255)).get_clim() == (0, 255)
    assert image_grid(ax, images).get_array().shape == (2, 5 * 4 - 1)  # fewer images than columns


@pytest.mark.parametrize("limits", [None, (10, 200)])
def test_images_in_colour(ax, limits):
    """Channel by channel the grey grid, scaled to 0..1 and white between the images."""
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 5))
    shown = image_grid(ax, images, columns=2, limits=limits).get_array()
    low, high = limits or (images.min(), images.max())
    assert shown.shape == (2 * 5 - 1, 2 * 6 - 1, 3)
    for channel in range(3):
        grey = np.ma.filled(image_grid(ax, images[:, channel], columns=2).get_array(), np.nan)
        expected = np.nan_to_num(((grey - low) / (high - low)).clip(0, 1), nan=1.0)
        np.testing.assert_allclose(shown[..., channel], expected)


@pytest.mark.parametrize("shape", [(2, 3), (0, 2, 2), (1, 1, 2, 2), (0, 3, 2, 2), (1, 3, 2, 2, 2)])
def test_images_of_the_wrong_shape(ax, shape):
    with pytest.raises(ValueError, match=r"images must be \(N, H, W\) or \(N, 3, H, W\) with N > 0"):
        image_grid(ax, np.zeros(shape))


@pytest.mark.parametrize(
    ("matrix", "limits", "shown"),
    [([[1.0, -4], [2, 0]], None, (-4, 4)), ([[1.0, 4], [2, 0]], None, (0, 4)), ([[1.0, -4], [2, 0]], (0, 3), (0, 3))],
)
def test_a_matrix_and_its_scale(ax, matrix, limits, shown):
    image = matrix_map(ax, torch.tensor(matrix), label="W", limits=limits)
    np.testing.assert_array_equal(image.get_array(), matrix)
    assert image.get_clim() == shown
    assert image.colorbar.ax.get_ylabel() == "W"
    middle = matplotlib.colors.to_rgb(image.cmap(0.5))
    assert (min(middle) > 0.9) == (shown[0] < 0), "only a scale about 0 has a white middle"


def test_the_numbers_of_a_matrix_stand_in_its_cells(ax):
    matrix_map(ax, [[0.0, 1.25], [20.0, 3.0]], label="KL", numbers="{:.1f}")
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {(0, 0): "0.0", (1, 0): "1.2", (0, 1): "20.0", (1, 1): "3.0"}
    inks = {text.get_text(): text.get_color() for text in ax.texts}
    assert inks["0.0"] == "white"
    assert inks["20.0"] == "black", "dark ink on the light end of the scale"


def test_a_matrix_of_the_wrong_shape(ax):
    with pytest.raises(ValueError, match=r"matrix must be \(rows, columns\); have \(3,\)"):
        matrix_map(ax, np.ones(3), label="W")


def test_learned_values_lie_over_those_of_theory(ax):
    learned_against_theory(ax, {"case a": ([1.0, 2.0], torch.tensor([1.1, 2.1])), "case b": ([0.5], [0.4])})
    first, second, equal = ax.lines
    np.testing.assert_allclose(first.get_xydata(), [[1, 1.1], [2, 2.1]])
    np.testing.assert_allclose(second.get_xydata(), [[0.5, 0.4]])
    assert (first.get_label(), second.get_label()) == ("case a", "case b")
    assert first.get_marker() != second.get_marker()
    assert first.get_color() != second.get_color()
    assert equal.get_color() == THEORY.color
    assert equal.get_slope() == 1
    assert equal.get_xy1() == (0, 0)


def test_learned_values_without_a_theory_each(ax):
    with pytest.raises(ValueError, match=r"case a must be .* have \(2,\) and \(1,\)"):
        learned_against_theory(ax, {"case a": ([1.0, 2.0], [1.0])})


# --- the file


def chunks(png):
    """Names of the chunks of a PNG file, read from its bytes."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    names, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        names.append(png[at + 4 : at + 8].decode())
        at += 12 + length
    return names


def test_a_notebook_stores_figures_without_metadata_at_the_size_asked_for():
    source = (
        "from collapse_lib.plotting import use_style\nuse_style()\nimport matplotlib.pyplot as plt\n"
        "figure, ax = plt.subplots(figsize=(3, 2))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    (output,) = notebook.cells[0].outputs
    png = base64.b64decode(output.data["image/png"])
    assert set(chunks(png)) == {"IHDR", "pHYs", "IDAT", "IEND"}
    assert (plt.imread(io.BytesIO(png))[..., 3:] == 1).all(), "not opaque"
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (3 * plt.rcParams["figure.dpi"], 2 * plt.rcParams["figure.dpi"])
