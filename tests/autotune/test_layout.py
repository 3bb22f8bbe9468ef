"""Pictures go channels last where that was seen to be faster."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.autotune import layout
from fxdp.autotune.layout import contiguous_is_faster, measured
from fxdp.autotune.timings import Times, check
from fxdp.graph.study import PictureLayout, at_hand
from tests.keywords import grouped

pytestmark = pytest.mark.usefixtures("own_times")
torch.manual_seed(0)
X, Y = torch.randn(6, 2, 8, 8), torch.randint(3, (6,))
aten = torch.ops.aten


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def private(model: nn.Module, **options: Any) -> Any:
    scales = {"max_grad_norm": 0.1, "noise_multiplier": 0.0, "expected_batch_size": 6}
    return fxdp.compile(model, loss_fn=F.cross_entropy, **grouped(scales | options))


def always(contiguous: float, last: float) -> Any:
    """A stand-in for the clock, which also tells what it was asked about."""

    def times(op: Any, values: list[Any], size: Any) -> Times:
        asked.append(op)
        return [
            {"channels_last": False, "seconds": contiguous},
            {"channels_last": True, "seconds": last},
        ]

    asked: list[Any] = []
    times.asked = asked  # type: ignore[attr-defined]
    return times


@pytest.mark.parametrize(("contiguous", "last"), [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)])
def test_the_faster_is_taken(
    contiguous: float, last: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = private(net(), backend="eager")
    step(X, Y).backward()
    clock = always(contiguous, last)
    monkeypatch.setattr(layout, "measured", clock)
    assert contiguous_is_faster(step.graph_module, at_hand(step.graph_module)) is (
        contiguous < last
    )
    assert {aten.convolution.default, aten.convolution_backward.default} == {*clock.asked}


def test_a_graph_without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    step = private(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), backend="eager")
    step(X, Y).backward()
    monkeypatch.setattr(layout, "measured", None)
    assert not contiguous_is_faster(step.graph_module, at_hand(step.graph_module))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_are_timed(dtype: torch.dtype) -> None:
    x, weight = torch.empty(2, 3, 8, 8, dtype=dtype), torch.empty(4, 3, 3, 3, dtype=dtype)
    rest = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    found = measured(aten.convolution.default, [x, weight, None, *rest], int)
    g: list[Any] = [torch.empty(2, 4, 8, 8, dtype=dtype), x, weight, [4], *rest]
    found += measured(aten.convolution_backward.default, [*g, [True, False, False]], int)
    assert [t["channels_last"] for t in found] == [False, True] * 2
    assert all(t["seconds"] > 0 for t in found)
    check({"layout": found})
    assert torch.equal(torch.rand(3), wanted)  # nobody's random numbers were used


@pytest.mark.parametrize("contiguous", [True, False])
def test_the_gradients_are_the_same(contiguous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "measured", always(1.0, 2.0) if contiguous else always(2.0, 1.0))

    def gradients(**options: Any) -> list[Tensor]:
        model = net()
        step = private(model, **options)
        step(X, Y).backward()
        if options["backend"] == "inductor":
            assert step._stepper.study().of(PictureLayout).contiguous is contiguous
        return [p.grad for p in model.parameters() if p.grad is not None]

    for a, b in zip(gradients(backend="inductor"), gradients(backend="eager"), strict=True):
        torch.testing.assert_close(a, b)
