"""The noise is normal, independent, reproducible, and of the right size.

The generator is seeded, so a test that passes once passes always; the bounds are five standard
deviations of what they bound, or a Kolmogorov-Smirnov test at 1e-6, so that a right generator
would fail a test for less than one seed in a hundred thousand.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fxdp.gaussian import PAIRS, standard_normal

DTYPES = [torch.float32, torch.float64]
MANY = 400_000


def drawn(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    torch.manual_seed(seed)
    return standard_normal([torch.empty(s, dtype=dtype) for s in shapes])


@pytest.mark.parametrize("dtype", DTYPES)
def test_distribution(dtype: torch.dtype) -> None:
    (x,) = drawn((MANY,), dtype=dtype)
    assert stats.kstest(x.double().numpy(), "norm").pvalue > 1e-6
    for power, wanted, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        found = float((x.double() ** power).mean())
        assert abs(found - wanted) < 5 * math.sqrt(spread / MANY)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tails(dtype: torch.dtype) -> None:
    """As many numbers beyond 3, 4 as there should be, and no infinities."""
    (x,) = drawn((4 * MANY,), dtype=dtype)
    assert torch.isfinite(x).all()
    for bound in (3.0, 4.0):
        for beyond in (x > bound, x < -bound):
            wanted = 4 * MANY * stats.norm.sf(bound)
            assert abs(int(beyond.sum()) - wanted) < 5 * math.sqrt(wanted)


def test_the_halves_of_a_pair_are_independent() -> None:
    (x,) = drawn((2 * PAIRS * 8,))
    pairs = x.view(8, 2, PAIRS).double()
    cosine, sine = pairs[:, 0].flatten(), pairs[:, 1].flatten()
    bound = 5 / math.sqrt(cosine.numel())
    for f in (lambda v: v, np.square, np.abs):
        assert abs(np.corrcoef(f(cosine.numpy()), f(sine.numpy()))[0, 1]) < bound


def test_neighbours_are_independent() -> None:
    """In a row, across the borders of blocks, and from tensor to tensor."""
    x, y = drawn((MANY,), (MANY,))
    bound = 5 / math.sqrt(MANY)
    for lag in (1, 2, PAIRS, 2 * PAIRS):
        assert abs(np.corrcoef(x[lag:].numpy(), x[:-lag].numpy())[0, 1]) < bound
    assert abs(np.corrcoef(x.numpy(), y.numpy())[0, 1]) < bound


@pytest.mark.parametrize(
    "shapes", [[()], [(0,)], [(1,)], [(3, 5), (0, 4), (7,)], [(2 * PAIRS + 1,)]]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    found = drawn(*shapes, dtype=dtype)
    assert [(x.shape, x.dtype) for x in found] == [(torch.Size(s), dtype) for s in shapes]
    numbers = [float(v) for x in found for v in x.flatten()]
    assert len(set(numbers)) >= 0.999 * len(numbers)  # some are equal by chance


def test_dtypes_may_be_mixed() -> None:
    torch.manual_seed(0)
    found = standard_normal([torch.empty(3), torch.empty(4, dtype=torch.float64), torch.empty(5)])
    assert [x.dtype for x in found] == [torch.float32, torch.float64, torch.float32]
    assert standard_normal([]) == []


def test_the_seed_decides() -> None:
    (a,), (b,), (c,) = drawn((100,)), drawn((100,)), drawn((100,), seed=1)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    torch.manual_seed(0)
    first, second = (standard_normal([torch.empty(100)])[0] for _ in range(2))
    assert torch.equal(first, a)
    assert not torch.equal(first, second)


def test_the_number_of_threads_stays() -> None:
    before = torch.get_num_threads()
    drawn((10,))
    assert torch.get_num_threads() == before
