"""A run as a picture: a group of bars for each workload, a bar for each contender."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window: the picture goes to a file

import matplotlib.pyplot as plt  # noqa: E402 - after the choice above

from tools.bench.result import Run  # noqa: E402
from tools.bench.table import PLAIN  # noqa: E402

HIGHEST = 10.0  # longer bars are cut, with their number on top


def plot(run: Run, path: Path) -> None:
    """Steps as multiples of the plain eager one."""
    names = list(dict.fromkeys(e.contender for h in run.heats for e in h.entries))
    names = [name for name in names if name != PLAIN]
    figure, axes = plt.subplots(figsize=(2 + 1.6 * len(run.heats), 4.5), layout="constrained")
    width = 0.85 / max(len(names), 1)
    colours = plt.get_cmap("tab10")
    for i, name in enumerate(names):
        ratios = [heat.ratio(name, PLAIN) or 0.0 for heat in run.heats]
        places = [h + (i - (len(names) - 1) / 2) * width for h in range(len(ratios))]
        cut = [min(r, HIGHEST) for r in ratios]
        axes.bar(places, cut, width, label=name, color=colours(i % 10))
        for x, ratio in zip(places, ratios, strict=True):
            if ratio > HIGHEST:
                axes.text(x, HIGHEST, f"{ratio:.0f}", ha="center", va="bottom", fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(run.heats)), [h.title for h in run.heats], rotation=15, fontsize=8)
    axes.set_ylabel("time of a step, plain eager = 1")
    axes.set_title(f"{run.machine.hardware}, torch {run.machine.torch}", fontsize=9)
    axes.legend(fontsize=8, ncols=3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
