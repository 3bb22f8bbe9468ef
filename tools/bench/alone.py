"""A contender in a process of its own: its peak memory, and what its first step costs.

Compilers keep their results in caches, in memory and on disk. So a first step is measured in a new
process with an empty cache folder (cold), and in a second one with the folder that the first one
left (warm). It is processor time, of the process and of the compilers that it runs.

`python -m tools.bench alone '{...}'` is the process; it prints a line of JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace

from tools.bench.contenders import CONTENDERS
from tools.bench.memory import peak
from tools.bench.result import Alone
from tools.bench.workloads import WORKLOADS

LIMIT = 1200  # seconds for one process
WARMUP = 2  # steps between the first one and the one whose memory is measured


@dataclass(frozen=True)
class Order:
    """What a process is to do."""

    workload: str
    contender: str
    batch: int | None
    length: int | None
    device: str
    memory: bool = True


def alone(order: Order) -> Alone | None:
    """Measure a contender in new processes; None where one of them fails."""
    with tempfile.TemporaryDirectory() as cache:
        cold = run(order, cache)
        if cold is None or not CONTENDERS[order.contender].compiles:
            return cold
        warm = run(replace(order, memory=False), cache)
        return cold if warm is None else replace(cold, warm_seconds=warm.cold_seconds)


def run(order: Order, cache: str) -> Alone | None:
    """One process, which has a cache folder."""
    # One compiling thread: helpers that outlive the compilation would not be counted.
    own = {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tools.bench", "alone"]
    try:
        done = subprocess.run(
            [*command, json.dumps(asdict(order))],
            env=os.environ | own,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        )
        return Alone(**json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, json.JSONDecodeError, IndexError):
        return None


def obey(text: str) -> None:
    """What the process does."""
    order = Order(**json.loads(text))
    task = WORKLOADS[order.workload].task(order.batch, order.length).to(order.device)
    before = processor_seconds()
    runner = CONTENDERS[order.contender].make(task)
    runner.whole_step()
    first = processor_seconds() - before
    mib = None
    if order.memory:
        for _ in range(WARMUP):
            runner.whole_step()
        mib = peak(runner.step, order.device)
    print(json.dumps(asdict(Alone(mib, first))))


def processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    return sum(os.times()[:4])
