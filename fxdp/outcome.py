"""What a step returns: a loss, and what the model returned beside it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def loss_of(out: Any) -> Tensor:
    """The loss in what a step returned."""
    return out.loss if isinstance(out, Outcome) else out[0] if isinstance(out, tuple) else out


class Outcome(dict[str, Any]):
    """The outputs of a model beside its loss, by name; and the loss."""

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
