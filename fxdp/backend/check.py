"""Checks generated code: no generated code is trusted unseen.

Inductor has compiled gradients wrongly without a warning (torch 2.13, CPU: a convolution, relu, a
max-pool of stride 1 and a linear layer). So each compiled graph is compared with the graph that it
was made from, on the first inputs it gets, and again when the number of samples is first of another
kind: 2, 3, below 16, or a power of two more. Where they differ, the graph itself takes its place
for good, with a warning. A whole batch twice over would take half as much memory again as a step.
So where the inputs are large, a few samples' worth of them is compared: 2, 5, and as many as are
small.
"""

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.backend.rows import Rows, kind
from fxdp.graph.nodes import arguments, outputs
from fxdp.kernels.precision import is_lowered
from fxdp.rules import Table
from fxdp.torch_internals import clone_preserve_strides, pytree

Boxed = Callable[[list[Any]], Any]

# Largest difference, relative to the largest value, that rounding may explain.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
# A value this small compared with the largest of all results is nothing but rounding.
FLOOR = 1e-4
# The share of masks and indices that rounding may tip over.
TIPPED = 1e-2
SMALL = 1 << 24  # bytes of inputs that are compared as a whole
FEW = (2, 5)  # samples that are compared where the inputs are larger


class MiscompilationWarning(UserWarning):
    """Compiled code computed something else than its graph."""


