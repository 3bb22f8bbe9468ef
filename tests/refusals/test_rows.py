"""Rows of samples: what would let one sample see another's is refused, and so is what says wrongly
whose they are, before anything is released."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp

G: dict[str, Any] = {
    "max_grad_norm": 1.0, "noise_multiplier": 0.0, "expected_batch_size": 4.0, "backend": "eager",
}  # fmt: skip
GRAPHS: dict[str, Any] = {
    "x": fxdp.Ragged(index="batch"),
    "edges": fxdp.Ragged(points_to="x", dim=1),
    "weights": fxdp.Ragged(like="edges"),
}
# Nine nodes of four samples, none of the third's; and as many edges.
BATCH = torch.tensor([0, 1, 0, 3, 1, 0, 3, 0, 3])
EDGES = torch.tensor([[0, 2, 5, 1, 3, 6, 7, 4, 8], [2, 0, 7, 4, 6, 8, 5, 1, 8]])
X, WEIGHTS, Y = torch.randn(9, 4), torch.randn(9, 4), torch.tensor([0, 1, 2, 0])
ARGUMENTS = {"x": X, "edges": EDGES, "weights": WEIGHTS, "batch": BATCH, "y": Y}
Case = Callable[["Rows", Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Rows(nn.Module):
    """A layer on rows; a case makes [N, 4] of them."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.fc, self.table = nn.Linear(4, 4), nn.Embedding(9, 4)
        self.norm, self.own = nn.BatchNorm1d(4), nn.Parameter(torch.ones(9, 4))
        self.case, self.kept = case, []
        self.register_buffer("seen", torch.zeros(4))

    def forward(
        self, x: Tensor, edges: Tensor, weights: Tensor, batch: Tensor, y: Tensor
    ) -> Tensor:
        return F.cross_entropy(self.case(self, self.fc(x), edges, self.fc(weights), batch, y), y)


def pool(rows: Tensor, batch: Tensor, y: Tensor) -> Tensor:
    return rows.new_zeros(len(y), 4).index_add(0, batch, rows)


def written(own: Rows, h: Tensor, batch: Tensor, y: Tensor) -> Tensor:
    """Rows written, not added, to where they belong."""
    found = h.new_zeros(len(y), 4)
    found[batch] = h
    return found


def keeping(own: Rows, h: Tensor, batch: Tensor, y: Tensor) -> Tensor:
    own.kept.append(h)
    return pool(h, batch, y)


def writing(own: Rows, h: Tensor, batch: Tensor, y: Tensor) -> Tensor:
    own.seen += h.detach().sum(0)
    return pool(h, batch, y)


def asking(own: Rows, h: Tensor, batch: Tensor, y: Tensor) -> Tensor:
    return pool(h * 2 if len(h) > 5 else h, batch, y)


# What the proof finds in one graph, each on a line of its own.
MIXED: tuple[Case, ...] = (
    lambda o, h, e, w, b, y: pool(h - h.mean(0), b, y),
    lambda o, h, e, w, b, y: pool(h, b, y) + h.sum(0),
    lambda o, h, e, w, b, y: pool(o.norm(h), b, y),
    lambda o, h, e, w, b, y: pool(h / len(h), b, y),
    lambda o, h, e, w, b, y: pool(h * torch.full((4,), len(h)), b, y),
    lambda o, h, e, w, b, y: pool(h, b, y) * len(h),
    lambda o, h, e, w, b, y: pool(h[b], b, y),
    lambda o, h, e, w, b, y: pool(y[e[0]][:, None] * w, b[e[0]], y),
    lambda o, h, e, w, b, y: pool(h[torch.arange(len(h))], b, y),
    lambda o, h, e, w, b, y: pool(h.flip(0), b, y),
    lambda o, h, e, w, b, y: pool(h, b.flip(0), y),
    lambda o, h, e, w, b, y: pool(h.roll(1, 0), b, y),
    lambda o, h, e, w, b, y: pool(h[1:], b[1:], y),
    lambda o, h, e, w, b, y: pool(h.cumsum(0), b, y),
    lambda o, h, e, w, b, y: pool(h.softmax(0), b, y),
    lambda o, h, e, w, b, y: pool((h @ h.T)[:, :4], b, y),
    lambda o, h, e, w, b, y: pool(h * b[:, None], b, y),
    lambda o, h, e, w, b, y: pool(h * (b == 0)[:, None], b, y),
    lambda o, h, e, w, b, y: pool(h + o.table(b), b, y),
    lambda o, h, e, w, b, y: pool(h + o.own[b], b, y),
    lambda o, h, e, w, b, y: pool(w + o.table(e[0]), b[e[0]], y),
    lambda o, h, e, w, b, y: pool(h[(e[0] + 1) % 9], b[e[0]], y),
    lambda o, h, e, w, b, y: pool(w[e[0][e[1]]], b[e[0]], y),
    lambda o, h, e, w, b, y: pool(h + torch.arange(len(h))[:, None], b, y),
    lambda o, h, e, w, b, y: pool(h, b, y) + h.new_zeros(9, 4).index_add(0, b, h)[0],
    lambda o, h, e, w, b, y: written(o, h, b, y),
)


