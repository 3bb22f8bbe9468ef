"""Translates torch's errors of capture into fxdp's."""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fxdp.capture.dtypes import DtypeError
from fxdp.capture.step import COMPLEX
from fxdp.diagnostics.codes import CODES
from fxdp.diagnostics.diagnostic import (
    BatchMixingError,
    CaptureError,
    Diagnostic,
    ProofError,
    StepFails,
)
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

Asked = Callable[[], str | None]


@contextlib.contextmanager
def capture_errors(model: Any, pairs: Asked = lambda: None) -> Iterator[None]:
    """Turn what torch says when it cannot capture a model into our words.

    Args:
        pairs: finds out which second axis of an argument is one of samples, too
            (`fxdp.capture.pairs`).

    Raises:
        CaptureError: a graph break, or an error that the model raises.
        BatchMixingError: a batch size that the model fixes, or pairs of samples.
    """
    try:
        yield
    except ProofError as error:
        found = [paired(d, pairs) for d in error.diagnostics]
        raise type(error)(*(advised(d, model) for d in found)) from None
    except ConstraintViolationError as error:
        fixed = captured("fixed-batch-size", error, first_line(error))
        raise BatchMixingError(paired(fixed, pairs)) from None
    except (Unsupported, UserError, dynamo_exc.TorchRuntimeError) as error:
        name, why = trouble(str(error))
        fails = isinstance(error, dynamo_exc.TorchRuntimeError) or MET.search(str(error))
        raise (StepFails if fails else CaptureError)(captured(name, error, why)) from None
    except NOT_COMPILED as error:
        raise NotCompiled(first_line(error)) from None
    except dynamo_exc.BackendCompilerFailed as error:
        if isinstance(error.inner_exception, StepError):  # of ours, in a wrapping of torch's
            raise error.inner_exception from None
        if isinstance(error.inner_exception, DtypeError):  # torch adds the line to its text
            why = f"DtypeError: {first_line(error.inner_exception)}"
            raise StepFails(captured("graph-break", error, why)) from None
        raise
    except AssertionError as error:
        if (asked := CEILING.search(str(error))) is None:
            raise
        why = f"a batch is larger than it is proven for: {asked[1].strip()}"
        raise BatchMixingError(captured("depends-on-batch-size", error, why)) from None
    except (IndexError, TypeError, ValueError) as error:
        if FROM_MODEL not in str(error):  # raised outside of what was captured
            raise
        why = f"{type(error).__name__}: {first_line(error)}"
        raise StepFails(captured("graph-break", error, why)) from None
    except RuntimeError as error:
        if str(error).startswith(FORBIDDEN):
            raise NotCompiled(first_line(error)) from None
        raise


def paired(found: Diagnostic, pairs: Asked) -> Diagnostic:
    """What fixes the batch size because it pairs samples with each other mixes them."""
    if found.code is not CODES["fixed-batch-size"] or (axis := pairs()) is None:
        return found
    why = f"{axis} is another axis of the samples: each takes part in what others give"
    help = "samples that refer to each other, as the nodes of one graph do, have no gradient of "
    help += "their own: make a sample of all that belongs together"
    return replace(found, code=CODES["mixes-samples"], why=why, remedy=help)


# Where in the model an error was raised, in the words of torch.
FROM_MODEL = "\n\nfrom user code:\n"
FRAME = re.compile(r'^ *File "(.+)", line (\d+), in (\w+)$', re.MULTILINE)
FORBIDDEN = (
    "Detected recompile when torch.compile stance",
    "torch.compile with fullgraph=True found no compiled frames",
    "Recompilation triggered with skip_guard_eval_unsafe stance",
)

# How torch says that a guard does not even hold for the batch that it was captured for.
CEILING = re.compile(
    r"Guard failed on the same frame.*Guard fail reason: [\d/]*: ([^#]*size\(\)[^#]*<[^#]*)",
    re.DOTALL,
)

