"""The house style: figures that read well on a phone, in both themes, without relying on colour alone."""

import html
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib_inline.backend_inline import set_matplotlib_formats
from numpy.typing import ArrayLike

# Okabe and Ito's palette in an order that stays distinct in grey, each with its own dash and marker.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 3)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH = 5.0  # inches: 11 pt letters are then 10 pixels high on a phone


def use() -> None:
    """Switch matplotlib to the house style, with vector figures in notebooks.

    >>> use()
    >>> plt.rcParams["font.size"]
    11.0
    """
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.3),
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 11,
            "legend.fontsize": 10,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "lines.linewidth": 2,
            "lines.markersize": 5,
            "axes.prop_cycle": cycler(color=COLORS) + cycler(linestyle=DASHES),
            "svg.hashsalt": "vclib",  # the same figure gives the same file
        }
    )
    set_matplotlib_formats("svg", metadata={"Date": None})


def stack(rows: int, *, height: float = 2.6, **options: Any) -> tuple[plt.Figure, np.ndarray]:
    """Return a figure of ``rows`` panels on top of each other, ``height`` inches each, and their axes (rows,).

    Panels stand above each other rather than side by side, so that a phone shows them at full width.

    >>> figure, axes = stack(2, sharex=True)
    >>> axes.shape
    (2,)
    """
    figure, axes = plt.subplots(rows, 1, figsize=(WIDTH, height * rows), squeeze=False, **options)
    return figure, axes[:, 0]


@dataclass(frozen=True, repr=False)
class Table:
    """A small table, ``rows`` under a ``header``: an HTML table in a page or notebook, aligned text elsewhere.

    The first column is set to the left, the others to the right; a wide table scrolls on a phone.

    >>> Table(("depth", "loss"), [(4, "0.10"), (16, "0.25")])
    depth  loss
    4      0.10
    16     0.25
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __repr__(self) -> str:
        lines = [[str(cell) for cell in line] for line in (self.header, *self.rows)]
        first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
        return "\n".join(
            "  ".join([line[0].ljust(first), *(cell.rjust(n) for cell, n in zip(line[1:], others, strict=True))])
            for line in lines
        )

    def _repr_html_(self) -> str:
        def line(cells: Sequence[Any], tag: str) -> str:
            sides = ["left"] + ["right"] * (len(cells) - 1)
            return "".join(
                f'<{tag} style="text-align:{side}">{html.escape(str(cell))}</{tag}>'
                for side, cell in zip(sides, cells, strict=True)
            )

        body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in self.rows)
        head = f"<thead><tr>{line(self.header, 'th')}</tr></thead>"
        return f'<table class="table vc-table">{head}<tbody>{body}</tbody></table>'


def band(ax: plt.Axes, x: ArrayLike, runs: ArrayLike, label: str, *, style: int = 0) -> None:
    """Draw the median over seeds as a line and the central 95 % of the seeds as a band.

    ``x`` are (points,) positions and ``runs`` (seeds, points) values; NaN is left out, and another shape raises
    ValueError. ``style`` is the number of the colour, dash and marker.

    >>> figure, axes = stack(1)
    >>> band(axes[0], [1, 2], np.ones((5, 2)), "ones")
    >>> len(axes[0].lines)
    1
    """
    x, runs = np.asarray(x), np.asarray(runs, float)
    if runs.shape[1:] != x.shape:
        raise ValueError(f"runs must have shape (seeds, {len(x)}), one column for each x, not {runs.shape}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all runs NaN: a gap
        low, middle, high = np.nanquantile(runs, [0.025, 0.5, 0.975], axis=0)
    k = style % len(COLORS)
    ax.fill_between(x, low, high, color=COLORS[k], alpha=0.18, linewidth=0)
    ax.plot(x, middle, color=COLORS[k], linestyle=DASHES[k], marker=MARKERS[k], label=label)
