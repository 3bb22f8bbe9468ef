"""What every test compares with: plain autograd, one sample at a time.

The local run of sample i is the model on a batch that holds sample i alone. Its gradient is
what fxdp must find for that sample, and it is found here without any of fxdp's code.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxdp

# For each dtype of parameters: relative and absolute tolerance.
TOLERANCES = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (5e-2, 2e-2),
    torch.float16: (2e-2, 5e-3),
}
BatchDims = Mapping[str, int | None] | int


def axes_of(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dims: BatchDims,
    has_target: bool,
) -> list[int | None]:
    """The axis of the samples of each tensor among the arguments, flattened."""
    own = len(args) - has_target
    names = list(inspect.signature(model.forward).parameters)
    keys = [*(names[i] if i < len(names) else "" for i in range(own)), *["target"] * has_target]
    wanted = [dims.get(k, 0) if isinstance(dims, Mapping) else dims for k in (*keys, *kwargs)]
    return [
        d if isinstance(leaf, Tensor) else None
        for value, d in zip((*args, *kwargs.values()), wanted, strict=True)
        for leaf in pytree.tree_leaves(value)
    ]


def alone(x: Any, dim: int | None, i: int) -> Any:
    """Sample i as a batch of its own."""
    return x if dim is None else x.narrow(dim, i, 1)


def local_loss(
    model: nn.Module, loss_fn: Callable[..., Tensor] | None, args: Any, kwargs: Any
) -> Tensor:
    """The loss of a batch of one sample, 0-d."""
    if loss_fn is not None:
        *args, target = args
        loss = loss_fn(model(*args, **kwargs), target)
    else:
        out = model(*args, **kwargs)
        loss = (
            out if isinstance(out, Tensor) else out["loss"] if isinstance(out, dict) else out.loss
        )
    return loss.sum()


def per_sample(
    model: nn.Module,
    loss_fn: Callable[..., Tensor] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    n: int,
    dims: BatchDims = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients [N, *shape] of every parameter that has one, and their norms [N]."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    axes = axes_of(model, args, kwargs, dims, loss_fn is not None)
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {}
    for i in range(n):
        own = [alone(x, d, i) for x, d in zip(leaves, axes, strict=True)]
        loss = local_loss(model, loss_fn, *pytree.tree_unflatten(own, spec))
        grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, grad in zip(trained, grads, strict=True):
            if grad is not None:
                rows.setdefault(name, []).append(grad)
    each = {name: torch.stack(grads) for name, grads in rows.items()}
    return each, norms(each)


def norms(each: dict[str, Tensor]) -> Tensor:
    """[N] norms over all parameters, in float32 at least."""
    wide = [g.float() if g.dtype in (torch.float16, torch.bfloat16) else g for g in each.values()]
    return torch.stack([g.unsqueeze(-1).flatten(1).square().sum(1) for g in wide]).sum(0).sqrt()


def clipped_sum(
    each: dict[str, Tensor], max_grad_norm: float, expected: float
) -> dict[str, Tensor]:
    """What is released without noise: (sum_i min(1, C / |g_i|) g_i) / L."""
    factor = (max_grad_norm / norms(each)).clamp(max=1)
    return {
        name: torch.einsum("n,n...->...", factor.to(g.dtype), g) / expected
        for name, g in each.items()
    }


def compare(
    model: nn.Module,
    *args: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    strategy: str = "auto",
    batch_dims: BatchDims = 0,
    tolerance: tuple[float, float] | None = None,
    each: bool = False,
    **kwargs: Any,
) -> fxdp.PrivateModule:
    """Step a model with fxdp and assert that it agrees with the oracle.

    The clip bound lies between the smallest and the largest norm, so that some samples are
    clipped and others are not; the expected batch size is not the actual one.

    Args:
        *args, **kwargs: of one step; with a loss_fn the last positional one is the target.
        tolerance: relative and absolute, if not the usual ones of the model's dtype.
        each: compare `per_sample_grads` too, which costs a second compilation: of the same code
            whatever the strategy, so that each kind of parameter asks for it once.
    """
    axes = axes_of(model, args, kwargs, batch_dims, loss_fn is not None)
    leaves = pytree.tree_leaves((args, kwargs))
    n = next(x.shape[d] for x, d in zip(leaves, axes, strict=True) if d is not None)
    rows, sizes = per_sample(model, loss_fn, args, kwargs, n, batch_dims)
    bound, expected = float(sizes.median() + sizes.max()) / 2, float(n + 1)
    if tolerance is None:
        tolerance = TOLERANCES[next(p.dtype for p in model.parameters() if p.requires_grad)]
    rtol, atol = tolerance

    def agree(got: Tensor, want: Tensor, what: str) -> None:
        assert got.shape == want.shape, what
        torch.testing.assert_close(
            got.to(want.dtype), want, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}"
        )

    torch._dynamo.reset()
    private = fxdp.compile(
        model,
        loss_fn=loss_fn,
        max_grad_norm=bound,
        noise_multiplier=0.0,
        expected_batch_size=expected,
        backend="eager",
        batch_dims=batch_dims,
        options={"strategy": strategy},
    )
    model.zero_grad(set_to_none=True)
    out = private(*args, **kwargs)
    (out if isinstance(out, Tensor) else out["loss"]).backward()
    want = clipped_sum(rows, bound, expected)
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == want.keys()
    for name, grad in got.items():
        agree(grad, want[name], f"gradient of {name}")
    agree(private.per_sample_norms(*args, **kwargs), sizes, "norms")
    assert private._stepper.record.compilations == 1, "a second call was captured anew"
    if each:
        found = private.per_sample_grads(*args, **kwargs)
        assert found.keys() == rows.keys()
        for name, grad in rows.items():
            agree(found[name], grad, f"per-sample gradients of {name}")
    return private


class Branches(nn.Module):
    """Several modules on the same input, and a loss [N] in which all of them count.

    One compilation tests all of them, and the name of a parameter says whose gradient is wrong.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(modules)

    def forward(self, *x: Tensor) -> Tensor:
        return sum(score(module(*x)) for module in self.branches)


class Applied(nn.Module):
    """Functions of one linear layer's output, whose gradient is wrong if any of theirs is; a loss
    [N]."""

    def __init__(self, width: int, **functions: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return sum(score(f(h)) for f in self.functions.values())


def score(out: Tensor) -> Tensor:
    """[N] from [N, ...]: a function with another slope for every element."""
    flat = out.reshape(out.shape[0], -1)
    slopes = torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype, device=flat.device)
    return (flat + slopes).sin().sum(1)
