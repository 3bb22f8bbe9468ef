"""The oracle of the rules: what a rule claims is held against N runs on one sample each.

An op is written with `T`s for tensors and sympy expressions in `N` for sizes and numbers. Every
combination of placements of the tensors is tried. The node goes through `tidy.spell` and
`placing.place` as in the pipeline, on fake tensors whose batch size is a symbol; what is claimed
is then compared with real runs, for batch sizes that equal other sizes of the tensors.
"""

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from fxdp.capture.results import results_at_once
from fxdp.forms.batch import Batch
from fxdp.ops import RULES
from fxdp.passes.localize import laid_out
from fxdp.passes.tidy import spell
from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate, Shard
from fxdp.proof.placing import place
from fxdp.rules import SumRule, Table

N = sympy.Symbol("N", positive=True, integer=True)
BATCHES = (3, 2)  # 2 and 3 are sizes that the tensors have, too
HINT = 7  # ... and this is none of them
ONLY = "replicate zero shard partial public iota"


class T:
    """A tensor by its local shape; or, with N in the shape, with its samples on that axis.

    Args:
        high: integers below this instead of reals.
        dtype: of reals.
        only: the placements to try, among those of `ONLY`.
        values: integers to draw from, instead of those below `high`.
    """

    def __init__(
        self,
        *shape: Any,
        high: int = 0,
        dtype: torch.dtype = torch.float64,
        only: str = ONLY,
        values: tuple[float, ...] = (),
    ) -> None:
        self.shape = tuple(sympy.sympify(s) for s in shape)
        self.high, self.values = high, values
        self.dtype = torch.int64 if high and dtype == torch.float64 else dtype
        self.only = only.split()

    def draw(self, shape: tuple[int, ...], dice: torch.Generator) -> torch.Tensor:
        if self.values:
            at = torch.randint(len(self.values), shape, generator=dice)
            return torch.tensor(self.values, dtype=self.dtype)[at]
        if self.dtype == torch.bool:
            return torch.rand(shape, generator=dice) < 0.5
        if not self.dtype.is_floating_point and not self.dtype.is_complex:
            return torch.randint(self.high or 3, shape, generator=dice, dtype=self.dtype)
        return torch.randn(shape, generator=dice, dtype=self.dtype)


@dataclass(frozen=True)
class Each:
    """An argument that takes each of some values."""

    options: tuple[Any, ...]


def each(*options: Any) -> Each:
    return Each(options)


@dataclass(frozen=True)
class Home:
    """A tensor with a placement and its symbolic shape."""

    tensor: T
    placement: Placement
    shape: tuple[sympy.Expr, ...]

    def data(self, n: int, shared: torch.Generator, own: torch.Generator) -> tuple[Any, list[Any]]:
        """The global value, and the local ones."""
        shape = sizes_at(self.shape, 1)
        match self.placement:
            case Replicate(zero):
                x = self.tensor.draw(shape, shared)
                x = torch.zeros_like(x) if zero else x
                return x, [x] * n
            case Partial(public):
                term = self.tensor.draw(shape, shared)
                own_terms = [self.tensor.draw(shape, own) for _ in range(n)]
                total = torch.stack(own_terms).sum(0).to(term.dtype)
                return (
                    (total + term, [x + term for x in own_terms]) if public else (total, own_terms)
                )
            case Iota() as at:
                whole = counted(at, sizes_at(self.shape, n)).clone()
                return whole, [torch.zeros(shape, dtype=torch.int64)] * n
            case Shard(dim, inner):
                locals_ = [self.tensor.draw(shape, own) for _ in range(n)]
                split = [x.unflatten(dim, (-1, int(inner))) for x in locals_]
                return torch.stack(split, dim + 1).flatten(dim, dim + 2), locals_


@functools.cache
def sizes_at(shape: tuple[sympy.Expr, ...], n: int) -> tuple[int, ...]:
    """A shape at a batch size."""
    return tuple(int(s.subs(N, n)) for s in shape)


