"""The pipeline: the passes in their order, and the facts between them."""

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
from fxdp.passes.stream import stream
from fxdp.passes.tidy import tidy
from fxdp.passes.weigh import weigh
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
    Pass(
        plan,
        options=("strategy", "inspect_each", "how", "memory_budget"),
        needs=(facts.explained,),
    ),
    # Emit squared norms.
    Pass(measure),
    # Emit norms, factors and clipped sums of what is streamed.
    Pass(stream, options=("clipping", "streams")),
    # Emit clip factors.
    Pass(weigh, options=("clipping",)),
    # One Gram matrix for all norms that it is in.
    Pass(share),
    # Re-weight every sum by the factors.
    Pass(clip),
    # Add noise, once for each parameter, and put the result in the gradient's place.
    Pass(
        noise,
        options=("number", "terms", "inspect_each"),
        gives=(facts.private_outputs, facts.noise_once),
    ),
    # Take ops apart as the backend wants them.
    Pass(
        lower,
        options=("decompositions",),
        gives=(facts.batch_symbolic, facts.noise_once),
    ),
)

# The passes that say whether a model can be private at all.
PROOF = PASSES[:4]
