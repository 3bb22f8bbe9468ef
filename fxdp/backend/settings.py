"""How a step is compiled, and what its compilations and runs leave behind."""

import functools
import warnings
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fxdp.backend.delivery import Ran
from fxdp.diagnostics.errors import NotCompiled
from fxdp.graph.study import Readable, Study
from fxdp.mechanism.clipping import Clipping, Flat
from fxdp.mechanism.run_key import RunKey
from fxdp.mechanism.streaming import Streams
from fxdp.ops import RULES
from fxdp.passes.plan import Plan
from fxdp.rules import Table
from fxdp.torch_internals import (
    InvalidCxxCompiler,
    get_cpp_compiler,
)

Backend = Literal["inductor", "eager"]
Checkpoint = Literal["never", "except_last", "always"]


@dataclass(frozen=True)
class Settings:
    """How a model is compiled; of all this, `clipping` and `secure` alone change what is released.

    Attributes:
        strategy: for per-sample norms, "auto" or one of `fxdp.forms.strategy.STRATEGIES`.
        plan, memory_budget: how "auto" chooses, and bytes it may spend (`fxdp.passes.plan`).
        backend: who runs the graphs.
        table: the rules.
        check: compare compiled code with its graph, at each kind of batch size.
        clipping: how a sample's gradient is brought to a bounded norm.
        reduction: how the user's own loss of the model's output puts rows together, if any.
        secure: whether noise is made of several terms, from keys of the system's entropy.
        checkpoint: which pieces of a batch work their activations out again.
        apart: whether other processes, if there are any, were said to train apart.
        inspect: also return the per-sample gradients, for `per_sample_grads`.
    """

    strategy: str = "auto"
    backend: Backend = "inductor"
    table: Table = field(default_factory=lambda: RULES)
    check: bool = True
    inspect: bool = False
    plan: Plan = "measured"
    memory_budget: int | None = None
    reduction: str = ""
    secure: bool = False
    clipping: Clipping = field(default_factory=Flat)
    checkpoint: Checkpoint = "never"
    apart: bool = False


@dataclass
class Record:
    """What a compiled module remembers of its compilations and its last step.

    Attributes:
        study: of the last compiled graph.
        compilations: how many graphs were compiled.
        extras: what the last backward returned apart from gradients: norms, per-sample gradients.
        fallbacks: what compiled code got wrong, for the certificate.
        ran: the step that ran last, until somebody takes it.
        keys: of the noise; they number the parameters, too.
        streams: of gradients, and the memory that they work in.
    """

    study: Study | None = None
    compilations: int = 0
    extras: dict[str, Tensor] = field(default_factory=lambda: {})
    fallbacks: list[str] = field(default_factory=lambda: [])
    ran: Ran | None = None
    keys: RunKey = field(default_factory=RunKey)
    streams: Streams = field(default_factory=Streams)

    def compiled(self) -> Study:
        """What is known of the last compiled graph.

        Raises:
            RuntimeError: nothing was compiled yet.
        """
        if self.study is None or self.study.found(Readable) is None:
            raise RuntimeError("nothing was compiled yet: run a step first")
        return self.study

    def taken(self) -> Ran:
        """The step that has just run, once.

        Raises:
            NotCompiled: none has: torch ran something else.
        """
        ran, self.ran = self.ran, None
        if ran is None:
            raise NotCompiled
        return ran


@functools.cache
def has_compiler() -> bool:
    """Is there a C++ compiler for Inductor's code on the CPU? Warns once if not."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        warnings.warn("fxdp: no C++ compiler was found, so graphs run eagerly", stacklevel=2)
        return False
    return True


def usable(backend: Backend) -> Backend:
    """The backend, or eager where Inductor cannot compile."""
    return "eager" if backend == "inductor" and not has_compiler() else backend
