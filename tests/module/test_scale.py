"""The numbers of a release are checked when they are set."""

import math

import pytest
import torch
from torch import nn

import fxdp

NUMBERS = {"max_grad_norm": 1.0, "noise_multiplier": 2.0, "expected_batch_size": 8.0}


def private() -> fxdp.PrivateModule:
    return fxdp.compile(nn.Linear(3, 2), loss_fn=nn.MSELoss(), **NUMBERS)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_grad_norm", 0, ValueError),
        ("max_grad_norm", math.nan, ValueError),
        ("max_grad_norm", "1", TypeError),
        ("noise_multiplier", -1, ValueError),
        ("noise_multiplier", math.inf, ValueError),
        ("noise_multiplier", None, TypeError),
        ("expected_batch_size", 0, ValueError),
        ("expected_batch_size", math.inf, ValueError),
        ("expected_batch_size", True, TypeError),
    ],
)
def test_a_wrong_number_is_refused_and_the_old_one_stays(
    name: str, value: object, error: type[Exception]
) -> None:
    module = private()
    with pytest.raises(error, match=name):
        setattr(module, name, value)
    assert {k: getattr(module, k) for k in NUMBERS} == NUMBERS


def test_a_right_number_is_kept_as_a_float() -> None:
    module = private()
    module.max_grad_norm, module.noise_multiplier = 3, torch.tensor(0.5)  # pyright: ignore
    module.expected_batch_size = 7
    assert module._scales == (3.0, 0.5, 7.0)
    assert all(type(v) is float for v in module._scales)
    assert "max_grad_norm=3.0" in repr(module)