# How torch writes what an op raised while it was captured.
GOT = re.compile(r"got (\w+)\((['\"])(.*?)\2\)", re.DOTALL)
MET = re.compile(r"debug context: (\w+Error) <.*?>(:) (.*)")
# How torch writes an exception that the model raised while it was captured.
RAISED = re.compile(r"raised exception (\w+)\((.*)\)$", re.MULTILINE)
EXPLAINED = re.compile(r"^ *Explanation: (.*)$", re.MULTILINE)
ERROR = re.compile(r"\w+(Error|Exception): ")
OWN = "this is of the model, its loss and the arguments: called without fxdp, they show where"
ONE_DTYPE = (
    "give the model numbers of the dtype of its parameters: x.float() where they are float32 (or "
    "x.to(self.weight.dtype)), or make them those of the data: model.double(); called without "
    "fxdp, model and loss fail likewise"
)
# What helps against a graph break, by what torch says of it.
BETTER = {
    **dict.fromkeys(
        (
            "must be of one dtype",
            "takes floating-point numbers",
            "have the same dtype",
            "type and bias type",
            "should be the same",
            "expected scalar type torch.",
            "not match weight dtype",
            "infer output dtype",
            "Autograd not support dtype",
            "mixed dtype",
        ),  # fmt: skip
        ONE_DTYPE,
    ),
    **dict.fromkeys(
        ("scalar types: Long, Int", "Expected dtype int32/int64", "expected scalar type Long"),
        "pass what counts rows or classes as whole numbers: y.long()",
    ),
    "`lock` context": "call the model once before the first step: what takes a lock, mostly what "
    "a model sets up at its first call, is done then",
    COMPLEX: "return its real part or its size: loss.real, out.abs().square().mean()",
    "loss_fn returned": "return a tensor from loss_fn, 0-d or [N], made of the model's output",
    "`print`": "leave print out of forward: a compiled step runs it at most once",
    "backwards hooks": "remove the hooks on the modules' backward: gradients of single samples are "
    "in private.per_sample_grads(...)",
    "`pack_padded_sequence`": "use fxdp.compile, which follows packed sequences; or give the "
    "recurrent layer the padded batch, and take each sample's last step by gather, or weigh the "
    "steps by a mask",
    "a packed sequence has": "pass it to recurrent layers and pad_packed_sequence alone, and "
    "compute on what that returns",
    "pads to the longest sample": "pass total_length=x.shape[1] (x.shape[0] without batch_first), "
    "the length of what was packed",
    "on packed sequences": "leave proj_size out, or give the layer the padded batch, and take each "
    "sample's last step by gather",
    "ctc_loss: give": "F.ctc_loss(log_probs, targets, input_lengths, target_lengths), where "
    "targets are [N, S] and both lengths tensors [N]",
    "Tensor.requires_grad": "freeze or unfreeze before the step, not in forward",
    "masked_select": "keep the shape: by torch.where, or by labels padded to [N, S]",
    "a value read from a tensor": "choose between values by torch.where, or set what decides "
    "in the configuration",
}
LAYERS = "set layerdrop = 0.0 in model.config: a layer is dropped for the whole batch, or for none"
# ... and by what is in the line or in the name of a function that it says this of.
BETTER_AT = {
    "_compute_mask_indices": "set model.config.apply_spec_augment = False: which steps are masked "
    "is drawn outside of torch",
    "layerdrop": LAYERS,
    "skip_the_layer": LAYERS,
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
    if found := GOT.search(text) or MET.search(text):
        return "graph-break", f"{found[1]}: {found[3].replace('immutable_', '')}"
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
    frames = frames or [Location(m[1], int(m[2]), m[3]) for m in FRAME.finditer(str(error))]
    own = [f for f in frames if not is_library(f.file)]
    usual = OWN if ERROR.match(why) else CODES[name].remedy
    remedy = next((r for text, r in BETTER.items() if text in why), usual)
    at = " ".join([*(f.name for f in stack), *((f.line or "") for f in stack[-1:])])
    remedy = next((r for text, r in BETTER_AT.items() if text in at), remedy)
    return Diagnostic(CODES[name], own[-1] if own else None, "forward", why, remedy)
