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
from torch.utils import _pytree as pytree

from fxdp.capture import BatchDims, Inputs, gather, local_loss
from fxdp.compiler import compile  # noqa: A004
from fxdp.ops import RULES
from fxdp.outcome import Outcome
from fxdp.private_module import PrivateModule
from fxdp.report import as_text
from fxdp.rules import Table

TOLERANCES = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-5, 1e-4)}
COARSE = (1e-2, 1e-1)


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


def verify(
    model: nn.Module,
    *args: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    batch_dims: BatchDims = 0,
    strategy: str = "auto",
    backend: str = "eager",
    rules: Table = RULES,
    atol: float | None = None,
    rtol: float | None = None,
    **kwargs: Any,
) -> Verification:
    """Compare compiled per-sample gradients, norms and clipped sums with plain autograd.

    For several batch sizes up to the given one, every sample is run alone; then one sample is
    replaced and every other sample's gradient must stay the same, bit by bit. Dropout is off
    meanwhile. `p.grad`, buffers and the random generators are left as they were.

    Args:
        model, loss_fn, batch_dims, strategy, backend, rules: as for `fxdp.compile`.
        *args, **kwargs: the arguments of a step with at least two samples.
        atol, rtol: for every comparison; by default 1e-9 in float64, 1e-5 and 1e-4 in float32,
            1e-2 and 1e-1 below that.

    Raises:
        ProofError: the model cannot be proven.
        ValueError: fewer than two samples.
    """
    inputs = gather(model, args, kwargs, batch_dims, loss_fn is not None)
    if inputs.size < 2:
        raise ValueError(f"verify needs at least 2 samples to compare, and got {inputs.size}")
    findings: list[Finding] = []
    with undisturbed(model):
        alone = one_at_a_time(model, loss_fn, inputs)
        bound = float(norms_of(alone).median().clamp(min=1e-12))
        private = compile(
            model, loss_fn=loss_fn, max_grad_norm=bound, noise_multiplier=0.0,
            expected_batch_size=1.0, strategy=strategy, backend=backend, batch_dims=batch_dims,
            rules=rules, mesh=None,
        )  # fmt: skip
        limits = (atol, rtol)
        for size in sorted({1, 2, inputs.size // 2 + 1, inputs.size}):
            findings += compared(private, rows(inputs, range(size)), alone, bound, limits)
        findings += neighbours(private, inputs)
    return Verification(tuple(findings))


def one_at_a_time(
    model: nn.Module, loss_fn: Callable[..., Any] | None, inputs: Inputs
) -> dict[str, Tensor]:
    """{parameter: [N, *shape]}: the gradient of each sample alone; None counts as zero."""
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    found: list[tuple[Tensor | None, ...]] = []
    for i in range(inputs.size):
        one = rows(inputs, [i])
        args, kwargs = pytree.tree_unflatten(one.leaves, one.spec)
        loss, _ = local_loss(model, loss_fn, args, kwargs)
        found.append(torch.autograd.grad(loss.sum(), list(trained.values()), allow_unused=True))
    return {
        name: torch.stack([torch.zeros_like(p) if g[k] is None else g[k] for g in found])  # type: ignore[misc]
        for k, (name, p) in enumerate(trained.items())
        if any(g[k] is not None for g in found)
    }


def rows(inputs: Inputs, picked: Any) -> Inputs:
    """Some samples of a batch."""
    leaves: list[Any] = []
    for x, dim in zip(inputs.leaves, inputs.dims, strict=True):
        index = torch.tensor(list(picked), device=inputs.device)
        leaves.append(x if dim is None else x.index_select(dim, index))
    return Inputs(tuple(leaves), inputs.dims, inputs.names, inputs.spec, len(list(picked)))


def norms_of(each: dict[str, Tensor]) -> Tensor:
    """[N] norms over all parameters, in float64."""
    return torch.stack([g.double().flatten(1).square().sum(1) for g in each.values()]).sum(0).sqrt()


def compared(
    private: PrivateModule, inputs: Inputs, alone: dict[str, Tensor], bound: float,
    limits: tuple[float | None, float | None],
) -> list[Finding]:  # fmt: skip
    """Per-sample gradients, norms and clipped sums of the first samples."""
    size = inputs.size
    args, kwargs = pytree.tree_unflatten(inputs.leaves, inputs.spec)
    wanted = {k: g[:size] for k, g in alone.items()}
    each = private.per_sample_grads(*args, **kwargs)
    norms = norms_of(wanted)
    factor = (bound / norms).clamp(max=1)
    found = [check(k, "per-sample", size, each.get(k), g, limits) for k, g in wanted.items()]
    found.append(
        check("norms", "norms", size, private.per_sample_norms(*args, **kwargs), norms, limits)
    )
    sums = step(private, args, kwargs)
    for name, g in wanted.items():
        clipped = (g.double() * factor.reshape(-1, *[1] * (g.dim() - 1))).sum(0)
        found.append(check(name, "clipped sum", size, sums.get(name), clipped, limits))
    return found


def step(private: PrivateModule, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """What one step would add to each gradient."""
    out = private(*args, **kwargs)
    if isinstance(out, tuple | Outcome):
        out = out.loss if isinstance(out, Outcome) else out[0]
    trained = {k: p for k, p in private.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(out, list(trained.values()), allow_unused=True)
    found: list[tuple[str, Tensor | None]] = list(zip(trained, grads, strict=True))
    return {k: g for k, g in found if g is not None}


def neighbours(private: PrivateModule, inputs: Inputs) -> list[Finding]:
    """Replace one sample by a copy of another: nobody else's gradient may move, not by a bit."""
    others = list(range(inputs.size))
    others[0] = 1
    before = rows(inputs, range(inputs.size))
    after = rows(inputs, others)
    grads = [
        private.per_sample_grads(*args, **kwargs)
        for args, kwargs in (pytree.tree_unflatten(i.leaves, i.spec) for i in (before, after))
    ]
    found: list[Finding] = []
    for name, was in grads[0].items():
        gap = (grads[1][name][1:] - was[1:]).abs().max().item()
        same = torch.equal(grads[1][name][1:], was[1:])
        found.append(Finding(name, "neighbour", inputs.size, gap, same))
    return found


def check(
    name: str, kind: str, size: int, got: Tensor | None, wanted: Tensor,
    limits: tuple[float | None, float | None],
) -> Finding:  # fmt: skip
    """One comparison, in the tolerance of the dtype of what was compiled."""
    if got is None or got.shape != wanted.shape:
        return Finding(name, kind, size, float("inf"), clean=False)
    known = TOLERANCES.get(got.dtype, COARSE)
    atol, rtol = (k if given is None else given for k, given in zip(known, limits, strict=True))
    gap = (got.double() - wanted.double()).abs()
    clean = bool((gap <= atol + rtol * wanted.double().abs()).all())
    return Finding(name, kind, size, float(gap.max()) if gap.numel() else 0.0, clean)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Training mode without dropout; modes, buffers and generators are put back."""
    modes = {m: m.training for m in model.modules()}
    rates = {
        m: m.dropout for m in model.modules() if isinstance(getattr(m, "dropout", None), float)
    }
    buffers = {b: b.clone() for b in model.buffers()}
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            model.train()
            for m in model.modules():
                if isinstance(m, nn.modules.dropout._DropoutNd):
                    m.eval()
            for m in rates:
                setattr(m, "dropout", 0.0)  # noqa: B010 - no attribute that nn.Module declares
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for m, rate in rates.items():
            setattr(m, "dropout", rate)  # noqa: B010
        with torch.no_grad():
            for b, was in buffers.items():
                b.copy_(was)
