"""Each fact, with a graph that has it and one that breaks it."""

from dataclasses import replace

import pytest
import torch
from torch.fx import GraphModule, Node

from fxdp.graph import marks
from fxdp.graph.nodes import outputs
from fxdp.graph.study import GradientSums, Samples, study
from fxdp.mechanism.gaussian import released
from fxdp.mechanism.together import released_together
from fxdp.proof import facts
from tests.passes.graphs import linear, made


def graph(last: str) -> GraphModule:
    """A graph of one's own after a pass, to be spoilt."""
    return linear.__wrapped__(last).gm


def find(gm: GraphModule, target: object) -> list[Node]:
    """The calls of an op."""
    return list(gm.graph.find_nodes(op="call_function", target=target))


def test_axes_from_left() -> None:
    """An axis, or one of several."""
    x = torch.zeros(2, 3)
    assert (
        facts.axes_from_left(made(lambda x: torch.ops.aten.sum.dim_IntList(x, [0, 1]), x)) is None
    )
    bad = made(lambda x: torch.ops.aten.sum.dim_IntList(x, [0, -1]), x)
    assert facts.axes_from_left(bad) == "sum_1 has the axis [0, -1]"
    bad = made(lambda x: torch.ops.aten.unsqueeze(x, -1), x)
    assert facts.axes_from_left(bad) == "unsqueeze has the axis -1"


def test_placed() -> None:
    """A node whose placement was forgotten."""
    gm = graph("prove")
    assert facts.placed(gm) is None
    (node, *_) = find(gm, torch.ops.aten.mm.default)
    del node.meta["placement"]
    assert facts.placed(gm) == "mm has no placement"


def test_one_mark() -> None:
    """No release, and two."""
    gm = graph("tidy")
    assert facts.one_mark(gm) is None
    (mark,) = find(gm, marks.release.default)
    with gm.graph.inserting_after(mark):
        second = gm.graph.node_copy(mark)
    assert facts.one_mark(gm) == "there are 2 releases"
    gm.graph.erase_node(second)
    mark.replace_all_uses_with(mark.args[0])
    gm.graph.erase_node(mark)
    assert facts.one_mark(gm) == "there are 0 releases"


def test_batch_symbolic() -> None:
    """Inputs of fixed sizes, and a batch size that nobody looked for."""
    gm = graph("prove")
    assert facts.batch_symbolic(gm) is None
    for node in gm.graph.find_nodes(op="placeholder"):
        if isinstance(value := node.meta["val"], torch.Tensor):
            node.meta["val"] = torch.empty([4] * value.dim(), device="meta")
    assert facts.batch_symbolic(gm) == f"{study(gm).of(Samples).n} was replaced by a number"
    study(gm).take(Samples)
    assert facts.batch_symbolic(gm) == "the batch size is unknown"


def test_totals_local() -> None:
    """The gradient of a mean, before and after it is spread over the samples."""
    assert facts.totals_local(graph("localize")) is None
    trouble = facts.totals_local(graph("prove"))
    assert trouble is not None
    assert trouble.endswith("holds samples and reads a total")


def test_explained() -> None:
    """A gradient that was left out, and one with a sum that has no form."""
    gm = graph("explain")
    assert facts.explained(gm) is None
    weight, bias = study(gm).of(GradientSums).all
    study(gm).put(GradientSums((weight,)))
    assert facts.explained(gm) == "['bias'] are not explained"
    study(gm).put(GradientSums((replace(weight, sums=weight.linear[:1]), bias)))
    assert facts.explained(gm) == f"[{weight.linear[0]}] are not explained"


def test_private_outputs() -> None:
    """Before the noise the plain gradients are still what is returned."""
    assert facts.private_outputs(graph("noise")) is None
    gm = graph("clip")
    (total,) = study(gm).of(GradientSums).all[1].sums
    assert facts.private_outputs(gm) == f"the plain sum {total} is still used"


def test_private_outputs_norms() -> None:
    """A plain sum in any output after the forward's counts."""
    gm = graph("clip")
    study(gm).outputs = len(outputs(gm))
    assert facts.private_outputs(gm) is None
    (plain,) = study(gm).of(GradientSums).all[0].sums
    gm.graph.output_node().args = ([*outputs(gm), plain],)
    assert facts.private_outputs(gm) == f"the plain sum {plain} is still used"


def noisy_alone() -> GraphModule:
    """A graph in which each noise has an op of its own."""
    gm = graph("noise")
    (together,) = find(gm, released_together.default)
    totals, *rest, key, draws, terms = together.args
    for getitem in list(together.users):
        at = getitem.args[1]
        with gm.graph.inserting_after(together):
            args = (totals[at], *rest, None, key, draws[at], terms)
            alone = gm.graph.call_function(released.default, args)
        alone.meta |= together.meta | {"val": getitem.meta["val"]}
        getitem.replace_all_uses_with(alone)
        gm.graph.erase_node(getitem)
    gm.graph.erase_node(together)
    gm.graph.lint()
    return gm


def test_noise_once_together() -> None:
    """An op for several sums counts for as many; one number for two of them is one noise."""
    gm = graph("noise")
    assert facts.noise_once(gm) is None
    (together,) = find(gm, released_together.default)
    totals, *rest, draws, terms = together.args
    assert facts.draws(gm) == draws == [0, 1]
    together.args = (totals, *rest, [1, 1], terms)
    assert facts.noise_once(gm) == "two gradients have the same noise"
    together.args = (totals[:1], *rest, [0], terms)
    assert facts.noise_once(gm) == "1 noises are drawn for 2 gradients"
    together.args = (totals[:1], *rest, [0, 1], terms)
    with pytest.raises(ValueError, match="zip"):
        facts.noise_once(gm)


def test_noise_once() -> None:
    """A draw that is missing, one too many, and a graph that has no gradients."""
    gm = noisy_alone()
    assert facts.noise_once(gm) is None
    first, second = find(gm, released.default)
    with gm.graph.inserting_after(second):
        third = gm.graph.node_copy(second)
    assert facts.noise_once(gm) == "3 noises are drawn for 2 gradients"
    gm.graph.erase_node(third)
    own = second.args
    second.args = (*own[:6], first.args[6], *own[7:])
    assert facts.noise_once(gm) == "two gradients have the same noise"
    second.args = own
    first.replace_all_uses_with(second.args[0])
    gm.graph.erase_node(first)
    assert facts.noise_once(gm) == "1 noises are drawn for 2 gradients"
    assert facts.noise_once(made(lambda x: x.sin(), torch.zeros(2))) is None
