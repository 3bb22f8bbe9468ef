"""What is given wrongly is refused at once, by its name, and nothing is computed."""

import math
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp
from tests.keywords import grouped

N, D, C = 6, 4, 3
X, Y = torch.randn(N, D), torch.arange(N) % C
GIVEN: dict[str, Any] = {
    "loss_fn": F.cross_entropy, "max_grad_norm": 1.0, "noise_multiplier": 0.0,
    "expected_batch_size": 8.0, "backend": "eager",
}  # fmt: skip
NAN, INF = math.nan, math.inf


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(D, C)

    def forward(self, x, shift=0.0):
        return self.fc(x) + shift


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        *(("max_grad_norm", v, ValueError) for v in (0.0, -1.0, NAN, -INF)),
        *(("noise_multiplier", v, ValueError) for v in (-1.0, NAN, INF)),
        *(("expected_batch_size", v, ValueError) for v in (0, -1, NAN, INF)),
        *(
            (name, v, TypeError)
            for name in ("max_grad_norm", "noise_multiplier", "expected_batch_size")
            for v in ("1", None, True, torch.tensor([1.0]), [1.0])
        ),
        ("strategy", "fastest", ValueError),
        ("strategy", None, ValueError),
        ("backend", "tensorrt", ValueError),
        ("plan", "fastest", ValueError),
        ("checkpoint", "sometimes", ValueError),
        ("checkpoint", True, ValueError),
        ("memory_budget", -1, ValueError),
        ("memory_budget", "1 GB", TypeError),
        ("max_grad_norm", 10**400, ValueError),
        ("loss_fn", "cross_entropy", TypeError),
        ("loss_fn", nn.CrossEntropyLoss, TypeError),
        ("rules", None, TypeError),
        ("rules", {"a": 1}, TypeError),
        ("accounting", {"budget": (3.0, 1e-5)}, TypeError),
        ("noise", "secure", TypeError),
        ("noise", True, TypeError),
        ("options", "ghost", TypeError),
        ("options", {"stratgy": "ghost"}, ValueError),
    ],
)
def test_options(name: str, value: Any, kind: type[Exception]):
    with pytest.raises(kind, match=name):
        fxdp.compile(Scores(), **grouped(GIVEN | {name: value}))


@pytest.mark.parametrize("missing", ["max_grad_norm", "noise_multiplier", "expected_batch_size"])
def test_nothing_private_has_a_default(missing: str):
    with pytest.raises(TypeError, match=missing):
        fxdp.compile(Scores(), **grouped({k: v for k, v in GIVEN.items() if k != missing}))


def test_an_infinite_bound_allows_no_noise():
    with pytest.raises(ValueError, match="max_grad_norm must be finite"):
        fxdp.compile(Scores(), **grouped(GIVEN | {"max_grad_norm": INF, "noise_multiplier": 1.0}))


def test_models():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not function"):
        fxdp.compile(lambda x: x, **grouped(GIVEN))
    with pytest.raises(ValueError, match="no trainable parameter"):
        fxdp.compile(Scores().requires_grad_(False), **grouped(GIVEN))
    with pytest.raises(ValueError, match="no trainable parameter"):
        fxdp.compile(nn.Flatten(), **grouped(GIVEN))
    counter = Scores()
    counter.count = nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False)
    with pytest.raises(
        TypeError, match="parameter 'count' has dtype torch.int64; make it a buffer"
    ):
        fxdp.compile(counter, **grouped(GIVEN))


def unchanged(private: fxdp.PrivateModule, kind: Any, match: str, *args: Any, **kwargs: Any):
    """A step fails as announced, and leaves no trace."""
    for p in private.parameters():
        p.grad = torch.full_like(p, 7.0)
    state, releases = torch.get_rng_state(), private.releases
    with pytest.raises(kind, match=match):
        private(*args, **kwargs)
    assert all((p.grad == 7.0).all() for p in private.parameters())
    assert private.releases == releases
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def private() -> fxdp.PrivateModule:
    """A module that has already made a step."""
    private = fxdp.compile(Scores(), **grouped(GIVEN))
    private(X, Y).backward()
    return private


