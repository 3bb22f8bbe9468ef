"""The two halves of a cut graph, as code that is checked, or as the graph itself."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch.fx import GraphModule

from fxdp.backend.check import Checked, coarsest, generators
from fxdp.backend.rows import Rows
from fxdp.backend.settings import Backend, Record, Settings
from fxdp.capture.errors import first_line
from fxdp.forms.batch import HALVES
from fxdp.graph.nodes import copied
from fxdp.graph.study import ClippedSums, Joint, PictureLayout, Size
from fxdp.graph.sums import value
from fxdp.mechanism.deviation import check_deviation
from fxdp.proof.facts import noise_arguments
from fxdp.status import say
from fxdp.torch_internals import (
    compile_fx_inner,
    dynamo_exc,
    inductor_config,
)

aten = torch.ops.aten
# The random numbers of a compiled step are those of an eager one: seeds reproduce runs.
RANDOM = {"fallback_random": True}


class UncompiledWarning(UserWarning):
    """torch's compiler failed on a graph, which runs as it is."""


def finish(
    graph: GraphModule,
    args: Sequence[Any],
    backend: Backend,
    settings: Settings,
    record: Record,
    is_backward: bool,
) -> Callable[[list[Any]], Any]:
    """A callable for one half of the graph."""
    eager = make_boxed_func(safe_views(copied(graph)))
    if backend == "eager":
        return eager
    say(f"generating code for the {'backward' if is_backward else 'forward'} half")
    noise = noise_input(graph, record) if is_backward else None
    # What is rounded to half precision is what an eager step rounds, so that they can be compared.
    options: dict[str, Any] = {**RANDOM, "emulate_precision_casts": True}
    study = record.compiled()
    if study.of(PictureLayout).contiguous:
        options["layout_optimization"] = False
    half = "backward" if is_backward else "forward"
    try:
        with inductor_config.patch(options):
            compiled = compile_fx_inner(graph, args, is_backward=is_backward)
    except dynamo_exc.RestartAnalysis:
        raise  # no failure: torch begins again
    except Exception as error:
        uncompiled(f"its {half} graph", error, record)
        return eager
    if not settings.check:
        return compiled  # type: ignore[return-value]
    rows = Rows.of(graph, study.of(Size).node.meta["val"])
    states = generators(graph, settings.table)
    return Checked(compiled, eager, noise, record.fallbacks, coarsest(graph), rows, half, states)  # type: ignore[arg-type]


def uncompiled(what: str, error: Exception, record: Record) -> None:
    """Warn that torch's compiler failed, and note it; the graph, which was proven, runs."""
    said = f"{type(error).__name__}: {first_line(error)}"
    record.fallbacks.append(f"{what} was not compiled: {said}")
    warnings.warn(
        f"fxdp: torch could not compile {what}, which runs eagerly instead ({said})",
        UncompiledWarning,
        stacklevel=2,
    )


def safe_views(graph: GraphModule) -> GraphModule:
    """Views that copy where they must: eager kernels may return other strides than traced."""
    for node in graph.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
    graph.recompile()
    return graph


def noise_check(graph: GraphModule, record: Record) -> Callable[[list[Any]], None]:
    """A check that what arrives at the loss does not make the noise overflow.

    Of the inputs of the backward half; not where its look at them would wait for a GPU, but for
    parameters in half precision.

    Raises:
        ValueError: by the check.
    """
    clipped = record.compiled().of(ClippedSums).all
    dtypes = {value(c.gradient.node).dtype for c in clipped}
    inputs = graph.graph.find_nodes(op="placeholder")
    given = noise_given(graph)
    wanted = [given.get(name) for name in ("scale", "expected", "tangent")]
    if not all(node in inputs for node in wanted):
        return lambda args: None
    places = [inputs.index(node) for node in wanted]

    def check(args: list[Any]) -> None:
        found = [args[place] for place in places]
        if found[0].device.type == "cpu" or dtypes & set(HALVES):
            scale, expected, tangent = map(float, found)
            check_deviation(scale, 1.0 if scale else 0.0, expected, dtypes, tangent)

    return check


def noise_given(graph: GraphModule) -> dict[str, Any]:
    """The arguments of the first op that makes noise from a key, by their names."""
    return next(filter(None, map(noise_arguments, graph.graph.nodes)), {})


def noise_input(graph: GraphModule, record: Record) -> int | None:
    """Which input of the backward graph the noise is multiplied by: sigma, or sigma C where the
    forward half has computed that."""
    sigma = record.compiled().of(Joint).mark.sigma
    inputs = graph.graph.find_nodes(op="placeholder")
    names = [n.name for n in inputs]
    if (name := sigma.name) in names:
        return names.index(name)
    scale = noise_given(graph).get("scale")
    return inputs.index(scale) if scale in inputs else None
