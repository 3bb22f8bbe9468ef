"""The paper's figures: runtime against channel rate or batch size, a panel for each depth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.gradcnn.grids import Grid
from tools.gradcnn.report import Line

COLOURS = {
    "no DP": "tab:gray", "crb": "tab:blue", "multi": "tab:orange", "naive": "tab:green",
    "auto": "tab:red", "instantiate": "tab:purple", "ghost": "tab:brown",
}  # fmt: skip


def draw(path: Path, grid: Grid, rows: Sequence[Line]) -> None:
    """Save a figure: ours with error bars of one standard deviation, the paper's dashed.

    The paper's belong to the axis on the right, because the machines are not the same and, if
    the grid is scaled, neither are the nets.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional dependencies
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(row.panel for row in rows))
    figure = Figure(figsize=(2 + 4.2 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        own = [row for row in rows if row.panel == panel]
        right = place.twinx()
        for name in dict.fromkeys(row.contender for row in own):
            curve(place, right, name, [row for row in own if row.contender == name])
        place.set(title=panel, xlabel=grid.axis)
        place.set_ylim(bottom=0)
        right.set_ylim(bottom=0)
        if panel == panels[0]:
            place.set_ylabel("seconds for 20 batches, here")
            place.legend(loc="upper left")
        if panel == panels[-1]:
            right.set_ylabel("seconds for 20 batches, paper (dashed)")
    figure.suptitle(f"{grid.title}\nscaled: {grid.scaled}" if grid.scaled else grid.title)
    figure.savefig(path, format="png", dpi=120)


def curve(place: Any, right: Any, name: str, rows: Sequence[Line]) -> None:
    """One contender's line, and the paper's."""
    colour = COLOURS.get(name)
    place.errorbar(
        [r.x for r in rows], [r.mean for r in rows], [r.deviation for r in rows],
        label=name, color=colour, marker="o", markersize=4, capsize=3,
    )  # fmt: skip
    known = [(r.x, r.paper) for r in rows if r.paper is not None]
    if known:
        right.plot(*zip(*known, strict=True), color=colour, linestyle="--", linewidth=1)