def homes(t: T) -> list[Home]:
    """Every placement that a tensor of this shape can have."""
    found: list[Home] = []
    batch = [d for d, s in enumerate(t.shape) if s.has(N)]
    if not batch:
        kinds = {"replicate": Replicate(), "zero": Replicate(zero=True)}
        kinds |= {"partial": Partial(), "public": Partial(public=True)}
        found += [Home(t, p, t.shape) for k, p in kinds.items() if k in t.only]
        if t.dtype == torch.bool:
            found = [h for h in found if h.placement != Partial(public=True)]
            found = [h for h in found if not (t.shape and h.placement == Partial())]
    for dim in batch or range(len(t.shape)):
        size = int(t.shape[dim].subs(N, 1))
        shape = t.shape if batch else (*t.shape[:dim], N * size, *t.shape[dim + 1 :])
        if "shard" in t.only:
            inners = [i for i in range(1, size + 1) if size % i == 0]
            found += [Home(t, Shard(dim, sympy.Integer(i)), shape) for i in inners]
        if "iota" in t.only and t.dtype == torch.int64 and (size == 1 or t.only == ["iota"]):
            steps = (1, 3) if size == 1 else (1,)
            found += [
                Home(t, Iota(dim, sympy.Integer(size), sympy.Integer(s)), shape) for s in steps
            ]
    return found


@dataclass
class Tally:
    """What became of the combinations of one op: how many were claimed and refused, how many
    are impossible, and the claims that are not true."""

    claimed: int = 0
    samples: int = 0  # claims about a result or an operand that holds samples
    refused: int = 0
    impossible: int = 0
    false: list[str] = field(default_factory=lambda: [])


WORLD: list[tuple[FakeTensorMode, Any]] = []
FAKES: dict[Any, torch.Tensor] = {}
# Impossible combinations are many, and torch logs each of them.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)


def world() -> tuple[FakeTensorMode, Any]:
    """A fake mode and a SymInt that is the batch size in it, for many ops."""
    if not WORLD:
        env = ShapeEnv()
        symbol = env.create_symbol(HINT, source=ConstantSource("n"), dynamic_dim=DimDynamic.DYNAMIC)
        FAKES.clear()
        mode = FakeTensorMode(shape_env=env)
        mode.cache_enabled = False  # a result from the cache asks no questions
        WORLD[:] = [(mode, env.create_symintnode(symbol, hint=HINT))]
    return WORLD[0]


def is_hole(x: Any) -> bool:
    return isinstance(x, T | Each | sympy.Expr)


def options(x: Any) -> list[Any]:
    """What an argument may be."""
    if isinstance(x, Each):
        flat, spec = pytree.tree_flatten(list(x.options), is_leaf=is_hole)
        if not any(isinstance(a, T) for a in flat):
            return list(x.options)
        return [o for option in x.options for o in options(option)]
    return list(homes(x)) if isinstance(x, T) else [x]


@dataclass(frozen=True)
class Choice:
    """What an argument is: tensors and expressions in N are its holes.

    Attributes:
        key: the same for arguments that torch cannot tell apart: those whose placements alone
            differ.
    """

    value: Any
    holes: list[Any]
    key: Any


def choice(value: Any) -> Choice:
    leaves, spec = pytree.tree_flatten(value, is_leaf=is_leaf)
    return Choice(value, [x for x in leaves if is_filled(x)], (spec, *(as_key(x) for x in leaves)))


def is_filled(x: Any) -> bool:
    """Does a node stand for this argument?"""
    return isinstance(x, Home) or isinstance(x, sympy.Expr) and x.has(N)


def as_key(x: Any) -> Any:
    """What an op's result on fake tensors may depend on."""
    if isinstance(x, Home):
        return "tensor", x.shape, x.tensor.dtype
    return type(x), x if isinstance(x, sympy.Expr) else repr(x)


