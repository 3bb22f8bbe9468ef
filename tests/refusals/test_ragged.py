"""Samples of different lengths: what cannot be followed is refused, and the padded way is named."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp

G: dict[str, Any] = {
    "max_grad_norm": 1.0, "noise_multiplier": 0.0, "expected_batch_size": 4.0, "backend": "eager",
}  # fmt: skip
Y = torch.arange(4) % 3
IDS, OFFSETS = torch.arange(9) % 7, torch.tensor([0, 2, 2, 6])
NODES, OWNERS = torch.ones(9, 3), torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3])
EDGES = torch.tensor([[0, 1, 3], [1, 2, 4]])


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 3)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.bag(ids, offsets)


class Graphs(nn.Module):
    """Nodes of all graphs on one axis, and the number of each one's graph."""

    def __init__(self, add: str) -> None:
        super().__init__()
        self.fc, self.add = nn.Linear(3, 3), add

    def forward(self, x: Tensor, batch: Tensor, like: Tensor) -> Tensor:
        h, zeros = self.fc(x), torch.zeros(like.shape[0], 3)
        match self.add:
            case "index_add":
                return zeros.index_add(0, batch, h)
            case "scatter_add":
                return zeros.scatter_add(0, batch[:, None].expand(-1, 3), h)
            case _:
                return h.index_select(0, batch)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Any) -> Tensor:
        return self.fc(x[0])


def refused(model: nn.Module, *args: Any, kind: type[Exception], **options: Any) -> str:
    """The message of a step's refusal, which leaves nothing behind."""
    private = fxdp.compile(model, F.cross_entropy, **G, **options)
    with pytest.raises(kind) as found:
        private(*args).backward()
    assert private.releases == 0
    assert all(p.grad is None for p in model.parameters())
    return str(found.value)


def test_offsets_name_padded_bags() -> None:
    said = refused(Bags(), IDS, OFFSETS, Y, kind=ValueError)
    assert "number of samples: ids has 9, offsets has 4" in said
    assert "F.embedding_bag(ids, weight, padding_idx=0)" in said
    assert "per_sample_weights [N, T]" in said


def test_bags_between_samples_name_padded_bags() -> None:
    said = refused(Bags(), IDS[:4], OFFSETS, Y, kind=fxdp.BatchMixingError)
    assert "FXD101" in said
    assert "ids [N, T] without offsets, short bags filled up with padding_idx" in said


@pytest.mark.parametrize("add", ["index_add", "scatter_add", "index_select"])
def test_nodes_of_several_samples_name_the_dense_form(add: str) -> None:
    """The batch vector is of the batch's length here, so that nothing else is wrong."""
    said = refused(Graphs(add), NODES[:4], OWNERS[:4], Y, Y, kind=fxdp.BatchMixingError)
    assert "computed positions" in said
    assert "pad them to [N, T, ...]" in said
    assert "torch_geometric.utils.to_dense_" in said


def test_a_batch_vector_names_the_dense_form() -> None:
    said = refused(Graphs("index_add"), NODES, OWNERS, Y, Y, kind=ValueError)
    assert "x has 9, batch has 9, like has 4" in said
    assert "torch_geometric.utils.to_dense_batch" in said


def test_sizes_that_say_nothing_of_rows_get_no_such_advice() -> None:
    said = refused(Sequences(), NODES, Y, kind=ValueError)
    assert "x has 9, target has 4" in said
    assert "[N, T" not in said


def test_packed_sequences_name_padded_ones() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 3), torch.ones(1, 3)])
    said = refused(Sequences(), packed, Y, kind=TypeError)
    assert "'x' is a PackedSequence" in said
    assert "the padded batch [N, T, ...] and the lengths [N]" in said


def test_nested_tensors_name_padded_ones() -> None:
    nested = torch.nested.nested_tensor([torch.ones(3, 3), torch.ones(1, 3)], layout=torch.jagged)
    said = refused(Sequences(), nested, Y, kind=TypeError)
    assert "'x' is a nested tensor: torch.nested.to_padded_tensor" in said


def test_graph_objects_name_the_dense_form() -> None:
    """Without the package, a class that says it is of it."""
    batch: Any = type("DataBatch", (), {"__module__": "torch_geometric.data.batch"})()
    said = refused(Sequences(), batch, Y, kind=TypeError)
    assert "'x' is a DataBatch, in which the nodes of all graphs are one axis" in said
    assert "to_dense_batch" in said


class Steps(nn.Module):
    """A recurrent layer on packed sequences, and what a test does with what it returns."""

    def __init__(self, then: Any, **options: Any) -> None:
        super().__init__()
        self.rnn, self.then = nn.LSTM(3, 4, batch_first=True, **options), then

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        out, _ = self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, True, False))
        return self.then(out)


UNPACKED = nn.utils.rnn.pad_packed_sequence


@pytest.mark.parametrize(
    ("then", "options", "words"),
    [
        (lambda out: UNPACKED(out, True)[0].sum(1), {}, "pass total_length=x.shape[1]"),
        (lambda out: UNPACKED(out, True, total_length=4)[0].sum(1), {}, "total_length=4 is less"),
        (lambda out: out.data.sum(0), {}, "a packed sequence has its steps where other samples"),
        (lambda out: out[0].sum(0), {}, "a packed sequence has its steps where other samples"),
        (lambda out: UNPACKED(out, True, total_length=5)[0].sum(1), {"proj_size": 2}, "proj_size"),
    ],
    ids=["no length", "too short", "data", "item", "projection"],
)
def test_packed_steps_of_other_samples_are_refused(then: Any, options: Any, words: str) -> None:
    model = Steps(then, **options)
    said = refused(model, torch.ones(4, 5, 3), Y + 1, Y, kind=fxdp.CaptureError)
    assert "FXD501" in said
    assert words in said


class Fixed(nn.Module):
    def __init__(self, then: Any) -> None:
        super().__init__()
        self.fc, self.then = nn.Linear(3, 3), then

    def forward(self, x: Tensor, batch: Tensor, y: Tensor) -> Tensor:
        h = self.then(self.fc(x), y)
        sums = torch.zeros(y.shape[0], 3).index_add(0, batch, h)
        return F.cross_entropy(sums, y)


FIXES = {
    "a number": lambda h, y: h + torch.ones(9, 1),  # here: a number
    "a view": lambda h, y: h.view(9, 3),  # here: a view
}


@pytest.mark.parametrize("name", FIXES)
def test_a_fixed_number_of_rows_names_its_line(name: str) -> None:
    with pytest.raises(fxdp.BatchMixingError, match="FXD105.*one number of rows only") as found:
        fxdp.prove(
            Fixed(FIXES[name]), NODES, OWNERS, Y, batch_dims={"x": fxdp.Ragged(index="batch")}
        )
    (d,) = found.value.diagnostics
    assert d.location is not None
    assert f"# here: {name}" in d.location.source
