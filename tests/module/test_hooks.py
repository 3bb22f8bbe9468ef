"""Hooks on modules: a step is of the model as it is when the step is made."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp

X, Y = torch.randn(6, 4), torch.randint(3, (6,))


def test_hooks_that_come_and_go_after_the_first_step_count() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    private = fxdp.compile(
        model, F.cross_entropy, max_grad_norm=math.inf, noise_multiplier=0.0,
        expected_batch_size=6, backend="eager",
    )  # fmt: skip

    def agrees() -> None:
        model.zero_grad()
        private(X, Y).backward()
        got = [p.grad for p in model.parameters()]
        wanted = torch.autograd.grad(F.cross_entropy(model(X), Y), list(model.parameters()))
        torch.testing.assert_close(got, list(wanted))

    agrees()
    hook: Any = model[0].register_forward_hook(lambda module, args, out: out * 3)
    agrees()
    hook.remove()
    agrees()
    hook = model.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    agrees()
    hook.remove()
    hook = model[0].register_full_backward_hook(lambda module, *gradients: None)
    with pytest.raises(fxdp.CaptureError, match="remove the hooks"):
        private(X, Y)
    hook.remove()
    agrees()
