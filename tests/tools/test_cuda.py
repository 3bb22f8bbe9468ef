"""`tools/gpu`, as far as a machine without a GPU can tell."""

import subprocess
import sys
from pathlib import Path

from tools.cuda.right import tried
from tools.cuda.suite import table
from tools.cuda.workloads import LARGE, SMALL

COMMAND = Path(__file__).parents[2] / "tools" / "gpu"


def test_a_step_that_is_right_and_one_that_is_not(monkeypatch) -> None:
    assert tried("mlp", "fp32", "cpu").startswith("ok")
    monkeypatch.setattr("tools.cuda.right.CLIP", 0.5)
    assert tried("mlp", "fp32", "cpu").startswith("FAIL")


def test_the_table() -> None:
    """Multiples of the plain step of the same workload and precision; who fails refuses."""
    same = {"workload": "net", "precision": "bf16"}
    rows = [
        {**same, "contender": "plain", "ms": 2.0, "mib": 10.4, "first": 1.2},
        {**same, "contender": "fxdp", "ms": 3.0, "mib": 20.0, "first": 30.0},
        {**same, "contender": "vmap", "error": "RuntimeError: no"},
    ]
    last = table(rows).splitlines()[-1]
    assert last == "| net | bf16 | 2.00 | 3.00 (1.50) | refuses | 10 / 20 / - | 1 / 30 / - |"


def test_where_there_is_no_gpu_it_says_what_to_do() -> None:
    import torch

    if torch.cuda.is_available():
        return
    said = subprocess.run(
        [COMMAND],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    assert said.returncode == 2
    assert "--device cpu tries the command" in said.stderr


def test_workloads_are_those_of_the_benchmark() -> None:
    assert set(LARGE) <= {*SMALL, "bert", "gpt"}
