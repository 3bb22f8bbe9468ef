"""The commands of tools/run gradcnn: each runs, prints what it finds, and returns it for a file."""

import argparse
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from math import inf
from pathlib import Path
from typing import Any

from tools.gradcnn import gradcheck, mnist, plot, report
from tools.gradcnn.contenders import How, measure
from tools.gradcnn.grids import GRIDS, Grid
from tools.gradcnn.published import BATCHES

PRINTED = {
    "run_test": "the strategies on one small net, trials of 20 batches",
    "gradcheck": "per-sample gradients of all strategies agree; exit code 1 if not",
    "figure1": "runtime against channel rate, 2 to 4 layers, kernel 3",
    "figure2": "runtime against batch size",
    "figure3": "runtime against channel rate, 2 to 4 layers, kernel 5",
    "table1": "AlexNet and VGG16",
    "mnist": "the MNIST example, plain or private",
    "all": "everything above",
}
ALL = tuple(name for name in PRINTED if name != "all")
FIGURES = ("figure1", "figure2", "figure3")
TRIALS = 10  # of run_test, in gradcnn


@dataclass(frozen=True)
class Done:
    """What an experiment found.

    Attributes:
        scaled: what was smaller than in the paper; empty if nothing was.
        ok: false if a check failed.
    """

    experiment: str
    scaled: str
    records: list[dict[str, Any]]
    ok: bool = True


def run(name: str, options: argparse.Namespace) -> Done:
    """One experiment by name.

    Raises:
        IdxError: MNIST's files are missing or broken.
    """
    match name:
        case "gradcheck":
            return check(options)
        case "mnist" if options.command == "all":
            return both(options)
        case "mnist":
            return example(options, options.dp)
        case "run_test":
            return trials(options)
        case _:
            return grid(GRIDS[name](options.full), options)


def how(options: argparse.Namespace, rounds: int, seconds: float, batches: int = 1) -> How:
    """The flags, with what an experiment does unless told otherwise."""
    return How(
        options.device, options.backend, options.adam, options.seed, batches,
        options.rounds or rounds, options.seconds or seconds,
        tuple(dict.fromkeys(options.strategy or ())),
    )  # fmt: skip


def trials(options: argparse.Namespace) -> Done:
    """run_test: a round is a trial of 20 batches, and every trial is printed, as gradcnn does."""
    found = GRIDS["run_test"](options.full)
    rounds = options.rounds or (TRIALS if options.full else 3)
    scaled = "" if rounds >= TRIALS else f"{rounds} trials, not {TRIALS}"
    print(report.heading(found.title, scaled), flush=True)
    (point,) = found.points
    times = measure(point, how(options, rounds, inf, BATCHES))
    for name, taken in times.items():
        print(f"{name}:")
        for k, seconds in enumerate(taken.seconds, 1):
            print(f"TRIAL {k}:\n\tELAPSED: {seconds:.3f}")
    rows = report.lines(found, point, times, BATCHES)
    print(report.text(rows))
    return Done(found.name, scaled, [asdict(row) for row in rows])


def grid(found: Grid, options: argparse.Namespace) -> Done:
    """All points of a figure or table."""
    print(report.heading(found.title, found.scaled), flush=True)
    settings = how(options, 20, 60.0 if options.full else 6.0)
    rows: list[report.Line] = []
    for point in found.points:
        new = report.lines(found, point, measure(point, settings), 1)
        print(report.text(new, head=not rows), flush=True)
        rows += new
    print(report.summary(rows))
    path: Path | None = getattr(options, "plot", None)
    if path is not None and found.name in FIGURES:
        if options.command == "all":
            path = path.with_stem(f"{path.stem}-{found.name}")
        plot.draw(path, found, rows)
        print(f"plot: {path}")
    return Done(found.name, found.scaled, [asdict(row) for row in rows])


def check(options: argparse.Namespace) -> Done:
    """The gradient check, at its own size."""
    settings = how(options, 1, inf)
    found = gradcheck.courses(gradcheck.net, size=32, batch=10, batches=5, how=settings)
    print(gradcheck.text(found))
    if (options.device, options.seed, options.adam) == ("cpu", 42, False):
        print(gradcheck.against_gradcnn(found))
    records = [{"contender": name} | asdict(seen) for name, seen in found.items()]
    return Done("gradcheck", "", records, gradcheck.agree(found))


def example(options: argparse.Namespace, dp: bool) -> Done:
    """MNIST, with the flags that the command line has."""
    data = mnist.load(options.data)
    print(f"{data.origin}; {'private' if dp else 'plain'}", flush=True)
    known = {f.name for f in fields_of(mnist.Options)} & vars(options).keys()
    given = {name: getattr(options, name) for name in known} | {"dp": dp}
    if options.command == "all":  # whose seed and strategies are the grids'
        given = {k: v for k, v in given.items() if k not in ("seed", "strategy")}
    outcome = mnist.run(data, mnist.Options(**given))
    return Done("mnist", "", [{"dp": dp, "data": data.origin} | asdict(outcome)])


def both(options: argparse.Namespace) -> Done:
    """MNIST plain and private, and the ratio of their times."""
    plain, private = example(options, dp=False), example(options, dp=True)
    (p,), (q,) = plain.records, private.records
    whole = q["seconds"] / p["seconds"]
    rest = (q["seconds"] - q["first_step"]) / (p["seconds"] - p["first_step"])
    print(
        f"private to plain time: {whole:.2f}, and {rest:.2f} without the first step, in which "
        "fxdp compiles (gradcnn's README: 1.05)"
    )
    return Done("mnist", "", plain.records + private.records)
