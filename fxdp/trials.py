"""How long the norms and the clipped sum of one parameter take, found out by trying.

Which strategy is fastest depends on shapes and machine in ways that no count of flops tells:
between the slowest and the fastest for one convolution lie factors of ten, in either direction.
So each is run on random numbers of the real shapes, once; the results are kept on disk beside
Inductor's own, by device, shapes and versions.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.utils._python_dispatch import _disable_current_modes

from fxdp import grams, unfolding, weighing
from fxdp.forms.batch import Strategy, sq_sum, summed

OPS = [str(m.__file__) for m in (grams, unfolding, weighing)]
REPEATS = 3
FRESH = 1 << 24  # numbers; allocators ask the system for so many at a time
HOPELESS = 3.0  # times the best so far: not worth another run


@dataclass(frozen=True)
class Trial:
    """One way to the norms and the clipped sum of a form.

    Attributes:
        strategy: for the norms.
        keep: whether the per-sample gradients stay until the clipped sum is made of them; else
            that is made of the form, like a plain gradient.
        seconds: for both together.
        kept: bytes that stay allocated in between, beyond the smallest operand of the form, which
            may go then; the others are as often as not needed elsewhere.
    """

    strategy: Strategy
    keep: bool
    seconds: float
    kept: int


def trials(form: Any, strategies: Sequence[Strategy], hint: Callable[[Any], int]) -> list[Trial]:
    """Every way to a form's norms and clipped sum, timed.

    Args:
        form: on fake tensors.
        strategies: that are tried, the most promising first.
        hint: what a symbolic size is at the moment.
    """
    shapes = [f"{k}={described(v, hint)}" for k, v in vars(form).items()]
    device = next(v.device for v in vars(form).values() if isinstance(v, Tensor))
    key = f"{type(form).__name__} {' '.join(shapes)} {','.join(strategies)} on {machine(device)}"
    used().add(key)
    if (known := stored().get(key)) is None:
        with _disable_current_modes(), torch.no_grad():
            known = [asdict(t) for t in run(concrete(form, hint), strategies)]
        remember(key, known)
    return [Trial(**t) for t in known]


def run(form: Any, strategies: Sequence[Strategy]) -> list[Trial]:
    """Time a form on real tensors."""
    operands = [v for v in vars(form).values() if isinstance(v, Tensor)]
    factor = torch.ones(len(operands[0]), device=operands[0].device)
    held = min(x.numel() * x.element_size() for x in operands)
    total = seconds(partial(form.total, factor))
    found: list[Trial] = []
    for strategy in strategies:
        best = min((t.seconds for t in found), default=inf)
        if strategy == "ghost":
            norm = seconds(partial(form.sq_norm, "ghost"), best)
            found.append(Trial(strategy, False, norm + total, 0))
            continue
        each = form.per_sample(strategy)
        norm = seconds(partial(form.per_sample, strategy), best) + seconds(partial(sq_sum, each))
        matvec = seconds(partial(summed, each, factor))
        extra = max(0, each.numel() * each.element_size() - held)
        found += [
            Trial(strategy, True, norm + matvec + extra * fresh(operands[0].device.type), extra),
            Trial(strategy, False, norm + total, 0),
        ]
    return found


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
        if fastest > HOPELESS * best:
            break
    return fastest


@cache
def fresh(device: str) -> float:
    """Seconds for a byte that the system has to hand out anew.

    What stays allocated makes a step's memory grow, and an allocator gives much of that back after
    each step. CUDA's does not.
    """
    if device != "cpu":
        return 0.0
    new = min(seconds(lambda: torch.zeros(FRESH)) for _ in range(REPEATS))
    old = torch.zeros(FRESH)
    return max(0.0, new - seconds(old.zero_)) / (FRESH * old.element_size())


def concrete(form: Any, hint: Callable[[Any], int]) -> Any:
    """The form with random numbers in it."""
    source: dict[str, torch.Generator] = {}

    def real(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        shape = [hint(s) for s in x.shape]
        own = source.setdefault(str(x.device), torch.Generator(x.device).manual_seed(0))
        if x.dtype.is_floating_point:
            return torch.randn(shape, dtype=x.dtype, device=x.device, generator=own)
        return torch.randint(form.rows, shape, dtype=x.dtype, device=x.device, generator=own)

    return dataclasses.replace(form, **{k: real(v) for k, v in vars(form).items()})


def described(value: Any, hint: Callable[[Any], int]) -> str:
    """Shape and dtype of a tensor; other things as they are."""
    if not isinstance(value, Tensor):
        return str(value)
    return f"{value.dtype}{[hint(s) for s in value.shape]}"


def machine(device: torch.device) -> str:
    """What times depend on beside the shapes."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{capability} x{torch.get_num_threads()}, torch {torch.__version__}"


@cache
def store() -> Path:
    """Where times are kept; another place once what is timed has been rewritten."""
    here = Path(__file__).parent
    timed = [here / "trials.py", *(here / "forms").glob("*.py"), *map(Path, OPS)]
    code = sha256(b"".join(p.read_bytes() for p in sorted(timed))).hexdigest()[:12]
    return Path(cache_dir()) / f"fxdp-trials-{code}.json"


@cache
def stored() -> dict[str, list[dict[str, Any]]]:
    """What was timed so far; read once."""
    with suppress(OSError, ValueError):
        found = json.loads(store().read_text())
        return found if isinstance(found, dict) else {}
    return {}


@cache
def used() -> set[str]:
    """The keys of all trials that something was chosen by in this process."""
    return set()


def asked() -> dict[str, list[dict[str, Any]]]:
    """The trials that something was chosen by, in plain types, for a process to choose alike."""
    return {key: stored()[key] for key in sorted(used())}


def check(found: Any) -> None:
    """Raises ValueError unless `found` is what `asked` gives."""
    try:
        for known in found.values():
            for t in known:
                Trial(**t)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"trials: malformed ({error})") from error


def know(found: dict[str, list[dict[str, Any]]]) -> None:
    """Take the trials of another process for this one's."""
    stored().update(found)
    used().update(found)


def remember(key: str, found: list[dict[str, Any]]) -> None:
    """Keep times for this process, and on disk where that can be written."""
    stored()[key] = found
    own = store().with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(stored()))
        own.replace(store())
