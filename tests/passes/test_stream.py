"""Gradients that are streamed, as one node."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdp.autotune.trials import Trial
from fxdp.graph.study import Choices, ClippedSums, Factors, Squares, Streamed
from fxdp.mechanism.clipping import PerGroup
from fxdp.mechanism.streaming import Rule
from fxdp.passes import plan as plan_module
from tests.passes.graphs import Run, passed, shape


def sums(out: Tensor, target: Tensor) -> Tensor:
    """A loss of outputs [N, a, b]."""
    return out.square().sum((1, 2)).mean()


@functools.cache
def two(last: str = "clip", **how: Any) -> Run:
    """Two linear layers at five positions, with biases."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(4, 5, 3)
    return passed(model, sums, x, torch.zeros(4), last=last, **{"strategy": "stream"} | how)


def strategies(run: Run) -> dict[str, str]:
    return {c.gradient.parameter: c.strategy for c in run.study.of(Choices).all}


def test_one_op_for_all_layers() -> None:
    run = two()
    assert strategies(run) == {
        "0.weight": "stream", "0.bias": "instantiate", "1.weight": "stream",
        "1.bias": "instantiate",
    }  # fmt: skip
    assert run.texts["stream"].count("fxdp.streamed(") == 1
    assert set(run.study.of(Streamed).sums) == {"0.weight", "1.weight"}
    assert "einsum" not in run.texts["clip"]
    assert "weighed_outer" not in run.texts["clip"]


def test_the_others_are_measured_before() -> None:
    """Their squared norms go into the op, and its factors out to them."""
    assert set(two("stream").study.of(Squares).nodes) == {"0.bias", "1.bias"}
    run = two()
    found = run.study.of(Factors)
    assert set(found.nodes) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert set(found.nodes.values()) == set(run.study.of(Streamed).factors)
    assert {shape(run, n) for n in (found.norms, found.finite)} == {"[N]"}


def test_the_sums_are_the_clipped_sums() -> None:
    run = two()
    totals = {c.gradient.parameter: c.total for c in run.study.of(ClippedSums).all}
    done = run.study.of(Streamed).sums
    for name, node in done.items():
        total = totals[name]
        assert total is not None
        assert node in ancestors(total)
        assert shape(run, node) in ("[3, 4]", "[4, 3]", "[4, 2]", "[2, 4]")


def ancestors(node: Any) -> set[Any]:
    """A node, and what it is made of."""
    found, left = set(), [node]
    while left:
        at = left.pop()
        found.add(at)
        left += [i for i in at.all_input_nodes if i not in found]
    return found


def test_a_group_has_factors_of_its_own() -> None:
    run = two(clipping=PerGroup())
    found = run.study.of(Factors).nodes
    assert len(run.study.of(Streamed).factors) == 2
    assert found["0.weight"] is found["0.bias"] is not found["1.weight"] is found["1.bias"]


def test_nothing_is_emitted_where_nothing_is_streamed() -> None:
    run = two(strategy="ghost")
    assert run.texts["stream"] == run.texts["measure"]
    assert run.study.found(Streamed) is None


def test_what_numbers_may_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all parameters of a group, streamed or not."""
    rules: list[Rule] = []
    true = Rule.__init__
    monkeypatch.setattr(Rule, "__init__", lambda self, *a: (true(self, *a), rules.append(self))[0])
    two.__wrapped__("stream")
    (rule,) = rules
    numbers = 3 * 4 + 4 + 4 * 2 + 2
    assert rule.lost == pytest.approx((4 * numbers * torch.finfo(torch.float32).tiny,))
    assert rule.dtype == torch.float32


@pytest.mark.parametrize(
    ("budget", "rows"), [(0, 1), (4 * (12 + 8), 1), (2 * 4 * (12 + 8), 2), (10**6, 4)]
)
def test_how_many_at_a_time(budget: int, rows: int) -> None:
    """A power of two of samples whose gradients have room; of all at most."""
    assert two("plan", memory_budget=budget).study.of(Choices).rows == rows


def test_what_cannot_be_streamed_is_chosen_by_other_means() -> None:
    """No embedding's table is written out for each sample because a linear layer is streamed."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(500, 3), nn.Linear(3, 2, bias=False)

        def forward(self, ids: Tensor) -> Tensor:
            return self.fc(self.table(ids))

    ids = torch.zeros(4, 5, dtype=torch.long)
    run = passed(Tokens(), sums, ids, torch.zeros(4), last="plan", strategy="stream")
    assert strategies(run) == {"table.weight": "ghost", "fc.weight": "stream"}


def test_memory_is_shared_with_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What streaming takes up is not there for gradients that are kept."""

    def times(form: Any, *_: Any) -> list[Trial]:
        wide = {form.a.shape[-1], form.b.shape[-1]} == {3, 4}
        first = Trial("stream", False, 1.0, 0) if wide else Trial("instantiate", True, 1.0, 100)
        return [first, Trial("ghost", False, 5.0, 0)]

    monkeypatch.setattr(plan_module, "trials", times)
    own: Any = {"strategy": "auto", "plan": "measured"}
    rich = two.__wrapped__("plan", memory_budget=1000, **own)
    assert "instantiate" in {strategies(rich)[k] for k in ("0.weight", "1.weight")}
    poor = two.__wrapped__("plan", memory_budget=110, **own)
    assert {strategies(poor)[k] for k in ("0.weight", "1.weight")} == {"stream", "ghost"}


def test_the_predicted_peak_has_its_memory() -> None:
    run = two()
    assert run.study.of(Streamed).scratch == 4 * (3 * 4 + 4 * 2)
    more = two(memory_budget=10**6)
    assert more.study.of(Streamed).scratch == 4 * run.study.of(Streamed).scratch
