"""What the checker has no rule for, it tries: the op itself, on random tensors.

Operands are drawn as their claims say, for a few numbers of samples: the values of every local run,
and the value of the whole batch that is made of them. The op runs on the batch and on each sample
alone, in double precision on the CPU, and the results must be to each other as is claimed:

    Shard      the slices of each sample are the result of its local run
    Partial    the sum of the local results; if public, the difference does not change when all
               samples do
    Iota       the numbers of the samples
    Replicate  only where no operand holds samples: what hardly ever depends on them may seem not to

Numbers are drawn in three ways: normal ones, small whole ones (ties, equal pairs), and large ones.
A trial is a test and no proof: an op that mixes samples for rare values alone may pass. Ops that
draw random numbers, write to operands, or belong to somebody else are not tried. Nor are windows
along the axis of the samples, and distances: how far they reach, a few samples do not show.
"""

from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch import Tensor

from fxdp.checker.call import Call, Operand, is_leaf
from fxdp.checker.claims import Claim, Claims, Iota, Partial, Replicate, Shape, Shard
from fxdp.torch_internals import pytree

BATCHES = (2, 3, 5)
STYLES = ("normal", "whole", "large")
LARGEST = 2**22  # elements of all operands and results together
# Arguments with a number for each of the last axes, along which windows move; and those that say
# how far from each other what meets may be.
WINDOWS = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")
DISTANCES = ("shifts", "diagonal", "offset", "storage_offset", "step")
FARTHEST = 64  # that is tried
IGNORED = ("ignore_index", "padding_idx")  # arguments that say which index counts for nothing
Run = tuple[Any, list[Any]]  # of the batch, and of each sample


class Untried(Exception):
    """An op that cannot be tried; its text says why."""


def tried(call: Call, claims: Claims, hints: dict[Any, int]) -> str | None:
    """Try whether claims follow; None if they do, else what is not as claimed.

    Args:
        hints: the sizes that the model was captured with, by torch's symbols.

    Raises:
        Untried: the op cannot be run, or its tensors are too large.
    """
    if call.is_random:
        raise Untried("it draws random numbers")
    if any(isinstance(c, Replicate) for c in claims):
        return "it is made of samples, or of their number"
    refuse_windows(call, claims)
    batches = (*BATCHES, *farther(call))
    trials = [one(call, claims, hints | {call.n: n}, style) for n in batches for style in STYLES]
    return next((why for why in trials if why is not None), None)


def refuse_windows(call: Call, claims: Claims) -> None:
    """Refuse to try windows along an axis that holds samples.

    Raises:
        Untried: the op has some.
    """
    lists = [call.named.get(name) for name in WINDOWS]
    axes = max(
        (len(x) if isinstance(x, list | tuple) else 1 for x in lists if x is not None), default=0
    )
    operands = [(x.claim, x.rank) for x in call.tensors]
    results = [(c, len(s)) for c, s in zip(claims, call.shapes, strict=True) if s is not None]
    for claim, rank in (*operands, *results):
        if axes and isinstance(claim, Shard | Iota) and claim.dim >= rank - axes:
            raise Untried("it has windows along the axis of the samples")


def farther(call: Call) -> tuple[int, ...]:
    """A number of samples that is beyond every number in the call, where that is more than usual.

    Raises:
        Untried: a distance is so large that no trial would show what it does.
    """
    for name in DISTANCES:
        for x in pytree.tree_leaves(call.named.get(name)):
            near = isinstance(x, int | sympy.Integer) and abs(int(x)) <= FARTHEST
            if x is not None and not near:
                raise Untried(f"it reaches as far as its {name} says, {x}")
    numbers = [abs(int(x)) for x in call.numbers if isinstance(x, int | sympy.Integer)]
    most = max((x for x in numbers if x <= FARTHEST), default=0)
    return (2 * most + 1,) if most >= BATCHES[-1] else ()


def one(call: Call, claims: Claims, sizes: dict[Any, int], style: str) -> str | None:
    """One number of samples, and one way to draw."""
    if not_small(call, sizes):
        if sizes[call.n] in BATCHES[1:]:
            return None
        raise Untried("its tensors are too large to try it")
    first, second = (Drawn(call, claims, sizes, style, seed).run() for seed in (1, 2))
    for place, claim in enumerate(claims):
        if claim is None:
            continue
        runs = [(at(whole, place), [at(x, place) for x in own]) for whole, own in (first, second)]
        if style == "normal" and runs[0][0].numel() and not runs[0][0].isfinite().any():
            raise Untried("nothing finite comes out of it")
        if (why := compared(claim, runs, sizes, call.n)) is not None:
            return f"{why} ({sizes[call.n]} samples)"
    return None