@pytest.mark.parametrize(
    ("args", "kwargs", "kind", "match"),
    [
        ((X, Y[:3]), {}, ValueError, "number of samples: x has 6, target has 3"),
        ((X,), {"shift": X[:2, :C], "target": Y}, ValueError, "shift has 2"),
        (([1.0, 2.0], Y), {}, TypeError, "argument 'x' holds a float"),
        (([X, 2.0], Y), {}, TypeError, "argument 'x' holds a float"),
        ((numpy.ones((N, D)), Y), {}, TypeError, "argument 'x' holds a ndarray"),
        ((X, list(range(N))), {}, TypeError, "argument 'target' holds a int"),
        ((X, object()), {}, TypeError, "argument 'target' holds a object"),
        ((X.clone().requires_grad_(), Y), {}, ValueError, "'x' requires a gradient"),
        ((torch.tensor(1.0), Y), {}, ValueError, r"'x' of shape \(\) has no axis 0"),
        ((X, torch.tensor(1)), {}, ValueError, r"'target' of shape \(\) has no axis 0"),
        ((1.0, 2), {}, ValueError, "no argument holds samples"),
        ((), {}, ValueError, "no argument holds samples"),
        ((X, Y), {"sample_mask": torch.ones(N)}, ValueError, "sample_mask must be bool"),
        ((X, Y), {"sample_mask": torch.ones(3) > 0}, ValueError, r"sample_mask .* \[6\]"),
        ((X, Y), {"sample_mask": torch.ones(N, 1) > 0}, ValueError, "sample_mask"),
        ((X, Y), {"sample_mask": [True] * N}, TypeError, "sample_mask"),
    ],
)
def test_arguments(
    private: fxdp.PrivateModule, args: Any, kwargs: Any, kind: type[Exception], match: str
):
    unchanged(private, kind, match, *args, **kwargs)


@pytest.mark.parametrize(
    ("dims", "match"),
    [
        ({"y": 0}, r"batch_dims names \['y'\], but the arguments are \['x', 'target'\]"),
        ({"x": 2}, r"argument 'x' of shape \(6, 4\) has no axis 2"),
        ({"x": -3}, "no axis -3"),
        ({"x": 1}, "x has 4, target has 6"),
        (1, "'target' of shape .* has no axis 1"),
        ({"x": None, "target": None}, "no argument holds samples"),
    ],
)
def test_batch_dims(dims: Any, match: str):
    unchanged(fxdp.compile(Scores(), batch_dims=dims, **grouped(GIVEN)), ValueError, match, X, Y)


@pytest.mark.parametrize("dims", ["x", 1.5, {"x": "0"}, {"x": 1.0}, {"x": True}, [0, 0]])
def test_batch_dims_are_axes(dims: Any):
    unchanged(
        fxdp.compile(Scores(), batch_dims=dims, **grouped(GIVEN)), TypeError, "batch_dims", X, Y
    )


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("max_grad_norm", 0.0, ValueError),
        ("max_grad_norm", NAN, ValueError),
        ("max_grad_norm", "1", TypeError),
        ("noise_multiplier", -1.0, ValueError),
        ("expected_batch_size", 0, ValueError),
    ],
)
def test_schedules(private: fxdp.PrivateModule, name: str, value: Any, kind: type[Exception]):
    """A wrong number is refused where it is set, and the one before stays."""
    good = getattr(private, name)
    with pytest.raises(kind, match=name):
        setattr(private, name, value)
    assert getattr(private, name) == good
    private(X, Y).backward()


def test_a_refused_model_leaves_no_trace():
    private = fxdp.compile(nn.Sequential(nn.Linear(D, C), nn.BatchNorm1d(C)), **grouped(GIVEN))
    before = {k: v.clone() for k, v in private.state_dict().items()}
    for _ in range(2):
        unchanged(private, fxdp.BatchMixingError, "FXD101", X, Y)
    assert all(torch.equal(v, before[k]) for k, v in private.state_dict().items())


def test_what_was_not_compiled_has_no_report():
    private = fxdp.compile(Scores(), **grouped(GIVEN))
    for ask in (private.report, private.certificate, lambda: private.graph_module):
        with pytest.raises(RuntimeError, match="run a step first"):
            ask()
