"""Graphs between the passes: of tiny models, as text that does not change with torch."""

import functools
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import fxdp
from fxdp.backend import Record, Settings
from fxdp.graph_pass import Pass, Study
from fxdp.pipeline import PASSES, Proven, compiled_step
from fxdp.shapes import shape_of, show

NAMES = tuple(p.name for p in PASSES)


@dataclass(frozen=True)
class Run:
    """What the passes made of a model's graph.

    Attributes:
        gm: the graph after the last pass.
        study: what is known of it.
        texts: the graph after each pass, as text; "captured" is before the first.
    """

    gm: GraphModule
    study: Study
    texts: dict[str, str]


def captured(gm: GraphModule) -> GraphModule:
    """The graph as AOTAutograd made it."""
    return gm


def passed(
    model: nn.Module,
    loss: Callable[..., Any] | None,
    *inputs: Tensor,
    last: str = "noise",
    strategy: str = "auto",
) -> Run:
    """Run the passes up to one on a model's graph, and nothing after."""
    kept: list[GraphModule] = []

    def stop(gm: GraphModule) -> GraphModule:
        kept.append(gm)
        raise Proven

    record = Record()
    passes = (Pass(captured), *PASSES[: NAMES.index(last) + 1], Pass(stop))
    step = compiled_step(model, loss, Settings(strategy, "eager"), record, passes)
    private = fxdp.compile(
        model, loss_fn=loss, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=4
    )
    taken, mask, _ = private._prepared(inputs, {}, None)
    try:
        private._captured(step, taken, mask, 1.0)
    except Proven:
        assert record.study is not None
        names = record.study.names
        texts = {k: normal(v, names) for k, v in record.study.history.items()}
        return Run(kept[0], record.study, texts)
    raise AssertionError("the passes did not run")


def mean_square(out: Tensor, target: Tensor) -> Tensor:
    """A loss whose mean is over the samples alone."""
    return (out - target).square().sum(-1).mean()


@functools.cache
def linear(last: str = "lower", strategy: str = "auto") -> Run:
    """The model of most tests: a linear layer, a squared error."""
    x, y = torch.zeros(4, 3), torch.zeros(4, 2)
    return passed(nn.Linear(3, 2), mean_square, x, y, last=last, strategy=strategy)


@functools.cache
def cross_entropy() -> Run:
    """The same layer and cross entropy, which divides by the valid targets of the batch."""
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    return passed(nn.Linear(3, 2), F.cross_entropy, x, y, last="localize")


INPUTS = {"leaves.0": "x", "leaves.1": "y", "scales.0": "C", "scales.1": "sigma", "scales.2": "L"}


def normal(text: str, names: dict[str, str]) -> str:
    """A printed graph as lines `name = op(args)`; numbers in names count the calls of an op."""
    known = {k: INPUTS.get(v, v) for k, v in names.items()} | {"tangents_1": "tangent"}
    known |= dict.fromkeys(re.findall(r"(\w+): \"Sym\(s\d+\)\"", text), "N")
    count: dict[str, int] = {}
    lines: list[str] = []
    for line in text.splitlines():
        found = re.match(r"\s*(\w+)(?:: \"[^\"]*\")? = (?:torch\.ops\.)?(.*?)(?:;  .*)?$", line)
        if found is None or "_assert_scalar" in line or "Sym(True)" in line:
            continue
        name, call = found[1], re.sub(r"(, \w+ = [^,()]+(\([^)]*\))?)+\)", ")", found[2])
        call = re.sub(r"^(?:aten\.)?([\w.]+?)\.\w+\(", r"\1(", call)
        call = re.sub(r"\b[A-Za-z_]\w*\b(?![.(])", lambda m: known.get(m[0], m[0]), call)
        op = re.sub(r"\W.*", "", call.removeprefix("fxdp."))
        base = op if name.startswith(op) else re.sub(r"_\d+$", "", name)
        count[base] = count.get(base, 0) + 1
        known.setdefault(name, base if count[base] == 1 else f"{base}_{count[base]}")
        lines.append(f"{known[name]} = {call}")
    return "\n".join(lines)


def cut(text: str, first: str, last: str = "") -> str:
    """The lines of a normal text from one name to another."""
    lines = text.splitlines()
    names = [line.split(" = ")[0] for line in lines]
    return "\n".join(lines[names.index(first) : names.index(last or first) + 1])


def block(text: str) -> str:
    """Lines as they stand indented in a test."""
    return textwrap.dedent(text).strip()


def shape(run: Run, node: Any) -> str:
    """The shape of a node, as text with N for the batch size."""
    assert isinstance(node, Node)
    assert run.study.n is not None
    return show(shape_of(node.meta["val"].shape), run.study.n)
