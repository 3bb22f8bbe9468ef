"""What a run of the benchmark finds out, as data, and its way to JSON and back."""

import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import opacus
import torch

from tools.bench.check import Verdict
from tools.bench.timing import Times


@dataclass(frozen=True)
class Alone:
    """What was measured of a contender in a process of its own.

    Attributes:
        memory_mib: the peak of a step, above the state before it.
        cold_seconds, warm_seconds: processor time of the first step in a new process, with empty
            caches and with those that an earlier process left.
    """

    memory_mib: float | None
    cold_seconds: float
    warm_seconds: float | None = None


@dataclass(frozen=True)
class Entry:
    """A contender in one workload.

    Attributes:
        times: None if it was not timed, as it is not right.
        notes: warnings of fxdp's.
    """

    contender: str
    verdict: Verdict
    times: Times | None = None
    alone: Alone | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heat:
    """All contenders in one workload.

    Attributes:
        parameters: how many numbers are trained.
        clipped: the share of the samples whose gradient is longer than the bound.
    """

    workload: str
    batch: int
    length: int | None
    parameters: int
    clipped: float
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        length = "" if self.length is None else f", T={self.length}"
        return f"{self.workload} (N={self.batch}{length})"

    def best(self, contender: str) -> float | None:
        """The shortest step of a contender, if it was timed."""
        times = [e.times for e in self.entries if e.contender == contender]
        return times[0].best if times and times[0] is not None else None

    def ratio(self, contender: str, to: str) -> float | None:
        """How many times longer a contender's shortest step is than another's."""
        one, other = self.best(contender), self.best(to)
        return one / other if one is not None and other else None


@dataclass(frozen=True)
class Machine:
    """Where a run took place, and how it was started."""

    hardware: str
    device: str
    threads: int
    python: str
    torch: str
    opacus: str
    command: str


@dataclass(frozen=True)
class Run:
    """One run of the benchmark."""

    machine: Machine
    heats: tuple[Heat, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Run":
        data = json.loads(text)
        return Run(Machine(**data["machine"]), tuple(heat(h) for h in data["heats"]))


def heat(data: dict[str, Any]) -> Heat:
    return Heat(**data | {"entries": tuple(entry(e) for e in data["entries"])})


def entry(data: dict[str, Any]) -> Entry:
    times, alone = data["times"], data["alone"]
    return Entry(
        data["contender"],
        Verdict(**data["verdict"]),
        times and Times(tuple(times["cpu"]), tuple(times["wall"]), times["clock"]),
        alone and Alone(**alone),
        tuple(data["notes"]),
    )


def this_machine(device: str) -> Machine:
    """What this process runs on."""
    command = shlex.join(["tools/run", "bench", *sys.argv[1:]])
    versions = (platform.python_version(), torch.__version__, opacus.__version__)
    name = processor() if device == "cpu" else torch.cuda.get_device_name()
    return Machine(name, device, torch.get_num_threads(), *versions, command)


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
