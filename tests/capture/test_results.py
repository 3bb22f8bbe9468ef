"""What ops return on fake tensors is what their kernels return: shape, strides, dtype."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fxdp.capture import results
from fxdp.capture.results import RESULTS, results_at_once
from fxdp.torch_internals import FakeTensor, FakeTensorMode, OpOverload, ShapeEnv, fast_fakes

aten = torch.ops.aten
N = 5
# What an op takes beside its tensors.
MORE: dict[OpOverload, tuple[tuple[Any, ...], ...]] = {
    aten.clamp.default: ((None, 1.0), (-1, 1), (0.5,)),
    aten.clamp_max.default: ((1,),),
    aten.clamp_min.default: ((0.5,),),
    aten.pow.Tensor_Scalar: ((2,), (0.5,), (3.0,)),
    aten.masked_fill.Scalar: ((0,), (1.5,)),
    aten.threshold_backward.default: ((0,),),
    aten._softmax.default: ((-1, False),),
    aten._log_softmax.default: ((0, False), (1, False)),
    aten._softmax_backward_data.default: ((1, torch.float32),),
    aten._log_softmax_backward_data.default: ((1, torch.float32),),
    aten.sum.dim_IntList: (([0],), ([-1], True), ([0, 1],)),
    aten.linalg_vector_norm.default: ((), (2, [0]), (2, [-1], True), (1.0, [0, 1]), (2, [])),
    **{getattr(aten, name).Scalar: ((1,), (0.5,)) for name in ("eq", "ge", "gt", "le", "lt", "ne")},
}
# Their other tensors; one more like the first for what is a backward pass or compares.
BESIDE: dict[OpOverload, Callable[[Tensor], tuple[Tensor, ...]]] = {
    aten.masked_fill.Scalar: lambda x: (x > 0,),
    **dict.fromkeys(
        (
            aten.gelu_backward.default, aten.sigmoid_backward.default,
            aten.tanh_backward.default, aten.threshold_backward.default,
            aten._softmax_backward_data.default, aten._log_softmax_backward_data.default,
            aten.eq.Tensor, aten.ne.Tensor, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor,
        ),
        lambda x: (x.clone(),),
    ),
}  # fmt: skip


VIEWS = (aten.view.default, aten._unsafe_view.default)
OTHERWISE = (*VIEWS, aten.fractional_max_pool3d.default)  # tests/capture/test_polyfills.py
KERNELS = [op for op in RESULTS if op not in OTHERWISE]


def operands(op: OpOverload, x: Tensor) -> tuple[Tensor, ...]:
    if op in (aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_not.default):
        x = x > 0
    if op == aten.where.self:
        return x > 0, x, x * 2
    if op == aten.addmm.default:
        return torch.rand(4), x, torch.rand(4, 3).t()
    return x, *BESIDE.get(op, lambda _: ())(x)


def faked(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same without data, in one mode, of sizes that are symbols where they were N."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    for x in tensors:
        for axis, size in enumerate(x.shape):
            if size == N:
                torch._dynamo.mark_dynamic(x, axis)
    return tuple(mode.from_tensor(x) for x in tensors)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The results that were found without torch."""
    found: list[Tensor] = []
    own = results.made

    def made(*args: Any) -> Tensor:
        found.append(own(*args))
        return found[-1]

    monkeypatch.setattr(results, "made", made)
    with results_at_once():
        yield found


def agree(fake: Tensor, wanted: Tensor) -> None:
    assert isinstance(fake, FakeTensor)
    assert tuple(map(int, fake.shape)) == tuple(map(int, wanted.shape))
    assert tuple(map(int, fake.stride())) == tuple(map(int, wanted.stride()))
    assert (fake.dtype, fake.device) == (wanted.dtype, wanted.device)


@pytest.mark.parametrize("op", KERNELS, ids=str)
def test_as_the_kernel_says(op: OpOverload, asked: list[Tensor]) -> None:
    cases = MORE.get(op, ((),))
    for more in cases:
        tensors = operands(op, torch.rand(N, 3))
        agree(op(*faked(*tensors), *more), op(*tensors, *more))
    assert len(asked) == len(cases), "torch was asked"


LAYOUTS = {
    "transposed": torch.rand(3, N).t(),
    "with gaps": torch.rand(N, 6)[:, ::2],
    "expanded": torch.rand(3).expand(N, 3),
}


