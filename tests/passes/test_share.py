"""One Gram matrix for all norms that it is in."""

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from fxdp.graph.nodes import outputs
from fxdp.kernels.ghost import ghost_outer, ghost_outers
from fxdp.passes.share import best, norms, numbered
from tests.oracle import compare
from tests.passes.graphs import Run, block, cut, made, passed, sequence, sum_square

GHOST, GHOSTS = ghost_outer.default, ghost_outers.default


class Heads(nn.Module):
    """A query, a key and a value of one input; the value's layer is the widest."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)


class Gates(nn.Module):
    """Two weights behind one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(3, 4, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.x(x) + self.h(x[..., :2])


class Steps(nn.Module):
    """A recurrent layer: weights for its input and its state, behind the gradient of its gates."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def run_of(model: nn.Module, last: str = "share") -> Run:
    x = torch.zeros(4, 5, 3)
    return passed(model, sum_square, x, torch.zeros(4), last=last, strategy="ghost")


def count(run: Run) -> tuple[int, list[int]]:
    """Norms that are alone, and how many are in each group."""
    graph = run.gm.graph
    groups = graph.find_nodes(op="call_function", target=GHOSTS)
    return len(graph.find_nodes(op="call_function", target=GHOST)), [len(g.args[1]) for g in groups]


def test_layers_of_one_input() -> None:
    assert count(run_of(Heads(), "measure")) == (3, [])
    run = run_of(Heads())
    assert count(run) == (0, [3])
    assert cut(run.texts["share"], "ghost_outers(", "unbind_2[0]") == block("""
        ghost_outers = fxdp.ghost_outers(^reshape, [^reshape, ^reshape, ^reshape])
        unbind = unbind(ghost_outers)
        getitem = unbind[0]
    """)


def test_weights_behind_one_gradient() -> None:
    assert count(run_of(Gates())) == (0, [2])


def test_nothing_in_common() -> None:
    """The graph stays as it is."""
    texts = sequence("share", "ghost").texts
    assert texts["share"] == texts["weigh"]


def test_the_norms_are_the_same() -> None:
    """Of one query, key and value, of a recurrent layer, and of two layers that are added."""
    torch.manual_seed(0)
    model = nn.Sequential(Heads(), nn.Linear(4, 3), Steps(), Gates()).double()
    x, y = torch.randn(4, 5, 3, dtype=torch.double), torch.zeros(4)
    private = compare(model, x, y, loss_fn=sum_square, strategy="ghost")
    found = private.graph_module.graph.find_nodes(op="call_function", target=GHOSTS)
    assert sorted(len(node.args[1]) for node in found) == [2, 2, 3]


def test_what_is_worth_most_goes_first() -> None:
    """Two norms may share either the wide operand or the narrow one."""

    def function(wide: Tensor, narrow: Tensor, other: Tensor) -> Any:
        return GHOST(wide, narrow), GHOST(narrow.clone(), wide.clone()), GHOST(narrow, other)

    run = sequence("measure", "ghost")
    gm = made(function, torch.zeros(2, 3, 9), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    gm.meta["study"] = run.study
    left = gm.graph.find_nodes(op="call_function", target=GHOST)
    number = numbered(gm.graph)
    found = best(gm, left, number)
    assert found is not None
    common, others = found
    assert common.name == "narrow_1"  # twice 4 numbers, where the wide one saves 0 times 9
    assert [n.name for n in others.values()] == ["wide_1", "other_1"]


def test_equal_values_have_equal_numbers() -> None:
    """What is called alike on the same values; not what draws, and not what another type makes."""

    def function(x: Tensor) -> Any:
        same = [x.exp().sin(), x.exp().sin()]
        drawn = [torch.rand_like(x), torch.rand_like(x)]
        return [*same, *drawn, x + 1, x + 1.0, x.sum(0), x.sum(1)]

    gm = made(function, torch.zeros(2, 2))
    number = numbered(gm.graph)
    found = [number[n] for n in outputs(gm)]
    assert found[0] == found[1]
    assert len(set(found)) == len(found) - 1


def test_what_holds_a_graph_is_not_looked_into() -> None:
    """It may draw: two calls of `cond` are two values."""
    graph = Graph()
    x = graph.placeholder("x")
    first, second = (
        graph.call_function(torch.ops.higher_order.cond, (True, x, x, (x,))) for _ in range(2)
    )
    sizes = [graph.call_function(operator.add, (1, 2)) for _ in range(2)]
    number = numbered(graph)
    assert number[first] != number[second]
    assert number[sizes[0]] == number[sizes[1]]


def test_each_norm_is_that_of_its_own() -> None:
    a, b, c = (torch.randn(2, 3, k) for k in (2, 4, 5))
    one, other = norms(a, [b, c])
    torch.testing.assert_close(one, GHOST(a, b))
    torch.testing.assert_close(other, GHOST(a, c))
