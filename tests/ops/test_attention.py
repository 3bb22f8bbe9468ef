"""Fused attention as a GPU runs it: its rules and the checker's, on fake CUDA tensors; and on real
ones, where there are some."""

import itertools
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxdp.checker import families
from fxdp.checker.call import called
from fxdp.checker.claims import Replicate as Shared
from fxdp.checker.claims import Shard as Held
from fxdp.ops import RULES
from fxdp.placement import Mixed, Replicate, Shard
from fxdp.proof.placing import place
from tests.ops.placements import world
from tests.oracle import compare, score

aten = torch.ops.aten
HEADS, LENGTH, WIDTH = 2, 16, 8
KINDS = ["flash", "efficient", "cudnn"]


def forward(kind: str, q: Any, k: Any, v: Any, bias: Any) -> tuple[Any, tuple[Any, ...]]:
    op = getattr(aten, f"_scaled_dot_product_{kind}_attention").default
    return op, (q, k, v) if kind == "flash" else (q, k, v, bias, True)


def backward(kind: str, grad: Any, *given: Any) -> tuple[Any, tuple[Any, ...]]:
    op = getattr(aten, f"_scaled_dot_product_{kind}_attention_backward").default
    q, k, v, bias, out = given
    if kind == "flash":
        found, lse, starts, ends, most_q, most_k, seed, offset, _ = out
        own = (found, lse, starts, ends, most_q, most_k, 0.0, False, seed, offset)
        return op, (grad, q, k, v, *own)
    if kind == "efficient":
        return op, (grad, q, k, v, bias, *out, 0.0, [True, True, True, bias is not None])
    found, lse, starts, ends, most_q, most_k, seed, offset, _ = out
    own = (found, lse, seed, offset, bias, starts, ends, most_q, most_k, 0.0, False)
    return op, (grad, q, k, v, *own)


class Written:
    """A graph of fake CUDA tensors, with what is claimed of each node."""

    def __init__(self) -> None:
        self.graph, (self.mode, self.n) = Graph(), world()
        self.symbol: sympy.Symbol = self.n.node.expr

    def tensor(self, *shape: Any, placement: Any) -> Node:
        node = self.graph.placeholder(f"in{len(self.graph.nodes)}")
        with self.mode:
            node.meta["val"] = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        node.meta["placement"] = placement
        return node

    def call(self, op: Any, args: Any) -> Node:
        node = self.graph.call_function(op, args)
        with self.mode:
            node.meta["val"] = op(*map_arg(args, lambda a: a.meta["val"]))
        node.meta["placement"] = place(node, self.symbol, RULES, False)
        return node

    def results(self, node: Node) -> list[Any]:
        """Of several results: a node for each tensor, and what is none as it is."""
        found: list[Any] = []
        values = node.meta["val"]
        for i, (value, at) in enumerate(zip(values, node.meta["placement"], strict=True)):
            if not isinstance(value, Tensor):
                found.append(value)
                continue
            part = self.graph.call_function(lambda x, i: x[i], (node, i))
            part.meta |= {"val": value, "placement": at}
            found.append(part)
        return found

    def is_believed(self, node: Node, placed: Any) -> bool:
        """Does the checker believe what is claimed of a node's results?"""
        claims = {m: (claim(m.meta["placement"]),) for m in node.all_input_nodes}
        call = called(node, claims, self.symbol)  # type: ignore[arg-type]
        assert not isinstance(call, str), call
        return families.attended(call, tuple(map(claim, placed)))


def claim(at: Any) -> Any:
    return None if at is None else Held(at.dim, at.inner) if isinstance(at, Shard) else Shared()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_stay_where_they_are(kind: str, axis: int, biased: bool) -> None:
    """On the batch axis or the head axis; forward and backward."""
    here, at = Written(), Shard(axis)
    batch = (here.n, HEADS) if axis == 0 else (HEADS, here.n)
    q, k, v, grad = (here.tensor(*batch, LENGTH, WIDTH, placement=at) for _ in range(4))
    bias = here.tensor(*batch, LENGTH, LENGTH, placement=at) if biased else None
    out = here.call(*forward(kind, q, k, v, bias))
    placed = out.meta["placement"]
    assert len(placed) == len(out.meta["val"])
    assert placed[:2] == (at, at)
    assert all(p in (None, Replicate()) for p in placed[2:])
    assert here.is_believed(out, placed)
    grads = here.call(*backward(kind, grad, q, k, v, bias, here.results(out)))
    assert grads.meta["placement"][:3] == (at, at, at)
    assert here.is_believed(grads, grads.meta["placement"])
    # The checker does not take any other word for it.
    assert not here.is_believed(out, (Replicate(), *placed[1:]))
    assert not here.is_believed(out, (Shard(1 - axis), *placed[1:]))
    assert not here.is_believed(grads, (at, at, Replicate(), *grads.meta["placement"][3:]))


@pytest.mark.parametrize("kind", KINDS)
def test_other_ways_are_refused(kind: str) -> None:
    """Samples along the axis that is attended, or on different axes, or shared keys of many."""
    here = Written()
    n = here.n
    shapes = {0: (n, HEADS, LENGTH, WIDTH), 1: (HEADS, n, LENGTH, WIDTH), 2: (1, 1, n, WIDTH)}
    for dims in itertools.product(shapes, repeat=3):
        if len(set(dims)) == 1 and dims[0] != 2:
            continue
        q, k, v = (here.tensor(*shapes[d], placement=Shard(d)) for d in dims)
        op, args = forward(kind, q, k, v, None)
        node = here.graph.call_function(op, args)
        with here.mode:  # results of any shape that fits: the placements alone are asked for
            x = q.meta["val"]
            node.meta["val"] = op(*forward(kind, x, x, x, None)[1])
        with pytest.raises(Mixed):
            place(node, here.symbol, RULES, False)


class Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.project, self.causal = nn.Linear(WIDTH, 3 * HEADS * WIDTH), causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3 * HEADS, WIDTH)).transpose(1, 2).chunk(3, 1)
        return score(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).float())


@pytest.mark.cuda
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind: str, causal: bool) -> None:
    one = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}.get(kind)
    backend = getattr(SDPBackend, one or "CUDNN_ATTENTION")
    x = torch.randn(4, LENGTH, WIDTH, device="cuda", dtype=torch.bfloat16)
    with sdpa_kernel(backend):
        compare(Attention(causal).to("cuda", torch.bfloat16), x)
