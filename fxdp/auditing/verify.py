"""The oracle as a user's tool: one sample at a time, by plain autograd, against the compiled step.

A proof speaks of the graph; this runs the code. It is slow, it looks at one batch, and it finds
what a proof cannot: a wrong kernel, a wrong rule that you added, a graph that was compiled
wrongly.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table as RichTable
from torch import Tensor, nn

from fxdp.backend.check import coarsest
from fxdp.backend.options import Options
from fxdp.backend.settings import Backend
from fxdp.capture.inputs import BatchDims, Inputs, gather
from fxdp.capture.naming import module_behind, parameters
from fxdp.capture.step import local_loss
from fxdp.compiler import compile  # noqa: A004
from fxdp.graph.report import as_text
from fxdp.module.output import loss_of
from fxdp.module.private_module import PrivateModule
from fxdp.ops import RULES
from fxdp.rules import Table
from fxdp.torch_internals import DropoutBase, pytree

TOLERANCES = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-5, 1e-4)}
# In half precision, of the largest element of a gradient: where terms cancel, what is left has
# the rounding errors of the terms, and gradients may be of any size compared with a fixed number.
COARSE = 1e-1


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        parameter: what was compared: a parameter, or "norms".
        check: how: per-sample gradients, clipped sum, or the neighbour test.
        batch: the number of samples.
        error: the largest absolute difference; inf where shapes differ.
        clean: whether it is within tolerance.
    """

    parameter: str
    check: str
    batch: int
    error: float
    clean: bool


@dataclass(frozen=True)
class Verification:
    """All comparisons; true if every one is clean, and printable as a table."""

    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return all(f.clean for f in self.findings)

    @property
    def faults(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if not f.clean)

    def __rich__(self) -> RenderableType:
        table = RichTable("parameter", "check", "batch", "largest error", "")
        for f in self.findings:
            verdict = "ok" if f.clean else "WRONG"
            table.add_row(f.parameter, f.check, str(f.batch), f"{f.error:.1e}", verdict)
        return table

    def __str__(self) -> str:
        return as_text(self)


@dataclass(frozen=True)
class Compared:
    """A model and its compiled step, side by side.

    Attributes:
        model, loss_fn: what is verified.
        private: the compiled step, without noise.
        alone: the gradients of each sample alone, [N, *shape], by parameter.
        bound: the clip bound of the step.
        limits: atol and rtol; None for those of the dtype.
        buffers: of the model and the loss, with their values.
    """

    model: nn.Module
    loss_fn: Callable[..., Any] | None
    private: PrivateModule
    alone: dict[str, Tensor]
    bound: float
    limits: tuple[float | None, float | None]
    buffers: dict[Tensor, Tensor]