def not_small(call: Call, sizes: dict[Any, int]) -> bool:
    """Have operands and results more elements than a trial takes?"""
    shapes = [x.shape for x in call.tensors] + [s for s in call.shapes if s is not None]
    return sum(elements(s, sizes) for s in shapes) > LARGEST


def elements(shape: Shape, sizes: dict[Any, int]) -> int:
    total = 1
    for size in concrete(shape, sizes):
        total *= size
    return total


def concrete(shape: Shape, sizes: dict[Any, int]) -> list[int]:
    """A shape in numbers.

    Raises:
        Untried: a symbol has no size.
    """
    found = [sympy.sympify(s).subs(sizes) for s in shape]
    if not all(s.is_Integer for s in found):
        raise Untried("it has a size that is not known before the model runs")
    return [int(s) for s in found]


def at(result: Any, place: int) -> Any:
    """One of an op's results."""
    return result[place] if isinstance(result, tuple | list) else result


class Drawn:
    """Operands of a call, for one number of samples.

    Replicated ones are the same for both seeds.
    """

    def __init__(
        self, call: Call, claims: Claims, sizes: dict[Any, int], style: str, seed: int
    ) -> None:
        self.call, self.claims, self.sizes, self.style = call, claims, sizes, style
        self.n, self.own = sizes[call.n], sizes | {call.n: 1}
        self.fixed = torch.Generator().manual_seed(0)
        self.dice = torch.Generator().manual_seed(seed)
        shapes = [concrete(x.shape, self.own) for x in call.tensors]
        self.high = min([s for shape in shapes for s in shape if s > 1], default=2)
        named = [call.named.get(name) for name in IGNORED]
        self.ignored = [v for v in named if isinstance(v, int) and (v < -1 or 0 <= v < self.high)]

    def run(self) -> Run:
        """The op on the batch, and on each sample.

        Raises:
            Untried: the op does not take what was drawn.
        """
        flat, spec = pytree.tree_flatten((self.call.args, self.call.kwargs), is_leaf=is_leaf)
        drawn = [self.operand(x) for x in flat]
        runs = [
            [whole for whole, _ in drawn],
            *([own[i] for _, own in drawn] for i in range(self.n)),
        ]
        try:
            with torch.no_grad():
                return tuple(split([self.ran(pytree.tree_unflatten(r, spec)) for r in runs]))  # type: ignore[return-value]
        except Exception as error:
            text = str(error).partition("\n")[0]
            raise Untried(f"it does not run on random operands: {text[:80]}") from error

    def ran(self, operands: Any) -> Any:
        args, kwargs = operands
        return self.call.target(*args, **kwargs)

    def operand(self, x: Any) -> tuple[Any, list[Any]]:
        """An operand for the batch, and for each sample."""
        if isinstance(x, Operand):
            whole, own = self.tensor(x)
            return (self.laid(own), own) if x.is_total and self.held else (whole, own)
        if isinstance(x, sympy.Basic):
            return number(x, self.sizes), [number(x, self.own)] * self.n
        if isinstance(x, torch.dtype):
            x = wide(x)
        if isinstance(x, torch.device):
            x = torch.device("cpu")
        return x, [x] * self.n

    @property
    def held(self) -> Shard | None:
        """Where the result has its samples."""
        return next((c for c in self.claims if isinstance(c, Shard)), None)

    def laid(self, own: list[Tensor]) -> Tensor:
        """The totals of the samples, as the reader gets them: along the axis of its samples."""
        claim, shape = self.held, self.call.shapes[0]
        assert claim is not None
        assert shape is not None
        (inner,) = concrete((claim.inner,), self.sizes)
        size = concrete(shape, self.sizes)[claim.dim]
        ids = torch.arange(size) // inner % self.n
        return torch.stack(own)[ids].reshape(-1, *[1] * (len(shape) - claim.dim - 1))

    def tensor(self, x: Operand) -> tuple[Tensor, list[Tensor]]:
        """A tensor as it is claimed to be."""
        shape = concrete(x.shape, self.own)
        match x.claim:
            case Replicate(zero):
                value = self.values(shape, x.dtype, self.fixed)
                value = torch.zeros_like(value) if zero else value
                return value, [value] * self.n
            case Shard(dim, inner):
                own = [self.values(shape, x.dtype, self.dice) for _ in range(self.n)]
                (inner_size,) = concrete((inner,), self.sizes)
                parts = torch.stack([v.unflatten(dim, (-1, inner_size)) for v in own], dim + 1)
                return parts.flatten(dim, dim + 2), own
            case Partial(public):
                own = [self.values(shape, x.dtype, self.dice) for _ in range(self.n)]
                whole = torch.stack(own).sum(0).to(own[0].dtype)
                if public:
                    term = self.values(shape, x.dtype, self.fixed)
                    return whole + term, [v + term for v in own]
                return whole, own
            case Iota():
                whole = counted(x.claim, concrete(x.shape, self.sizes), self.sizes)
                return whole.to(x.dtype), [torch.zeros(shape, dtype=x.dtype)] * self.n

    def values(self, shape: list[int], dtype: torch.dtype, dice: torch.Generator) -> Tensor:
        """Random numbers of a dtype."""
        if dtype == torch.bool:
            return torch.rand(shape, generator=dice) < 0.5
        if not (dtype.is_floating_point or dtype.is_complex):
            found = torch.randint(self.high, shape, generator=dice)
            for skip in self.ignored:
                found = torch.where(torch.rand(shape, generator=dice) < 0.2, skip, found)
            return found.to(dtype)
        if self.style == "whole":
            return torch.randint(-1, 3, shape, generator=dice).to(wide(dtype))
        drawn = torch.randn(shape, generator=dice, dtype=wide(dtype))
        return drawn * 1e4 if self.style == "large" else drawn


