"""What a claim says, held against runs on one sample each.

The whole batch goes through the graph that fxdp made; each sample alone goes through plain
PyTorch, which knows nothing of fxdp. A claim is the relation between the two.
"""

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from fxdp.graph import marks
from fxdp.graph.nodes import placement
from fxdp.placement import Iota, Partial, Placement, Replicate, Shard
from tools.soundness.programs import COTANGENT, SCALES, Program, gradients_of

# Relative tolerance for each dtype.
CLOSE = {
    torch.float32: 1e-4, torch.complex64: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1,
}  # fmt: skip


class Whole(Interpreter):
    """The run of the whole batch.

    A total over the batch that has local values is, to a sum over samples, the sum of those.

    Args:
        cotangents: makes the cotangent of a result, from its number, value and placement.
    """

    def __init__(self, gm: GraphModule, cotangents: Callable[[int, Tensor, Any], Tensor]) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.cotangents = cotangents

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Marks compute nothing, and raise where they are called; here they are what they mean."""
        if target in (marks.samples.default, marks.shown.default):
            return args[0].clone()
        if target is marks.release.default:
            return args[0].mean()
        if target is marks.seed.default:
            return torch.ones_like(args[1])
        return super().call_function(target, args, kwargs)

    def run_node(self, n: Node) -> Any:
        if n.target is COTANGENT:
            out, index = n.args
            return self.cotangents(index, self.env[out], placement(out))  # type: ignore[arg-type,index]
        return super().run_node(n)

    def fetch_args_kwargs_from_env(self, n: Node) -> Any:
        if not isinstance(placement(n), Partial) or "twin" in n.meta:
            return super().fetch_args_kwargs_from_env(n)
        return pytree.tree_map_only(Node, self.summed, (n.args, dict(n.kwargs)))

    def summed(self, node: Node) -> Any:
        twin = node.meta.get("twin")
        return self.env[node] if twin is None else self.env[twin].sum(0)


def run_whole(
    gm: GraphModule,
    program: Program,
    tensors: Sequence[Tensor],
    cotangents: Callable[[int, Tensor, Any], Tensor] = lambda i, o, at: torch.ones_like(o),
) -> Whole:
    """The graph's values on a batch."""
    n = size_of(tensors, program.dims)
    scales = [torch.ones(()) for _ in range(SCALES)]
    mask, loss = torch.ones(n, dtype=torch.bool), torch.zeros(n)
    run = Whole(gm, cotangents)
    with torch.no_grad():
        run.run(n, mask, torch.ones(()), loss, *scales, *tensors, enable_io_processing=False)
    return run


def size_of(tensors: Sequence[Tensor], dims: Sequence[int | None]) -> int:
    return next(x.shape[d] for x, d in zip(tensors, dims, strict=True) if d is not None)


def alone(tensors: Sequence[Tensor], dims: Sequence[int | None], i: int) -> list[Tensor]:
    """Sample i as a batch of its own."""
    return [x if d is None else x.narrow(d, i, 1) for x, d in zip(tensors, dims, strict=True)]


def run_plain(
    program: Program, tensors: Sequence[Tensor], cotangents: Callable[[int, Tensor], Tensor]
) -> list[Tensor | None]:
    """Results and gradients by PyTorch alone."""
    leaves = [
        x.detach().clone().requires_grad_(w) for x, w in zip(tensors, program.wanted, strict=True)
    ]
    with torch.enable_grad():
        # A program may write to its inputs, which leaves must not be.
        outs = program.function(*(x * 1 if x.requires_grad else x for x in leaves))
        wanted = [x for x, w in zip(leaves, program.wanted, strict=True) if w]
        grads = gradients_of(outs, wanted, cotangents)
    return [*(o.detach() for o in outs), *grads]


def slice_of(x: Tensor, at: Shard, i: int, n: int) -> Tensor:
    """What a tensor holds of sample i."""
    rows = x.unflatten(at.dim, (-1, n, int(at.inner)))
    return rows.select(at.dim + 1, i).flatten(at.dim, at.dim + 1)


def own_cotangent(back: Tensor, out: Tensor, at: Placement, i: int, n: int) -> Tensor:
    """What a result's cotangent is for sample i."""
    own = slice_of(back, at, i, n) if isinstance(at, Shard) else back
    return own.reshape(out.shape).to(out.dtype)


def same(a: Tensor, b: Tensor, scale: float = 1.0) -> bool:
    """Equal up to rounding."""
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    close = max(CLOSE.get(x.dtype, 1e-7) for x in (a, b))
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    size = torch.nan_to_num(b.abs(), 0.0, 0.0, 0.0).max().item()
    return torch.allclose(a, b, rtol=close, atol=close * max(size, scale), equal_nan=True)


def counted(at: Iota, x: Tensor) -> Tensor:
    count = torch.arange(x.shape[at.dim]) // int(at.inner) * int(at.step)
    return count.reshape(-1, *[1] * (x.dim() - at.dim - 1)).expand(x.shape)


def fitting(local: Tensor, shape: Sequence[int]) -> Tensor:
    """A local value; torch drops the batch axis of size 1 where N samples would keep it."""
    dropped = [s for s in shape if s != 1] == [s for s in local.shape if s != 1]
    return local.reshape(shape) if dropped else local


def trouble(at: Placement, whole: Tensor, locals_: Sequence[Tensor]) -> str | None:
    """What is not true about a claim; None if it is true."""
    n = len(locals_)
    if len({x.shape for x in locals_}) > 1:
        return "the local results have several shapes"
    match at:
        case Replicate(zero):
            if zero and bool((whole != 0).any()):
                return "the result is not zero"
            return None if all(same(whole, x) for x in locals_) else "samples differ"
        case Shard(dim, inner):
            if dim >= whole.dim() or whole.shape[dim] % (n * int(inner)):
                return f"shape {tuple(whole.shape)} does not hold {n} samples"
            own = [slice_of(whole, at, i, n) for i in range(n)]
            pairs = [(a, fitting(b, a.shape)) for a, b in zip(own, locals_, strict=True)]
            good = all(same(a, b) for a, b in pairs)
            return None if good else "a sample's slice is not its local value"
        case Iota():
            good = same(whole.double(), counted(at, whole).double())
            return None if good else "the result does not count samples"
        case Partial():
            return None if same(whole, torch.stack(list(locals_)).sum(0)) else "it is not the sum"


def value_of(run: Whole, node: Node) -> tuple[Placement, Tensor]:
    """A result of the graph with its claim: a total's local values where there are some."""
    at, twin = placement(node), node.meta.get("twin")
    assert at is not None
    return (Shard(0), run.env[twin]) if twin is not None else (at, run.env[node])


def candidates(whole: Tensor, locals_: Sequence[Tensor]) -> list[Placement]:
    """Placements that fit the shapes of a result."""
    n, own = len(locals_), locals_[0].shape
    if whole.shape == own:
        return [Replicate(), Partial()]
    found: list[Placement] = []
    if whole.dim() == len(own):
        differ = [d for d in range(whole.dim()) if whole.shape[d] != own[d]]
        if len(differ) == 1 and whole.shape[differ[0]] == n * own[differ[0]]:
            size = own[differ[0]]
            inners = [i for i in range(1, size + 1) if size % i == 0]
            found = [Shard(differ[0], sympy.Integer(i)) for i in inners]
    return found


def held(whole: Tensor, locals_: Sequence[Tensor]) -> Placement | None:
    """A placement that brute force finds to hold, if there is one."""
    good = (p for p in candidates(whole, locals_) if trouble(p, whole, locals_) is None)
    return next(good, None)