def each(o: Rows, h: Tensor, e: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
    return sum(case(o, h, e, w, b, y) for case in MIXED)  # type: ignore[return-value]


def test_rows_that_meet_are_refused() -> None:
    with pytest.raises(fxdp.BatchMixingError) as found:
        fxdp.prove(Rows(each), **ARGUMENTS, batch_dims=GRAPHS)
    lines = {d.location.line for d in found.value.diagnostics if d.location is not None}
    wanted = {case.__code__.co_firstlineno for case in MIXED[:-1]}
    wanted.add(written.__code__.co_firstlineno + 3)
    assert not wanted - lines
    assert not lines - wanted


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (lambda o, h, e, w, b, y: pool(w, b, y), "as many of one kind as of another"),
        (lambda o, h, e, w, b, y: pool(w + h, b, y), "as many of one kind as of another"),
        (lambda o, h, e, w, b, y: pool(h + o.own, b, y), "one number of rows only"),
        (lambda o, h, e, w, b, y: asking(o, h, b, y), "FXD104 .* whether rows > 5"),
        (lambda o, h, e, w, b, y: keeping(o, h, b, y), "FXD303"),
        (lambda o, h, e, w, b, y: writing(o, h, b, y), "FXD301"),
    ],
    ids=["edges as nodes", "edges next to nodes", "a parameter", "a question", "kept", "buffer"],
)
def test_what_fixes_rows_or_keeps_them_is_refused(case: Case, words: str) -> None:
    with pytest.raises(fxdp.ProofError, match=words):
        fxdp.prove(Rows(case), **ARGUMENTS, batch_dims=GRAPHS)


def test_what_meets_nothing_is_proven() -> None:
    """The same model, so that the cases are refused for what they do."""
    fxdp.prove(Rows(lambda o, h, e, w, b, y: pool(h, b, y)), **ARGUMENTS, batch_dims=GRAPHS)
    other = Rows(lambda o, h, e, w, b, y: pool(h.index_add(0, e[1], w * h[e[0]]), b, y))
    fxdp.prove(other, **ARGUMENTS, batch_dims=GRAPHS)


def changed(name: str, *places: Any) -> dict[str, Tensor]:
    """One argument with an element changed."""
    x = ARGUMENTS[name].clone()
    *index, value = places
    x[tuple(index)] = value
    return {name: x}


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (changed("batch", 2, 4), ValueError, "'batch' must hold numbers of samples, 0 to 3"),
        (changed("batch", 2, -1), ValueError, "'batch' must hold numbers of samples, 0 to 3"),
        (changed("edges", 0, 2, 9), ValueError, "'edges' must hold numbers of rows of 'x', 0 to 8"),
        (changed("edges", 1, 2, -1), ValueError, "'edges' must hold numbers of rows of 'x'"),
        (changed("edges", 1, 2, 3), ValueError, "'edges' joins rows of 'x' .* different samples"),
        ({"batch": BATCH.float()}, TypeError, "'batch' .* int64"),
        ({"edges": EDGES.int()}, TypeError, "'edges' .* int64"),
        ({"batch": BATCH[None]}, ValueError, "'batch' must be"),
        ({"x": X[:8]}, ValueError, "'x' has 8 rows on axis 0, and by 'batch' there are 9"),
        ({"weights": WEIGHTS[:8]}, ValueError, "'weights' has 8 rows on axis 0"),
        ({"weights": [WEIGHTS, WEIGHTS]}, TypeError, "must be one tensor each"),
        ({"x": X.clone().requires_grad_()}, ValueError, "requires a gradient"),
    ],
)
def test_who_owns_what_is_looked_at_before_a_step(
    given: dict[str, Any], kind: type[Exception], words: str
) -> None:
    model = Rows(lambda o, h, e, w, b, y: pool(h, b, y))
    private = fxdp.compile(model, **G, batch_dims=GRAPHS)
    with pytest.raises(kind, match=words):
        private(**ARGUMENTS | given).backward()
    assert private.releases == 0
    assert all(p.grad is None for p in model.parameters())


