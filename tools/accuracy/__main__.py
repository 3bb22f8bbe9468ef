"""What does a budget buy? Trains the demo's network with fxdp and with Opacus, side by side.

    tools/run accuracy                                 epsilon 1, 2, 4 and 8, five seeds each
    tools/run accuracy --epsilon 3 --seeds 2           another budget
    tools/run accuracy --from run.json --markdown      an earlier run again

Same weights, data, optimizer, steps, clip bound, noise and rate: see training.py.
"""

import argparse
import logging
import shlex
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from tools.accuracy.result import Row, Run, markdown, table
from tools.accuracy.training import BATCH, row
from tools.bench.result import this_machine
from tools.examples.demo import N_TRAIN, load_digits

BUDGETS = (1.0, 2.0, 4.0, 8.0)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    options = parsed()
    run = Run.from_json(options.load.read_text()) if options.load else measured(options)
    Console(width=130 if not sys.stdout.isatty() else None).print(table(run))
    if options.markdown:
        print(markdown(run))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/run accuracy", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--epsilon", type=float, action="append", help="default: 1, 2, 4 and 8, at delta 1e-5")
    add("--seeds", type=int, default=5, help="runs of each (5)")
    add("--epochs", type=int, default=40, help="passes over the data, of six steps (40)")
    add("--backend", default="inductor", choices=("inductor", "eager"), help="of fxdp")
    add("--json", type=Path, metavar="FILE", help="write what was found to this file")
    add("--from", type=Path, metavar="FILE", dest="load", help="show such a file; run nothing")
    add("--markdown", action="store_true", help="print README's table")
    options = parser.parse_args()
    if options.seeds < 1 or options.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1")
    if any(not epsilon > 0 for epsilon in options.epsilon or ()):
        parser.error("--epsilon must be above 0")
    return options


def measured(options: argparse.Namespace) -> Run:
    """All budgets, one after the other; the JSON is written after each."""
    command = shlex.join(["tools/run", "accuracy", *sys.argv[1:]])
    machine = replace(this_machine("cpu"), command=command)
    steps, rows = options.epochs * (N_TRAIN // BATCH), tuple[Row, ...]()
    run = Run(machine, options.seeds, steps, rows)
    for epsilon in options.epsilon or BUDGETS:
        found = row(load_digits(), epsilon, options.seeds, options.epochs, options.backend, say)
        run = replace(run, rows=(*run.rows, found))
        if options.json is not None:
            options.json.write_text(run.to_json())
    say("")
    return run


def say(line: str) -> None:
    """Tell how far it is, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line[:120]}", end="", file=sys.stderr, flush=True)


main()
