"""How much does privacy cost? Times a private step of fxdp and those of its rivals.

    tools/run bench                                    all workloads, all contenders
    tools/run bench --quick                            a part of them, within two minutes
    tools/run bench --workload vit --contender fxdp --contender opacus-ghost --contender plain
    tools/run bench --sweep length --workload gpt      the same workload at doubling sizes
    tools/run bench --from run.json --markdown         an earlier run again

Contenders take turns, a step each, and each is checked before: see timing.py, check.py, memory.py.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch
from rich.console import Console

from tools.bench.alone import Order, obey
from tools.bench.contenders import CONTENDERS
from tools.bench.limit import limit_memory
from tools.bench.plot import plot
from tools.bench.race import Limits, race
from tools.bench.result import Heat, Run, this_machine
from tools.bench.table import markdown, show
from tools.bench.task import Sequences, Workload
from tools.bench.workloads import WORKLOADS

QUICK_WORKLOADS = ("mnist", "gradcnn-10")
QUICK_CONTENDERS = ("plain", "plain-compiled", "fxdp-eager", "fxdp", "opacus-hooks", "opacus-ghost")
FACTORS = (0.125, 0.25, 0.5, 1, 2)  # of a workload's own size, in a sweep


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["alone"]:
        limit_memory()
        return obey(sys.argv[2])
    options = parsed()
    console = Console(width=130 if not sys.stdout.isatty() else None)
    if options.load is not None:
        run = Run.from_json(options.load.read_text())
        for heat in run.heats:
            show(heat, console)
    else:
        if options.device == "cpu":
            limit_memory()
        run = measured(options, console)
    if options.plot is not None:
        plot(run, options.plot)
    if options.markdown:
        print(markdown(run))
    return None


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/run bench", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--workload", choices=WORKLOADS, action="append", help="default: all")
    add("--contender", choices=CONTENDERS, action="append", help="default: all")
    add("--sweep", choices=("batch", "length"), help="one workload at doubling sizes")
    add("--rounds", type=int, help="how often each is timed (15, or 5 with --quick)")
    add("--seconds", type=float, help="wall time of the rounds of one workload (120, or 8)")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--quick", action="store_true", help="fewer workloads, contenders and rounds, no memory")
    add("--no-memory", action="store_true", help="no processes for memory and compile time")
    add("--json", type=Path, metavar="FILE", help="write what was found to this file")
    add("--from", type=Path, metavar="FILE", dest="load", help="show such a file; run nothing")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios to this file (png, svg, pdf)")
    add("--markdown", action="store_true", help="print README's tables")
    options = parser.parse_args()
    quick = options.quick
    options.workload = options.workload or (QUICK_WORKLOADS if quick else list(WORKLOADS))
    options.contender = options.contender or (QUICK_CONTENDERS if quick else list(CONTENDERS))
    options.no_memory |= quick
    options.rounds = options.rounds or (5 if quick else 15)
    options.seconds = options.seconds or (8 if quick else 120)
    if options.sweep and len(options.workload) != 1:
        parser.error("--sweep is of one --workload")
    if options.sweep == "length" and not isinstance(WORKLOADS[options.workload[0]], Sequences):
        parser.error(f"{options.workload[0]} has no length")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    return options


def measured(options: argparse.Namespace, console: Console) -> Run:
    """Run everything that was asked for; the JSON is written after each workload."""
    heats: list[Heat] = []
    machine = this_machine(options.device)
    for name in options.workload:
        for batch, length in sizes(WORKLOADS[name], options.sweep):
            heat = one(name, batch, length, options, console)
            heats.append(heat)
            show(heat, console)
            if options.json is not None:
                options.json.write_text(Run(machine, tuple(heats)).to_json())
    return Run(machine, tuple(heats))


def sizes(workload: Workload, sweep: str | None) -> list[tuple[int, int | None]]:
    """The batch sizes and lengths at which a workload runs."""
    length = workload.length if isinstance(workload, Sequences) else None
    if sweep == "batch":
        return [(max(1, int(workload.batch * f)), length) for f in FACTORS]
    if sweep == "length" and length is not None:
        return [(workload.batch, max(1, int(length * f))) for f in FACTORS]
    return [(workload.batch, length)]


def one(
    name: str, batch: int, length: int | None, options: argparse.Namespace, console: Console
) -> Heat:
    """One workload at one size."""
    task = WORKLOADS[name].task(batch, length).to(options.device)
    contenders = {key: CONTENDERS[key] for key in CONTENDERS if key in options.contender}
    keys = [] if options.no_memory else list(contenders)
    orders = {key: Order(name, key, batch, length, options.device) for key in keys}
    limits = Limits(options.rounds, options.seconds)

    def say(line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{line[:120]}", end="", file=sys.stderr, flush=True)

    heat = race(name, length, task, contenders, limits, orders, say)
    say("")
    return heat


main()