@dataclass(frozen=True)
class Case:
    """One way to call an op, over all placements of its tensors.

    Attributes:
        samples: whether the rule should accept some placement with samples.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: bool = True

    def __str__(self) -> str:
        return str(self.op)


def case(op: Any, *args: Any, samples: bool = True, **kwargs: Any) -> Case:
    return Case(op, args, kwargs, samples)


def check(case: Case, table: Table = RULES) -> Tally:
    """Try every combination of placements of an op's arguments.

    Returns:
        The tally; `false` is empty if every claim of the rule is true.
    """
    flat, spec = pytree.tree_flatten(
        (case.args, case.kwargs), is_leaf=lambda x: isinstance(x, T | Each)
    )
    choices = [[choice(o) for o in options(a)] for a in flat]
    numbers: dict[Any, int] = {}
    keyed = [[(c, numbers.setdefault(c.key, len(numbers))) for c in some] for some in choices]
    calls: dict[tuple[int, ...], Written | None] = {}
    tally = Tally()
    for chosen in itertools.product(*keyed):
        key = tuple(number for _, number in chosen)
        if key not in calls:
            args, kwargs = pytree.tree_unflatten([c.value for c, _ in chosen], spec)
            calls[key] = written(case.op, args, kwargs)
            if not WORLD:  # sizes in it are numbers from now on: what was refused stays refused
                calls = {k: None for k, call in calls.items() if call is None}
        if (call := calls[key]) is None:
            tally.impossible += 1
        else:
            try_one(call, [x for c, _ in chosen for x in c.holes], table, tally)
    return tally


def hold(case: Case) -> None:
    """Assert that no claim is false, and that there is a claim."""
    tally = check(case)
    assert not tally.false, "\n".join(tally.false[:5])
    assert tally.samples if case.samples else tally.claimed


def is_leaf(x: Any) -> bool:
    return isinstance(x, Home | sympy.Expr)


def fake(x: Any, mode: FakeTensorMode, n: Any) -> Any:
    """A tensor without data, or a symbolic number."""
    if not isinstance(x, Home):
        return concrete(x, n)
    key = (x.shape, x.tensor.dtype)
    if key not in FAKES:
        with mode:
            FAKES[key] = torch.empty([concrete(s, n) for s in x.shape], dtype=x.tensor.dtype)
    return FAKES[key]


def has_guards(n: Any) -> bool:
    """Did an op ask something about the batch size whose answer is not the same for all?"""
    symbol, env = n.node.expr, n.node.shape_env
    if not isinstance(symbol, sympy.Symbol):
        return True
    # torch asks for the batch size to choose a convolution kernel, too: `fxdp.proof.guards`.
    asked = [g.expr for g in env.guards if getattr(g.sloc.framework_loc, "name", "") != "conv"]
    return any(a.subs(symbol, size) == sympy.false for a in asked for size in range(2, 20))


@dataclass(frozen=True)
class Written:
    """A call in a graph, whatever the placements of its tensors.

    Attributes:
        holes: the nodes of its tensors and of its expressions in N.
        symbol: the batch size.
    """

    node: Node
    holes: list[Node]
    symbol: sympy.Symbol


def written(op: Any, args: Any, kwargs: Any) -> Written | None:
    """A call with its result on fake tensors; None if torch refuses those."""
    mode, n = world()
    graph = Graph()
    holes: list[Node] = []

    def hole(x: Any) -> Any:
        value = fake(x, mode, n)
        if not is_filled(x):
            return value
        holes.append(graph.placeholder(f"in{len(holes)}"))
        holes[-1].meta["val"] = value
        return holes[-1]

    args, kwargs = pytree.tree_map_only((Home, sympy.Expr), hole, (args, kwargs), is_leaf=is_leaf)
    node = graph.call_function(op, args, kwargs)
    with contextlib.suppress(Exception), mode, results_at_once():
        node.meta["val"] = called(node, lambda a: a.meta["val"])
    if has_guards(n):  # another program for other batch sizes: `fxdp.proof.guards` refuses those
        WORLD.clear()
        return None
    if "val" not in node.meta:
        return None
    spell(node)
    return Written(node, holes, n.node.expr)


def called(node: Node, value: Callable[[Node], Any]) -> Any:
    """What the op of a node gives for some values of its operands."""
    return node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value))  # type: ignore[operator]


def try_one(call: Written, holes: list[Any], table: Table, tally: Tally) -> None:
    """One combination of placements, in the forward and in the backward pass."""
    node, inputs = call.node, dict(zip(call.holes, holes, strict=True))
    homes_ = [x for x in holes if isinstance(x, Home)]
    for operand, x in inputs.items():
        if isinstance(x, Home):
            operand.meta["placement"] = x.placement
    held = any(isinstance(h.placement, Shard) for h in homes_)
    uses_total = len(homes_) < len(holes) or any(isinstance(h.placement, Partial) for h in homes_)
    tried: list[tuple[Any, list[str | None] | None]] = []
    for backward in (False, True) if uses_total else (False,):
        try:
            placed = place(node, call.symbol, table, backward)
        except Mixed:
            tally.refused += 1
            continue
        if not tried or tried[-1][0] != placed:
            tried.append((placed, troubles(node, inputs, placed, table)))
        if (found := tried[-1][1]) is None:
            tally.impossible += 1
            continue
        tally.claimed += 1
        tally.samples += held
        for size, trouble in zip(BATCHES, found, strict=True):
            if trouble:
                said = [(h.placement, h.shape) for h in homes_]
                tally.false.append(
                    f"{node.target}{node.args} {dict(node.kwargs)} with {said} at N={size}, "
                    f"{backward=}: claims {placed}, but {trouble}"
                )
                break


def troubles(
    node: Node, inputs: dict[Node, Any], placed: Any, table: Table
) -> list[str | None] | None:
    """What is not true about a claim, at each batch size; None if torch refuses such tensors."""
    try:
        return [Trial(node, inputs, placed, size, table).trouble() for size in BATCHES]
    except ImpossibleError:
        return None


def concrete(x: Any, n: Any) -> Any:
    """An expression in N for an int or a SymInt."""
    if not x.has(N):
        return int(x) if x.is_Integer else float(x)
    return in_n(x)(n)


@functools.cache
def in_n(x: sympy.Expr) -> Callable[[Any], Any]:
    """An expression in N as a function."""
    return sympy.lambdify(N, x, modules=[{}])


SQUEEZES = {getattr(torch.ops.aten.squeeze, name) for name in ("default", "dim", "dims")}


class ImpossibleError(Exception):
    """Operands that torch accepts as fake tensors only."""


class Trial:
    """One claim, tried on real tensors."""

    def __init__(
        self, node: Node, inputs: dict[Node, Any], placed: Any, n: int, table: Table
    ) -> None:
        self.node, self.inputs, self.placed, self.n = node, inputs, placed, n
        self.rule = table[node.target]  # type: ignore[index]

    def trouble(self) -> str | None:
        """What is not true about the claim."""
        pairs = [self.results(seed) for seed in (1, 2)]
        placed = self.placed if isinstance(self.placed, tuple) else (self.placed,)
        for i, at in enumerate(placed):
            if at is None:
                continue
            both = [(flat(whole)[i], [flat(x)[i] for x in each_]) for whole, each_ in pairs]
            why = self.compare(at, both)
            if why is None and isinstance(at, Partial):
                why = self.form_trouble(both[0][1], i, len(placed))
            if why is not None:
                return why
        return None

    def results(self, seed: int, totals: str = "laid") -> tuple[Any, list[Any]]:
        """The op's result on the whole batch, and on each sample alone."""
        shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        data: dict[Node, tuple[Any, list[Any]]] = {}
        for node, x in self.inputs.items():
            if isinstance(x, Home):
                data[node] = x.data(self.n, shared, own)
            else:
                data[node] = (concrete(x, self.n), [concrete(x, 1)] * self.n)
        self.data = data
        seen = {k: self.seen(k, *v) for k, v in data.items()}
        torch.default_generator.manual_seed(0)  # torch.manual_seed writes down who called it
        try:
            whole = self.call(seen)
        except (RuntimeError, IndexError) as error:
            raise ImpossibleError from error
        return whole, [self.call({k: v[1][i] for k, v in data.items()}) for i in range(self.n)]

    def seen(self, node: Node, value: Any, locals_: list[Any]) -> Any:
        """An operand as `localize` hands it to a node that holds samples."""
        at = self.placed[0] if isinstance(self.placed, tuple) else self.placed
        if not isinstance(at, Shard):
            return value
        if not isinstance(value, torch.Tensor):
            return locals_[0] if self.rule.pointwise else value
        if not (isinstance(node.meta["placement"], Partial) and value.dim() == 0):
            return value
        shape = pytree.tree_leaves(self.node.meta["val"])[0].shape
        sizes = [concrete(s, 1) if isinstance(s, sympy.Expr) else s for s in shape]
        size = sizes[at.dim]
        size = int(size.node.expr.subs({s: 1 for s in size.node.expr.free_symbols}))
        inner = int(at.inner)
        return laid_out(torch.stack(locals_), size // inner, inner, len(shape) - at.dim - 1)

    def call(self, values: dict[Node, Any]) -> Any:
        return called(self.node, values.__getitem__)

    def compare(self, at: Placement, both: list[tuple[Any, list[Any]]]) -> str | None:
        """The relation between global and local results that a placement stands for."""
        whole, locals_ = both[0]
        match at:
            case Replicate(zero):
                if zero and bool((whole != 0).any()):
                    return "the result is not zero"
                return None if all(same(whole, x) for x in locals_) else "samples differ"
            case Shard(dim, inner):
                if self.node.target in SQUEEZES and locals_[0].dim() < whole.dim():
                    locals_ = [x.unsqueeze(dim) for x in locals_]  # no graph is made for N = 1
                if whole.shape[dim] != self.n * locals_[0].shape[dim]:
                    return (
                        f"shape {tuple(whole.shape)} is not that of N x {tuple(locals_[0].shape)}"
                    )
                rows = whole.unflatten(dim, (-1, self.n, int(inner)))
                own = [rows.select(dim + 1, i).flatten(dim, dim + 1) for i in range(self.n)]
                good = all(same(a, b) for a, b in zip(own, locals_, strict=True))
                return None if good else "a sample's slice is not its local value"
            case Iota():
                good = same(whole.double(), counted(at, whole.shape).double())
                good = good and whole.dtype in (torch.int32, torch.int64)
                return None if good else "the result does not count samples"
            case Partial(public):
                if self.by_twin(whole):
                    return self.twin_trouble(both[-1][1])
                gaps = [gap(total, torch.stack(xs).sum(0)) for total, xs in both]
                good = (
                    same(gaps[0], gaps[1]) if public else same(gaps[0], torch.zeros_like(gaps[0]))
                )
                return None if good else "the result is not the sum of the local ones"

    def totals(self) -> list[Node]:
        return [
            node
            for node, x in self.inputs.items()
            if not isinstance(x, Home) or isinstance(x.placement, Partial) and not x.shape
        ]

    def by_twin(self, whole: torch.Tensor) -> bool:
        """Does `localize` give this result its local values from those of its operands?"""
        numbers = all(not isinstance(x, Home) for x in self.inputs.values())
        return whole.dim() == 0 and bool(self.totals()) and (self.rule.pointwise or numbers)

    def twin_trouble(self, locals_: list[Any]) -> str | None:
        """The op, called with the N local values at once, must give those of the result."""
        twins = {
            k: torch.stack(v[1])
            if k in self.totals() and isinstance(v[0], torch.Tensor)
            else v[1][0]
            for k, v in self.data.items()
        }
        twin = self.call(twins).expand(self.n)
        return None if same(twin, torch.stack(locals_)) else "the twin is wrong"

    def form_trouble(self, locals_: list[Any], index: int, results: int) -> str | None:
        """The form of the sum must have the local results for its per-sample values."""
        held = [
            x
            for x in self.inputs.values()
            if isinstance(x, Home) and isinstance(x.placement, Shard)
        ]
        if not held or self.totals():
            return None
        if not isinstance(self.rule, SumRule):
            return "it is a sum over samples without a form"
        if results > 1 and index != 1:
            return None  # taken apart by a decomposition
        self.results(1)
        values = {
            k: Batch(v[0], k.meta["placement"], self.n)
            if isinstance(k.meta.get("placement"), Shard)
            else v[0]
            for k, v in self.data.items()
        }
        args, kwargs = (map_arg(x, values.__getitem__) for x in (self.node.args, self.node.kwargs))
        form = self.rule.form(*args, **kwargs)
        wanted = torch.stack(locals_)
        factor = torch.linspace(0.5, 2.0, self.n, dtype=torch.float64)
        shape = (-1, *[1] * (wanted.dim() - 1))
        for strategy in form.strategies:
            if not same(form.per_sample(strategy), wanted):
                return f"the form's per-sample values ({strategy}) are not the local ones"
            if not same(
                form.sq_norm(strategy), wanted.double().square().reshape(self.n, -1).sum(1)
            ):
                return f"the form's norms ({strategy}) are not those of the local values"
        if wanted.is_floating_point() and not same(
            form.total(factor), (wanted * factor.reshape(shape)).sum(0)
        ):
            return "the form's total is not the weighted sum"
        return None


def counted(at: Iota, sizes: Any) -> torch.Tensor:
    """step times the number of the sample, along an axis of size N * inner."""
    count = torch.arange(sizes[at.dim]) // int(at.inner) * int(at.step)
    return count.reshape(-1, *[1] * (len(sizes) - at.dim - 1)).expand(*sizes)


def flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]


def gap(total: torch.Tensor, summed: torch.Tensor) -> torch.Tensor:
    """The difference; none where a division by zero left the reals."""
    if not total.is_floating_point():
        return total - summed
    return (total - summed).masked_fill(~total.isfinite() & ~summed.isfinite(), 0)


COARSE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.complex64: 1e-4}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to rounding."""
    if a.shape != b.shape:
        return False
    close = max(COARSE.get(x.dtype, 1e-7) for x in (a, b))
    wide = torch.complex128 if a.dtype.is_complex or b.dtype.is_complex else torch.float64
    return torch.allclose(a.to(wide), b.to(wide), rtol=close, atol=close / 10, equal_nan=True)