@pytest.mark.parametrize("x", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("op", KERNELS, ids=str)
def test_of_other_layouts_as_torch_says(op: OpOverload, x: Tensor) -> None:
    for more in MORE.get(op, ((),)):
        wanted = op(*faked(*operands(op, x)), *more)
        with results_at_once():
            agree(op(*faked(*operands(op, x)), *more), wanted)


@pytest.mark.parametrize("op", VIEWS, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        lambda n, m: [-1], lambda n, m: [n * m], lambda n, m: [m, -1], lambda n, m: [n, m, 1],
        lambda n, m: [1, -1, m], lambda n, m: [m, n],
    ],
)  # fmt: skip
def test_views(op: OpOverload, shape: Callable[..., list[Any]]) -> None:
    x = torch.rand(N, 3)
    (fake,) = faked(x)
    found = RESULTS[op](fake.fake_mode, fake, shape(*fake.shape))
    assert found is not None, "torch was asked"
    agree(found, op(x, shape(N, 3)))
    with results_at_once():
        assert torch._C._is_alias_of(fake.view(-1), fake)


@pytest.mark.parametrize("x", LAYOUTS.values(), ids=LAYOUTS)
def test_norms_of_other_layouts(x: Tensor, asked: list[Tensor]) -> None:
    op = aten.linalg_vector_norm.default
    for more in MORE[op]:
        agree(op(*faked(x), *more), op(x, *more))
    assert len(asked) == len(MORE[op])


OTHERS: dict[str, Callable[[], tuple[OpOverload, tuple[Tensor, ...], tuple[Any, ...]]]] = {
    "whole numbers": lambda: (aten.exp.default, (torch.arange(N),), ()),
    "a whole number between halves": lambda: (
        aten.clamp.default, (torch.arange(N),), (0.5, 1.5)
    ),
    "complex": lambda: (aten.abs.default, (torch.rand(N, dtype=torch.complex64),), ()),
    "a complex power": lambda: (aten.pow.Tensor_Scalar, (torch.rand(N),), (2j,)),
    "another dtype": lambda: (
        aten.where.self, (torch.rand(N) > 0, torch.rand(N), torch.rand(N).double()), ()
    ),
    "a mask of rows": lambda: (
        aten.masked_fill.Scalar, (torch.rand(N, 3), torch.rand(N, 1) > 0), (0.0,)
    ),
    "a number as a tensor": lambda: (
        aten.where.self, (torch.rand(N, 3) > 0, torch.rand(N, 3), torch.tensor(0.0)), ()
    ),
    "bits of whole numbers": lambda: (
        aten.bitwise_and.Tensor, (torch.arange(N), torch.arange(N)), ()
    ),
    "wider": lambda: (
        aten._softmax_backward_data.default,
        (torch.rand(N, 3, dtype=torch.bfloat16),) * 2, (1, torch.float32),
    ),
    "a view of gaps": lambda: (aten.view.default, (torch.rand(N, 6)[:, ::2],), ([-1, 3],)),
    "a view of other sizes": lambda: (aten.view.default, (torch.rand(N, 3),), ([15],)),
    "rows of a bias": lambda: (
        aten.addmm.default, (torch.rand(N, 4), torch.rand(N, 3), torch.rand(3, 4)), ()
    ),
    "a norm of the largest": lambda: (
        aten.linalg_vector_norm.default, (torch.rand(N, 3),), (float("inf"), [1])
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_torch_is_asked_of_the_rest(case: Callable[..., Any]) -> None:
    op, tensors, more = case()
    fakes = faked(*tensors)
    assert RESULTS[op](FakeTensorMode(), *fakes, *more) is None
    wanted = op(*fakes, *more)
    with results_at_once():
        agree(op(*fakes, *more), wanted)


@pytest.mark.parametrize("dims", [[2], [-3], [0, 0], [1, -1]])
def test_torch_refuses_axes_that_are_not_there(dims: list[int]) -> None:
    (x,) = faked(torch.rand(N, 3))
    with results_at_once():
        for op in (torch.sum, torch.linalg.vector_norm):
            with pytest.raises((IndexError, RuntimeError), match="[dD]im|out of range"):
                op(x, dim=dims)


def test_torch_is_as_it_was_afterwards() -> None:
    before = dict(fast_fakes())
    with results_at_once(), results_at_once():
        assert fast_fakes().keys() == before.keys() | RESULTS.keys()
        (x,) = faked(torch.rand(3, N).t())
        x.neg()
        assert fast_fakes().keys() == before.keys() | RESULTS.keys()
    assert fast_fakes() == before
