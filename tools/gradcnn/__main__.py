"""The experiments of arXiv:1912.06015 with fxdp: `tools/run gradcnn --help`.

    tools/run gradcnn run_test                    naive, multi, crb, auto and plain PyTorch, one net
    tools/run gradcnn figure1 --plot figure1.png  runtime against channel rate, kernel 3
    tools/run gradcnn mnist --dp                  the MNIST example
    tools/run gradcnn all --full --device cuda    everything, at the paper's sizes

Without --full, grids are scaled down to what one CPU core does in minutes.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from tools.gradcnn import experiments
from tools.gradcnn.experiments import Done
from tools.gradcnn.flags import parse
from tools.gradcnn.idx import IdxError

BAD_INPUT = 2  # the exit code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiments and returns the exit code: 0, 1 if a check failed, 2 for bad input."""
    options = parse(arguments, __doc__)
    logging.disable(logging.WARNING)  # torch's advice on compiling
    if options.device == "cpu":
        torch.set_num_threads(1)
    names = experiments.ALL if options.command == "all" else (options.command,)
    results: list[Done] = []
    try:
        for name in names:
            results.append(experiments.run(name, options))
            print()
    except IdxError as error:
        print(f"tools/run gradcnn: {error}", file=sys.stderr)
        return BAD_INPUT
    finally:
        if options.json is not None:
            write(options.json, options, results)
    return 0 if all(done.ok for done in results) else 1


def write(path: Path, options: argparse.Namespace, results: list[Done]) -> None:
    """The results so far, with what they were measured on."""
    cuda = options.device.startswith("cuda")
    found = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(options.device) if cuda else "cpu",
        "options": {k: v for k, v in vars(options).items() if v is not None},
        "results": [asdict(done) for done in results],
    }
    path.write_text(json.dumps(found, indent=1, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
