"""Add Gaussian noise to each clipped sum, once, and put the result in the gradient's place.

Released for each parameter: (clipped sum + sigma C xi) / L, xi standard normal, L the public
expected batch size; times the gradient that arrives at the loss, which is the user's constant.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.graph import marks
from fxdp.graph.emit import emit, emit_all
from fxdp.graph.ends import gradient_places
from fxdp.graph.nodes import arguments, outputs
from fxdp.graph.records import Clipped, Mark
from fxdp.graph.study import ClippedSums, Factors, Joint, PerSample, study
from fxdp.graph.sums import value
from fxdp.kernels.precision import cast
from fxdp.mechanism.gaussian import released
from fxdp.mechanism.together import is_small, released_together
from fxdp.proof.facts import NOISE

SEED = marks.seed.default


def noise(
    gm: GraphModule, number: Callable[[str], int], terms: int, inspect_each: bool = False
) -> GraphModule:
    """Make the outputs private.

    The norms become one more output, for checks and reports, with a name for a descriptor;
    with `inspect_each` so do the per-sample gradients.

    Args:
        number: the noise number of a parameter, by its name; no two have one.
        terms: normal numbers that each one of the noise is made of.
    """
    here, end = study(gm), gm.graph.output_node()
    mark, clipped_sums, factors = here.of(Joint).mark, here.of(ClippedSums).all, here.of(Factors)
    found = outputs(gm)
    tangents = [arguments(n)[0] for n in gm.graph.find_nodes(op="call_function", target=SEED)]
    if mark.reduction:  # what arrives there belongs to the samples
        tangents = [emit(end, torch.ones_like, mark.expected)]
    places = dict(gradient_places(gm))
    first = end.prev
    scale = emit(end, noise_scale, mark.sigma, mark.bound)
    numbers = {c.gradient.parameter: number(c.gradient.parameter) for c in clipped_sums}
    groups = sharing(clipped_sums)
    made = emit_all(end, [release(g, tangents[0], mark, scale, numbers, terms) for g in groups])
    while first.next is not end:
        first = first.next
        first.meta["custom"] = NOISE  # which goes along when a graph is traced anew
    for clipped, gradient in zip(chain(*groups), chain(*made), strict=True):
        gradient._rename(f"private_{clipped.gradient.node.name}")
        found[places.pop(clipped.gradient.parameter)] = gradient
    if places:
        raise AssertionError(f"the gradients of {sorted(places)} would be released as they are")
    extras = {"finite": factors.finite, "norms": factors.norms}
    extras |= here.of(PerSample).nodes if inspect_each else {}
    end.args = ([*found, *extras.values()],)
    end.meta["desc"] = [*end.meta["desc"], *extras]
    gm.graph.eliminate_dead_code()
    one_by_one(gm)
    return gm


def one_by_one(gm: GraphModule) -> None:
    """Put what follows the clip factors in the order of the outputs.

    No clipped sum waits for its noise until all others are made, and takes up memory.
    """
    order = list(gm.graph.nodes)
    factors = study(gm).of(Factors)
    measured = {factors.norms, *factors.nodes.values()}  # nobody may need the factors
    last = max(i for i, node in enumerate(order) if node in measured)
    open_nodes = set(order[last + 1 : -1])

    def finish(node: Node) -> None:
        if node in open_nodes:
            open_nodes.remove(node)
            for needed in node.all_input_nodes:
                finish(needed)
            gm.graph.output_node().prepend(node)

    for node in outputs(gm):
        if isinstance(node, Node):
            finish(node)


def noise_scale(sigma: Tensor, bound: Tensor) -> Tensor:
    """sigma * C, 0-d; 0 for plain training, of an infinite bound without noise."""
    return (sigma * bound).masked_fill(sigma == 0, 0)


def sharing(clipped_sums: Sequence[Clipped]) -> list[list[Clipped]]:
    """Which of them get their noise from one op: all small ones of a dtype and device that have no
    public part. Each other has one of its own, so that none waits and takes up memory."""
    groups: dict[Any, list[Clipped]] = {}
    for place, clipped in enumerate(clipped_sums):
        shared: Any = place
        if clipped.total is not None and clipped.public is None:
            total = value(clipped.total)
            shared = (total.dtype, total.device) if is_small(total) else place
        groups.setdefault(shared, []).append(clipped)
    return list(groups.values())


def release(
    group: Sequence[Clipped], tangent: Node, mark: Mark, scale: Node, numbers: dict[str, int],
    terms: int,
) -> tuple[Callable[..., list[Tensor]], Any]:  # fmt: skip
    """A function that computes the private gradients of parameters that share an op, each in its
    dtype; and its arguments."""
    clipped = group[0]
    if clipped.total is None:
        return lambda p, t: [p * cast(t, p.dtype)], (clipped.public, tangent)
    dtypes = [value(c.gradient.node).dtype for c in group]
    draws = [numbers[c.gradient.parameter] for c in group]

    def alone(total: Tensor, scale: Tensor, *rest: Any) -> list[Tensor]:
        found = released(total, cast(scale, total.dtype), *rest, draws[0], terms)
        return [cast(found, dtypes[0])]

    def together(totals: list[Tensor], scale: Tensor, *rest: Any) -> list[Tensor]:
        found = released_together(totals, cast(scale, totals[0].dtype), *rest, draws, terms)
        return [cast(x, dtype) for x, dtype in zip(found, dtypes, strict=True)]

    rest = (scale, mark.expected, tangent)
    if len(group) == 1:
        return alone, (clipped.total, *rest, clipped.public, mark.key)
    return together, ([c.total for c in group], *rest, mark.key)
