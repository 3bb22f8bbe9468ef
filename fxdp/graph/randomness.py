"""Random draws of a model: no two are merged into one, and none happens twice."""

import contextlib
from collections.abc import Iterator

import torch
from torch.fx import GraphModule

from fxdp.torch_internals import OpOverload, compile_utils, functorch_config


@contextlib.contextmanager
def draws_apart(gm: GraphModule) -> Iterator[None]:
    """While common subexpressions are looked for: no two random ops of a graph are one.

    torch goes by a list of random ops, in which some are missing: two calls of `randn_like` or
    `exponential_` on one tensor would give the same numbers.
    """
    before = list(compile_utils.rand_ops)
    compile_utils.rand_ops += [op.overloadpacket for op in random_ops(gm).values()]
    try:
        yield
    finally:
        compile_utils.rand_ops[:] = before


def refuse_second_draws(forward: GraphModule, back: GraphModule) -> None:
    """Refuse a split graph whose backward half draws again what the forward half drew.

    Raises:
        ValueError: so a mask of dropout would not be the one that the loss was computed with.
    """
    if both := sorted(random_ops(forward).keys() & random_ops(back).keys()):
        raise ValueError(
            f"torch._functorch.config.activation_memory_budget="
            f"{functorch_config.activation_memory_budget:g} makes torch draw {', '.join(both)} a "
            "second time, with other numbers: use a larger one, or torch.utils.checkpoint"
        )


def random_ops(gm: GraphModule) -> dict[str, OpOverload]:
    """The ops of a graph that draw, by the names of their nodes."""
    ops = {n.name: n.target for n in gm.graph.nodes if isinstance(n.target, OpOverload)}
    return {k: op for k, op in ops.items() if torch.Tag.nondeterministic_seeded in op.tags}
