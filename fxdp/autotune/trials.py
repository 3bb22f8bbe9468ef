"""How long the norms and the clipped sum of one parameter take, found out by trying.

Which strategy is fastest depends on shapes and machine in ways that no count of flops tells:
between the slowest and the fastest for one convolution lie factors of ten, in either direction.
So each is run on random numbers of the real shapes, once.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from fxdp.autotune.timings import REPEATS, described, seconds, timed
from fxdp.forms.batch import sq_sum, summed
from fxdp.forms.strategy import STRATEGIES, Strategy
from fxdp.forms.streamed import part_of, tensors
from fxdp.kernels.precision import wide_dtype
from fxdp.mechanism.clipping import Flat
from fxdp.mechanism.streaming import Rule, Stream, Streams
from fxdp.mechanism.streaming import run as run_stream

FRESH = 1 << 24  # numbers; allocators ask the system for so many at a time


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


def trials(
    form: Any, strategies: Sequence[Strategy], hint: Callable[[Any], int], rows: int = 1
) -> list[Trial]:
    """Every way to a form's norms and clipped sum, timed.

    Args:
        form: on fake tensors.
        strategies: that are tried, the most promising first.
        hint: what a symbolic size is at the moment.
        rows: of how many samples at a time gradients are streamed.
    """
    shapes = [f"{k}={described(v, hint)}" for k, v in vars(form).items()]
    device = next(v.device for v in vars(form).values() if isinstance(v, Tensor))
    key = f"{type(form).__name__} {' '.join(shapes)} {','.join(strategies)}"
    if any(STRATEGIES[s].streams for s in strategies):
        key += f" by {rows}"

    def measured() -> list[dict[str, Any]]:
        return [asdict(t) for t in run(concrete(form, hint), strategies, rows)]

    return [Trial(**t) for t in timed(key, device, measured)]


def run(form: Any, strategies: Sequence[Strategy], rows: int = 1) -> list[Trial]:
    """Time a form on real tensors."""
    operands = [v for v in vars(form).values() if isinstance(v, Tensor)]
    factor = torch.ones(len(operands[0]), device=operands[0].device)
    held = min(x.numel() * x.element_size() for x in operands)
    total = seconds(partial(form.total, factor))
    found: list[Trial] = []
    for strategy in strategies:
        best = min((t.seconds for t in found), default=inf)
        if STRATEGIES[strategy].streams:
            found.append(Trial(strategy, False, seconds(streamed(form, rows), best), 0))
            continue
        if not STRATEGIES[strategy].materialises:
            norm = seconds(partial(form.sq_norm, strategy), best)
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


class Ones(Rule):
    """Factors of 1: real ones are made for all parameters at once, and are not in one's time."""

    def factors(self, squares: Tensor, counts: Tensor, bound: Tensor) -> Tensor:
        return counts.expand(squares.shape).to(self.dtype)


def streamed(form: Any, rows: int) -> Callable[[], Any]:
    """A function that streams the gradients of a form, so many samples at a time."""
    operands = list(tensors(form).values())
    samples = len(operands[0])
    rule = Ones(Flat(), (1.0,), (0.0,), wide_dtype(operands[0]))
    streams, stream = Streams(), Stream((part_of(form, 0),), rule, rows)
    rest, counts = torch.zeros(1, samples, dtype=torch.float64), torch.ones(samples).bool()
    return lambda: run_stream(streams, stream, operands, rest, counts, torch.ones(()))


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
