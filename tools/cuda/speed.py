"""How fast are private steps on a GPU? Milliseconds by events, the peak of memory, the first step.

    python -m tools.cuda.speed --workload bert --precision bf16 --contender plain --contender fxdp

A workload's contenders run one after the other in one process; of each the best of some steps
counts. Lines go to a file as they come, in JSON, for `tools.cuda.suite`.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from tools.bench.contenders import CONTENDERS
from tools.cuda.workloads import LARGE, PRECISIONS, Precision, at, small

USUAL = ("plain", "plain-compiled", "fxdp")
MIB = 2**20


def timed(name: str, precision: Precision, key: str, device: str, steps: int) -> dict[str, Any]:
    """One contender on one workload.

    Returns:
        ms: of a step, the least; host: ms until a step has returned; mib: at its peak, above what
        lay there before; first: seconds of the first step.
    """
    torch._dynamo.reset()
    on_gpu = device == "cuda"
    task = LARGE[name][1]().to(device) if on_gpu else small(name)
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    begun = time.perf_counter()
    runner = CONTENDERS[key].make(task)

    def step() -> None:
        with at(precision, device):
            runner.whole_step()

    step()
    wait()
    first = time.perf_counter() - begun
    for _ in range(2):
        step()
    wait()
    before, times, hosts = 0, [], []
    if on_gpu:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        begun = time.perf_counter()
        step()
        hosts.append(time.perf_counter() - begun)
        wait()
        times.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else 0
    return {"ms": min(times) * 1e3, "host": min(hosts) * 1e3, "mib": peak / MIB, "first": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workload", choices=LARGE, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--contender", choices=CONTENDERS, action="append")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for precision in options.precision or PRECISIONS:
        for name in options.workload or LARGE:
            for key in options.contender or USUAL:
                about = LARGE[name][0] if options.device == "cuda" else f"{name}, small"
                row: dict[str, Any] = {"workload": about, "precision": precision, "contender": key}
                try:
                    row |= timed(name, precision, key, options.device, options.steps)
                except Exception as error:  # whatever it is, the others go on
                    row["error"] = f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " ")
                print(json.dumps(row), flush=True)
                if options.json is not None:
                    with options.json.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                if options.device == "cuda":
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
