"""Named properties of graphs: what passes need, and what they give.

A fact looks at a graph and returns None if it holds, else what is wrong. The runner checks the
facts a pass gives on its result, so a pass cannot merely believe that it did its work.
"""

from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxdp.graph import marks
from fxdp.graph.ends import gradients
from fxdp.graph.nodes import outputs, placement
from fxdp.graph.study import ClippedSums, GradientSums, Samples, study
from fxdp.graph.sums import holds_samples, is_partial, sum_at
from fxdp.shapes import sample_axes, shape_of
from fxdp.torch_internals import OpOverload

SEED = marks.seed.default
NOISE = {"fxdp": "noise"}


def axes_from_left(gm: GraphModule) -> str | None:
    """No op counts an axis from the right."""
    for node in gm.graph.nodes:
        if isinstance(node.target, OpOverload):
            for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
                if argument.name in ("dim", "dims") and any(d < 0 for d in ints(value)):
                    return f"{node} has the axis {value}"
    return None


def ints(value: object) -> list[int]:
    """The integers in an argument."""
    return [
        v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int)
    ]


def placed(gm: GraphModule) -> str | None:
    """Every tensor has a placement (P1)."""
    for node in gm.graph.nodes:
        if isinstance(node.meta.get("val"), torch.Tensor) and placement(node) is None:
            return f"{node} has no placement"
    return None


def one_mark(gm: GraphModule) -> str | None:
    """One release, with one clip bound and one noise scale (P6)."""
    found = gm.graph.find_nodes(op="call_function", target=marks.release.default)
    return None if len(found) == 1 else f"there are {len(found)} releases"


def batch_symbolic(gm: GraphModule) -> str | None:
    """The batch size is still a symbol."""
    known = study(gm).found(Samples)
    if known is None:
        return "the batch size is unknown"
    inputs = [n.meta.get("val") for n in gm.graph.find_nodes(op="placeholder")]
    shapes = [shape_of(v.shape) for v in inputs if isinstance(v, torch.Tensor)]
    kept = any(sample_axes(shape, known.n) for shape in shapes)
    return None if kept else f"{known.n} was replaced by a number"


def totals_local(gm: GraphModule) -> str | None:
    """No node that holds samples reads a total over the batch (P4)."""
    for node in gm.graph.nodes:
        if holds_samples(node) and any(is_partial(i) for i in node.all_input_nodes):
            return f"{node} holds samples and reads a total"
    return None


def explained(gm: GraphModule) -> str | None:
    """Every gradient is known as a linear image of sums with forms (P2)."""
    found = study(gm).of(GradientSums).all
    known = {g.node for g in found}
    missing = [name for name, node in gradients(gm).items() if node not in known]
    formless = [s for g in found for s in g.sums if sum_at(gm, s) is None]
    return f"{missing or formless} are not explained" if missing or formless else None


def private_outputs(gm: GraphModule) -> str | None:
    """No plain sum over samples is left among the ancestors of the outputs (P3).

    Totals that only the reported loss and other forward outputs are made of may stay.
    """
    released = [n for n in outputs(gm)[study(gm).outputs :] if isinstance(n, Node)]
    sums = {s for g in study(gm).of(GradientSums).all for s in g.sums if "twin" not in s.meta}
    seen: set[Node] = set()
    while released:
        node = released.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in sums:
            return f"the plain sum {node} is still used"
        told = node.all_input_nodes
        # The gradient of the loss has its shape and dtype, and nothing of its value.
        released += told[:1] + told[2:] if node.target is marks.seed.default else told
    return None


def noise_arguments(node: Node) -> dict[str, Any]:
    """The arguments, by their names, of an op that makes noise from a key; {} of another node."""
    found: dict[str, Any] = dict(node.kwargs)  # all of them, of an op that works in place
    if isinstance(node.target, OpOverload):
        names = [a.name for a in node.target._schema.arguments]
        found |= dict(zip(names, node.args, strict=False))
    return found if "draw" in found or "draws" in found else {}


def draws(gm: GraphModule) -> list[object]:
    """The noises that are drawn: each by its number, or by its node if it has none.

    Raises:
        ValueError: an op has not one number for each of its sums.
    """
    found: list[object] = []
    for node in gm.graph.nodes:
        if node.meta.get("custom") != NOISE:
            continue
        given = noise_arguments(node)
        if "draws" in given:
            found += [draw for draw, _ in zip(given["draws"], given["totals"], strict=True)]
        elif given:
            found.append(given["draw"])
        elif isinstance(node.target, OpOverload):
            random = torch.Tag.nondeterministic_seeded in node.target.tags
            found += [node] if random else []
    return found


def noise_once(gm: GraphModule) -> str | None:
    """Each parameter's gradient has noise of its own, drawn once."""
    if not gm.graph.find_nodes(op="call_function", target=SEED):
        return None
    found = draws(gm)
    wanted = len(study(gm).of(ClippedSums).noisy)
    if len(found) != wanted:
        return f"{len(found)} noises are drawn for {wanted} gradients"
    return None if len(set(found)) == wanted else "two gradients have the same noise"
