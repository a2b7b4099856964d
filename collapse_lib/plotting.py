"""One look for all figures: colours that mean the same everywhere, and the drawings that notebooks repeat.

    use_style()                                        # once, before the first figure
    curve_with_band(ax, steps, elbo, label="ELBO")     # elbo: (member, step)
    level_line(ax, log_likelihood, "pPCA optimum")     # theory: black, dashed
    level_line(ax, 961.99, "report", role=REPORTED)

Every colour has a contrast of at least 3:1 with white and stays apart from the others without red or green receptors.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from collapse_lib.figure_style import PNG, STYLE


class Role(NamedTuple):
    """How a line of one meaning looks; `ax.plot(x, y, **THEORY._asdict())`."""

    color: str
    linestyle: str
    linewidth: float


THEORY = Role("#000000", "--", 1.5)
REPORTED = Role("#D55E00", ":", 2.2)  # what the document says
CORRECTED = Role("#009E73", "-.", 1.7)  # what it should have said
TOTAL = Role("#4D4D4D", "-", 2.6)  # a sum, drawn with its terms

# Members and sweeps, in order of appearance. With the roles, these are those of Okabe and Ito's colours that are dark
# enough for lines on white, an indigo and a brown; a fifth that stays apart from all was not found, dashes follow.
RUNS = ("#0072B2", "#CC79A7", "#332288", "#6B3D00")

# The part of Matplotlib's plasma whose contrast with white is at least 3:1.
_ORDERED = ("plasma", 0.6)


def use_style() -> None:
    """Sets the look of all figures made from here on; in a notebook, also stores them as PNG without metadata."""
    lines = cycler(linestyle=["-", (0, (6, 1.5))]) * cycler(color=RUNS)
    plt.style.use(STYLE | {"axes.prop_cycle": lines})
    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("png", **PNG)


def _array(values: Any) -> NDArray[np.float64]:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values, dtype=np.float64)


def _curves(x: ArrayLike, values: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x (step,) and values (member, step), the latter from (step,) for one member."""
    x, values = _array(x), np.atleast_2d(_array(values))
    if x.ndim != 1 or values.shape[1:] != x.shape:
        raise ValueError(f"values must be (member, step) over x (step,); have {values.shape} and {x.shape}")
    return x, values


def curve_with_band(ax: Axes, x: ArrayLike, values: Any, *, label: str, color: str | None = None) -> Line2D:
    """Mean over members with a band of one standard deviation (n - 1) to either side; no band for one member.

    x: (step,). values: (member, step) or (step,). Where any member is NaN (it diverged), nothing is drawn.
    """
    x, values = _curves(x, values)
    mean = values.mean(axis=0)
    (line,) = ax.plot(x, mean, label=label, color=color)
    if len(values) > 1:
        sd = values.std(axis=0, ddof=1)
        ax.fill_between(x, mean - sd, mean + sd, color=line.get_color(), alpha=0.2, linewidth=0)
    return line


def curves_by(ax: Axes, frame: pd.DataFrame, *, x: str, y: str, by: str, members: str = "seed") -> list[Line2D]:
    """`curve_with_band` of column `y` over column `x` for each value of column `by`, smallest first, dark to light.

    frame: one row a value of `by`, a member (column `members`) and an `x`. The labels are the values of `by`.
    """
    parts = [part for _, part in frame.groupby(by)]
    colours = plt.get_cmap(_ORDERED[0])(np.linspace(0, _ORDERED[1], len(parts)))
    lines = []
    for part, colour in zip(parts, colours, strict=True):
        values = part.pivot_table(index=members, columns=x, values=y, aggfunc="first")
        line = curve_with_band(ax, values.columns, values, label=f"{part[by].iloc[0]:g}", color=colour)
        line.set_linestyle("-")  # the order is in the colours; the style's cycle would dash the fifth
        lines.append(line)
    return lines


