"""Which models can fxdp prove? Captures and proves a list of them, and counts.

    tools/run census                          all families that are installed
    tools/run census --family nn              one of them
    tools/run census --only "EmbeddingBag max" --family nn

Nothing is trained and nothing is downloaded: models are tiny and have random weights.
"""

import argparse
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import torch

from tools.census import functions, hugging, layers, losses, vision
from tools.census.subject import Make, Result, examine

FAMILIES: dict[str, Callable[[], Mapping[str, Make]]] = {
    "nn": lambda: {**layers.subjects(), **losses.subjects()},
    "functional": functions.subjects,
    "transformers": hugging.subjects,
    "torchvision": vision.of_torchvision,
    "timm": vision.of_timm,
}
# What neither the proof nor the census can help is left out of the share.
COUNTED = ("proven", "refused", "slow")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/run census", description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, action="append", help="default: all")
    parser.add_argument("--only", help="models with this in their name")
    parser.add_argument("--every", type=int, default=1, help="take one model out of so many")
    parser.add_argument("--seconds", type=int, default=120, help="for one model")
    parser.add_argument("--json", help="write the results to this file, a line a model")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    results: list[Result] = []
    for family in options.family or FAMILIES:
        if family in ("transformers", "torchvision", "timm") and find_spec(family) is None:
            print(f"{family} is not installed: skipped")
            continue
        try:
            subjects = FAMILIES[family]()
        except (ImportError, RuntimeError) as error:  # a build for another torch
            print(f"{family} cannot be imported: {error}")
            continue
        named = [(k, m) for k, m in subjects.items() if (options.only or "") in k]
        for name, make in named[:: options.every]:
            result = examine(f"{family} {name}", make, options.seconds)
            results.append(result)
            print(result.line(), flush=True)
            if options.json:
                with open(options.json, "a") as file:
                    print(json.dumps(result.record()), file=file)
    summarise(results)


def summarise(results: list[Result]) -> None:
    """The ops without rules, and the share of what is proven."""
    missing = Counter(op for r in results for op in r.missing)
    if missing:
        print("\nops without rules, and how many models have them")
        for op, count in missing.most_common():
            print(f"{count:5}  {op}")
    verdicts = Counter(r.verdict for r in results)
    print()
    for verdict, count in verdicts.most_common():
        print(f"{count:5}  {verdict + (' (refused, rightly)' if verdict == 'batch norm' else '')}")
    counted = sum(verdicts[v] for v in COUNTED)
    share = 100 * verdicts["proven"] / max(counted, 1)
    print(f"\nproven: {share:.1f} % of the {counted} captured models without batch norm")


if __name__ == "__main__":
    main()
