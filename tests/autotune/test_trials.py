"""Ways are timed on the real shapes, and the plan goes by the times."""

from typing import Any

import pytest
import torch

from fxdp.autotune import trials as tried
from fxdp.autotune.trials import trials
from fxdp.forms import Conv, Outer, Scatter
from fxdp.forms.conv import Spec

OUTER = Outer(torch.randn(4, 6, 3), torch.randn(4, 6, 5))
# Times are those of this test alone.
pytestmark = pytest.mark.usefixtures("own_times")
FORMS: list[Any] = [
    OUTER,
    Conv(torch.randn(4, 1, 2, 8), torch.randn(4, 1, 4, 7), Spec((4, 2, 2), (1,), (0,), (1,), 1)),
    Scatter(torch.randint(9, (4, 6)), torch.randn(4, 6, 3), 9),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: type(f).__name__)
def test_every_way_is_timed(form: Any) -> None:
    names = [s for s in form.strategies if s != "multi"]
    found = trials(form, names, int)
    assert [t.strategy for t in found if not t.keep] == names
    assert [t.strategy for t in found if t.keep] == [
        s for s in names if s not in ("ghost", "stream")
    ]
    assert all(t.seconds > 0 for t in found)
    assert all(t.kept == 0 for t in found if not t.keep)


SHORT = Outer(torch.randn(4, 1, 30), torch.randn(4, 1, 50))


def test_what_is_kept_beyond_the_form() -> None:
    """Per-sample gradients stand in for the smaller operand, which may go."""
    (kept,) = (t.kept for t in trials(OUTER, ["instantiate"], int) if t.keep)
    assert kept == 0  # 4 * 3 * 5 numbers, where the operands have 4 * 6 * 3 and 4 * 6 * 5
    (kept,) = (t.kept for t in trials(SHORT, ["instantiate"], int) if t.keep)
    assert kept == 4 * 4 * (30 * 50 - 30)


def test_memory_that_is_kept_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tried, "fresh", lambda device: 1.0)
    found = {t.keep: t.seconds for t in trials(SHORT, ["instantiate"], int)}
    assert found[True] > 4 * 4 * (30 * 50 - 30) > found[False]


def test_timing_changes_no_random_numbers() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    trials(OUTER, ["instantiate", "ghost"], int)
    assert torch.equal(torch.rand(3), wanted)


def test_what_is_streamed_is_timed_by_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many samples at a time, which is part of what a time is known by."""
    asked: list[str] = []
    monkeypatch.setattr(tried, "timed", lambda key, *_: asked.append(key) or [])
    for rows in (1, 4):
        trials(OUTER, ["ghost", "stream"], int, rows)
        trials(OUTER, ["ghost"], int, rows)
    assert len(set(asked)) == 3