def verify(
    model: nn.Module,
    *args: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    batch_dims: BatchDims = 0,
    rules: Table = RULES,
    backend: Backend = "eager",
    options: Options | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    **kwargs: Any,
) -> Verification:
    """Compare compiled per-sample gradients, norms and clipped sums with plain autograd.

    For several batch sizes up to the given one, every sample is run alone; then one sample is
    replaced and every other sample's gradient must stay the same, bit by bit (where arguments are
    ragged, up to rounding: other rows are summed up in another order). Each submodule is in the
    mode that it is in, training or eval, but dropout is off meanwhile, and every run starts with
    the buffers as they are. `p.grad`, buffers, modes and the random generators are left as they
    were.

    ==========================  ===========================================================
    case                        what happens
    ==========================  ===========================================================
    one sample                  compared; there is no other sample for the neighbour test
    no sample                   ValueError
    a module in eval mode       verified so: batch norm with the statistics that it has
    half precision anywhere     its tolerance counts for all that is compared
    parameters of a loss_fn     compared as the model's, as `loss_fn.weight`
    ==========================  ===========================================================

    Args:
        model, loss_fn, batch_dims, rules, backend, options: as for `fxdp.compile`.
        *args, **kwargs: the arguments of a step with at least one sample.
        atol, rtol: for every comparison; by default 1e-9 in float64, 1e-5 and 1e-4 in float32;
            where the step computes in half precision, a tenth of a gradient's largest element.

    Raises:
        ProofError: the model cannot be proven.
        ValueError: there is no sample.
    """
    inputs = gather(model, args, kwargs, batch_dims, loss_fn is not None)
    if inputs.size < 1:
        raise ValueError("verify needs at least 1 sample to compare, and got none")
    findings: list[Finding] = []
    with undisturbed(model, loss_fn) as buffers:
        private = compile(
            model, loss_fn=loss_fn, max_grad_norm=1.0, noise_multiplier=0.0,
            expected_batch_size=1.0, batch_dims=batch_dims, rules=rules, backend=backend,
            mesh=None, options=options,
        )  # fmt: skip
        private.training = True  # the wrapper's own: the model's submodules stay as they are
        private.per_sample_norms(*args, **kwargs)  # what cannot be proven may not run alone either
        restore(buffers)
        alone = one_at_a_time(model, loss_fn, inputs, buffers)
        private.max_grad_norm = bound = float(norms_of(alone).median().clamp(min=1e-12))
        both = Compared(model, loss_fn, private, alone, bound, (atol, rtol), buffers)
        for size in sorted({1, min(2, inputs.size), inputs.size // 2 + 1, inputs.size}):
            findings += compared(both, inputs.picked(range(size)))
        if inputs.size > 1:
            findings += neighbours(both, inputs)
    return Verification(tuple(findings))


def trained(model: nn.Module, loss_fn: Callable[..., Any] | None) -> dict[str, nn.Parameter]:
    """The parameters that get a gradient, by name."""
    return {k: p for k, p in parameters(model, loss_fn).items() if p.requires_grad}


def one_at_a_time(
    model: nn.Module,
    loss_fn: Callable[..., Any] | None,
    inputs: Inputs,
    buffers: dict[Tensor, Tensor],
) -> dict[str, Tensor]:
    """{parameter: [N, *shape]}: the gradient of each sample alone; None counts as zero."""
    wanted = trained(model, loss_fn)
    found: list[tuple[Tensor | None, ...]] = []
    for i in range(inputs.size):
        one = inputs.picked([i])
        args, kwargs = pytree.tree_unflatten(one.leaves, one.spec)
        loss, _ = local_loss(model, loss_fn, args, kwargs)
        found.append(torch.autograd.grad(loss.sum(), list(wanted.values()), allow_unused=True))
        restore(buffers)
    return {
        name: torch.stack([torch.zeros_like(p) if g[k] is None else g[k] for g in found])  # type: ignore[misc]
        for k, (name, p) in enumerate(wanted.items())
        if any(g[k] is not None for g in found)
    }


def apart(each: Tensor) -> Tensor:
    """[N, *shape] as [N, elements] in float64; a 0-d parameter has one."""
    return each.double().reshape(len(each), each[0].numel())


def norms_of(each: dict[str, Tensor]) -> Tensor:
    """[N] norms over all parameters, in float64."""
    return torch.stack([apart(g).square().sum(1) for g in each.values()]).sum(0).sqrt()


def compared(both: Compared, inputs: Inputs) -> list[Finding]:
    """Per-sample gradients, norms and clipped sums of the first samples."""
    size, private = inputs.size, both.private
    args, kwargs = pytree.tree_unflatten(inputs.leaves, inputs.spec)
    wanted = {k: g[:size] for k, g in both.alone.items()}
    norms = norms_of(wanted)
    factor = (both.bound / norms).clamp(max=1)
    each = private.per_sample_grads(*args, **kwargs)
    restore(both.buffers)
    got = private.per_sample_norms(*args, **kwargs)
    restore(both.buffers)
    sums = step(both, args, kwargs)
    restore(both.buffers)
    limits = Limits(*both.limits, coarsest(private.graph_module), float(norms.max()))
    found = [check(k, "per-sample", size, each.get(k), g, limits) for k, g in wanted.items()]
    found.append(check("norms", "norms", size, got, norms, limits))
    for name, g in wanted.items():
        clipped = (apart(g) * factor[:, None]).sum(0).reshape(g.shape[1:])
        found.append(check(name, "clipped sum", size, sums.get(name), clipped, limits))
    return found


def step(both: Compared, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """What one step would add to each gradient."""
    out = loss_of(both.private(*args, **kwargs))
    wanted = trained(both.model, both.loss_fn)
    grads = torch.autograd.grad(out, list(wanted.values()), allow_unused=True)
    found: list[tuple[str, Tensor | None]] = list(zip(wanted, grads, strict=True))
    return {k: g for k, g in found if g is not None}


def neighbours(both: Compared, inputs: Inputs) -> list[Finding]:
    """Replace one sample by a copy of another: nobody else's gradient may move, not by a bit."""
    others = list(range(inputs.size))
    others[0] = 1
    grads: list[dict[str, Tensor]] = []
    for picked in (range(inputs.size), others):
        some = inputs.picked(picked)
        args, kwargs = pytree.tree_unflatten(some.leaves, some.spec)
        grads.append(both.private.per_sample_grads(*args, **kwargs))
        restore(both.buffers)
    found: list[Finding] = []
    for name, was in grads[0].items():
        now, was = grads[1][name][1:], was[1:]
        gap = largest(now.double() - was.double())
        atol, rtol = TOLERANCES.get(now.dtype, TOLERANCES[torch.float32])
        clean = torch.equal(now, was)
        if inputs.owners:  # another number of rows is summed up in another order
            clean = gap <= atol + rtol * largest(was.double())
        found.append(Finding(name, "neighbour", inputs.size, gap, clean))
    return found


@dataclass(frozen=True)
class Limits:
    """How far two results may be apart.

    Attributes:
        atol, rtol: as the user wants them; None for those of the dtype.
        dtype: the one of lowest precision that the step computes in.
        norm: the largest norm of a sample's gradient.
    """

    atol: float | None
    rtol: float | None
    dtype: torch.dtype
    norm: float

    def of(self, wanted: Tensor) -> Tensor:
        """The limit for each element of `wanted`, float64."""
        size = wanted.abs()
        if self.dtype in TOLERANCES:
            known = TOLERANCES[self.dtype]
        else:
            # A gradient that is 0 in truth is rounding, of terms of the size of the others.
            around = COARSE * max(largest(wanted), torch.finfo(self.dtype).eps * self.norm)
            known = around, 0.0
        given = (self.atol, self.rtol)
        atol, rtol = (k if g is None else g for k, g in zip(known, given, strict=True))
        return atol + rtol * size


def largest(x: Tensor) -> float:
    """The largest magnitude; 0 of nothing."""
    return float(x.abs().max()) if x.numel() else 0.0


def check(
    name: str, kind: str, size: int, got: Tensor | None, wanted: Tensor, limits: Limits
) -> Finding:
    """One comparison, in the tolerance of what was compiled."""
    if got is None or got.shape != wanted.shape:
        return Finding(name, kind, size, float("inf"), clean=False)
    wanted = wanted.double()
    gap = (got.double() - wanted).abs()
    return Finding(name, kind, size, largest(gap), clean=bool((gap <= limits.of(wanted)).all()))


def restore(buffers: dict[Tensor, Tensor]) -> None:
    """Put buffers back: a step of training may have written to them."""
    with torch.no_grad():
        for b, was in buffers.items():
            b.copy_(was)


@contextlib.contextmanager
def undisturbed(
    model: nn.Module, loss_fn: Callable[..., Any] | None
) -> Iterator[dict[Tensor, Tensor]]:
    """Dropout off, and everything put back at the end; gives the buffers with their values."""
    loss = module_behind(loss_fn)
    parts = [*model.modules(), *(loss.modules() if loss is not None else ())]
    modes = {m: m.training for m in parts}
    rates = {m: m.dropout for m in parts if isinstance(getattr(m, "dropout", None), float)}
    buffers = {b: b.clone() for m in parts for b in m.buffers(recurse=False)}
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            for m in parts:
                if isinstance(m, DropoutBase):
                    m.training = False
            for m in rates:
                setattr(m, "dropout", 0.0)  # noqa: B010 - no attribute that nn.Module declares
            yield buffers
    finally:
        for m, mode in modes.items():
            m.training = mode
        for m, rate in rates.items():
            setattr(m, "dropout", rate)  # noqa: B010
        restore(buffers)
