"""Are private steps right on a GPU? Each is held against a loop over its samples.

    python -m tools.cuda.right --workload bert --precision bf16

The loop computes in float32, without TF32. What differs is the rounding of the precision that is
tried, and, where a sample is measured by rounded products, its norm.
"""

import argparse
import warnings

import torch

import fxdp
from tools.bench.contender import CLIP
from tools.bench.reference import errors, reference
from tools.cuda.workloads import PRECISIONS, SMALL, Precision, at, small

# The largest error of a parameter's gradient, relative to its norm.
ALLOWED: dict[Precision, float] = {"fp32": 2e-3, "tf32": 5e-2, "bf16": 3e-1}


def tried(name: str, precision: Precision, device: str) -> str:
    """What came of one workload: the error, and the mark `ok` or `FAIL`."""
    torch._dynamo.reset()
    task = small(name).to(device)
    with at("fp32", device):
        wanted = reference(task).private
    private = fxdp.compile(
        task.model,
        loss_fn=task.loss.mean,
        max_grad_norm=CLIP,
        noise_multiplier=0.0,
        expected_batch_size=task.size,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with at(precision, device):
            loss = private(*task.inputs, task.target)
        loss.backward()
    found = {k: p.grad for k, p in task.model.named_parameters() if p.grad is not None}
    off = errors(found, wanted.gradients)
    worst = max(off, key=off.__getitem__)
    jump = wanted.jumps[worst]
    good = off[worst] <= ALLOWED[precision] + 2 * jump
    own = sorted({str(w.message)[:200] for w in said if type(w.message).__module__[:4] == "fxdp"})
    return f"{'ok  ' if good else 'FAIL'} {off[worst]:.1e} ({worst}) {' '.join(own)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workload", choices=SMALL, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    for name in options.workload or SMALL:
        for precision in options.precision or PRECISIONS:
            try:
                said = tried(name, precision, options.device)
            except Exception as error:  # whatever it is, the others go on
                said = f"FAIL {type(error).__name__}: {str(error)[:300]}".replace("\n", " ")
            print(f"{name:12s} {precision:5s} {said}", flush=True)


if __name__ == "__main__":
    main()
