"""How long steps take, side by side: every contender takes one step a round.

A machine that other work shares is fast in one second and slow in the next. Contenders that are
timed one after the other meet different machines; contenders that take turns meet the same one.
So the smallest time over many rounds is compared, in processor time, which leaves out the time
that other processes had. On an accelerator the processor only waits, and wall time counts.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Literal


def nothing() -> None:
    """What it takes to wait for a CPU."""


@dataclass(frozen=True)
class Times:
    """Seconds a step, one entry a round.

    Attributes:
        clock: which of the two `best`, `median` and `spread` are of.
    """

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    clock: Literal["cpu", "wall"] = "cpu"

    @property
    def seconds(self) -> tuple[float, ...]:
        return self.cpu if self.clock == "cpu" else self.wall

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """How far the median lies above the best, as a share of it: the noise of the machine."""
        return self.median / self.best - 1 if self.best else 0.0


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float = inf,
    warmup: int = 2,
    synchronize: Callable[[], None] = nothing,
) -> dict[str, Times]:
    """Time steps in turns.

    Args:
        steps: what to time, by name.
        rounds: how often each is timed.
        seconds: no round begins when so much wall time has passed; the first one always does.
        warmup: rounds before those, which are not timed.
        synchronize: waits for the device. If it is given, wall time counts.
    """
    names = list(steps)
    clock: Literal["cpu", "wall"] = "cpu" if synchronize is nothing else "wall"
    cpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for name in names:
            steps[name]()
    with no_garbage_collector():
        start = time.perf_counter()
        for r in range(rounds):
            if r and time.perf_counter() - start > seconds:
                break
            # No contender always follows the same one, whose data is in the caches.
            for name in names[r % len(names) :] + names[: r % len(names)] if names else []:
                synchronize()
                wall_start, cpu_start = time.perf_counter(), time.process_time()
                steps[name]()
                synchronize()
                cpu[name].append(time.process_time() - cpu_start)
                wall[name].append(time.perf_counter() - wall_start)
            gc.collect()  # not timed: steps leave cycles behind, which would fill the memory
    return {name: Times(tuple(cpu[name]), tuple(wall[name]), clock) for name in names}


@contextmanager
def no_garbage_collector() -> Iterator[None]:
    """Collect nothing while a clock runs; what lives already is not looked at again."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
