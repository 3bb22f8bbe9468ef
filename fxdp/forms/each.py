"""The values of all samples at once: N tensors of one shape, with a batch axis in front.

Letters: N samples; an `Each` is [N, *shape], where an op's own operand is of that shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxdp.torch_internals import pytree


@dataclass(frozen=True)
class Each:
    """N values of one shape, [N, *shape]."""

    value: Tensor

    @property
    def rank(self) -> int:
        """The rank of one of them."""
        return self.value.dim() - 1


def rank(x: Any) -> int:
    """The rank of an operand, for one sample."""
    return x.rank if isinstance(x, Each) else x.dim() if isinstance(x, Tensor) else 0


def raised(x: Any, to: int) -> Any:
    """An operand with axes of size 1 put in, so that it broadcasts along the batch axis."""
    if not isinstance(x, Each):
        return x
    n, *shape = x.value.shape
    return x.value.reshape(n, *[1] * (to - x.rank), *shape)


def given(x: Any, n: Any) -> Any:
    """An operand that all samples share, for each of them; an `Each` as it is."""
    if isinstance(x, Each):
        return x.value
    return x.unsqueeze(0).expand(n, *x.shape) if isinstance(x, Tensor) else x


def is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor | Each)


def count(*operands: Any) -> Any:
    """N."""
    leaves = pytree.tree_leaves(operands, is_leaf=is_tensor)
    return next(x.value.shape[0] for x in leaves if isinstance(x, Each))


def folded(op: Callable[..., Any], own: int) -> Callable[..., Any]:
    """An op on a batch of things with `own` axes and channels: N batches are one larger batch."""

    def each(*args: Any, **kwargs: Any) -> Any:
        n = count(args)
        has_batch = any(rank(a) == own + 2 for a in args)

        def fold(x: Any) -> Any:
            x = given(x, n)
            batched = isinstance(x, Tensor) and x.dim() == own + 3
            return x.reshape(n * x.shape[1], *x.shape[2:]) if batched else x

        def unfold(x: Tensor) -> Each:
            return Each(x.reshape(n, -1, *x.shape[1:]) if has_batch else x)

        return pytree.tree_map_only(Tensor, unfold, op(*(fold(a) for a in args), **kwargs))

    return each
