"""Whether Inductor lays out the images of a graph channels last, or keeps them as they come.

Inductor lays out every picture channels last where there is a convolution, whose kernels are often
faster so. Norms, pools and the sums over samples want it as it came, and each way from one to the
other costs a copy: whether that pays is found out by trying.
"""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.autotune.timings import Times, described, seconds, timed

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
ROUNDS = 3  # of as many runs of each
Sizes = Callable[[Any], int]


def contiguous_is_faster(gm: GraphModule, size: Sizes) -> bool:
    """Do the convolutions of a graph on a CPU take less time contiguous than channels last?

    Channels last, what goes in and what comes out counts as copied once.

    Args:
        size: of a symbolic size, for the batch at hand.
    """

    nodes = [n for n in gm.graph.nodes if n.target in CONVOLUTIONS and is_picture(n.args[0])]
    spent = {False: 0.0, True: 0.0}
    for time in (time for node in nodes for time in both(node, size)):
        spent[time["channels_last"]] += time["seconds"]
    return spent[False] < spent[True]


def is_picture(node: Any) -> bool:
    """Is this a batch of images on a CPU?"""
    value = node.meta["val"]
    return value.dim() == 4 and value.device.type == "cpu"


def both(node: Node, size: Sizes) -> Times:
    """Seconds for a convolution in either layout."""
    values = [a.meta["val"] if isinstance(a, Node) else a for a in node.args]
    key = f"{node.target} {' '.join(described(v, size) for v in values)}"
    run = partial(measured, node.target, values, size)
    return timed(key, torch.device("cpu"), run)


def measured(op: Any, values: list[Any], size: Sizes) -> Times:
    """Time an op on random numbers."""
    source = torch.Generator().manual_seed(0)

    def real(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return size(x) if isinstance(x, torch.SymInt) else x
        return torch.randn([size(s) for s in x.shape], dtype=x.dtype, generator=source)

    def last(x: Any) -> Any:
        is_four = isinstance(x, Tensor) and x.dim() == 4
        return x.contiguous(memory_format=torch.channels_last) if is_four else x

    plain = [real(v) for v in values]
    other = [last(v) for v in plain]
    out = op(*other)
    moved = [other[0], out if isinstance(out, Tensor) else out[0]]
    copies = sum(seconds(partial(copied, x)) for x in moved)
    spent = {False: inf, True: inf}
    for _ in range(ROUNDS):  # in turn, so that what else the machine does meets both
        spent[False] = min(spent[False], seconds(lambda: op(*plain)))
        spent[True] = min(spent[True], seconds(lambda: op(*other)) + copies)
    return [{"channels_last": key, "seconds": value} for key, value in spent.items()]


def copied(x: Tensor) -> Tensor:
    """A tensor as it would have come."""
    return x.clone(memory_format=torch.contiguous_format)
