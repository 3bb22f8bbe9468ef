"""Gradients that are there already."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp

X, Y = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3


def private() -> fxdp.PrivateModule:
    return fxdp.compile(
        nn.Linear(5, 3), F.cross_entropy, max_grad_norm=1.0, noise_multiplier=1.0,
        expected_batch_size=4, backend="eager",
    )  # fmt: skip


def test_a_release_added_to_another_is_warned_of_once() -> None:
    step = private()
    step(X, Y).backward()
    with pytest.warns(UserWarning, match=r"accumulate\(\)"):
        step(X, Y).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(X, Y).backward()
    assert step.releases == 3


def test_through_the_door_of_torch_compile() -> None:
    """The step that it makes has no `accumulate`, so it names what has."""
    net = nn.Linear(5, 3)
    step = torch.compile(
        lambda x, y: F.cross_entropy(net(x), y), backend="fxdp", fullgraph=True,
        options={
            "max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": 4,
            "backend": "eager",
        },
    )  # fmt: skip
    step(X, Y).backward()
    with pytest.warns(UserWarning, match=r"`fxdp.compile`, and `with private.accumulate\(\)"):
        step(X, Y).backward()
    net.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(X, Y).backward()


@pytest.mark.parametrize("to_none", [True, False])
def test_not_after_zero_grad_and_not_within_a_logical_batch(to_none: bool) -> None:
    step = private()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            step.zero_grad(to_none)
            with step.accumulate():
                step(X, Y).backward()
                step(X, Y).backward()
    assert step.releases == 2
