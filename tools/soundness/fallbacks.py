"""Every way by which torch runs something else than what it compiled, on both doors.

Each is entered around a step, before anything is compiled or after a good step. Whatever torch does
then, what reaches a parameter was released and counted, or an error of fxdp's was raised, nothing
was delivered and nothing counted (P7).
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxdp

Door = Literal["fxdp.compile", "torch.compile", "torch.compile, fullgraph"]
DOORS: tuple[Door, ...] = ("fxdp.compile", "torch.compile", "torch.compile, fullgraph")
X, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
OPTIONS: dict[str, Any] = {
    "max_grad_norm": 1e-3, "noise_multiplier": 1e7, "expected_batch_size": 1.0, "backend": "eager",
}  # fmt: skip
OURS = (fxdp.StepError, fxdp.ProofError, ValueError)


class Net(nn.Module):
    """A model that returns its loss, of a number that can be changed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)
        self.times = 1

    def regular(self) -> Tensor:
        return self.b.weight.square().mean()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.a(x) / self.times
        return F.cross_entropy(self.b(h.tanh()), y)


class Prints(Net):
    """A graph break in the middle."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.a(x)
        print(end="")
        return F.cross_entropy(self.b(h.tanh()), y)


class Asks(Net):
    """A number of the samples decides."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.a(x)
        return F.cross_entropy(self.b(h if h.sum().item() > 0 else -h), y)


class Whole(Net):
    """A forward that torch is set to leave alone."""

    @torch.compiler.disable
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y)


class Part(Net):
    """A part that torch is set to leave alone, with samples in it."""

    @torch.compiler.disable
    def hidden(self, x: Tensor) -> Tensor:
        return self.a(x).tanh()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.b(self.hidden(x)), y)


class Mixes(Net):
    """What no proof allows."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.a(x)
        return F.cross_entropy(self.b(h - h.mean(0)), y)


class Keeps(Net):
    """A loss that is kept, in addition to the one that is returned."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().forward(x, y)
        print(end="")
        self.kept = loss
        return loss.detach()


@dataclass(frozen=True)
class Fallback:
    """One way.

    Attributes:
        name: what is done.
        around: a context around the step.
        model: what is stepped.
        warm: whether a good step comes before.
        change: whether the model's number changes after that, so that torch compiles again.
        backward: how the gradient is asked for.
    """

    name: str
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    model: Callable[[], Net] = Net
    warm: bool = False
    change: bool = False
    backward: Callable[[Tensor], None] = Tensor.backward


def stance(*args: Any, **kwargs: Any) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    return lambda: torch.compiler.set_stance(*args, **kwargs)


def config(**settings: Any) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    return lambda: torch._dynamo.config.patch(**settings)


def environment(name: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    return lambda: mock.patch.dict(os.environ, {name: "1"})


def batched(loss: Tensor) -> None:
    """Two gradients of one loss, by one pass over both."""
    edges: Any = loss.grad_fn.next_functions  # type: ignore[union-attr]
    leaves = [n.variable for n, _ in edges if hasattr(n, "variable")]
    found = torch.autograd.grad(loss, leaves, torch.ones(2), is_grads_batched=True)
    for leaf, g in zip(leaves, found, strict=True):
        leaf.grad = g[0]


def twice(loss: Tensor) -> None:
    """Two passes over one loss, with buffers that last."""
    loss.backward(retain_graph=True)
    loss.backward()


STANCES = ("force_eager", "eager_on_recompile", "fail_on_recompile")
LATER = ("eager_then_compile", "aot_eager_then_compile")
FALLBACKS: tuple[Fallback, ...] = (
    Fallback("nothing"),
    Fallback("eval mode", model=lambda: Net().eval()),
    *(Fallback(f"stance {s}", stance(s)) for s in (*STANCES, *LATER)),
    *(Fallback(f"stance {s}", stance(s), warm=True, change=True) for s in STANCES),
    Fallback("stance without guards", stance(skip_guard_eval_unsafe=True), warm=True, change=True),
    Fallback("another backend", stance(force_backend="eager")),
    Fallback("another backend", stance(force_backend="eager"), warm=True, change=True),
    Fallback("config.disable", config(disable=True)),
    Fallback("config.disable", config(disable=True), warm=True),
    Fallback("TORCHDYNAMO_DISABLE", environment("TORCHDYNAMO_DISABLE")),
    Fallback("recompile limit", config(recompile_limit=1), warm=True, change=True),
    Fallback("suppress_errors", config(suppress_errors=True), Mixes),
    Fallback("a graph break", model=Prints),
    Fallback("a graph break, suppress_errors", config(suppress_errors=True), Prints),
    Fallback("item()", model=Asks),
    Fallback("forward disabled", model=Whole),
    Fallback("forward disabled, suppress_errors", config(suppress_errors=True), Whole),
    Fallback("a part disabled", model=Part),
    Fallback("a part disabled, suppress_errors", config(suppress_errors=True), Part),
    Fallback("a loss that is kept", config(suppress_errors=True), Keeps),
    Fallback("a dispatch mode", lambda: FlopCounterMode(display=False)),
    Fallback("compiled autograd", config(compiled_autograd=True)),
    Fallback("is_grads_batched", backward=batched),
    Fallback("two passes, buffers kept", backward=twice),
)


def built(door: Door, model: nn.Module) -> tuple[Callable[..., Any], Callable[[], int]]:
    """A step of a model, and how many releases it has counted."""
    if door == "fxdp.compile":
        private = fxdp.compile(model, **OPTIONS, options={"plan": "fixed"})
        return private, lambda: private.releases
    whole = door != "torch.compile"
    options = OPTIONS | {"plan": "fixed"}
    step: Any = torch.compile(model, backend="fxdp", fullgraph=whole, options=options)
    return step, lambda: step.privacy.releases


def outcome(door: Door, fallback: Fallback) -> str:
    """What came of a step: "released" or "refused", or what is wrong with it."""
    torch._dynamo.reset()
    with quiet():
        model = fallback.model()
        if fallback.warm:
            step, releases = built(door, model)
            step(X, Y).backward()
            model.zero_grad()
            model.times += fallback.change
        with fallback.around():
            if not fallback.warm:
                step, releases = built(door, model)
            counted = releases()
            refused = attempted(step, model, fallback.backward)
        parameters = list(model.parameters())
        arrived = [p.grad for p in parameters if p.grad is not None]
        released = releases() - counted
    if released not in (0, 1):
        return f"COUNTED {released} times"
    # The noise of a release has a deviation of 10,000, and no gradient here is above 10.
    noisy = [float(g.norm()) > 100 for g in arrived]
    if released == 1 and all(noisy) and len(arrived) == len(parameters):
        return "released"
    if not released and not arrived and isinstance(refused, OURS):
        return "refused"
    return f"WRONG: {refused!r}, {released} counted, {sum(noisy)} of {len(arrived)} with noise"


def attempted(
    step: Callable[..., Any], model: Net, backward: Callable[[Tensor], None]
) -> Exception | None:
    """Step and backward pass; also of a loss that the model kept to itself."""
    try:
        loss = step(X, Y)
        backward(loss if loss.requires_grad else model.kept)  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 - it is judged by its kind
        return error
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch has to say of its fallbacks."""
    level = logging.getLogger("torch._dynamo").level
    logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch._dynamo").setLevel(level)
