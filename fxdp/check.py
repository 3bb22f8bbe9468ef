"""No generated code is trusted unseen.

Inductor has compiled gradients wrongly without a word (torch 2.13, CPU: a convolution, relu, a
max-pool of stride 1 and a linear layer). So each compiled graph runs beside the graph that it
was made from, once, on the first inputs it gets; where they differ, the graph itself takes its
place for good, with a warning.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdp.torch_internals import clone_preserve_strides, pytree

Boxed = Callable[[list[Any]], Any]

# Largest difference, relative to the largest value, that rounding may explain.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
# A value this small beside the largest of all results is nothing but rounding.
FLOOR = 1e-4
# The share of masks and indices that rounding may tip over.
TIPPED = 1e-2


class MiscompilationWarning(UserWarning):
    """Compiled code computed something else than its graph."""


class Checked:
    """A compiled graph that proves itself at its first call.

    Guarantees:
        - No result of the compiled graph is returned before it agreed with the eager graph on
          the same inputs, in the same state of the random generators.
        - With a noise multiplier among the inputs, they agreed twice: at multiplier 0, so that
          the clipped sums themselves are compared, and with the noise.
        - On a difference the results of the eager graph are returned, now and ever after.

    Args:
        compiled: the compiled graph, called with a list of inputs that it may empty.
        eager: the same graph, run op by op.
        noise: which input is the noise multiplier.
        fallbacks: where to note a difference.
        coarsest: the dtype of lowest precision in the graph: what went through it agrees no
            better, whatever the dtype of the result.
    """

    def __init__(
        self,
        compiled: Boxed,
        eager: Boxed,
        noise: int | None,
        fallbacks: list[str],
        coarsest: torch.dtype = torch.float64,
    ) -> None:
        self.compiled, self.eager = compiled, eager
        self.noise, self.fallbacks = noise, fallbacks
        self.coarsest = coarsest
        self.run = self.first
        self._boxed_call = True  # AOTAutograd asks; in the instance, where wrappers find it

    def __call__(self, args: list[Any]) -> Any:
        return self.run(args)

    def first(self, args: list[Any]) -> Any:
        """The first call: both graphs run, and one of them is chosen."""
        state, trouble = random_state(), None
        if self.noise is not None:
            silent = list(args)
            silent[self.noise] = torch.zeros_like(args[self.noise])
            trouble = self.trouble(silent)
        if self.noise is None or (trouble is None and bool(args[self.noise] != 0)):
            trouble = self.trouble(args)
        self.run = self.compiled if trouble is None else self.eager
        if trouble is not None:
            half = "forward" if self.noise is None else "backward"
            self.fallbacks.append(f"{half} graph: {trouble}")
            warnings.warn(
                f"fxdp: compiled code differs from its {half} graph ({trouble}); "
                "the graph runs eagerly instead",
                MiscompilationWarning,
                stacklevel=2,
            )
        set_random_state(state)
        return self.run(args)

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
        return difference(got, wanted, self.coarsest)


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


def difference(got: Any, wanted: Any, coarsest: torch.dtype = torch.float64) -> str | None:
    """What differs between the results of two graphs by more than rounding; None if nothing."""
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
