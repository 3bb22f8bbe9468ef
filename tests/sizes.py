"""One compilation of a model, held against the loop over samples at several batch sizes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxdp
from tests.oracle import clipped_sum, per_sample

SIZES = (7, 2, 1)


def compare_at(
    sizes: tuple[int, ...],
    model: nn.Module,
    draw: Callable[[int], tuple[Any, ...]],
    loss_fn: Callable[..., Tensor] | None = None,
    backend: str = "eager",
    tolerance: float = 1e-9,
) -> fxdp.PrivateModule:
    """Step a model at each batch size and assert that it agrees with a loop over the samples.

    Args:
        draw: the arguments of a step of n samples.
        tolerance: relative and absolute.
    """
    torch._dynamo.reset()
    private: fxdp.PrivateModule | None = None
    for n in sizes:
        args = draw(n)
        rows, norms = per_sample(model, loss_fn, args, {}, n)
        if private is None:
            bound = float(norms.mean())
            private = fxdp.compile(
                model, loss_fn=loss_fn, max_grad_norm=bound, noise_multiplier=0.0,
                expected_batch_size=3.0, backend=backend,
            )  # fmt: skip
        model.zero_grad(set_to_none=True)
        private(*args).backward()
        want = clipped_sum(rows, bound, 3.0)
        got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert got.keys() == want.keys()
        for name, grad in got.items():
            torch.testing.assert_close(
                grad, want[name], rtol=tolerance, atol=tolerance,
                msg=lambda text, name=name, n=n: f"gradient of {name} at {n}: {text}",
            )  # fmt: skip
    assert private is not None
    return private
