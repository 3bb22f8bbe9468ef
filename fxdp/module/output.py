"""The results of a step: the loss, and what else the model returned."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fxdp.torch_internals import pytree


class Outcome(dict[str, Any]):
    """The results of a model that returned them by name, the loss among them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def joined(loss: Tensor, others: Any) -> Any:
    """The results of a step, as the model returned them.

    Args:
        others: a dict, or what came before the loss and what came after it; None if there is
            nothing else (`fxdp.capture.step.local_loss`).
    """
    if others is None:
        return loss
    if isinstance(others, Mapping):
        return Outcome({"loss": loss} | dict(others))
    before, after = others
    return (*before, loss, *after)


def loss_of(out: Any) -> Tensor:
    """The loss in what a step returned: the one tensor that requires a gradient."""
    leaves = (
        [out] if isinstance(out, Tensor) else list(out.values() if isinstance(out, dict) else out)
    )
    return next(x for x in leaves if isinstance(x, Tensor) and x.requires_grad)


def without_gradients(out: Any) -> Any:
    """What a model returned, with no way back to its parameters."""
    return pytree.tree_map_only(Tensor, lambda x: x.detach() if x.requires_grad else x, out)
