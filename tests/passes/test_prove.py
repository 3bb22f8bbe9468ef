"""A placement for every node, or a refusal."""

import pytest
import torch
from torch import Tensor, nn

from fxdp import ProofError
from fxdp.graph.study import Joint, Samples
from fxdp.placement import Partial, Replicate, Shard
from tests.passes.graphs import block, linear, mean_square, op, passed, sum_square


def short(at: object) -> str:
    """A placement in a letter: R, S with its axis, P; + where a term holds no samples."""
    match at:
        case Replicate():
            return "R"
        case Shard(dim):
            return f"S{dim}"
        case Partial(public):
            return "P+" if public else "P"
    raise AssertionError(f"no short form for {at}")


def test_linear() -> None:
    """Gradients are sums over samples, and what leads to them holds samples."""
    nodes = [n for n in linear("prove").gm.graph.nodes if "placement" in n.meta]
    calls = [n for n in nodes if n.op == "call_function" and n.meta["placement"] is not None]
    assert "\n".join(f"{op(n)}: {short(n.meta['placement'])}" for n in calls) == block("""
        samples: S0
        samples: S0
        permute: R
        mm: S0
        add: S0
        sub: S0
        pow: S0
        sum: S0
        sum: P
        div: P
        release: R
        seed: R
        div: P
        expand: S0
        unsqueeze: S0
        expand: S0
        pow: S0
        mul: S0
        mul: S0
        permute: S1
        mm: P
        permute: P
        sum: P
        view: P
        permute: P
    """)


def test_inputs() -> None:
    """Parameters and scales are shared; the mask and the arguments hold samples."""
    run = linear("prove")
    inputs = run.gm.graph.find_nodes(op="placeholder")
    found = {run.study.names.get(n.name): n.meta["placement"] for n in inputs}
    found = {k: short(v) for k, v in found.items() if v is not None}
    assert {k: found[k] for k in ("weight", "bias", "mask")} == {
        "weight": "R", "bias": "R", "mask": "S0",
    }  # fmt: skip


def test_study() -> None:
    """The symbol of the number of samples, and where the loss is."""
    run = linear("prove")
    mark = run.study.of(Joint).mark
    assert op(mark.loss) == "div"
    assert mark.mask.meta["val"].shape[0].node.expr == run.study.of(Samples).n
    names = [run.study.names[n.name] for n in (mark.bound, mark.sigma, mark.expected)]
    assert names == ["scales.0", "scales.1", "scales.2"]


class Centred(nn.Linear):
    """Subtracts the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


def test_mixing() -> None:
    """What mixes samples is refused, with its line."""
    with pytest.raises(ProofError, match=r"x - x\.mean\(0\)") as refused:
        passed(Centred(3, 2), mean_square, torch.zeros(4, 3), torch.zeros(4, 2), last="prove")
    assert refused.value.diagnostics[0].code.code < "FXD400"


class Unused(nn.Linear):
    """Works out a total over the batch that reaches no output."""

    def forward(self, x: Tensor) -> Tensor:
        (x - x.mean(0)).square()
        return super().forward(x)


def test_unused() -> None:
    """A fault that reaches no output is none."""
    x, y = torch.zeros(4, 5, 3), torch.zeros(4)
    assert passed(Unused(3, 2), sum_square, x, y, last="prove").study.found(Samples)
