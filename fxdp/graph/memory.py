"""Predicts a step's peak memory: what its two halves hold at a time, by each value's last use.

A prediction: kernels take memory of their own, and compiled code never writes many of the values
that a graph has.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.torch_internals import pytree

Bytes = Callable[[Any], int]


@dataclass(frozen=True)
class Peak:
    """Bytes above what there is before a step: parameters, buffers and inputs.

    Attributes:
        kept: what stays from the forward half for the backward half.
        highest: the most at a time, gradients included.
        samples: the batch size that this is for.
    """

    kept: int
    highest: int
    samples: int

    def __str__(self) -> str:
        mib = 2**20
        return (
            f"predicted peak of a step of {self.samples} samples: {self.highest / mib:.1f} MiB, "
            f"of which {self.kept / mib:.1f} MiB are kept for the backward half"
        )


def storages(node: Node) -> Iterator[tuple[int, Any]]:
    """The memory behind a node's value: views share theirs. Its identity, and its size in bytes."""
    for leaf in pytree.tree_leaves(node.meta.get("val")):
        if isinstance(leaf, Tensor):
            memory = leaf.untyped_storage()
            yield memory._cdata, memory.nbytes()


def peak(forward: GraphModule, back: GraphModule, outputs: int, samples: int, size: Bytes) -> Peak:
    """The peak of a step.

    Args:
        forward, back: its halves.
        outputs: how many of the forward half's results are the caller's.
        size: a symbolic number of bytes, as it is at the moment.
    """
    (results,) = forward.graph.output_node().args
    assert isinstance(results, tuple | list)
    given = {key for n in inputs(forward) for key, _ in storages(n)}
    saved = {
        key: size(nbytes)
        for n in results[outputs:]
        if isinstance(n, Node)
        for key, nbytes in storages(n)
        if key not in given
    }
    highest = (most(forward, given, {}, size), most(back, given, saved, size))
    return Peak(sum(saved.values()), max(highest), samples)


def inputs(half: GraphModule) -> list[Node]:
    return half.graph.find_nodes(op="placeholder")


def most(half: GraphModule, given: set[int], held: Mapping[int, int], size: Bytes) -> int:
    """The most bytes that a half holds at a time.

    Args:
        given: memory that is there anyway.
        held: memory that is there at its start, and goes after its last use.
    """
    last: dict[int, Node] = {}
    for node in half.graph.nodes:
        for used in (node, *node.all_input_nodes):
            last |= {key: node for key, _ in storages(used)}
    ending: dict[Node, list[int]] = {}
    for key, node in last.items():
        ending.setdefault(node, []).append(key)
    alive, highest = dict(held), sum(held.values())
    for node in half.graph.nodes:
        if node.op != "placeholder":
            new = {k: size(nbytes) for k, nbytes in storages(node) if k not in given}
            alive |= {k: b for k, b in new.items() if k not in alive}
            highest = max(highest, sum(alive.values()))
        for key in ending.get(node, []):
            alive.pop(key, None)
    return highest
