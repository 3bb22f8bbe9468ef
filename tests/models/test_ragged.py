"""Samples with as many rows as each has: bags of ids, graphs, and what is made of their rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.ragged import Sample, bag, bags, compare_rows, graph, graphs

pytestmark = pytest.mark.usefixtures("double")
GRAPHS: dict[str, Any] = {
    "x": fxdp.Ragged(index="batch"),
    "edge_index": fxdp.Ragged(points_to="x", dim=1),
    "edge_attr": fxdp.Ragged(like="edge_index"),
}
BAGS: dict[str, Any] = {
    "ids": fxdp.Ragged(offsets="offsets"),
    "weights": fxdp.Ragged(like="ids"),
}
# Rows of each sample. 3 is a width, too; there are as many nodes as samples, or edges; and none.
COUNTS = ((4, 0, 2, 3, 1, 2, 2), (3, 1), (2, 0, 1), (5,), (1,), (0,), (0, 0, 0))


def batches(one: Callable[[int], Sample], together: Callable[..., Sample], counts: Any = COUNTS):
    drawn = [[one(k) for k in each] for each in counts]
    return [(samples, together(samples)) for samples in drawn]


class Graphs(nn.Module):
    """Messages along edges, and pools of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.message = nn.Linear(3, 4), nn.Linear(4, 4)
        self.norm, self.last = nn.LayerNorm(4), nn.Linear(12, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor, y: Tensor
    ) -> Tensor:
        h = self.first(x).relu()
        source, target = edge_index
        sent = self.message(h)[source] * torch.sigmoid(edge_attr * self.scale)
        h = self.norm(torch.zeros_like(h).index_add(0, target, sent) + h)
        return F.cross_entropy(self.last(self.pooled(h, batch, len(y))), y)

    def pooled(self, h: Tensor, batch: Tensor, n: int) -> Tensor:
        spots = batch[:, None].expand_as(h)
        total = h.new_zeros(n, 4).index_add(0, batch, h)
        count = h.new_zeros(n).index_add(0, batch, h.new_ones(len(h)))
        squares = h.new_zeros(n, 4).scatter_add(0, spots, (h - (total[batch])).square())
        return torch.cat([total, total / count.clamp(min=1).unsqueeze(-1), squares], 1)


def test_graphs_agree_with_a_loop_over_the_samples() -> None:
    torch.manual_seed(0)
    private = compare_rows(Graphs(), batches(graph, graphs), batch_dims=GRAPHS)
    assert private._stepper.record.compilations == 1
    assert private.last_nonfinite == 0
    torch.manual_seed(1)
    batch = graphs([graph(k) for k in (2, 0, 3)])
    with private.accumulate():
        private(**batch).backward()
    assert fxdp.verify(private._model, **batch, batch_dims=GRAPHS)
    listed = [a.what for a in private.certificate().assumptions]
    for name in ("x", "edge_index", "edge_attr", "batch"):
        assert f"public: the number of rows of `{name}`, all samples' together" in listed


class Attention(nn.Module):
    """Attention of nodes over those that point to them, and a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.score, self.last = nn.Linear(3, 4), nn.Linear(3, 1), nn.Linear(4, 3)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor, y: Tensor
    ) -> Tensor:
        source, target = edge_index[0], edge_index[1]
        scores = self.score(x)[:, 0]
        given = F.leaky_relu(scores.index_select(0, source) + scores.index_select(0, target))
        most = scores.new_full((len(x),), -9.0).scatter_reduce(0, target, given.detach(), "amax")
        weight = (given - most[target]).exp()
        total = torch.zeros_like(scores).index_add(0, target, weight)
        sent = self.value(x)[source] * (weight / total[target])[:, None]
        h = torch.zeros(len(x), 4).index_add(0, target, sent)
        # The edges of a sample are its own, too: they are pooled by the owners of their nodes.
        pooled = torch.zeros(len(y), 4).index_add(0, batch[target], sent)
        pooled = pooled.index_add(0, batch, h)
        return F.cross_entropy(self.last(pooled), y)


def test_attention_over_edges_agrees_with_a_loop() -> None:
    torch.manual_seed(0)
    counts = ((4, 0, 2, 3), (1, 3))
    compare_rows(Attention(), batches(graph, graphs, counts), batch_dims=GRAPHS)


class NodeLoss(nn.Module):
    """A sum over nodes and edges as the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(1, 1, bias=False)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor, y: Tensor
    ) -> Tensor:
        return F.cross_entropy(self.first(x), y[batch], reduction="sum") + (
            self.last(edge_attr).square().sum()
        )


def test_a_sum_over_rows_is_a_loss() -> None:
    torch.manual_seed(0)
    counts = ((4, 0, 2, 3), (1, 3))
    compare_rows(NodeLoss(), batches(graph, graphs, counts), batch_dims=GRAPHS)


class Bags(nn.Module):
    """Bags of every kind, and ids that are looked up one by one."""

    def __init__(self) -> None:
        super().__init__()
        kinds: list[dict[str, Any]] = [
            {"mode": "sum"}, {"mode": "mean"}, {"mode": "max"},
            {"mode": "mean", "padding_idx": 2}, {"mode": "max", "padding_idx": 2},
        ]  # fmt: skip
        self.bags = nn.ModuleList(nn.EmbeddingBag(7, 3, **kind) for kind in kinds)
        self.weighed, self.each = nn.EmbeddingBag(7, 3, mode="sum"), nn.Embedding(7, 1)

    def forward(self, ids: Tensor, offsets: Tensor, weights: Tensor, y: Tensor) -> Tensor:
        weights = weights * self.each(ids)[:, 0].sigmoid()
        found = sum(bag(ids, offsets) for bag in self.bags)
        return F.cross_entropy(found + self.weighed(ids, offsets, weights), y)


def test_bags_agree_with_a_loop_over_the_samples() -> None:
    torch.manual_seed(0)
    counts = (*COUNTS[:5], (0, 0, 0))
    private = compare_rows(Bags(), batches(bag, bags, counts), batch_dims=BAGS)
    assert private._stepper.record.compilations == 1


def test_pieces_of_a_batch_have_the_rows_of_their_samples() -> None:
    torch.manual_seed(0)
    counts = ((4, 0, 2, 3, 1), (3, 1), (0,))
    compare_rows(Graphs(), batches(graph, graphs, counts), batch_dims=GRAPHS, microbatch_size=2)


def test_compiled_code_agrees_with_a_loop() -> None:
    torch.manual_seed(0)
    counts = ((4, 0, 2, 3), (3, 1))
    private = compare_rows(
        Graphs(), batches(graph, graphs, counts), batch_dims=GRAPHS, backend="inductor"
    )
    assert not private._stepper.record.fallbacks


class Returning(Graphs):
    """The nodes, and what each sample is made of, next to the loss."""

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor, y: Tensor
    ) -> Any:
        h = self.first(x).relu()
        pooled = self.pooled(h, batch, len(y))
        return F.cross_entropy(self.last(pooled), y), h, pooled


@pytest.mark.parametrize("count", [(3, 2), (3,), (1, 0)])
def test_results_are_those_of_the_rows_that_are_there(count: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, batch = Returning(), graphs([graph(k) for k in count])
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=2.0, backend="eager",
        batch_dims=GRAPHS,
    )  # fmt: skip
    for got, want in zip(private(**batch)[1:], model(**batch)[1:], strict=True):
        torch.testing.assert_close(got, want.detach())
