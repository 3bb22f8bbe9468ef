"""The outputs of a step: the loss, and what else the model returned."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fxdp.torch_internals import pytree


def loss_of(out: Any) -> Tensor:
    """The loss in what a step returned."""
    return out.loss if isinstance(out, Outcome) else out[0] if isinstance(out, tuple) else out


def with_loss(out: Any, loss: Tensor) -> Any:
    """What a step returned, with another loss in it."""
    if isinstance(out, Outcome):
        return Outcome.of(loss, {k: v for k, v in out.items() if k != "loss"})
    return (loss, *out[1:]) if isinstance(out, tuple) else loss


def without_gradients(out: Any) -> Any:
    """What a model returned, with no way back to its parameters."""
    return pytree.tree_map_only(Tensor, lambda x: x.detach() if x.requires_grad else x, out)


class Outcome(dict[str, Any]):
    """The outputs of a model other than its loss, by name; and the loss."""

    @classmethod
    def of(cls, loss: Tensor, others: Any) -> Any:
        """A dict where the model returned names, a tuple where it returned a tuple."""
        if not isinstance(others, Mapping):
            return (loss, *others)
        return cls({"loss": loss} | dict(others))

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None