def wide(dtype: torch.dtype) -> torch.dtype:
    """The double of a dtype of real or complex numbers."""
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def number(x: sympy.Basic, sizes: dict[Any, int]) -> Any:
    """An expression in numbers.

    Raises:
        Untried: a symbol has no value.
    """
    value = x.subs(sizes)
    if value in (sympy.true, sympy.false):
        return bool(value)
    if not isinstance(value, sympy.Expr) or not value.is_number:
        raise Untried("it has a number that is not known before the model runs")
    return int(value) if value.is_Integer else float(value)


def split(results: list[Any]) -> Iterator[Any]:
    """The batch's result, and those of the samples."""
    yield results[0]
    yield results[1:]


def counted(claim: Iota, shape: list[int], sizes: dict[Any, int]) -> Tensor:
    """The numbers of the samples, along an axis."""
    inner, step = concrete((claim.inner, claim.step), sizes)
    ids = torch.arange(shape[claim.dim]) // inner * step
    return ids.reshape(-1, *[1] * (len(shape) - claim.dim - 1)).expand(shape).clone()


def compared(claim: Claim, runs: list[Run], sizes: dict[Any, int], n: Any) -> str | None:
    """Are the results to each other as claimed? None if they are."""
    whole, own = runs[0]
    match claim:
        case Shard(dim, inner):
            if whole.shape[dim] != sizes[n] * own[0].shape[dim]:
                return "its axis of samples is not that of N samples"
            (inner_size,) = concrete((inner,), sizes)
            rows = whole.unflatten(dim, (-1, sizes[n], inner_size))
            mine = [rows.select(dim + 1, i).flatten(dim, dim + 1) for i in range(sizes[n])]
            good = all(near(a, b) for a, b in zip(mine, own, strict=True))
            return None if good else "a sample's part is not what it is for that sample alone"
        case Partial() if whole.dtype == torch.bool:
            return "truth values have no sum"
        case Partial(public):
            # Where a term is infinite, or 0 / 0, there is no sum to compare.
            gaps = [finite(total - torch.stack(xs).sum(0)) for total, xs in runs]
            wanted = gaps[1] if public else torch.zeros_like(gaps[0])
            scale = max(largest(torch.stack(xs).abs().sum(0)) for _, xs in runs)
            good = near(gaps[0], wanted, scale)
            return None if good else "it is not the sum of what it is for each sample alone"
        case Iota():
            good = near(whole, counted(claim, list(whole.shape), sizes))
            return None if good else "it does not count the samples"
        case Replicate():
            return "it is made of samples, or of their number"


def finite(gap: Tensor) -> Tensor:
    """0 for what is no number."""
    return gap.nan_to_num(0, 0, 0) if gap.dtype.is_floating_point else gap


def largest(x: Tensor) -> float:
    """The largest of the numbers, apart from those that are infinite or none."""
    sizes = x.abs().double().nan_to_num(0, 0, 0)
    return float(sizes.max()) if x.numel() else 0.0


def near(a: Tensor, b: Tensor, scale: float = 0.0) -> bool:
    """Are two tensors equal, but for rounding?"""
    if a.shape != b.shape:
        return False
    if not (a.dtype.is_floating_point or a.dtype.is_complex):
        return bool((a == b).all())
    # Results that an op gives in single precision are rounded so.
    eps = 1e-9 if a.dtype in (torch.float64, torch.complex128) else 1e-4
    size = largest(b)
    return torch.allclose(a, b.to(a.dtype), rtol=eps, atol=eps * max(size, scale), equal_nan=True)
