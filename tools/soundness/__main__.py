"""Soundness, tested by machine: `tools/run soundness --help`.

Exit code 1 if fxdp claimed anything that is not true, or an operator's process died.
"""

import argparse
import contextlib
import gc
import logging
import sys
import time
from collections import Counter

import torch

from tools.soundness import fallbacks, op_db, random_graphs
from tools.soundness.apart import Died, apart


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tools/run soundness", description="Hold fxdp's claims against runs on one sample each."
    )
    parser.add_argument(
        "part", nargs="*", metavar="part", help="ops, graphs and boundary; all if none is named"
    )
    parser.add_argument("--op", action="append", default=[], help="only operators of this name")
    parser.add_argument("--samples", type=int, default=2, help="samples of each operator")
    parser.add_argument("--placements", type=int, default=3, help="placements of each sample")
    parser.add_argument("--graphs", type=int, default=1000, help="how many random graphs")
    parser.add_argument("--seed", type=int, default=0, help="of the first random graph")
    parser.add_argument("--verbose", action="store_true", help="print what is tried")
    return parser


def run_ops(args: argparse.Namespace) -> bool:
    """The operators of torch's database, each in a process of its own; true if no claim is false
    and none died, for what died was not checked."""
    begin, tally = time.time(), op_db.Tally()
    chosen = [
        op
        for op in op_db.database()
        if not args.op or {op_db.full_name(op), op.name} & set(args.op)
    ]
    tried = apart(lambda op: op_db.tried(op, args.samples, args.placements), chosen)
    for op, own in zip(chosen, tried, strict=True):
        if isinstance(own, Died):
            own = op_db.Tally(crashed=[f"--op {op_db.full_name(op)}: {own.why}"])
        if args.verbose:
            print(f"{op_db.full_name(op)}: {time.time() - begin:.0f} s", flush=True)
        for line in own.false:
            print(f"FALSE {line}", flush=True)
        for line in own.crashed:
            print(f"CRASHED {line}", flush=True)
        tally += own
    show_ops(tally, args.verbose)
    print(f"seed {op_db.SEED}; {time.time() - begin:.0f} s")
    return not tally.false and not tally.crashed


def show_ops(tally: op_db.Tally, verbose: bool) -> None:
    """What became of the operators."""
    print("\nTrue and not claimed, by operator and the rule's words:")
    for (name, why), count in tally.refused.most_common():
        print(f"  {count:4d}  {name}: {why}")
    print("\nSkipped operators:")
    reasons: dict[str, list[str]] = {}
    for name, why in tally.skipped.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        print(f"  {len(names):4d}  {why}: {', '.join(names if verbose else names[:8])}")
    print("\nNot captured, or not run:")
    kinds: Counter[str] = Counter()
    for text, count in tally.missing.items():
        kinds[text.split(": ", 1)[1]] += count
    for why, count in kinds.most_common(None if verbose else 25):
        print(f"  {count:4d}  {why}")
    print(
        f"\n{tally.ops} operators ({len(tally.skipped)} more skipped), {tally.samples} samples, "
        f"{tally.placements} placements: {tally.claimed} results claimed, "
        f"{tally.unproven} without a claim; {tally.checked} claims checked, "
        f"{tally.untried} that no batch could try, {len(tally.false)} FALSE, "
        f"{len(tally.crashed)} CRASHED; {sum(tally.refused.values())} true and not claimed"
    )


def run_graphs(args: argparse.Namespace) -> bool:
    """Random programs; true if nothing was accepted that is wrong."""
    begin, tally = time.time(), random_graphs.Tally()
    seed = args.seed
    with contextlib.suppress(KeyboardInterrupt):  # what is known so far is worth printing
        while seed < args.seed + args.graphs:
            known, fallen = len(tally.false), len(tally.crashed)
            random_graphs.check(seed, tally)
            for text in tally.crashed[fallen:]:
                print(f"CRASHED {text}", flush=True)
            for text in tally.false[known:]:
                print(f"FALSE ACCEPT {text}", flush=True)
            seed += 1
            if args.verbose and (seed - args.seed) % 100 == 0:
                print(f"{seed - args.seed} graphs, {time.time() - begin:.0f} s", flush=True)
    print("\n" + tally.summary())
    seconds = time.time() - begin
    each = 1000 * seconds / max(seed - args.seed, 1)
    print(f"seeds {args.seed} to {seed - 1}; {seconds:.0f} s, {each:.0f} ms each")
    return not tally.false


def run_boundary(args: argparse.Namespace) -> bool:
    """What torch may run in place of a private step; true if nothing got past."""
    del args
    good = True
    print(f"{'':36}" + "".join(f"{door:>26}" for door in fallbacks.DOORS))
    for fallback in fallbacks.FALLBACKS:
        found = [fallbacks.outcome(door, fallback) for door in fallbacks.DOORS]
        good &= all(word in ("released", "refused") for word in found)
        name = fallback.name + (", after a step" if fallback.warm else "")
        print(f"{name:36}" + "".join(f"{word:>26}" for word in found), flush=True)
    return good


def main() -> int:
    args = options().parse_args()
    logging.disable(logging.ERROR)  # torch logs every operand that an operator cannot take
    torch.set_num_threads(1)
    gc.freeze()  # torch and sympy stay; looking at them again and again costs a tenth of the time
    parts = {"ops": run_ops, "graphs": run_graphs, "boundary": run_boundary}
    if unknown := set(args.part) - set(parts):
        options().error(f"no part is called {', '.join(unknown)}")
    chosen = args.part or (["ops"] if args.op else list(parts))
    return 0 if all([parts[name](args) for name in chosen]) else 1


if __name__ == "__main__":
    sys.exit(main())
