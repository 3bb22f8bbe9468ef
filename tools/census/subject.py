"""What the census proves: a model, the arguments of one step, and what became of the proof."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fxdp
from fxdp.lint.proving import TimeUp, limit

N = 3  # samples
Make = Callable[[], "Step"]


@dataclass
class Step:
    """A model and the arguments of one step of it."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=lambda: {})
    loss_fn: Callable[..., Tensor] | None = None


@dataclass
class Result:
    """What became of one model.

    Attributes:
        verdict: "proven", "refused", "batch norm" (refused, and rightly), "not captured", "slow"
            or "not built", which is the fault of the census.
        missing: ops without rules.
        why: the first fault.
    """

    name: str
    verdict: str
    seconds: float = 0.0
    missing: tuple[str, ...] = ()
    why: str = ""

    def line(self) -> str:
        return f"{self.verdict:13}{self.seconds:6.1f} s  {self.name:44} {self.why}".rstrip()

    def record(self) -> dict[str, Any]:
        return asdict(self)


def has_batch_norm(model: nn.Module) -> bool:
    """Does a model normalise over the batch by a layer that says so?"""
    norms = [m for m in model.modules() if re.search("batch_?norm|BatchNorm", type(m).__name__)]
    return any(m.training for m in norms)


def spelled(d: fxdp.Diagnostic) -> str:
    """One fault on one line."""
    where = f" at {d.location.source[:60]!r}" if d.location else ""
    return f"{d.code.code} {d.op}: {d.why}{where}"


def examine(name: str, make: Make, seconds: int) -> Result:
    """Build a model and prove it."""
    start, model = time.monotonic(), None

    def result(verdict: str, why: str = "", missing: tuple[str, ...] = ()) -> Result:
        took = round(time.monotonic() - start, 1)
        return Result(name, verdict, took, missing, " ".join(why.split())[:300])

    torch._dynamo.reset()
    try:
        with limit(seconds):
            torch.manual_seed(0)
            step = make()
            model = step.model.train()
            fxdp.prove(model, *step.args, loss_fn=step.loss_fn, **step.kwargs)
    except fxdp.CaptureError as error:
        return result("not captured", spelled(error.diagnostics[0]))
    except fxdp.ProofError as error:
        faults = error.diagnostics
        missing = sorted({d.op for d in faults if d.code.name == "no-rule"})
        rightly = model is not None and has_batch_norm(model) and not missing
        verdict = "batch norm" if rightly else "refused"
        return result(verdict, spelled(faults[0]), tuple(missing))
    except TimeUp:
        return result("slow" if model is not None else "not built")
    except Exception as error:
        kind = f"{type(error).__name__}: {error}"
        return result("not captured" if model is not None else "not built", kind)
    return result("proven")
