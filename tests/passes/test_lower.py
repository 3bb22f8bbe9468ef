"""Plain aten ops, with everything else in its place."""

import functools
import re
from collections.abc import Callable

import pytest
import torch
from torch._ops import OpOverload

from fxdp.graph.nodes import outputs
from fxdp.graph.study import Readable
from fxdp.proof import facts
from tests.passes.graphs import Run, block, conv, cut, linear, sequence

MARKS = {"fxdp::samples", "fxdp::shown", "fxdp::release", "fxdp::seed"}
RUNS: dict[str, Callable[[], Run]] = {
    "linear": functools.partial(linear, backend="inductor"),
    "sequence": functools.partial(sequence, "lower", "instantiate", "inductor"),
    "crb": functools.partial(conv, "lower", "crb", "inductor"),
    "naive": functools.partial(conv, "lower", "naive", "inductor"),
}


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    """One of several models."""
    return RUNS[request.param]()


def ops(run: Run) -> list[OpOverload]:
    """The ops of a graph; the arithmetic on sizes is Python's own."""
    targets = [n.target for n in run.gm.graph.nodes if n.op == "call_function"]
    return [t for t in targets if isinstance(t, OpOverload)]


def test_ops(run: Run) -> None:
    """No marks, no composite ops, and of fxdp's own only those that no compiler looks into."""
    names = {t._schema.name for t in ops(run)}
    assert not names & MARKS
    assert {name.split("::")[0] for name in names} <= {"aten", "fxdp", "prims"}
    assert "aten::einsum" not in names


def test_whole() -> None:
    """Where the graph itself is run, composite ops stay as they are."""
    run = sequence("lower", "instantiate")
    names = {t._schema.name for t in ops(run)}
    assert not names & MARKS
    assert "aten::einsum" in names


def test_signature(run: Run) -> None:
    """Inputs and outputs keep their order and their descriptors."""
    before = run.study.of(Readable).graph
    old, new = (g.graph.find_nodes(op="placeholder") for g in (before, run.gm))
    assert [n.name for n in new] == [n.name for n in old]
    assert [n.meta.get("desc") for n in new] == [n.meta.get("desc") for n in old]
    ends = [g.graph.output_node().meta["desc"] for g in (before, run.gm)]
    assert ends[0] == ends[1]
    assert [x is None for x in outputs(run.gm)] == [x is None for x in outputs(before)]


def test_batch(run: Run) -> None:
    """The batch size is still a symbol, in the outputs too."""
    assert facts.batch_symbolic(run.gm) is None
    norms = outputs(run.gm)[-1].meta["val"]
    assert isinstance(norms.shape[0], torch.SymInt)


def test_text() -> None:
    """Marks are gone, and the gradient of the loss is one, which still hangs on the tangent."""
    texts = linear().texts
    assert cut(texts["noise"], "samples(x", "samples(y") == block("""
        samples = fxdp.samples(x, 0)
        samples_2 = fxdp.samples(y, 0)
    """)
    own = set(re.findall(r"fxdp\.(\w+)", texts["lower"]))
    assert own == {"weighed_outer", "weighed_sum", "released_together"}
    assert cut(texts["lower"], "mm(x") == "mm = mm(x, ^permute)"
    assert cut(texts["lower"], "isnan(tangent", "to(") == block("""
        isnan = isnan(tangent)
        bitwise_not = bitwise_not(isnan)
        or = __or__(isnan, bitwise_not)
        to = to(or, torch.float32)
    """)
