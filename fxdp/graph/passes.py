"""What a pass is, and how a pipeline of them is run.

A pass is a function from a graph to a graph. It says which facts it needs to be true of the graph
it gets and which it makes true of the graph it returns; the runner checks both, the second kind on
the result. What passes learn about a graph and its nodes travels with it: in
`node.meta["placement"]`, and in the `Study` under `gm.meta["study"]`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fxdp.graph.study import study
from fxdp.status import say

Fact = Callable[[GraphModule], str | None]


@dataclass(frozen=True)
class Pass:
    """A step of the pipeline: a function, and the facts around it.

    Attributes:
        run: the graph to be changed comes first, and what other arguments it has are options.
        options: the names of those, all of them.
        needs, gives: what must be true of the graph before, and is true of it after.
        ends: it leaves the pipeline, and options of the passes after it are then unused.

    Raises:
        TypeError: `options` are not those of the function.
    """

    run: Callable[..., GraphModule]
    options: tuple[str, ...] = ()
    needs: tuple[Fact, ...] = ()
    gives: tuple[Fact, ...] = ()
    ends: bool = False

    def __post_init__(self) -> None:
        taken = tuple(inspect.signature(self.run).parameters)[1:]
        if set(taken) != set(self.options):
            raise TypeError(f"{self.name} takes the options {taken}, and is given {self.options}")

    @property
    def name(self) -> str:
        return self.run.__name__


def run(gm: GraphModule, passes: tuple[Pass, ...], **options: Any) -> GraphModule:
    """Run the passes in order; each gets the options that it names.

    Raises:
        TypeError: an option that no pass takes, or one that a pass needs and is not given.
        AssertionError: a fact does not hold where a pass needs or promises it.
    """
    refuse_unknown(passes, options)
    for step in passes:
        say(f"{step.name} ({len(gm.graph.nodes)} ops)")
        _check(gm, step.needs, f"{step.name} needs")
        gm = step.run(gm, **{k: v for k, v in options.items() if k in step.options})
        gm.graph.lint()
        gm.recompile()
        _check(gm, step.gives, f"{step.name} gives")
        study(gm).history.append(step.name)
    return gm


def refuse_unknown(passes: tuple[Pass, ...], options: Mapping[str, Any]) -> None:
    """Refuse options that nobody takes: what they ask for would be dropped in silence.

    Raises:
        TypeError: there are some.
    """
    known = {name for step in passes for name in step.options}
    if not any(step.ends for step in passes) and (unknown := set(options) - known):
        names = ", ".join(step.name for step in passes)
        raise TypeError(
            f"no pass takes {', '.join(sorted(unknown))}: {names} take {', '.join(sorted(known))}"
        )


def _check(gm: GraphModule, facts: tuple[Fact, ...], who: str) -> None:
    for fact in facts:
        if (trouble := fact(gm)) is not None:
            raise AssertionError(f"{who} {fact.__name__}: {trouble}")
