"""What a model returns, found by running it without data."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxdp.lint.models.losses import scores
from fxdp.torch_internals import FakeTensor, FakeTensorMode, pytree


@dataclass(frozen=True)
class Seen:
    """What a model returned when it was run without data, to know its shape."""

    out: Any

    @classmethod
    def of(cls, model: nn.Module, args: Any, kwargs: Any) -> "Seen | None":
        """None where it does not run so: the proof will say why. A copy runs, so that nothing
        is kept in the model; fake tensors, which cannot be copied, are shared with it."""
        held = [x for m in model.modules() for x in pytree.tree_leaves(vars(m))]
        memo = {id(x): x for x in held if isinstance(x, FakeTensor | FakeTensorMode)}
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return cls(copy.deepcopy(model, memo)(*args, **kwargs))
        except Exception:
            return None

    def scores(self) -> Tensor | None:
        """What a loss can be taken of: floating, with an axis other than the samples'."""
        try:
            out = scores(self.out)
        except TypeError:
            return None
        return out if out.is_floating_point() and out.dim() > 1 else None