def collapse_panels(
    epsilon: ArrayLike,
    curves: Mapping[float, Mapping[str, Any]],
    *,
    predicted: Mapping[float, Any],
    reported: Mapping[float, Sequence[tuple[float, float]]],
    title: str = "σ² = {:g}",
) -> Figure:
    """One panel a sigma2: the share of latents that are (epsilon, delta)-collapsed against epsilon (Lucas et al. 2019).

    epsilon: (E,). `curves`: sigma2 -> label -> shares (member, E) or (E,). `predicted`: sigma2 -> shares (E,) of the
    optimal linear VAE. `reported`: sigma2 -> points (epsilon, share) of the document, none for some. Shares in [0, 1],
    drawn in percent. Panels come in the order of `curves`, up to four in a row.
    """
    rows = -(-len(curves) // 4)
    columns = -(-len(curves) // rows)
    size = (2.7 * columns, 2.1 * rows + 0.9)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    named: dict[str, Line2D] = {}
    for ax, (sigma2, drawn) in zip(axes.flat, curves.items(), strict=False):
        for label, shares in drawn.items():
            named[label] = curve_with_band(ax, epsilon, 100 * _array(shares), label=label)
        (line,) = ax.plot(_array(epsilon), 100 * _array(predicted[sigma2]), **THEORY._asdict())
        named["optimal linear VAE"] = line
        if points := reported.get(sigma2):
            at, share = _array(points).T
            (line,) = ax.plot(at, 100 * share, "o", color=REPORTED.color, markersize=6, clip_on=False, zorder=3)
            named["report, read off"] = line
        ax.set(title=title.format(sigma2), ylim=(-4, 104))
    for unused in axes.flat[len(curves) :]:
        unused.remove()
    for ax in axes.flat[len(curves) - columns : len(curves)]:
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("ε [nats]")
    figure.supylabel("latents collapsed [%]", fontsize="medium")
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named))
    return figure


def member_lines(ax: Axes, x: ArrayLike, values: Any, *, label: str) -> Line2D:
    """One line a member, in one colour and named once: for a logarithmic axis, where a band may reach below zero.

    x: (step,). values: (member, step) or (step,).
    """
    x, values = _curves(x, values)
    (first,) = ax.plot(x, values[0], label=label)
    for others in values[1:]:
        ax.add_line(Line2D(x, others, color=first.get_color(), linestyle=first.get_linestyle()))
    ax.relim()
    ax.autoscale_view()
    return first


def level_line(ax: Axes, y: float, label: str, *, role: Role = THEORY) -> Line2D:
    """A horizontal line at `y`."""
    return ax.axhline(float(y), label=label, **role._asdict())


def slope_line(ax: Axes, point: tuple[float, float], slope: float, label: str, *, role: Role = THEORY) -> Line2D:
    """The straight line through `point`; the axes (linear ones) keep the range that the data gave them."""
    return ax.axline(point, slope=slope, label=label, **role._asdict())


def mode_values(ax: Axes, theory: Any, learned: Any, *, label: str, color: str | None = None) -> Line2D:
    """Learned values as dots over the modes 1, 2, ..., the theory's as bars across them; both sorted decreasingly.

    theory: (mode,). learned: (mode,) or (member, mode), one dot a member, side by side. The theory is named once.
    """
    theory, learned = _array(theory), np.atleast_2d(_array(learned))
    if theory.ndim != 1 or learned.shape[1:] != theory.shape:
        raise ValueError(f"learned must be (member, mode) for theory (mode,); have {learned.shape} and {theory.shape}")
    mode = np.arange(1, len(theory) + 1)
    named = "theory" not in ax.get_legend_handles_labels()[1]
    width = 0.4
    ax.hlines(
        -np.sort(-theory),
        mode - width,
        mode + width,
        color=THEORY.color,
        linewidth=THEORY.linewidth,
        label="theory" if named else "_",
    )
    place = np.linspace(-width / 2, width / 2, len(learned)) if len(learned) > 1 else np.zeros(1)
    (dots,) = ax.plot(
        (mode + place[:, None]).ravel(),
        -np.sort(-learned, axis=1).ravel(),
        "o",
        markersize=5,
        label=label,
        color=color,
        linestyle="none",
    )
    ax.set_xticks(mode)
    return dots


