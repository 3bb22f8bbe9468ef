"""The step that `torch.compile(model, backend="fxdp")` hands out, and its account.

torch calls fxdp for what it captures, and for nothing else. So the step is wrapped where it is
made: what comes out of it must be what a release is made of, whatever torch ran, and the parameters
behind it are fenced (`fxdp.backend.fence`). Without gradients it is the model as it is.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxdp.backend.delivery import Gradients, delivered, is_delivered, refuse_transforms
from fxdp.backend.fence import Fence, InThisThread
from fxdp.backend.options import OPTIONS, Scales, checked_options
from fxdp.backend.settings import Record
from fxdp.capture.errors import capture_errors
from fxdp.capture.segments import Ragged
from fxdp.diagnostics.errors import NotCompiled, StepError
from fxdp.distributed.guard import refuse_step
from fxdp.graph.study import Study
from fxdp.mechanism.correlated import BandMF
from fxdp.mechanism.keystream import no_key
from fxdp.mechanism.run_key import RunKey
from fxdp.module.accounting import as_accounting
from fxdp.module.leftovers import Leftovers
from fxdp.module.lot import Lot
from fxdp.module.output import without_gradients
from fxdp.module.private_module import PrivateModule
from fxdp.module.reports import Reports
from fxdp.module.tally import Tally
from fxdp.ops import RULES
from fxdp.proof.certificate import Certificate, certify
from fxdp.torch_internals import pytree, unsafe_stance

NEEDED = ("max_grad_norm", "noise_multiplier", "expected_batch_size")
KEYWORDS = (*NEEDED, "clipping", "noise", "accounting", "batch_dims", "rules", "backend", "mesh")
# What a door sets itself.
OWN = ("batch_dims", "scales", "settings", "record", "fence", "refusal", "unprotected")
CALLED = threading.local()  # .door: whose step is being called in this thread

# What torch.compile has no place for, and what to do in its stead.
INSTEAD = {
    "loss_fn": "The model returns its loss here: compute it in forward, or use "
    "fxdp.compile(model, loss_fn, ...)",
    "loss_reduction": "A loss that is made outside of the graph needs fxdp.compile",
    "microbatch_size": "Batches in pieces need fxdp.compile",
    "options": "What is in options there stands here by itself",
}


class Door(Reports):
    """A step of torch.compile's: what it may do, and what it has done; `step.privacy`.

    Guarantees:
        Of what a call with gradients returns, whatever requires a gradient was made by one release
        to come, which its backward pass makes and counts; or StepError is raised. That holds
        whether or not torch compiled, and why it did not.

        ==========================================  =========================================
        case                                        what happens
        ==========================================  =========================================
        torch runs the model as it is: a stance,    StepError from the call; if it kept the loss
        a setting, its limit of graphs, an error    to itself, from backward(), before anything
        that it swallows                            is added to a parameter
        torch runs what was compiled for another    StepError: its options are not these
        step
        a graph break                               ProofError (FXD501)
        torch.no_grad, torch.inference_mode         the model as it is
        within `fxdp.unprotected(step)`             the model as it is, with its plain gradients
        a second backward pass                      StepError
        the budget does not allow it                BudgetExhausted from backward(); no gradient
        ==========================================  =========================================

    Attributes:
        ledger: the releases.
        releases: how many there were.
        last_norms: [N] gradient norms of the last release's samples; not protected by DP.
    """

    unprotected = InThisThread()  # how many `fxdp.unprotected` are around

    def __setattr__(self, name: str, value: Any) -> None:
        """What a step is compiled with is settled by torch.compile's options.

        Raises:
            AttributeError: it is to be changed afterwards.
        """
        if name not in OWN and not name.startswith("_"):
            raise AttributeError(
                f"step.privacy has no {name} to set: the options of torch.compile settle what a "
                "step releases. Compile it with others, or use fxdp.compile, where they can change"
            )
        super().__setattr__(name, value)

    @property
    def max_grad_norm(self) -> float:
        """C, as the options have it."""
        return self.scales[0]

    @property
    def noise_multiplier(self) -> float:
        """sigma, as the options have it."""
        return self.scales[1]

    @property
    def expected_batch_size(self) -> float:
        """L, as the options have it."""
        return self.scales[2]

    def __init__(self, options: Mapping[str, Any] | None) -> None:
        """Check the options of torch.compile.

        Raises:
            TypeError, ValueError: they are not as for `fxdp.compile`.
        """
        given = dict(options or {})
        if unknown := sorted(set(given) - {*KEYWORDS, *OPTIONS}):
            known = ", ".join((*KEYWORDS, *OPTIONS))
            helps = " ".join(INSTEAD[name] for name in unknown if name in INSTEAD)
            raise ValueError(f"options has {unknown}, but fxdp knows {known}. {helps}".rstrip(". "))
        if missing := [name for name in NEEDED if name not in given]:
            raise ValueError(f"options lacks {', '.join(missing)}")
        if given.get("checkpoint") == "except_last":
            raise ValueError(
                "checkpoint='except_last' is for batches in pieces: 'always' or 'never'"
            )
        speed: Any = {name: given.pop(name) for name in OPTIONS if name in given}
        self.batch_dims = given.pop("batch_dims", 0)
        if isinstance(self.batch_dims, Mapping):
            named: Mapping[str, Any] = self.batch_dims
            if ragged := sorted(k for k, v in named.items() if isinstance(v, Ragged)):
                raise ValueError(f"batch_dims: ragged arguments ({ragged}) need fxdp.compile")
        self._account = as_accounting(given.pop("accounting", None)).account()
        self.scales, self.settings = checked_options(**given, options=speed)
        if self.settings.clipping.moves_bound:
            raise ValueError("clipping='adaptive' moves the clip bound, which needs fxdp.compile")
        if isinstance(given.get("noise"), BandMF):
            raise ValueError("noise=BandMF(...) goes on from step to step: it needs fxdp.compile")
        self.record = Record(keys=RunKey(self.settings.secure))
        self.fence = Fence()
        self.refusal: str | None = None  # what fxdp last said of the model to torch
        self._last = Tally()
        self._leftovers = Leftovers("`fxdp.compile`, and `with private.accumulate(): ...`")
        self._lock: Any = threading.RLock()

    def __deepcopy__(self, memo: object) -> "Door":
        raise TypeError(
            "a step of torch.compile cannot be copied, for its copy would run the graphs of the "
            "first: copy the model, and compile it again"
        )

    def __reduce__(self) -> Any:
        return self.__deepcopy__(None)

    def guarded(self, call: Callable[..., Any], model: Callable[..., Any]) -> Callable[..., Any]:
        """The step that torch made of a model, looked at from outside."""
        modules = list(modules_of(model))
        if any(isinstance(m, PrivateModule) for of in modules for m in of.modules()):
            raise ValueError(
                "what is compiled uses a module of fxdp.compile, whose steps are private by "
                "themselves: leave one of the two out"
            )
        parameters = [p for m in modules for p in m.parameters()]
        self.fence.around(parameters)

        @functools.wraps(call)
        def step(*args: Any, **kwargs: Any) -> Any:
            if self.unprotected:
                return model(*args, **kwargs)
            if not torch.is_grad_enabled():
                return without_gradients(call(*args, **kwargs))
            self.fence.around(parameters)
            self._account.take((args, kwargs))
            with capture_errors(model), self._entered():
                out = call(*args, **kwargs)
            for leaf in pytree.tree_leaves(out):
                if isinstance(leaf, Tensor) and leaf.requires_grad and not is_delivered(leaf):
                    raise NotCompiled(self.refusal or "its result was not made by fxdp's step")
            return out

        return step

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        """While this step is called: what torch runs must have been compiled for it."""
        outer, CALLED.door = getattr(CALLED, "door", None), self
        try:
            yield
        finally:
            CALLED.door = outer

    def run(self, compiled: Callable[..., Any], args: tuple[Any, ...], place: int) -> list[Any]:
        """One step.

        Args:
            place: which of the outputs is the loss.
        """
        if unsafe_stance():
            raise NotCompiled("a stance without guards may run the graph of another batch")
        if getattr(CALLED, "door", None) is not self:
            raise NotCompiled("it ran what was compiled for another step, with other options")
        refuse_transforms()
        with self._lock:
            trained = ((str(i), p) for i, p in enumerate(args) if isinstance(p, nn.Parameter))
            refuse_step(self.settings.apart, self._account.process, trained, StepError)
            self._account.begin()
            lot = Lot.of(self.scales, self.settings.clipping, self.settings.secure, self._account)
            key = self.record.keys.next(self.releases) if self.scales[1] > 0 else no_key()
            self.record.ran, self.record.extras = None, {}
            outputs = compiled(*args, key)
            ran = self.record.taken()
            self.fence.around(ran.leaves)

            def work(tangent: Tensor) -> Gradients:
                with self._lock:
                    self._leftovers.look(ran.leaves)
                    return self._account.released(
                        lot.release, lambda: self._differentiated(ran.gradients, tangent, lot),
                        lambda: setattr(self, "_last", lot.tally),
                    )  # fmt: skip

            outputs[place] = loss = delivered(ran.value, work, ran.leaves)
            self._account.watch(loss)
            return outputs

    def _differentiated(
        self, gradients: Callable[[Tensor], Gradients], tangent: Tensor, lot: Lot
    ) -> Gradients:
        self.record.extras = {}
        found, extras = gradients(tangent), self.record.extras
        everybody = torch.ones_like(extras["finite"])
        lot.tally.add(extras["norms"], extras["finite"], everybody)
        return found

    @property
    def _scales(self) -> Scales:
        return self.scales

    def certificate(self) -> Certificate:
        """What is proven and what is assumed, of the last compilation.

        Raises:
            RuntimeError: nothing was compiled yet.
        """
        rows = self._account.assumptions()
        return certify(self._study(), RULES, self.record.fallbacks, rows)

    def _study(self) -> Study:
        return self.record.compiled()


def modules_of(function: Any) -> Iterator[nn.Module]:
    """The modules that a function is, is a method of, or uses by name: those that it may train."""
    while isinstance(function, functools.partial):
        yield from in_values((*function.args, *function.keywords.values()))
        function = function.func
    if isinstance(function, nn.Module):
        yield function
        return
    yield from in_values((getattr(function, "__self__", None),))
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is not None:
        outer = getattr(function, "__globals__", {})
        yield from in_values(outer.get(name) for name in code.co_names)
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield from in_values((cell.cell_contents,))
        except ValueError:  # not filled yet
            continue


def in_values(values: Iterable[Any]) -> Iterator[nn.Module]:
    """The modules among values, and in the containers among them."""
    for value in values:
        if isinstance(value, list | tuple | dict | nn.Module):
            leaves = [value] if isinstance(value, nn.Module) else pytree.tree_leaves(value)
            yield from (leaf for leaf in leaves if isinstance(leaf, nn.Module))
