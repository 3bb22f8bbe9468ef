"""The pipeline, and a step of a model with it inside."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch.fx import GraphModule

from fxdp.backend.backend import Record, Settings, compile_marked
from fxdp.capture.capture import Step, capture_settings, captured_within
from fxdp.capture.naming import known_names
from fxdp.diagnostics.diagnostic import ProofError
from fxdp.graph.passes import Pass
from fxdp.passes.clip import clip
from fxdp.passes.explain import explain
from fxdp.passes.localize import localize
from fxdp.passes.lower import lower
from fxdp.passes.measure import measure
from fxdp.passes.noise import noise
from fxdp.passes.plan import plan
from fxdp.passes.prove import prove
from fxdp.passes.share import share
from fxdp.passes.tidy import tidy
from fxdp.proof import facts

PASSES: tuple[Pass, ...] = (
    # One spelling of each op.
    Pass(tidy, needs=(facts.one_mark,), gives=(facts.axes_from_left,)),
    # Place every value; refuse what mixes samples.
    Pass(prove, needs=(facts.axes_from_left,), gives=(facts.placed, facts.batch_symbolic)),
    # Totals over the batch that are used as values become each sample's own.
    Pass(localize, needs=(facts.placed,), gives=(facts.totals_local,)),
    # Every path to a gradient ends in sums over samples that have a form.
    Pass(explain, needs=(facts.totals_local,), gives=(facts.explained,)),
    # Choose how each norm is found.
    Pass(plan, needs=(facts.explained,)),
    # Emit squared norms and clip factors.
    Pass(measure),
    # One Gram matrix for all norms that it is in.
    Pass(share),
    # Re-weight every sum by the factors.
    Pass(clip),
    # Add noise, once for each parameter, and put the result in the gradient's place.
    Pass(noise, gives=(facts.private_outputs, facts.noise_once)),
    # Retrace to plain aten ops.
    Pass(lower, gives=(facts.batch_symbolic, facts.noise_once)),
)

# The passes that say whether a model can be private at all.
PROOF = PASSES[:4]


def compiled_step(
    step: Step,
    settings: Settings,
    record: Record,
    capturing: Callable[[], AbstractContextManager[None]] = capture_settings,
    passes: tuple[Pass, ...] = PASSES,
) -> Callable[..., Any]:
    """A step of a model (`fxdp.capture.capture.own_step`) as torch compiles it, with passes inside.

    Args:
        capturing: what is entered while torch captures the step.
    """

    def fxdp(gm: GraphModule, example_inputs: Any) -> Callable[..., Any]:
        known = known_names(step.fxdp_model, step.loss_fn)
        return compile_marked(gm, example_inputs, passes, settings, record, known)

    return captured_within(step, fxdp, capturing)


class Proven(ProofError):
    """Raised to leave a capture once the proof is done; no error."""

    def __init__(self) -> None:
        super().__init__()


def stop(gm: GraphModule) -> GraphModule:
    """Leave the capture: there is nothing to compile."""
    raise Proven
