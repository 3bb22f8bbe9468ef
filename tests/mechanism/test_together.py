"""The noise of several small parameters by one op: each has its own, whoever shares the op."""

import pytest
import torch
from torch import Tensor

from fxdp.mechanism import gaussian
from fxdp.mechanism import together as module
from fxdp.mechanism.gaussian import release_, released
from fxdp.mechanism.native import ALONE
from fxdp.mechanism.together import is_small, release_together_, released_together

KEY = torch.tensor([1, 2])
SHAPES = [(), (0,), (3, 4), (5000,)]
DRAWS = [7, 0, 2, 2**40]
DTYPES = [torch.float32, torch.float64]


def scalars(scale: float) -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64) for v in (scale, 4.0, 3.0)]


def totals(dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype) for shape in SHAPES]


@pytest.mark.parametrize("scale", [0.0, 8.0])
@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_one_by_one(dtype: torch.dtype, terms: int, scale: float) -> None:
    """To the bit."""
    given, numbers = totals(dtype), scalars(scale)
    pairs = list(zip(given, DRAWS, strict=True))
    wanted = [released(x, *numbers, None, KEY, draw, terms) for x, draw in pairs]
    found = released_together(given, *numbers, KEY, DRAWS, terms)
    assert all(map(torch.equal, found, wanted))
    one_by_one, at_once = ([x.clone() for x in given] for _ in range(2))
    for x, draw in zip(one_by_one, DRAWS, strict=True):
        release_(x, *numbers, None, KEY, draw, terms)
    release_together_(at_once, *numbers, KEY, DRAWS, terms)
    assert all(map(torch.equal, at_once, one_by_one))
    for x, y in zip(at_once, wanted, strict=True):
        torch.testing.assert_close(x, y)


def test_without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop makes the same."""
    given = totals(torch.float32)
    wanted = released_together(given, *scalars(8.0), KEY, DRAWS, 1)
    for where in (module, gaussian):
        monkeypatch.setattr(where, "native", lambda: None)
    release_together_(given, *scalars(8.0), KEY, DRAWS, 1)
    for x, y in zip(given, wanted, strict=True):
        torch.testing.assert_close(x, y)


def test_noise_needs_a_key_and_a_number_for_each() -> None:
    given, none = totals(torch.float32), torch.zeros(2, dtype=torch.int64)
    for op in (released_together, release_together_):
        with pytest.raises(AssertionError, match="no key"):
            op(given, *scalars(1.0), none, DRAWS, 1)
        with pytest.raises((AssertionError, ValueError), match=r"would get|longer"):
            op(given, *scalars(1.0), KEY, [*DRAWS, 5], 1)
        op(given, *scalars(0.0), none, DRAWS, 1)


def test_what_is_small() -> None:
    """What one thread makes the noise of."""
    assert is_small(torch.empty(ALONE, device="meta"))
    assert not is_small(torch.empty(ALONE + 1, device="meta"))
