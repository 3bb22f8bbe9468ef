"""Operands of dtypes that an op's kernels do not take, refused while a model is captured.

On fake tensors torch does not look at the dtypes of many ops. A model that is given integers or
doubles where its layers are float32 would be captured and proven, and would fail in the first step,
in torch's words and without a line. The conditions here are those of the kernels
(`tests/capture/test_dtypes.py` asks them).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fxdp.torch_internals import FakeTensorMode, OpOverload

aten = torch.ops.aten
# From an op's arguments by place: nothing, or an error.
Check = Callable[..., None]
HALVES = (torch.float16, torch.bfloat16)


class DtypeError(RuntimeError):
    """An op was given numbers of a dtype that it does not take; torch's own are RuntimeErrors."""


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtypes(args: Sequence[Any], places: Sequence[int]) -> list[torch.dtype]:
    """Those of the tensors among some of an op's arguments."""
    found = [args[i] for i in places if i < len(args)]
    return [x.dtype for x in found if isinstance(x, Tensor)]


def refuse_unlike(found: Sequence[torch.dtype]) -> None:
    """Refuse operands of several dtypes.

    Raises:
        DtypeError: they are.
    """
    kinds = list(dict.fromkeys(found))
    if len(kinds) > 1:
        raise DtypeError(
            f"the operands must be of one dtype, and are {' and '.join(map(named, kinds))}"
        )


def alike(*places: int) -> Check:
    """The arguments at these places are of one dtype."""

    def check(*args: Any) -> None:
        refuse_unlike(dtypes(args, places))

    return check


def norm(*places: int) -> Check:
    """The first argument and the weights at these places are of one dtype, but for an input of half
    precision, whose weights may be float32."""

    def check(*args: Any) -> None:
        own, weights = dtypes(args, (0,)), dtypes(args, places)
        wider = own[0] in HALVES and set(weights) == {torch.float32}
        refuse_unlike(weights if wider else own + weights)

    return check


def floating(x: Tensor, *args: Any) -> None:
    """The first argument holds no integers.

    Raises:
        DtypeError: it does.
    """
    if not (x.is_floating_point() or x.is_complex()):
        raise DtypeError(f"the op takes floating-point numbers, and is given {named(x.dtype)}")


CHECKS: dict[OpOverload, Check] = {
    aten._cdist_forward.default: alike(0, 1),
    aten._embedding_bag.default: alike(0, 6),
    aten._embedding_bag_forward_only.default: alike(0, 6),
    aten._log_softmax.default: floating,
    aten.addbmm.default: alike(0, 1, 2),
    aten.addmm.default: alike(0, 1, 2),
    aten.addmv.default: alike(0, 1, 2),
    aten.binary_cross_entropy.default: alike(0, 1),
    aten.complex.default: alike(0, 1),
    aten.grid_sampler_2d.default: alike(0, 1),
    aten.grid_sampler_3d.default: alike(0, 1),
    aten.huber_loss.default: floating,
    aten.index_add.default: alike(0, 3),
    aten.index_copy.default: alike(0, 3),
    aten.index_put.default: alike(0, 2),
    aten.index_reduce.default: alike(0, 3),
    aten.linalg_cross.default: alike(0, 1),
    aten.log_sigmoid_forward.default: floating,
    aten.mm.default: alike(0, 1),
    aten.multi_margin_loss.default: alike(0, 4),
    aten.mv.default: alike(0, 1),
    aten.native_batch_norm.default: norm(1, 2, 3, 4),
    aten.native_group_norm.default: norm(1, 2),
    aten.native_layer_norm.default: norm(2, 3),
    aten.nll_loss_forward.default: alike(0, 2),
    aten.polar.default: alike(0, 1),
    aten.put.default: alike(0, 2),
    aten.soft_margin_loss.default: floating,
}


@contextlib.contextmanager
def dtypes_of_kernels() -> Iterator[None]:
    """While a model is captured: with these checks, before torch does anything with an op."""
    mode: Any = FakeTensorMode
    own = mode.dispatch

    def dispatch(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (check := CHECKS.get(func)) is not None:
            check(*args)
        return own(self, func, types, args, kwargs or {})

    mode.dispatch = dispatch
    try:
        yield
    finally:
        mode.dispatch = own
