"""One model through the proof: a `Result`, whatever happens."""

import contextlib
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType

from fxdp.compiler import attempt
from fxdp.diagnostics import sources
from fxdp.diagnostics.diagnostic import Diagnostic, StepFails
from fxdp.graph.study import GradientSums
from fxdp.lint.failures import details, first_line, place, said
from fxdp.lint.models.building import Built
from fxdp.lint.models.step import step
from fxdp.lint.models.wanted import Wanted
from fxdp.lint.paths import shortened, shortened_in
from fxdp.lint.result import Finding, Result
from fxdp.lint.trouble import Trouble
from fxdp.torch_internals import dynamo_config, reset_dynamo

LARGEST = 300_000_000  # parameters of a model that is built once more, with data


class TimeUp(BaseException):
    """A model took too long. No `Exception`, which torch would wrap or a model catch."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` when time is up; only on the main thread, where signals arrive."""
    if seconds <= 0 or threading.current_thread() is not threading.main_thread():
        yield
        return

    rung = False

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal rung
        rung = True
        # What is raised in a callback of a weak reference is lost, with a message to the user.
        if frame is None or frame.f_code.co_filename != weakref.__file__:
            raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    # It rings again, in case a ring is lost in a callback that swallows everything.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
    try:
        yield
    except Exception as error:
        if rung:  # code that does not expect to be interrupted may say something else
            raise TimeUp from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def examined(built: Built, wanted: Wanted) -> Result:
    """Prove a model; without data first, and with data where it cannot do without."""
    start = time.monotonic()
    result = proven(built, wanted)
    again = built.with_data if needs_data(result) else None
    if again is not None and sum(p.numel() for p in built.model.parameters()) <= LARGEST:
        with contextlib.suppress(Trouble):
            result = proven(again(), wanted)
    return replace(result, seconds=time.monotonic() - start)


def needs_data(result: Result) -> bool:
    """May a model have failed because its tensors have no data?"""
    said = [result.trouble, *(d.why for d in result.diagnostics)]
    return any(word in text for text in said for word in ("FakeTensor", "Data", "data", "Mixing"))


def proven(built: Built, wanted: Wanted) -> Result:
    """Prove a model as it is built.

    Its numbers (an epsilon, a rate) are constants of the proof. Otherwise torch takes them for
    inputs, finds that it cannot, and captures the model a second time.
    """
    result = Result(built.target, shortened(built.path), built.line, "failed", model=built.model)
    reset_dynamo()
    try:
        if not built.path.endswith(".pt2"):
            built.model.train(wanted.train)
        todo = step(built, wanted)
        result = replace(result, assumed=todo.assumed)
        with dynamo_config.patch(specialize_float=True):
            found = attempt(
                built.model, *todo.args, loss_fn=todo.loss_fn, batch_dims=todo.batch_dims,
                **todo.kwargs,
            )  # fmt: skip
    except StepFails as error:
        found = next(iter(error.diagnostics))
        at = found.location
        where = shortened_in(f" at {at.file}:{at.line}") if at else ""
        return replace(result, trouble=found.why + where, details=details(error))
    except (Exception, SystemExit) as error:
        where = "" if isinstance(error, Trouble) else place(error)
        trouble = said(error) if where else first_line(str(error)) or said(error)
        return replace(result, trouble=trouble + shortened_in(where), details=details(error))
    if found.error is None:
        if found.study is None or not found.study.of(GradientSums).all:
            return replace(result, trouble="no parameter gets a gradient: nothing is proven")
        return replace(result, status="proven", certificate=found.certificate, study=found.study)
    diagnostics = found.error.diagnostics
    findings = sorted((finding(d, built) for d in diagnostics), key=order)
    return replace(
        result, status="refused", findings=tuple(findings), diagnostics=diagnostics,
        study=found.study,
    )  # fmt: skip


def order(f: Finding) -> tuple[str, int, int, str]:
    """Findings go by place."""
    return (f.path, f.line, f.column, f.code.code)


def finding(d: Diagnostic, built: Built) -> Finding:
    """A diagnostic at its line; one without a line is the model's own."""
    if d.location is not None:
        file, line, column = d.location.file, d.location.line, d.location.column
        end = d.location.end_column
    else:
        file, line, column, end = built.path, built.line, None, None
    source, path = sources.shown_line(file, line), file.removeprefix(sources.FOREIGN)
    if column is None and source.strip():
        column, end = len(source) - len(source.lstrip()) + 1, len(source.rstrip()) + 1
    column = column or 1
    return Finding(
        path=shortened(path), line=line, column=column, end_column=max(end or 0, column + 1),
        code=d.code, message=f"{d.op}: {d.why}".rstrip("."), help=d.remedy, modules=d.modules,
        shapes=d.shapes, route=d.path, target=built.target, source=source,
    )  # fmt: skip
