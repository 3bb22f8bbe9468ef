"""Functions within the transforms of torch.func, and in forward mode, are captured for every N."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.capture import transforms as own
from fxdp.torch_internals import TorchInGraphFunctionVariable, op_implementations
from tests.oracle import Applied, clipped_sum, compare, per_sample, score

pytestmark = [
    pytest.mark.usefixtures("double"),
    # torch loads its own derivatives of tangents so.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]
N = 5
SCALE = torch.linspace(0.5, 1, 6).double()
WEIGHT, BIAS = torch.linspace(0.5, 2, 4).double(), torch.linspace(-1, 1, 4).double()


def along(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function's tangent, along the cosine of what it is given."""
    return lambda h: torch.func.jvp(function, (h,), (h.cos(),))[1]


def dual(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def tangent(h: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(h, h.cos()))).tangent

    return tangent


def image(h: Tensor) -> Tensor:
    return h.reshape(-1, 4, 3, 2)


def test_ops() -> None:
    """Of [N, 4, 6]; some with tangents that nobody gave."""
    three = torch.randn(3, 6)
    functions = {
        "linear": along(lambda h: F.linear(h, three, BIAS[:3]).tanh()),
        "attention": along(lambda h: torch.softmax(h @ h.mT, -1) @ h),
        "absolute": along(lambda h: h / (1 + h.abs())),
        "dual": dual(lambda h: F.linear(h, three).sigmoid()),
        "at rest": along(lambda h: F.dropout(h, 0.5, training=False).sin()),
        "of a map": torch.func.vmap(lambda h: F.linear(h, three, BIAS[:3]), in_dims=1, out_dims=1),
        "of a slope": torch.func.grad(lambda h: F.linear(h, three, BIAS[:3]).square().sum()),
    }
    if torch.__version__ >= (2, 12):  # before, torch asks for the sizes in these as well
        functions |= {
            "error": along(lambda h: F.mse_loss(h, torch.zeros_like(h), reduction="none")),
            "twice": along(torch.func.grad(lambda h: F.linear(h, three).square().sum())),
        }
    compare(Applied(6, **functions), torch.randn(N, 4, 6))


class Normed(nn.Module):
    """Tangents of norms, which are torch's or written out."""

    def __init__(self, norms: Any) -> None:
        super().__init__()
        self.norms = norms
        self.linear = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        norms = self.norms
        functions = (
            lambda h: norms.layer_norm(h, (6,), SCALE, SCALE),
            lambda h: norms.group_norm(image(h), 2, WEIGHT, BIAS),
            lambda h: norms.instance_norm(image(h), weight=WEIGHT, bias=BIAS),
            lambda h: norms.batch_norm(image(h), BIAS, WEIGHT, BIAS, WEIGHT),
        )
        found = (along(f)(layer(x)) for f, layer in zip(functions, self.linear, strict=True))
        return sum(score(tangent) for tangent in found)


def test_norms() -> None:
    """Of norms that are written out: torch's own derivatives of their tangents are wrong."""
    torch.manual_seed(0)
    plain, model, x = Normed(own), Normed(F), torch.randn(N, 4, 6)
    plain.load_state_dict(model.state_dict())
    each, norms = per_sample(plain, None, (x,), {}, N)
    bound = float(norms.median())
    private = fxdp.compile(
        model, max_grad_norm=bound, noise_multiplier=0.0, expected_batch_size=1.0, backend="eager"
    )
    private(x).backward()
    for name, want in clipped_sum(each, bound, 1.0).items():
        torch.testing.assert_close(model.get_parameter(name).grad, want)


@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "instance_norm", "batch_norm", "glu"])
def test_values_are_torchs(name: str) -> None:
    x = torch.randn(N, 4, 6)
    given: dict[str, tuple[Any, ...]] = {
        "layer_norm": ((4, 6), torch.randn(4, 6), torch.randn(4, 6), 1e-3),
        "group_norm": (2, WEIGHT, BIAS, 1e-3),
        "instance_norm": (None, None, WEIGHT, BIAS, True, 0.1, 1e-3),
        "batch_norm": (BIAS, WEIGHT, BIAS, WEIGHT, False, 0.1, 1e-3),
        "glu": (1,),
    }
    want = getattr(F, name)(x, *given[name])
    torch.testing.assert_close(getattr(own, name)(x, *given[name]), want)


def test_half_precision_is_normalised_in_float32() -> None:
    x = (torch.randn(2, 64) + 30).bfloat16()
    torch.testing.assert_close(own.layer_norm(x, (64,)), F.layer_norm(x, (64,)))


def test_statistics_of_the_batch_are_torchs_own() -> None:
    """... and so are refused, or written as torch writes them."""
    x, mean, var = torch.randn(N, 4, 6), torch.zeros(4), torch.ones(4)
    ours, theirs = (mean.clone(), var.clone()), (mean.clone(), var.clone())
    torch.testing.assert_close(own.instance_norm(x, *ours), F.instance_norm(x, *theirs))
    torch.testing.assert_close(own.batch_norm(x, None, None, None, None, True),
                               F.batch_norm(x, None, None, None, None, True))  # fmt: skip
    torch.testing.assert_close(ours, theirs)
    model = Applied(4, batch=along(lambda h: F.batch_norm(h, None, None, training=True)))
    with pytest.raises(fxdp.ProofError):
        fxdp.prove(model, torch.randn(N, 4))


def test_dropout_draws_for_each_element() -> None:
    x = torch.ones(400)
    kept = own.dropout(x, 0.25)
    assert set(kept.tolist()) == {0.0, 1 / 0.75}
    assert 0.6 < float(kept.count_nonzero()) / 400 < 0.9
    with pytest.raises(RuntimeError, match="probability"):
        own.dropout(x, 1.5)
    model = Applied(4, dropped=along(lambda h: F.dropout(h, 0.5).square()))
    assert fxdp.prove(model, torch.randn(N, 4))


def test_nothing_of_torch_stays_replaced() -> None:
    call, before = TorchInGraphFunctionVariable.call_function, dict(op_implementations)
    with contextlib.suppress(ZeroDivisionError), own.transforms():
        assert TorchInGraphFunctionVariable.call_function is not call
        raise ZeroDivisionError
    assert TorchInGraphFunctionVariable.call_function is call
    assert dict(op_implementations) == before
