"""Turns meta-device models into fake CPU models, because autograd on meta misses gradients.

A cross entropy on the meta device has no gradient, for example, so a proof there would be about
gradients that are missing. Fake tensors have a device, a shape and a
dtype, and autograd follows them as it does real ones.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fxdp.torch_internals import FakeTensor, FakeTensorMode, pytree

CPU = torch.device("cpu")


def is_dataless(model: nn.Module, arguments: Any) -> bool:
    """Is some tensor of a model or of its arguments on the meta device?"""
    tensors = [*model.parameters(), *model.buffers(), *pytree.tree_leaves(arguments)]
    return any(isinstance(x, Tensor) and x.is_meta for x in tensors)


def on_cpu(model: nn.Module, arguments: Any) -> tuple[nn.Module, Any]:
    """A copy of the model and its arguments, of fake tensors; what is tied stays tied."""
    mode = FakeTensorMode()
    made: dict[int, Tensor] = {}

    def fake(x: Tensor) -> Tensor:
        if isinstance(x, FakeTensor):
            return x
        device = CPU if x.is_meta else x.device
        plain: Tensor = FakeTensor(mode, x.detach().to("meta"), device)
        if isinstance(x, nn.Parameter):
            return nn.Parameter(plain, x.requires_grad)
        return plain.requires_grad_(x.requires_grad)

    model = copy.deepcopy(model)
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, x in own.items():
                if x is not None and id(x) not in made:
                    made[id(x)] = fake(x)
                own[name] = x if x is None else made[id(x)]  # type: ignore[assignment]
    return model, pytree.tree_map_only(Tensor, fake, arguments)
