"""Rules of ops that make tensors from nothing."""

import pytest
import torch

from fxdp.ops import RULES
from tests.ops.placements import Case, N, T, case, check, each, hold

aten, prims = torch.ops.aten, torch.ops.prims
SIZES = each([3], [N], [3, N], [2 * N, 3], [N, N], [])
CPU = {"device": torch.device("cpu"), "requires_grad": False}

CASES = [
    case(aten.full.default, SIZES, each(0, 1.5, N, 1 / N), samples=False),
    case(aten.zeros.default, SIZES, samples=False),
    case(aten.ones.default, SIZES, samples=False),
    case(aten.new_full.default, T(2, 1), SIZES, each(0, 2, N)),
    case(aten.new_zeros.default, T(2), SIZES),
    case(aten.new_ones.default, T(2), SIZES),
    case(aten.full_like.default, each(T(2, 3), T()), each(0, 2.5, N)),
    case(aten.zeros_like.default, each(T(2, 3), T(1, high=2), T())),
    case(aten.ones_like.default, each(T(2, 3), T(1, high=2), T())),
    case(aten.scalar_tensor.default, each(0, 2, N, 1 / N), samples=False),
    case(
        prims.iota.default,
        each(3, N, 2 * N),
        start=each(0, 1, N),
        step=each(1, 2),
        dtype=torch.int64,
        **CPU,
        samples=False,
    ),
    case(aten.arange.default, each(3, N, 2 * N), samples=False),
    case(aten.arange.start, each(0, 1, N), each(3, N, 2 * N, N + 3), samples=False),
    case(
        aten.arange.start_step,
        each(0, 1, N),
        each(3, N, 3 * N, N + 3),
        each(1, 3, N),
        samples=False,
    ),
    case(
        aten.arange.default, N, dtype=each(torch.float64, torch.float16, torch.int32), samples=False
    ),
    case(aten.eye.default, each(3, N), samples=False),
    case(aten.eye.m, each(3, N), each(2, N), samples=False),
    case(aten.tril_indices.default, 3, 3, samples=False),
    case(aten.triu_indices.default, 3, 2, samples=False),
    case(aten.linspace.default, each(0, N), each(1.0, N), 3, samples=False),
    case(aten.bernoulli.default, T(2, 3, values=(0.0, 1.0), only="replicate zero shard partial")),
    case(aten.bernoulli.p, T(2, 3), each(0.0, 1.0)),
    case(aten.native_dropout.default, T(2, 3), 0.5, False),
    # Distributions without a spread.
    case(aten.exponential.default, T(2, 3), 1e300),
    case(aten.geometric.default, T(2, 3), 1 - 1e-16),
    case(aten.log_normal.default, T(2, 3), 0.0, 1e-300),
    case(aten.uniform.default, T(2, 3), 2.0, 2.0),
    case(aten.randint_like.default, T(2, 3), 1),
    case(aten.randint_like.low_dtype, T(2, 3), 4, 5),
    case(aten.normal_functional.default, T(2, 3), 1.0, 0.0),
    case(aten.normal.float_float, 1.0, 0.0, SIZES, samples=False),
    case(aten.normal.Tensor_float, T(2, 3), 0.0),
    case(aten.normal.float_Tensor, 1.0, T(2, 3, values=(0.0,))),
    case(aten.normal.Tensor_Tensor, T(2, 3), T(3, values=(0.0,))),
    case(aten.multinomial.default, each(T(2, 1, values=(1.0,)), T(1, values=(1.0,))), 1),
]


@pytest.mark.parametrize("one", CASES, ids=str)
def test_claims_are_true(one: Case) -> None:
    hold(one)


# What they hold is random or left as it was, but how random must not depend on the batch size.
BLIND = [
    case(aten.randint.default, N, [3]),
    case(aten.randint.low, 0, N, [3]),
]


@pytest.mark.parametrize("one", BLIND, ids=str)
def test_distributions_that_depend_on_the_batch_size(one: Case) -> None:
    tally = check(one, RULES)
    assert tally.refused
    assert not tally.claimed
