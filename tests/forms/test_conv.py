"""Weight gradients of convolutions."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fxdp.forms import Conv
from fxdp.forms.conv import Spec
from tests.forms.loops import DTYPES, QUICK, close, drawn, hold, silent

CONV = (None, torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)


def loop(form: Conv) -> torch.Tensor:
    """[N, *weight]: autograd's gradient, one sample after the other."""
    s, each = form.spec, []
    for x, g in zip(form.x.double(), form.g.double(), strict=True):
        w = torch.zeros(s.weight, dtype=torch.float64, requires_grad=True)
        out = CONV[len(s.kernel)](x, w, None, s.stride, s.padding, s.dilation, s.groups)  # type: ignore[misc]
        out = out[(..., *(slice(t) for t in g.shape[2:]))]
        each.append(torch.autograd.grad(out, w, g)[0])
    return torch.stack(each).to(form.x.dtype)


def stops(size: int, k: int, step: int, pad: int, dilation: int) -> int:
    return (size + 2 * pad - dilation * (k - 1) - 1) // step + 1


@st.composite
def forms(draw: Any, dims: int = 0, slack: bool = False, dtypes: Any = DTYPES) -> Conv:
    """A convolution's gradient; with slack, one that lacks the kernel's last stops."""
    small = st.integers(1, 3)
    nd = dims or draw(st.integers(1, 3))
    groups, c, d = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    k, step, dilation = ([draw(small) for _ in range(nd)] for _ in range(3))
    pad = [draw(st.integers(0, 2)) for _ in range(nd)]
    sizes = [draw(st.integers(1, 7 if nd < 3 else 4)) for _ in range(nd)]
    out = [stops(*a) for a in zip(sizes, k, step, pad, dilation, strict=True)]
    assume(all(o > 0 for o in out))
    if slack:
        assume(any(o > 1 for o in out))
        out = [max(1, o - 1) for o in out]
    n, t, dtype = draw(small), draw(st.integers(1, 2)), draw(st.sampled_from(dtypes))
    spec = Spec((d * groups, c, *k), tuple(step), tuple(pad), tuple(dilation), groups)
    x = drawn(1, n, t, c * groups, *sizes, dtype=dtype)
    return Conv(x, drawn(2, n, t, d * groups, *out, dtype=dtype), spec)


@QUICK
@given(forms())
def test_every_strategy(form: Conv) -> None:
    hold(form, loop(form))


@QUICK
@given(forms(slack=True))
def test_output_padding_leaves_stops_out(form: Conv) -> None:
    """As a transposed convolution with output padding does; `exact` cuts the rest off."""
    hold(form, loop(form))


@pytest.mark.parametrize("nd", [1, 2])
def test_factor_zero_is_silence(nd: int) -> None:
    spec = Spec((2, 1, *[2] * nd), (2,) * nd, (1,) * nd, (1,) * nd, 2)
    silent(
        lambda x, g: Conv(x, g, spec), drawn(1, 3, 1, 2, *[5] * nd), drawn(2, 3, 1, 2, *[3] * nd)
    )


def test_transposed() -> None:
    """One with its two sides exchanged, against autograd."""
    x, w = drawn(1, 3, 2, 5, 4), drawn(2, 2, 3, 3, 2).requires_grad_()
    options: Any = {"stride": 2, "padding": 1, "output_padding": (1, 0), "dilation": (1, 2)}
    wanted, grads = [], []
    for i in range(3):
        out = torch.nn.functional.conv_transpose2d(x[i : i + 1], w, **options)
        grads.append(drawn(3 + i, *out.shape))
        wanted.append(torch.autograd.grad(out, w, grads[-1])[0])
    spec = Spec(tuple(w.shape), (2, 2), (1, 1), (1, 2), 1)
    hold(Conv(torch.stack(grads), x.unsqueeze(1), spec), torch.stack(wanted))


# The stride leaves two inputs over, and differs from the dilation.
LEFT_OVER = Conv(drawn(1, 2, 1, 1, 9), drawn(2, 2, 1, 1, 2), Spec((1, 1, 3), (4,), (0,), (1,), 1))


def fails(form: Conv) -> bool:
    try:
        close(form.per_sample("crb"), loop(form))
    except (AssertionError, RuntimeError):
        return True
    return False


def test_crb_is_right_where_inputs_are_left_over() -> None:
    assert not fails(LEFT_OVER)


def test_crb_without_its_truncation_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "narrow", lambda x, *_: x)
    assert fails(LEFT_OVER)


def test_crb_with_stride_and_dilation_in_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.nn.functional.conv2d

    def unswapped(x: Any, g: Any, *, stride: Any, dilation: Any, **rest: Any) -> Any:
        return right(x, g, stride=dilation, dilation=stride, **rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", unswapped)
    assert fails(LEFT_OVER)