class Checked:
    """A compiled graph that proves itself at its first call, and again at other sizes.

    Guarantees:
        - No result of the compiled graph is returned before it agreed with the eager graph, on
          these inputs or on a part of them, at a number of samples of the same kind
          (`fxdp.backend.rows.kind`), or at 2, 5 and more where the inputs are large; in the same
          state of the random generators.
        - With a noise multiplier among the inputs, they agreed twice: at multiplier 0, so that
          the clipped sums themselves are compared, and with the noise.
        - On a difference the results of the eager graph are returned, now and ever after.
        - The generators are left as they were found, also by an exception, which is passed on:
          nothing is returned, and the next call compares again.

        ======================================  ==============================================
        inputs                                  what is compared
        ======================================  ==============================================
        of up to `SMALL` bytes                  all of them
        larger                                  2 samples, 5, and as many as take `SMALL` bytes
        that cannot be cut, or that the graph   all of them
        does not run on when cut
        that do not tell N                      all of them, at the first call
        ======================================  ==============================================

    Args:
        compiled: the compiled graph, called with a list of inputs that it may empty.
        eager: the same graph, run op by op.
        noise: which input the noise is multiplied by.
        fallbacks: where to note a difference.
        coarsest: the dtype of lowest precision in the graph: what went through it agrees no
            better, whatever the dtype of the result.
        rows: how its inputs follow from the number of samples; None if they do not.
        half: which one it is, for the warning.
        generators: the results that are states of random generators: what is not drawn from may
            be anything, and what is drawn shows in other results.
    """

    def __init__(
        self,
        compiled: Boxed,
        eager: Boxed,
        noise: int | None,
        fallbacks: list[str],
        coarsest: torch.dtype = torch.float64,
        rows: Rows | None = None,
        half: str = "forward",
        generators: frozenset[int] = frozenset(),
    ) -> None:
        self.compiled, self.eager = compiled, eager
        self.noise, self.fallbacks = noise, fallbacks
        self.coarsest, self.rows, self.half = coarsest, rows, half
        self.generators = generators
        self.seen: set[int | None] = set()
        self.trusted = True
        self._boxed_call = True  # AOTAutograd asks; in the instance, where wrappers find it

    def __call__(self, args: list[Any]) -> Any:
        if self.trusted:
            count = self.rows.samples(args) if self.rows is not None else None
            which = None if count is None else kind(count)
            if which not in self.seen:
                self.prove(args, count)
                self.seen.add(which)
        return (self.compiled if self.trusted else self.eager)(args)

    def prove(self, args: list[Any], count: int | None) -> None:
        """Run both graphs, and choose one of them."""
        state = random_state()
        try:
            trouble = self.compared(args, count)
        finally:
            set_random_state(state)
        if trouble is not None:
            self.trusted = False
            self.fallbacks.append(f"{self.half} graph: {trouble}")
            warnings.warn(
                f"fxdp: compiled code differs from its {self.half} graph ({trouble}); "
                "the graph runs eagerly instead",
                MiscompilationWarning,
                stacklevel=3,
            )

    def compared(self, args: list[Any], count: int | None) -> str | None:
        """What differs between the two graphs, on as much of the inputs as is to be compared."""
        size = self.rows.held(args) if self.rows is not None else 0
        if self.rows is not None and count is not None and size > SMALL:
            wanted = sorted({*FEW, count * SMALL // size})
            parts = [self.rows.cut(args, few) for few in wanted if FEW[0] <= few < count]
            known = [self.on_part(part) for part in parts if part is not None]
            troubles = [trouble for trouble, ran in known if ran]
            if troubles:
                return next((t for t in troubles if t is not None), None)
        return self.both_ways(args)

    def on_part(self, part: list[Any]) -> tuple[str | None, bool]:
        """What differs on a part of the inputs, and whether the graphs run on it at all: a kept
        index may lead to a sample that was left out."""
        try:
            return self.both_ways(part), True
        except (RuntimeError, IndexError, AssertionError):
            return None, False

    def both_ways(self, args: list[Any]) -> str | None:
        """What differs without noise, or with it."""
        trouble = None
        if self.noise is not None:
            silent = list(args)
            silent[self.noise] = torch.zeros_like(args[self.noise])
            trouble = self.trouble(silent)
        if self.noise is None or (trouble is None and bool(args[self.noise] != 0)):
            trouble = self.trouble(args)
        return trouble

    def trouble(self, args: list[Any]) -> str | None:
        """What differs between the two graphs on these inputs; None if nothing."""
        state = random_state()
        wanted = self.eager(list(args))
        set_random_state(state)
        # A compiled graph may write over its inputs, and insists on their strides.
        got = self.compiled(
            [clone_preserve_strides(a) if isinstance(a, Tensor) else a for a in args]
        )
        set_random_state(state)
        # Products that are rounded are not rounded alike: what went in differs in its last bit.
        coarsest = torch.bfloat16 if is_lowered() else self.coarsest
        return difference(got, wanted, coarsest, self.generators)


def random_state() -> Any:
    """The state of torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), cuda


def set_random_state(state: Any) -> None:
    """Set the generators back."""
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


def coarsest(graph: GraphModule) -> torch.dtype:
    """The dtype of lowest precision that a graph computes in."""
    values = pytree.tree_leaves([n.meta.get("val") for n in graph.graph.nodes])
    dtypes = {v.dtype for v in values if isinstance(v, Tensor) and v.dtype in TOLERANCE}
    return max(dtypes, key=TOLERANCE.__getitem__, default=torch.float64)


def generators(graph: GraphModule, table: Table) -> frozenset[int]:
    """Which results of a graph are states of random generators, by the rules of the ops."""

    def is_state(node: Any) -> bool:
        if not isinstance(node, Node) or node.target is not operator.getitem:
            return False
        source, index = arguments(node)
        rule = table.get(source.target)
        return rule is not None and rule.generator_at is not None and index >= rule.generator_at

    return frozenset(i for i, node in enumerate(outputs(graph)) if is_state(node))


def difference(
    got: Any,
    wanted: Any,
    coarsest: torch.dtype = torch.float64,
    but: frozenset[int] = frozenset(),
) -> str | None:
    """What differs between the results of two graphs by more than rounding; None if nothing.

    Args:
        but: results that may differ.
    """
    pairs = list(zip(got, wanted, strict=True))
    floats = [w for _, w in pairs if isinstance(w, Tensor) and w.is_floating_point()]
    largest = max((peak(w) for w in floats), default=0.0)
    for i, (a, b) in enumerate(pairs):
        if not isinstance(b, Tensor):
            if a != b:
                return f"result {i} is {a} instead of {b}"
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"result {i} has shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        if i in but:
            continue
        if not b.is_floating_point():
            if b.numel() and (a != b).float().mean() > TIPPED:
                return f"result {i} of dtype {b.dtype} differs"
            continue
        if bool((torch.isfinite(a) != torch.isfinite(b)).any()):
            return f"result {i} is finite at other places"
        gap, scale = peak(a.double() - b.double()), max(peak(b), FLOOR * largest)
        if gap > max(TOLERANCE[b.dtype], TOLERANCE[coarsest]) * scale:
            return f"result {i} of shape {tuple(b.shape)} is off by {gap / scale:.1e}"
    return None


def peak(x: Tensor) -> float:
    """The largest finite magnitude."""
    return (
        float(torch.nan_to_num(x.detach().double(), 0.0, 0.0, 0.0).abs().max())
        if x.numel()
        else 0.0
    )
