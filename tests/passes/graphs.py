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
from torch.fx.experimental.proxy_tensor import make_fx

import fxdp
from fxdp.backend.partition import Proven, compiled_step
from fxdp.backend.settings import Record, Settings
from fxdp.capture.step import own_step
from fxdp.graph.passes import Pass
from fxdp.graph.study import Samples, Study
from fxdp.module.stepper import Compiled
from fxdp.ops import RULES
from fxdp.pipeline import PASSES
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


def seen(name: str, texts: dict[str, str]) -> Pass:
    """A pass that only keeps the graph as text."""

    def look(gm: GraphModule) -> GraphModule:
        texts[name] = gm.print_readable(print_output=False)
        return gm

    return Pass(look)


def passed(
    model: nn.Module,
    loss: Callable[..., Any] | None,
    *inputs: Tensor,
    last: str = "noise",
    strategy: str = "auto",
    **how: Any,
) -> Run:
    """Run the passes up to one on a model's graph, and nothing after."""
    kept: list[GraphModule] = []
    texts: dict[str, str] = {}

    def stop(gm: GraphModule) -> GraphModule:
        kept.append(gm)
        raise Proven

    record = Record()
    before = PASSES[: NAMES.index(last) + 1]
    watched = (p for own in before for p in (own, seen(own.name, texts)))
    passes = (seen("captured", texts), *watched, Pass(stop, ends=True))
    settings = Settings(strategy=strategy, **{"plan": "model", "backend": "eager"} | how)
    call = compiled_step(own_step(model, loss), settings, record, passes=passes)
    private = fxdp.compile(
        model, loss_fn=loss, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=4
    )
    taken, mask, _ = private._stepper.prepared(inputs, {}, None)
    try:
        private._stepper.captured(Compiled(lambda: call, record), taken, mask, (1.0, 1.0, 1.0))
    except Proven:
        assert record.study is not None
        names = record.study.names
        return Run(kept[0], record.study, {k: normal(v, names) for k, v in texts.items()})
    raise AssertionError("the passes did not run")


def mean_square(out: Tensor, target: Tensor) -> Tensor:
    """A loss whose mean is over the samples alone."""
    return (out - target).square().sum(-1).mean()


def sum_square(out: Tensor, target: Tensor) -> Tensor:
    """A loss of outputs [N, a, b]."""
    return out.square().sum((1, 2)).mean()


class Twice(nn.Linear):
    """A layer that is used twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class Decay(nn.Linear):
    """A loss with a term that holds no samples."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square().mean() + self.weight.square().sum()


@functools.cache
def linear(last: str = "lower", strategy: str = "auto", backend: str = "eager") -> Run:
    """The model of most tests: a linear layer, a squared error."""
    x, y = torch.zeros(4, 3), torch.zeros(4, 2)
    return passed(nn.Linear(3, 2), mean_square, x, y, last=last, strategy=strategy, backend=backend)


@functools.cache
def sequence(last: str = "measure", strategy: str = "auto", backend: str = "eager") -> Run:
    """A linear layer without bias at five positions."""
    model, x = nn.Linear(3, 2, bias=False), torch.zeros(4, 5, 3)
    return passed(
        model, sum_square, x, torch.zeros(4), last=last, strategy=strategy, backend=backend
    )


@functools.cache
def conv(last: str = "measure", strategy: str = "auto", backend: str = "eager") -> Run:
    """A convolution in two groups, of stride 2."""
    model, x = nn.Conv1d(2, 4, 2, stride=2, groups=2, bias=False), torch.zeros(4, 2, 8)
    return passed(
        model, sum_square, x, torch.zeros(4), last=last, strategy=strategy, backend=backend
    )


@functools.cache
def cross_entropy() -> Run:
    """The same layer and cross entropy, which divides by the valid targets of the batch."""
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    return passed(nn.Linear(3, 2), F.cross_entropy, x, y, last="localize")


INPUTS = {"leaves.0": "x", "leaves.1": "y", "scales.0": "C", "scales.1": "sigma", "scales.2": "L"}
INPUTS["scales.3"] = "key"


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
    """The lines of a normal text from one that holds `first` to the next that holds `last`.

    Numbers in names count from the top of these lines; a name from above them is written ^name.
    """
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines) if (last or first) in line and i >= start)
    known = {line.split(" = ")[0]: "^" + base(line) for line in lines[:start]}
    known.pop("N", None)
    count: dict[str, int] = {}
    for line in lines[start : end + 1]:
        count[base(line)] = count.get(base(line), 0) + 1
        number = f"_{count[base(line)]}" if count[base(line)] > 1 else ""
        known[line.split(" = ")[0]] = base(line) + number

    def renamed(found: re.Match[str]) -> str:
        return known.get(found[0], found[0])

    chosen = "\n".join(lines[start : end + 1])
    return re.sub(r"\b[A-Za-z_]\w*\b(?![.(])", renamed, chosen)


def base(line: str) -> str:
    """The name of a line, without its number."""
    return re.sub(r"_\d+$", "", line.split(" = ")[0])


def block(text: str) -> str:
    """Lines as they stand indented in a test."""
    return textwrap.dedent(text).strip()


def shape(run: Run, node: Any) -> str:
    """The shape of a node, as text with N for the batch size."""
    assert isinstance(node, Node)
    return show(shape_of(node.meta["val"].shape), run.study.of(Samples).n)


def op(node: Node) -> str:
    """The name of a node's op."""
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]


def made(function: Callable[..., Any], *inputs: Tensor) -> GraphModule:
    """The graph of a function, with the rules and nothing else known of it."""
    gm = make_fx(function, tracing_mode="fake")(*inputs)
    gm.meta["study"] = Study(RULES, 1, {})
    return gm
