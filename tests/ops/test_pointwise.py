"""Rules of pointwise ops: every op of the table, and the special rules closely."""

from typing import Any

import pytest
import torch

from fxdp.ops import pointwise
from tests.ops.placements import Case, N, T, case, each, hold

aten, prims = torch.ops.aten, torch.ops.prims
FEW = "replicate shard partial"
WORDS: dict[str, Any] = {
    "approximate": each("none", "tanh"),
    "rounding_mode": each(None, "floor", "trunc"),
    "reduction": each(0, 1, 2),
    "dtype": torch.float32,
    "is_result": False,
    "self_is_result": False,
    "mask": T(1, 2, dtype=torch.bool, only=FEW),
    "p": 2,
    "n": 1,
    "decimals": 1,
    "memory_format": None,
}


def arguments(op: Any, dtype: torch.dtype) -> tuple[list[Any], dict[str, Any]]:
    """Sample arguments by the op's schema; a few placements where it takes many tensors."""
    schema = op._schema.arguments
    count = sum("Tensor" in str(a.type) for a in schema)
    only = {"only": FEW} if count > 2 else {}
    args, kwargs = [], {}
    for a in schema:
        kind = str(a.type)
        value: Any
        if a.name in WORDS and not (a.name == "n" and "Tensor" in kind):
            value = WORDS[a.name]
        elif "Tensor" in kind:
            value = T(1, 2, dtype=dtype, **only)
        elif a.kwarg_only and a.has_default_value():
            continue
        else:
            value = {"Scalar": 2, "float": 0.5, "int": 1, "bool": False}.get(
                kind.replace("Optional[", "").rstrip("]").replace("number", "Scalar"), 2
            )
        if a.kwarg_only:
            kwargs[a.name] = value
        else:
            args.append(value)
    return args, kwargs


def dtype_of(op: Any) -> torch.dtype | None:
    """The first dtype that the op takes."""
    for dtype in (torch.float64, torch.int64, torch.bool, torch.complex128):
        args, kwargs = arguments(op, dtype)
        first = [
            torch.ones(1, 2).to(a.dtype) if isinstance(a, T) else getattr(a, "options", [a])[0]
            for a in args
        ]
        words = {k: getattr(v, "options", [v])[0] for k, v in kwargs.items()}
        try:
            op(*first, **words)
        except (RuntimeError, TypeError):
            continue
        return dtype
    return None


APART = {
    aten.equal.default,  # its result is no tensor
    # torch cannot compute their shapes from symbols
    aten.softshrink_backward.default,
    aten.hardshrink_backward.default,
    aten.rrelu_with_noise_functional.default,  # its noise is a second result
    aten.contiguous.default,  # never in a graph
    aten.masked_fill.Tensor,  # takes a 0-d value: below
}
LISTED = [op for op in pointwise.RULES if op not in APART]


@pytest.mark.parametrize("op", LISTED, ids=str)
def test_every_pointwise_op(op: Any) -> None:
    dtype = dtype_of(op)
    assert dtype is not None, f"no sample arguments for {op}"
    args, kwargs = arguments(op, dtype)
    hold(Case(op, tuple(args), kwargs))


