"""The cache of times measured on this machine, on disk next to Inductor's own caches.

Its keys are what was run, its shapes, device and versions; nothing is timed twice.
"""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxdp.kernels.precision import full_precision
from fxdp.torch_internals import cache_dir, disable_current_modes

HERE = Path(__file__).parents[1]
# Files that have something timed, that define ops (which others call by their names in torch, and
# import nothing for it), and what files import.
TIMES = re.compile(r"^from fxdp\.autotune\.timings import .*\btimed\b", re.MULTILINE)
DEFINES = re.compile(r"^from fxdp\.kernels\.library import .*\bdefine\b", re.MULTILINE)
IMPORTS = re.compile(r"^from (fxdp[\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)
REPEATS = 3
HOPELESS = 3.0  # times the best so far: not worth another run
QUICK = 0.01  # seconds: another run is cheap, and the first of a kernel may be its slowest
Times = list[dict[str, Any]]
# What is known of one time: of a form's strategy, and of a layout.
ENTRIES = ({"strategy", "keep", "seconds", "kept"}, {"channels_last", "seconds"})


def timed(key: str, device: torch.device, run: Callable[[], Times]) -> Times:
    """What `run` finds, from an earlier time if there was one.

    Args:
        key: says what is timed, with its shapes.
        device: where.
        run: what it returns holds plain types.
    """
    key = f"{key} on {machine(device)}"
    used().add(key)
    if (known := stored().get(key)) is None:
        with disable_current_modes(), torch.no_grad(), full_precision():
            known = run()
        remember(key, known)
    return known


def seconds(work: Callable[[], Any], best: float = inf) -> float:
    """The fastest of some runs; of one, where that is hopeless."""
    fastest, on_cuda = inf, torch.cuda.is_initialized()
    # One thread's own time leaves out what other processes take; several share theirs out.
    alone = torch.get_num_threads() == 1 and not on_cuda
    clock = time.process_time if alone else time.perf_counter
    for _ in range(REPEATS):
        begin = clock()
        work()
        if on_cuda:
            torch.cuda.synchronize()
        fastest = min(fastest, clock() - begin)
        if fastest > max(HOPELESS * best, QUICK):
            break
    return fastest


def described(value: Any, hint: Callable[[Any], int]) -> str:
    """Shape and dtype of a tensor; other things as they are."""
    if not isinstance(value, Tensor):
        return str(value)
    return f"{value.dtype}{[hint(s) for s in value.shape]}"


def machine(device: torch.device) -> str:
    """What times depend on, apart from the shapes."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{capability} x{torch.get_num_threads()}, torch {torch.__version__}"


@cache
def store() -> Path:
    """Where times are kept; another place once what is timed has been rewritten."""
    code = sha256(b"".join(p.read_bytes() for p in sources())).hexdigest()[:12]
    return Path(cache_dir()) / f"fxdp-times-{code}.json"


def sources() -> list[Path]:
    """The files whose code may run while something is timed, in order: those that have something
    timed, the forms, those that define ops, and whatever these import, at any depth."""
    texts = {path: path.read_text() for path in HERE.rglob("*.py")}
    own = HERE / "forms"
    open_ends = [p for p, t in texts.items() if TIMES.search(t) or DEFINES.search(t)]
    open_ends += [Path(__file__), *(p for p in texts if own in p.parents)]
    found: set[Path] = set()
    while open_ends:
        path = open_ends.pop()
        if path in texts and path not in found:
            found.add(path)
            open_ends += imported(texts[path])
    return sorted(found)


def imported(text: str) -> list[Path]:
    """The files that a module of fxdp imports, and some that there are not."""
    found: list[Path] = []
    for module, names in IMPORTS.findall(text):
        folder = HERE.joinpath(*module.split(".")[1:])
        found += [folder.with_suffix(".py"), folder / "__init__.py"] if folder != HERE else []
        found += [folder / f"{name}.py" for name in re.findall(r"\w+", names)]
    return found


@cache
def stored() -> dict[str, Times]:
    """What was timed so far; read once."""
    return on_disk()


def on_disk() -> dict[str, Times]:
    """What this and other processes have kept."""
    with suppress(OSError, ValueError):
        found = json.loads(store().read_text())
        return found if isinstance(found, dict) else {}
    return {}


@cache
def used() -> set[str]:
    """The keys of all times that something was chosen by in this process."""
    return set()


def asked() -> dict[str, Times]:
    """The times that something was chosen by, in plain types, for a process to choose alike."""
    return {key: stored()[key] for key in sorted(used())}


def check(found: Any) -> None:
    """Raises ValueError unless `found` looks like what `asked` gives."""
    if not isinstance(found, dict):
        raise ValueError("times: malformed (no dictionary)")
    for key, times in found.items():
        if not isinstance(times, list) or not all(is_time(t) for t in times):
            raise ValueError(f"times: malformed ({key})")


def is_time(entry: Any) -> bool:
    """Is this an entry that `timed` may have kept?"""
    if not isinstance(entry, dict) or set(entry) not in ENTRIES:
        return False
    return isinstance(entry["seconds"], float)


def know(found: dict[str, Times]) -> None:
    """Take the times of another process for this one's."""
    stored().update(found)
    used().update(found)


def remember(key: str, found: Times) -> None:
    """Keep times for this process, and on disk where that can be written."""
    stored()[key] = found
    own = store().with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(on_disk() | stored()))
        own.replace(store())
