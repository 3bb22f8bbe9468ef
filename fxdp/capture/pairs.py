"""Whether a batch size is fixed because samples are paired with each other, as nodes are."""

import copy
import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxdp.capture.inputs import Inputs, padded
from fxdp.capture.settings import quiet
from fxdp.capture.step import local_loss
from fxdp.torch_internals import FakeTensorMode, pytree


def pair_axis(model: nn.Module, loss_fn: Any, inputs: Inputs, reduction: str) -> str | None:
    """A second axis of samples in an argument, such as that of an adjacency matrix, in words.

    With more samples on the first axis alone the model fails, and with as many on both it runs: so
    the two are axes of the same samples. What runs is a copy, on tensors without data: nothing of
    it reaches the model.
    """
    if inputs.owners:  # ragged axes hold rows of samples, and whose they are is known
        return None
    try:
        model, loss_fn = copy.deepcopy((model, loss_fn))
    except Exception:  # of the user's classes: any
        return None
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(x: Any) -> Any:
        return mode.from_tensor(x, static_shapes=True) if isinstance(x, Tensor) else x

    state = {k: fake(v) for k, v in (*model.named_parameters(), *model.named_buffers())}

    def runs(inputs: Inputs) -> bool:
        args, kwargs = pytree.tree_unflatten(inputs.leaves, inputs.spec)

        def step(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, state, args, kwargs)

        try:
            with torch.no_grad():
                local_loss(step, loss_fn, args, kwargs, reduction)
        except Exception:  # of the user's code: any
            return False
        return True

    with mode, quiet(logging.getLogger("torch._subclasses.fake_tensor")):
        inputs = replace(inputs, leaves=tuple(fake(x) for x in inputs.leaves))
        more = inputs.resized(inputs.size + 1)
        if not runs(inputs) or runs(more):
            return None
        for i, (leaf, dim) in enumerate(zip(inputs.leaves, inputs.dims, strict=True)):
            for axis in range(leaf.dim()) if dim is not None else ():
                if axis != dim and leaf.shape[axis] == inputs.size:
                    changed = list(more.leaves)
                    changed[i] = padded(more.leaves[i], axis, inputs.size + 1)
                    if runs(replace(more, leaves=tuple(changed))):
                        return f"axis {axis} of {inputs.names[i]!r}"
    return None
