"""Translates torch's errors of capture into fxdp's."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fxdp.capture.blame import Plain, place_of
from fxdp.diagnostics.codes import CODES
from fxdp.diagnostics.diagnostic import BatchMixingError, CaptureError, Diagnostic, ProofError
from fxdp.diagnostics.errors import NoLoss, NotCompiled, StepError
from fxdp.diagnostics.fix import advised
from fxdp.diagnostics.location import Location, is_library
from fxdp.torch_internals import (
    NOT_COMPILED,
    ConstraintViolationError,
    Unsupported,
    UserError,
    dynamo_exc,
    with_plain_arguments,
)


@contextlib.contextmanager
def capture_errors(model: Any, plain: Plain | None = None) -> Iterator[None]:
    """Turn what torch says when it cannot capture a model into our words.

    Args:
        plain: the step as it is, to find out what it does without fxdp.

    Raises:
        CaptureError: a graph break, or an error of the model's own.
        BatchMixingError: a batch size that the model fixes, or pairs of samples.
    """
    try:
        yield
    except ProofError as error:
        found = [paired(d, plain) for d in error.diagnostics]
        raise type(error)(*(advised(d, model) for d in found)) from None
    except ConstraintViolationError as error:
        fixed = captured("fixed-batch-size", error, first_line(error))
        raise BatchMixingError(paired(fixed, plain)) from None
    except (Unsupported, UserError) as error:
        if plain is not None and any(text in str(error) for text in OF_THE_MODEL):
            refuse_own(plain)
        name, why = trouble(str(error))
        raise CaptureError(captured(name, error, why)) from None
    except NOT_COMPILED as error:
        raise NotCompiled(first_line(error)) from None
    except dynamo_exc.BackendCompilerFailed as error:
        if isinstance(error.inner_exception, StepError):  # of ours, in a wrapping of torch's
            raise error.inner_exception from None
        raise
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        if str(error).startswith(FORBIDDEN):
            raise NotCompiled(first_line(error)) from None
        if plain is not None and type(error) in OF_TORCH:
            refuse_own(plain)
        if isinstance(error, dynamo_exc.TorchRuntimeError):
            found = captured("graph-break", error, given_reason(str(error)))
            raise CaptureError(replace(found, remedy="change what torch names here")) from None
        raise


def given_reason(text: str) -> str:
    """The error that torch met while it captured a model, from what it says around it."""
    found = GOT.search(text)
    return f"{found[1]}: {found[3]}" if found else first_line(RuntimeError(text))


def paired(found: Diagnostic, plain: Plain | None) -> Diagnostic:
    """What fixes the batch size because it pairs samples with each other mixes them."""
    if found.code is not CODES["fixed-batch-size"] or plain is None:
        return found
    if (axis := plain.pair_axis()) is None:
        return found
    why = f"{axis} is another axis of the samples: each takes part in what others give"
    help = "samples that refer to each other, as the nodes of one graph do, have no gradient of "
    help += "their own: make a sample of all that belongs together"
    return replace(found, code=CODES["mixes-samples"], why=why, remedy=help)


def refuse_own(plain: Plain) -> None:
    """Raises CaptureError if a step fails without fxdp, too: with its own error as the cause."""
    if (own := plain.error()) is None:
        return
    why = f"{type(own).__name__}: {first_line(own)}"
    help = "the step raises this without fxdp, too: see the traceback of the cause"
    found = Diagnostic(CODES["graph-break"], place_of(own), "forward", why, help)
    raise CaptureError(found) from own


# What torch raises, while it captures, for errors that may be of the model's own.
OF_TORCH = (dynamo_exc.TorchRuntimeError, RuntimeError, TypeError, ValueError, IndexError, KeyError)
OF_THE_MODEL = ("making fake tensor call", "raised exception", "failed to bind arguments")
FORBIDDEN = (
    "Detected recompile when torch.compile stance",
    "torch.compile with fullgraph=True found no compiled frames",
    "Recompilation triggered with skip_guard_eval_unsafe stance",
)

# How torch writes an exception that an op raised while it was captured.
GOT = re.compile(r"got (\w+)\((['\"])(.*?)\2\)", re.DOTALL)
# How torch writes an exception that the model raised while it was captured.
RAISED = re.compile(r"raised exception (\w+)\((.*)\)$", re.MULTILINE)
EXPLAINED = re.compile(r"^ *Explanation: (.*)$", re.MULTILINE)
# What helps against a graph break, by what torch says of it.
BETTER = {
    "`lock` context": "call the model once before the first step: what takes a lock, mostly what "
    "a model sets up at its first call, is done then",
    "`print`": "leave print out of forward: a compiled step runs it at most once",
    "backwards hooks": "remove the hooks on the modules' backward: gradients of single samples are "
    "in private.per_sample_grads(...)",
    "pack_padded_sequence": "give the recurrent layer the padded batch, and take each sample's "
    "last step by gather, or weigh the steps by a mask",
    "Tensor.requires_grad": "freeze or unfreeze before the step, not in forward",
    "a value read from a tensor": "choose between values by torch.where, or set what decides "
    "(a layer dropped at random) in the configuration",
}


def trouble(text: str) -> tuple[str, str]:
    """The name of a code and the fault, from what torch says of a model it cannot capture."""
    text = with_plain_arguments(text)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if found := RAISED.search(text):
        error, message = found.groups()
        message = message.strip("'\"")
        if error == NoLoss.__name__:
            return "no-loss", message
        return "graph-break", f"{error}: {message}"
    if "data-dependent" in text.lower():
        return "graph-break", "a value read from a tensor decides what is computed"
    explained = EXPLAINED.search(text)
    return "graph-break", f"{first}: {explained[1]}" if explained else first


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return next((t.strip() for t in str(error).splitlines() if t.strip()), type(error).__name__)


def captured(name: str, error: Exception, why: str) -> Diagnostic:
    """The diagnostic of a failed capture."""
    stack: Any = getattr(error, "real_stack", None) or ()
    frames = [Location(f.filename, f.lineno or 0, f.name) for f in stack]
    own = [f for f in frames if not is_library(f.file)]
    remedy = next((r for text, r in BETTER.items() if text in why), CODES[name].remedy)
    return Diagnostic(CODES[name], own[-1] if own else None, "forward", why, remedy)