class Bags(nn.Module):
    def __init__(self, same: bool = True, **how: Any) -> None:
        super().__init__()
        self.bag, self.same = nn.EmbeddingBag(7, 3, mode="sum", **how), same

    def forward(self, ids: Tensor, offsets: Tensor, others: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.bag(ids if self.same else others, offsets), y)


BAG: dict[str, Any] = {
    "ids": torch.arange(9) % 7, "offsets": torch.tensor([0, 2, 2, 6]),
    "others": torch.arange(9) % 7, "y": Y,
}  # fmt: skip
CUT: dict[str, Any] = {
    "ids": fxdp.Ragged(offsets="offsets"), "others": fxdp.Ragged(offsets="offsets")
}  # fmt: skip


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([1, 2, 2, 6], "begin with 0 and never fall, up to 9"),
        ([0, 2, 1, 6], "begin with 0 and never fall"),
        ([0, 2, 2, 10], "never fall, up to 9"),
        ([0, 2, 2, 6, 9], r"number of samples: offsets has 5, y has 4"),
    ],
)
def test_offsets_are_looked_at_before_a_step(offsets: list[int], words: str) -> None:
    private = fxdp.compile(Bags(), **G, batch_dims=CUT)
    with pytest.raises(ValueError, match=words):
        private(**BAG | {"offsets": torch.tensor(offsets)})
    assert private.releases == 0


