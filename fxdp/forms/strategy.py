"""The strategies for per-sample norms: their names, and what those who choose need to know.

A strategy is a row of `STRATEGIES`, a case in each form that offers it, and the kernel that it
runs; the passes, the trials and the report ask the row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Strategy = Literal["instantiate", "unfold", "crb", "ghost", "stream", "naive", "multi"]


@dataclass(frozen=True)
class Traits:
    """What is to be known of a strategy without running it.

    Attributes:
        sentence: what it does, for people.
        materialises: whether it makes per-sample gradients, which may then be kept for the clipped
            sum; if not, it finds squared norms alone, of forms as they are.
        streams: whether it makes them of a few samples at a time, from norms to clipped sums.
        traceable: whether composite ops stay whole where it is traced.
        tried: whether it is timed where the cost model leaves a doubt.
        modelled: whether the cost model, a count of flops and bytes, may choose it without timing.
        shown: whether the report shows its predicted cost.
    """

    sentence: str
    materialises: bool = True
    streams: bool = False
    traceable: bool = True
    tried: bool = True
    modelled: bool = False
    shown: bool = False


# Those that are modelled differ in kind. What the others cost, no count of flops tells: by the
# model they cost what "instantiate" does.
STRATEGIES: Mapping[Strategy, Traits] = {
    "instantiate": Traits(
        "an einsum for a linear layer, one grouped convolution for a convolution",
        modelled=True,
        shown=True,
    ),
    "unfold": Traits("a matrix product with a convolution's windows"),
    "crb": Traits("the extra-axis convolution of arXiv:1912.06015"),
    "ghost": Traits(
        "norms of Gram matrices, without per-sample gradients; for an embedding, of rows added up "
        "by sorted ids; layers with one input, or with one gradient behind them, share its Gram "
        "matrix",
        materialises=False,
        modelled=True,
        shown=True,
    ),
    "stream": Traits(
        "per-sample gradients of a few samples at a time, in memory that stays, from their norms "
        "to the clipped sums; a convolution's by its windows",
        materialises=False,
        streams=True,
    ),
    "naive": Traits("a loop over samples"),
    # torch.vmap is traced only as what it dispatches to.
    "multi": Traits("vmap over replicas", traceable=False, tried=False),
}
