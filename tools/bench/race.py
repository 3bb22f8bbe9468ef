"""One workload: contenders are checked, those that are right take turns, then each goes alone."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf

import torch

from tools.bench.alone import Order, alone
from tools.bench.check import Verdict, check, told
from tools.bench.contender import Contender, Runner
from tools.bench.reference import Reference, reference
from tools.bench.result import Entry, Heat
from tools.bench.task import Task
from tools.bench.timing import interleaved, nothing


@dataclass(frozen=True)
class Limits:
    """How long a workload is timed."""

    rounds: int = 15
    seconds: float = inf
    warmup: int = 2


def race(
    name: str,
    length: int | None,
    task: Task,
    contenders: Mapping[str, Contender],
    limits: Limits,
    orders: Mapping[str, Order],
    say: Callable[[str], None] = lambda line: None,
) -> Heat:
    """Run one workload.

    Args:
        name, length: of the workload.
        contenders: by name, in the order of the first round.
        orders: what to measure of whom in a process of its own.
        say: called with what goes on.
    """
    torch._dynamo.reset()
    wanted = reference(task)
    runners: dict[str, Runner] = {}
    entries: dict[str, Entry] = {}
    for key, contender in contenders.items():
        entries[key], runner = admitted(key, contender, task, wanted)
        say(f"{name}: {key} {entries[key].verdict.status} {entries[key].verdict.why}".rstrip())
        if runner is not None:
            runners[key] = runner
    failed: dict[str, Verdict] = {}
    steps = {key: guarded(key, runner, failed) for key, runner in runners.items()}
    say(f"{name}: taking turns")
    on_cuda = task.target.is_cuda
    synchronize = torch.cuda.synchronize if on_cuda else nothing
    times = interleaved(steps, limits.rounds, limits.seconds, limits.warmup, synchronize)
    runners.clear()
    steps.clear()
    for key, verdict in failed.items():
        entries[key] = replace(entries[key], verdict=verdict)
        del times[key]
    for key, order in orders.items():
        if key in times:
            say(f"{name}: {key} alone")
            entries[key] = replace(entries[key], alone=alone(order))
    found = [replace(entry, times=times.get(key)) for key, entry in entries.items()]
    count = sum(p.numel() for p in task.model.parameters())
    return Heat(name, task.size, length, count, wanted.clipped, tuple(found))


def admitted(
    key: str, contender: Contender, task: Task, wanted: Reference
) -> tuple[Entry, Runner | None]:
    """A contender's verdict, and its runner if that is good."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            runner = contender.make(task.copy())
        except Exception as error:  # it will not have this model; the others may
            return Entry(key, Verdict("refuses", why=told(error))), None
        verdict = check(contender, runner, wanted, task.size)
    own = [str(w.message) for w in caught if type(w.message).__module__.startswith("fxdp")]
    entry = Entry(key, verdict, notes=tuple(dict.fromkeys(own)))
    return entry, runner if verdict.status == "right" else None


def guarded(key: str, runner: Runner, failed: dict[str, Verdict]) -> Callable[[], None]:
    """A step that stops nobody else: side by side, memory may not do for what it did alone."""

    def step() -> None:
        if key in failed:
            return
        try:
            runner.whole_step()
        except Exception as error:  # noted, and not timed any more
            failed[key] = Verdict("refuses", why=f"while timed: {told(error)}")

    return step