def test_bags_are_cut_by_the_offsets_of_their_own_rows() -> None:
    other = CUT | {"others": fxdp.Ragged(index="owners")}

    class Two(Bags):
        def forward(self, owners: Tensor, **rest: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(**rest)

    with pytest.raises(fxdp.ProofError, match="not those of the samples"):
        fxdp.prove(Two(same=False), **BAG, owners=BATCH, batch_dims=other)
    with pytest.raises(fxdp.ProofError, match="not those of the samples"):
        fxdp.prove(Bags(scale_grad_by_freq=True), **BAG, batch_dims=CUT)


@pytest.mark.parametrize(
    ("dims", "kind", "words"),
    [
        ({"x": fxdp.Ragged(index="nothing")}, ValueError, "'nothing', which 'x' goes by"),
        ({"x": fxdp.Ragged(like="batch")}, ValueError, "'batch', which 'x' goes by, is not ragged"),
        ({"edges": fxdp.Ragged(points_to="x")}, ValueError, "'x', which 'edges' goes by, is not"),
        ({"x": fxdp.Ragged(index="batch", dim=2)}, ValueError, "no axis 2"),
        (
            {"x": fxdp.Ragged(like="weights"), "weights": fxdp.Ragged(like="x")},
            ValueError, "of each other",
        ),
        (fxdp.Ragged(index="batch"), TypeError, "batch_dims must name axes by integers"),
    ],
)  # fmt: skip
def test_declarations_that_say_nothing(dims: Any, kind: type[Exception], words: str) -> None:
    model = Rows(lambda o, h, e, w, b, y: pool(h, b, y))
    shared = {"x": None, "edges": None, "weights": None, "batch": None}
    dims = shared | dims if isinstance(dims, dict) else dims
    with pytest.raises(kind, match=words):
        fxdp.compile(model, **G, batch_dims=dims)(**ARGUMENTS)


@pytest.mark.parametrize(
    "given", [{}, {"index": "a", "like": "b"}, {"index": 1}, {"like": "a", "dim": "b"}]
)
def test_a_declaration_names_one_argument(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="exactly one of index, offsets, points_to and like"):
        fxdp.Ragged(**given)


def test_rows_are_declared_to_fxdp_compile_alone() -> None:
    options = {k: v for k, v in G.items() if k != "backend"} | {"batch_dims": GRAPHS}
    model = Rows(lambda o, h, e, w, b, y: pool(h, b, y))
    with pytest.raises(ValueError, match=r"\['edges', 'weights', 'x'\]\) need fxdp.compile"):
        torch.compile(model, backend="fxdp", fullgraph=True, options=options)(**ARGUMENTS)


class Counted(nn.Module):
    """Reads of its edges how many there are, and nothing else."""

    def __init__(self, use: Callable[["Counted", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.use = nn.Linear(4, 4), use

    def forward(
        self, x: Tensor, edges: Tensor, weights: Tensor, batch: Tensor, y: Tensor
    ) -> Tensor:
        return self.use(self, F.cross_entropy(pool(self.fc(x), batch, y), y), edges)


@pytest.mark.parametrize(
    "use",
    [
        lambda own, loss, edges: loss + own.fc.weight.pow(2).sum() * edges.shape[1],
        lambda own, loss, edges: loss / edges.numel(),
        lambda own, loss, edges: loss * (2.0 if edges.shape[1] > 12 else 1.0),
    ],
    ids=["public term", "divided", "branch"],
)
def test_a_number_of_rows_whose_values_nobody_reads(
    use: Callable[[Counted, Tensor, Tensor], Tensor],
) -> None:
    """It is no public number: it moved by what one sample has, and with it everybody's gradient."""
    torch._dynamo.reset()
    private = fxdp.compile(Counted(use), batch_dims=GRAPHS, **G)
    with pytest.raises(fxdp.ProofError):
        private(**ARGUMENTS)
    assert private.releases == 0
    assert all(p.grad is None for p in private.parameters())


def alone(i: int) -> dict[str, Tensor]:
    """Sample i of the arguments, as a batch of its own."""
    own = (i == BATCH).nonzero().flatten()
    place = {int(row): k for k, row in enumerate(own)}
    edges = [[place[int(r)] for r in pair] for pair in EDGES.T if int(pair[0]) in place]
    return {
        "x": X[own], "edges": torch.tensor(edges, dtype=torch.long).view(-1, 2).T,
        "weights": WEIGHTS[: len(edges)], "batch": torch.zeros(len(own), dtype=torch.long),
        "y": Y[i : i + 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    "use",
    [
        lambda own, loss, edges: loss * torch.ones(edges.shape[1]).sum(),
        lambda own, loss, edges: loss + own.fc.bias.expand(edges.shape[1], 4).sum(),
    ],
    ids=["ones", "expanded"],
)
def test_rows_that_are_added_up_are_each_sample_s_own(
    use: Callable[[Counted, Tensor, Tensor], Tensor],
) -> None:
    torch._dynamo.reset()
    model = Counted(use)
    each = []
    for i in range(4):
        grads = torch.autograd.grad(model(**alone(i)), list(model.parameters()))
        each.append(torch.cat([g.flatten() for g in grads]))
    norms = torch.stack(each).norm(dim=1)
    bound = float(norms.max()) / 2
    want = sum(g * min(1.0, bound / max(float(g.norm()), 1e-9)) for g in each) / 4
    private = fxdp.compile(model, batch_dims=GRAPHS, **G | {"max_grad_norm": bound})
    private(**ARGUMENTS).backward()
    got = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(private.last_norms, norms)
    torch.testing.assert_close(got, want)


def test_a_number_of_ids_whose_values_nobody_reads() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
            return self.fc(x) * ids.shape[0]

    torch._dynamo.reset()
    private = fxdp.compile(
        Bags(), F.cross_entropy, batch_dims={"ids": fxdp.Ragged(offsets="offsets")}, **G
    )
    with pytest.raises(fxdp.ProofError):
        private(torch.randn(2, 4), torch.arange(5), torch.tensor([0, 2]), torch.tensor([0, 1]))
    assert private.releases == 0