SMALL = "replicate zero shard partial public"
CASES = [
    *(case(op, T(2, 3), T(2, 3)) for op in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor)),
    *(case(op, T(2, 3), T(3)) for op in (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor)),
    *(case(op, T(1, 3), T(3, 1)) for op in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor)),
    *(case(op, T(2, 3), T(2, 1)) for op in (aten.add.Tensor, aten.sub.Tensor)),
    *(case(op, T(), T(2)) for op in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor)),
    *(case(op, T(2), T()) for op in (aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)),
    *(
        case(op, T(), T(), samples=False)
        for op in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor)
    ),
    case(aten.add.Tensor, T(2), T(2), alpha=each(1, 3, N)),
    case(aten.sub.Tensor, T(2), T(2), alpha=each(1, 3, N)),
    *(
        case(op, each(T(2), T()), each(2, 0.5, N, 1 / N))
        for op in (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor)
    ),
    *(
        case(op, each(T(2), T()), each(2, N))
        for op in (aten.pow.Tensor_Scalar, aten.mul.Scalar, aten.div.Scalar)
    ),
    case(aten.sub.Scalar, each(T(2), T()), each(1, N), each(1, N)),
    case(aten.rsub.Scalar, each(T(2), T()), each(1, N), each(1, N)),
    case(aten.addcmul.default, T(2, only=FEW), T(2, only=FEW), T(2, only=FEW), value=each(2, N)),
    case(aten.addcdiv.default, T(2, only=FEW), T(2, only=FEW), T(2, only=FEW), value=each(2, N)),
    case(aten.div.Tensor_mode, T(2), T(2), rounding_mode=each(None, "floor", "trunc")),
    case(aten.div.Scalar_mode, T(2), each(2, N), rounding_mode=each(None, "floor")),
    case(aten.where.self, T(2, dtype=torch.bool, only="replicate shard"), T(2), T(2)),
    case(
        aten.where.self, T(3, 2, dtype=torch.bool, only="replicate shard"), T(2), each(T(2), T(1))
    ),
    case(aten.where.self, T(dtype=torch.bool), each(T(2), T()), T()),
    case(
        aten.where.self, T(2, 1, dtype=torch.bool, only="replicate shard"), T(3), T(1, only=SMALL)
    ),
    case(aten.masked_fill.Scalar, T(2), T(2, dtype=torch.bool, only=FEW), each(0, 1.5, N)),
    case(
        aten.masked_fill.Scalar,
        T(2),
        T(3, 2, dtype=torch.bool, only="replicate shard"),
        each(0, 2.0),
    ),
    case(aten.masked_fill.Tensor, T(2), T(2, dtype=torch.bool, only=FEW), T(only="replicate zero")),
    case(aten.clamp.default, each(T(2), T()), each(0, None, N), each(1, N)),
    case(
        aten._to_copy.default,
        each(T(2), T(), T(2, 1, high=3)),
        dtype=each(None, torch.float32, torch.int64, torch.int32, torch.bool, torch.float16),
    ),
    case(aten._to_copy.default, T(2, dtype=torch.complex64), dtype=each(torch.complex128)),
    case(
        prims.convert_element_type.default,
        each(T(2), T(1, high=3)),
        each(torch.float32, torch.int64, torch.bool),
    ),
    case(aten.clone.default, each(T(2, 3), T(1, 2, high=3), T())),
    case(aten.neg.default, each(T(2, 3), T(1, high=3), T())),
    case(
        aten.huber_loss_backward.default,
        T(2, only=FEW),
        T(2, only=FEW),
        T(2, only=FEW),
        each(0, 1, 2),
        1.0,
    ),
    case(aten.pow.Tensor_Tensor, T(2), T(2)),
    case(aten.pow.Scalar, each(2, N), each(T(2), T())),
    case(aten.maximum.default, T(2, 3), T(3)),
    case(aten.eq.Tensor, T(2, high=2), T(2, high=2)),
    case(aten.eq.Scalar, each(T(2), T()), each(1, N)),
    case(aten.view_as_real.default, T(2, 3, dtype=torch.complex128)),
    case(aten.view_as_complex.default, T(3, 2)),
    case(aten.lerp.Scalar, T(2), T(2), each(0.5, 1 / N)),
    case(aten.nan_to_num.default, T(2), each(0.0, N)),
    case(
        aten.rrelu_with_noise_functional.default,
        T(2, 3),
        each(T(2, 3, only="replicate shard")),
        0.1,
        0.3,
        each(False),
    ),
]


@pytest.mark.parametrize("one", CASES, ids=str)
def test_special_rules(one: Case) -> None:
    hold(one)


def test_a_number_is_not_read_from_samples() -> None:
    """`equal` compares whole tensors; its result is no tensor, so no rule places it."""
    assert aten.equal.default._schema.returns[0].type.kind() == "BoolType"
