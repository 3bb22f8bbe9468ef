"""The number of samples does not outlive a step: one more or less is a neighbour."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.checker import ends
from fxdp.checker.check import check_certificate
from fxdp.compiler import attempt
from fxdp.graph.study import Captured, Program
from fxdp.passes import prove as proving

D = 6
LIST: list[Any] = []
Pair = collections.namedtuple("Pair", "a b")  # noqa: PYI024 - as models have them
Aside = Callable[[Any, Tensor], object]


class Counting(nn.Module):
    """A loss that is told of the step before, and notes something of this one."""

    def __init__(self, aside: Aside) -> None:
        super().__init__()
        self.fc, self.w = nn.Linear(D, 3), nn.Parameter(torch.zeros(D))
        self.seen, self.sizes, self.aside = 0, {}, aside
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        loss = self.fc(x).tanh().mean() + self.w.sum() * self.seen
        self.aside(self, x)
        return loss


def put(name: str, of: Callable[[Tensor], Any]) -> Aside:
    return lambda model, x: setattr(model, name, of(x))


def hooked(model: Counting, x: Tensor) -> None:
    n = x.shape[0]
    model.w.register_hook(lambda g: g + n)


def global_(model: Counting, x: Tensor) -> None:
    LIST.append(x.size(0))


KEPT: dict[str, Aside] = {
    "attribute": put("seen", lambda x: x.shape[0]),
    "length": put("seen", len),
    "elements": put("seen", lambda x: x.numel()),
    "stride": put("seen", lambda x: x.t().contiguous().stride(0)),
    "remainder": put("seen", lambda x: x.shape[0] % 2),
    "no more than": put("seen", lambda x: min(x.shape[0], 3)),
    "a comparison": put("seen", lambda x: x.shape[0] > 3),
    "shape": put("last", lambda x: x.shape),
    "in tuples": put("last", lambda x: (1, (x.shape[0], 2))),
    "in a named tuple": put("last", lambda x: Pair(1, x.shape[0])),
    "in a function": put("last", lambda x: functools.partial(print, len(x))),
    "total": lambda model, x: put("seen", lambda x: model.seen + len(x))(model, x),
    "entry": lambda model, x: model.sizes.update(last=len(x)),
    "of a parameter": lambda model, x: setattr(model.w, "seen", len(x)),
    "list": global_,
    "hook": hooked,
}
if torch.__version__ >= (2, 12):  # before, a graph break
    KEPT["of a class"] = lambda model, x: setattr(Counting, "ever", len(x))
kept = pytest.mark.parametrize("aside", KEPT.values(), ids=KEPT)


@kept
def test_the_number_of_samples_is_not_kept(aside: Aside) -> None:
    model = Counting(aside)
    with pytest.raises(fxdp.BatchMixingError, match="FXD304 keeps-count: [^p].*outlives the step"):
        fxdp.prove(model, torch.randn(4, D))
    assert (model.seen, model.last, model.sizes, LIST) == (0, None, {}, [])


FLOATS = (lambda x: float(x.shape[0]), lambda x: x.shape[0] / 2, lambda x: torch.tensor(len(x)))


@pytest.mark.parametrize("of", FLOATS)
def test_nor_as_another_number(of: Callable[[Tensor], Any]) -> None:
    with pytest.raises(fxdp.BatchMixingError, match="FXD303"):
        fxdp.prove(Counting(put("last", of)), torch.randn(4, D))


SHAPES = {
    "no rows": lambda x: torch.zeros(0, len(x)),
    "no columns": lambda x: torch.empty(len(x), 0),
    "positions": lambda x: torch.arange(len(x)),
    "a part": lambda x: torch.zeros(100)[: len(x)],
    "strides": lambda x: torch.zeros(2).as_strided((1, 1), (len(x), 1)),
}


@pytest.mark.parametrize("of", SHAPES.values(), ids=SHAPES)
def test_nor_as_the_size_of_a_tensor(of: Callable[[Tensor], Any]) -> None:
    with pytest.raises(fxdp.BatchMixingError, match="FXD303"):
        fxdp.prove(Counting(put("last", of)), torch.randn(4, D))


OPTIONS = {
    "max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": 4.0, "backend": "eager",
}  # fmt: skip


@pytest.mark.parametrize("name", ["attribute", "list", "hook"])
def test_nor_through_the_door_of_torch_compile(name: str) -> None:
    torch._dynamo.reset()
    model = Counting(KEPT[name])
    with pytest.raises(fxdp.BatchMixingError, match="FXD304"):
        torch.compile(model, backend="fxdp", options=OPTIONS)(torch.randn(4, D)).backward()
    assert all(p.grad is None for p in model.parameters())


class OfTargets(Counting):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x) + F.mse_loss(self.fc(y), y[:, :3]) + 0 * self.put(y)

    def put(self, y: Tensor) -> int:
        self.last = y.reshape(-1, 2).shape[0]
        return 1


def test_nor_by_another_argument() -> None:
    with pytest.raises(fxdp.BatchMixingError, match="FXD304"):
        fxdp.prove(OfTargets(within), torch.randn(4, D), torch.randn(4, D))


class Returning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x).square().mean(), len(x)


def test_nor_returned() -> None:
    with pytest.raises(fxdp.BatchMixingError, match="FXD304"):
        fxdp.prove(Returning(), torch.randn(4, D))


def within(model: Any, x: Tensor) -> None:
    n = len(x)
    model.seen += 1  # steps
    model.last = x.shape[1]
    assert x.reshape(n, -1).shape == x.shape


def test_in_a_step_it_is_free() -> None:
    model = Counting(within)
    private = fxdp.compile(model, **OPTIONS)
    for n in (4, 3, 5):
        private(torch.randn(n, D)).backward()
        private.zero_grad()
    assert (model.seen, model.last) == (3, D)


def test_the_checker_sees_it_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(D, 3), torch.randn(4, D)
    y = torch.randint(3, (4,))
    monkeypatch.setattr(proving, "SIZES", ())
    counting = Counting(KEPT["attribute"])
    certificate = fxdp.prove(counting, x)
    verdict = check_certificate(certificate, counting, x)
    assert "the number of samples, or of their rows, leaves the step" in verdict.why
    certificate = fxdp.prove(model, x, y, loss_fn=F.cross_entropy)
    assert check_certificate(certificate, model, x, y, loss_fn=F.cross_entropy).why == ""


class Rows(nn.Module):
    """Rows of samples and edges between them, and a number of either that is kept."""

    def __init__(self, of: Callable[[Tensor, Tensor], int] | None) -> None:
        super().__init__()
        self.fc, self.seen, self.of = nn.Linear(D, 3), 0, of

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor, y: Tensor) -> Tensor:
        if self.of is not None:
            self.seen = self.of(x, edges)
        h = self.fc(x)
        return F.cross_entropy(h.new_zeros(len(y), 3).index_add(0, batch, h), y)


ROWS: dict[str, Any] = {
    "x": torch.randn(7, D), "edges": torch.tensor([[0, 2], [2, 0]]),
    "batch": torch.tensor([0, 1, 0, 2, 2, 3, 3]), "y": torch.tensor([0, 1, 2, 0]),
    "batch_dims": {"x": fxdp.Ragged(index="batch"), "edges": fxdp.Ragged(points_to="x", dim=1)},
}  # fmt: skip
NUMBERS: dict[str, Callable[[Tensor, Tensor], int]] = {
    "rows": lambda x, edges: len(x),
    "elements": lambda x, edges: x.numel(),
    "edges, otherwise not read": lambda x, edges: edges.shape[1],
    "both": lambda x, edges: len(x) - edges.shape[1],
}


@pytest.mark.parametrize("of", NUMBERS.values(), ids=NUMBERS)
def test_nor_is_the_number_of_rows_which_the_checker_sees(
    of: Callable[[Tensor, Tensor], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(fxdp.BatchMixingError, match="FXD304"):
        fxdp.prove(Rows(of), **ROWS)
    monkeypatch.setattr(proving, "SIZES", ())
    certificate = fxdp.prove(Rows(of), **ROWS)
    assert not check_certificate(certificate, Rows(of), **ROWS)
    assert number_that_leaves(Rows(of)) is not None


def number_that_leaves(model: nn.Module) -> Any:
    """What the checker finds at the ends of a captured graph; it has no rules for what is within,
    where rows are."""
    study = attempt(model, **ROWS).study
    assert study is not None
    symbols = {str(name): symbol for symbol, name in study.of(Program).sizes.items()}
    return ends.counts(study.of(Captured).graph, symbols["N"])


def test_of_rows_without_their_number_none_leaves() -> None:
    assert number_that_leaves(Rows(None)) is None