def learned_against_theory(ax: Axes, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Learned values over those of a closed form, a marker for each label, and the dashed line of equality.

    pairs: label -> (closed form, learned), each (n,).
    """
    for (label, (theory, learned)), marker in zip(pairs.items(), itertools.cycle("osD^vP")):
        x, y = _array(theory), _array(learned)
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(f"{label} must be (closed form, learned), both (n,); have {x.shape} and {y.shape}")
        ax.plot(x, y, linestyle="none", marker=marker, markersize=6, markerfacecolor="none", label=label)
    slope_line(ax, (0, 0), 1, "equal")
    ax.set(xlabel="closed form", ylabel="learned")


def gap_curves(ax: Axes, x: ArrayLike, gaps: Mapping[str, Any], *, total: str) -> None:
    """Gaps >= 0 (in nats) that add up, as lines on a logarithmic axis, and their sum under the name `total`.

    x and each gap: (step,). Lines and not stacked areas: on a logarithmic axis the height of a layer is no measure of
    it. What is not positive is not drawn.
    """
    x = _array(x)
    terms = {label: _array(gap) for label, gap in gaps.items()}
    ax.set_yscale("log")
    for label, gap in {total: np.sum(list(terms.values()), axis=0), **terms}.items():
        look = TOTAL._asdict() if label == total else {}
        ax.plot(x, np.where(gap > 0, gap, np.nan), label=label, **look)
    ax.set_ylabel("gap [nats]")


def image_grid(ax: Axes, images: Any, *, columns: int = 10, limits: tuple[float, float] | None = None) -> AxesImage:
    """Images row by row in one picture, grey (N, H, W) or in colour (N, 3, H, W).

    One scale for all: `limits`, else the least and greatest value, become black and white, or no and full light of a
    channel.
    """
    images = _array(images)
    colour = images.ndim == 4 and images.shape[1] == 3
    if (images.ndim != 3 and not colour) or len(images) == 0:
        raise ValueError(f"images must be (N, H, W) or (N, 3, H, W) with N > 0; have {images.shape}")
    low, high = limits or (images.min(), images.max())
    if colour:  # Matplotlib scales grey values only, and wants channels last
        images = np.clip((np.moveaxis(images, 1, -1) - low) / (high - low), 0, 1)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[1] + 1, images.shape[2] + 1
    sheet = np.full((rows * height - 1, columns * width - 1, *images.shape[3:]), 1.0 if colour else np.nan)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height - 1, left : left + width - 1] = image
    ax.set_axis_off()
    return ax.imshow(sheet) if colour else ax.imshow(sheet, cmap="gray", vmin=low, vmax=high)


def matrix_map(
    ax: Axes, matrix: Any, *, label: str, limits: tuple[float, float] | None = None, numbers: str | None = None
) -> AxesImage:
    """A matrix (rows, columns) as a heat map with a colour bar named `label`.

    `numbers`: a format such as "{:.1f}" in which every entry is written into its cell.

    With a negative limit a diverging scale, white at 0 if the limits are symmetric, else a sequential one. Without
    `limits`: 0 to the greatest entry, or symmetric about 0 if an entry is negative.
    """
    matrix = _array(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"matrix must be (rows, columns); have {matrix.shape}")
    if limits is None:
        extent = float(np.abs(matrix).max())
        limits = (-extent if matrix.min() < 0 else 0.0, extent)
    image = ax.imshow(matrix, cmap="PuOr_r" if limits[0] < 0 else "cividis", vmin=limits[0], vmax=limits[1])
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label=label)
    if numbers is not None:
        for (row, column), value in np.ndenumerate(matrix):
            red, green, blue, _ = image.to_rgba(value)
            ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            ax.text(column, row, numbers.format(value), ha="center", va="center", color=ink, fontsize="small")
    return image
