"""The look of all figures as Matplotlib's settings; `plotting.use_style` turns them on.

Figures have an opaque white ground. A transparent one would leave black theory lines invisible on a dark page and
allows no colour to have enough contrast with both; white prints without a tint and reads as a card on a dark page.
"""

from typing import Any

BACKGROUND = "#FFFFFF"
INK = "#222222"
# The version of Matplotlib that is written by default would change every file with every upgrade.
PNG: dict[str, Any] = {"bbox_inches": None, "metadata": {"Software": None}}

STYLE: dict[str, Any] = {
    "figure.figsize": (7.2, 4.2),
    "figure.dpi": 110,
    "figure.facecolor": BACKGROUND,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "savefig.facecolor": BACKGROUND,
    "savefig.transparent": False,
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so that figures are the same everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.facecolor": BACKGROUND,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
    "legend.fontsize": 9,
    "legend.framealpha": 0.9,
    # 961.99 is to be read on the axis itself, not as an offset in its corner.
    "axes.formatter.useoffset": False,
    "image.interpolation": "nearest",
}
