"""How each parameter's norms are found."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxdp
from fxdp.autotune.trials import Trial
from fxdp.graph.study import Choices, Samples
from fxdp.passes import plan as plan_module
from tests.keywords import grouped
from tests.passes.graphs import Run, Twice, conv, linear, mean_square, passed, sequence, sum_square


def chosen(run: Run) -> list[tuple[str, str, str]]:
    """Parameter, kind and strategy."""
    return [(c.gradient.parameter, c.kind, c.strategy) for c in run.study.of(Choices).all]


def test_auto() -> None:
    """A linear layer at one position: two vectors, whose norms multiply."""
    run = linear("plan")
    assert chosen(run) == [("weight", "one", "ghost"), ("bias", "one", "instantiate")]
    costs, n = run.study.of(Choices).all[0].costs, run.study.of(Samples).n
    assert costs["ghost"].subs(n, 4) <= costs["instantiate"].subs(n, 4)


@pytest.mark.parametrize(
    ("strategy", "taken"),
    [
        ("auto", "instantiate"),
        ("instantiate", "instantiate"),
        ("ghost", "ghost"),
        ("naive", "naive"),
        ("multi", "multi"),
        ("crb", "instantiate"),
    ],
)
def test_linear(strategy: str, taken: str) -> None:
    """A form that does not offer a strategy is instantiated."""
    assert chosen(sequence("plan", strategy)) == [("weight", "one", taken)]


@pytest.mark.parametrize("strategy", ["instantiate", "ghost", "crb", "stream", "naive", "multi"])
def test_conv(strategy: str) -> None:
    """Convolutions offer every strategy."""
    assert chosen(conv("plan", strategy)) == [("weight", "one", strategy)]


def test_joined() -> None:
    """Sums of one kind are one sum over more positions."""
    model = Twice(3, 3, bias=False)
    run = passed(model, mean_square, torch.zeros(4, 3), torch.zeros(4, 3), last="plan")
    assert [c.kind for c in run.study.of(Choices).all] == ["joined"]


class Tied(nn.Embedding):
    """An embedding whose table is also the head."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) @ self.weight.T


@pytest.mark.parametrize("strategy", ["ghost", "instantiate"])
def test_tied(strategy: str) -> None:
    """A lookup and a product are one form."""
    ids = torch.zeros(4, 5, dtype=torch.long)
    run = passed(Tied(7, 3), sum_square, ids, torch.zeros(4), last="plan", strategy=strategy)
    assert chosen(run) == [("weight", "tied", strategy)]


def test_a_tied_table_is_measured_within_its_budget() -> None:
    """A table of each sample's own would be most of the step's memory."""
    ids = torch.zeros(4, 5, dtype=torch.long)
    run = passed(Tied(500, 3), sum_square, ids, torch.zeros(4), last="plan", plan="measured")
    (choice,) = run.study.of(Choices).all
    assert choice.kind == "tied"
    assert choice.strategy == "ghost" or not choice.keep


class Doubled(nn.Linear):
    """The gradient of the weight is scaled on its way."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * 2).T


def test_general() -> None:
    """What is no isometry leaves only the general way, without ghost norms."""
    x = torch.zeros(4, 5, 3)
    run = passed(Doubled(3, 2, bias=False), sum_square, x, torch.zeros(4), last="plan",
                 strategy="ghost")  # fmt: skip
    assert chosen(run) == [("weight", "general", "instantiate")]
    assert "ghost" not in run.study.of(Choices).all[0].costs


WIDE, LONG = (nn.Linear(30, 20, bias=False), (4, 2, 30)), (nn.Linear(3, 2, bias=False), (4, 9, 3))


@pytest.mark.parametrize(("case", "taken"), [(WIDE, "ghost"), (LONG, "instantiate")])
def test_fixed(case: tuple[nn.Linear, tuple[int, ...]], taken: str) -> None:
    """What is smaller: 2 T^2 numbers a sample, or a gradient."""
    model, shape = case
    run = passed(model, sum_square, torch.zeros(shape), torch.zeros(4), last="plan", plan="fixed")
    assert chosen(run) == [("weight", "one", taken)]


TRIALS = {
    "ghost": Trial("ghost", False, 5.0, 0),
    "kept": Trial("instantiate", True, 1.0, 4000),
    "dropped": Trial("instantiate", False, 3.0, 0),
}


@pytest.mark.parametrize(
    ("budget", "strategy", "keep"),
    [(None, "instantiate", True), (4000, "instantiate", True), (3999, "instantiate", False)],
)
def test_measured(
    budget: int | None, strategy: str, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest way; of those that keep nothing where the budget does not allow it."""
    monkeypatch.setattr(plan_module, "SHARE", 1e6)
    monkeypatch.setattr(plan_module, "trials", lambda *_: list(TRIALS.values()))
    x = torch.zeros(4, 5, 3)
    run = passed(nn.Linear(3, 2, bias=False), sum_square, x, torch.zeros(4), last="plan",
                 plan="measured", memory_budget=budget)  # fmt: skip
    (choice,) = run.study.of(Choices).all
    assert (choice.strategy, choice.keep) == (strategy, keep)
    assert choice.trials == tuple(TRIALS.values())


def test_what_has_no_room_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide layer's per-sample gradients are larger than all that the step holds."""
    tried: list[list[str]] = []

    def try_all(form: Any, strategies: list[str], hint: Any, rows: int) -> list[Trial]:
        tried.append(sorted(strategies))
        return [Trial("ghost", False, 1.0, 0)]

    monkeypatch.setattr(plan_module, "trials", try_all)
    x = torch.zeros(4, 40)
    how: dict[str, Any] = {"plan": "measured", "last": "plan"}
    run = passed(nn.Linear(40, 40), mean_square, x, torch.zeros(4, 40), **how)
    assert tried == []
    assert chosen(run)[0] == ("weight", "one", "ghost")
    roomy: dict[str, Any] = how | {"memory_budget": 4 * 40 * 40 * 4}
    passed(nn.Linear(40, 40), mean_square, x, torch.zeros(4, 40), **roomy)
    assert tried == [["ghost", "instantiate", "naive", "stream"]]


def test_what_gains_least_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sums want to keep their gradients, and there is room for one."""
    found = iter([
        [Trial("ghost", False, 9.0, 0), Trial("instantiate", True, 1.0, 100), TRIALS["dropped"]],
        [Trial("ghost", False, 2.0, 0), Trial("instantiate", True, 1.0, 100), TRIALS["dropped"]],
    ])  # fmt: skip
    monkeypatch.setattr(plan_module, "trials", lambda *_: next(found))
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    x = torch.zeros(4, 5, 3)
    run = passed(model, sum_square, x, torch.zeros(4), last="plan", plan="measured",
                 memory_budget=150)  # fmt: skip
    taken = {c.strategy: c.keep for c in run.study.of(Choices).all}
    assert taken == {"instantiate": True, "ghost": False}


@pytest.mark.parametrize("budget", [None, 0])
def test_measured_for_real(budget: int | None) -> None:
    """Whatever the machine finds fastest, the numbers are the same."""
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 2), nn.Flatten(1))
    x = torch.randn(5, 2, 9)

    def norms(**how: Any) -> Tensor:
        private = fxdp.compile(
            model,
            loss_fn=lambda out, _: out.square().sum(1),
            max_grad_norm=1.0,
            noise_multiplier=0.0,
            expected_batch_size=5,
            backend="eager",
            **grouped(how),
        )
        return private.per_sample_norms(x, torch.zeros(5))

    torch.testing.assert_close(
        norms(plan="measured", memory_budget=budget), norms(strategy="naive")
    )
