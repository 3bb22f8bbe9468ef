"""The pipeline, and `fxdp.compile`, which is `torch.compile` with it as the backend."""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxdp import facts
from fxdp.backend import Backend, Record, Settings, compile_marked
from fxdp.capture import (
    SMALLEST,
    BatchDims,
    Inputs,
    argument_names,
    capture_errors,
    capture_settings,
    gather,
    own_step,
)
from fxdp.certificate import Certificate, certify
from fxdp.diagnostic import ProofError
from fxdp.forms.batch import Strategy
from fxdp.graph_pass import Pass, Study
from fxdp.ops import RULES
from fxdp.passes.clip import clip
from fxdp.passes.explain import explain
from fxdp.passes.localize import localize
from fxdp.passes.lower import lower
from fxdp.passes.measure import measure
from fxdp.passes.noise import noise
from fxdp.passes.plan import plan
from fxdp.passes import prove as prove_pass
from fxdp.passes.tidy import tidy
from fxdp.report import Report, report
from fxdp.rules import Table

PASSES: tuple[Pass, ...] = (
    # One spelling of each op.
    Pass(tidy, needs=(facts.one_mark,), gives=(facts.axes_from_left,)),
    # Place every value; refuse what mixes samples.
    Pass(prove_pass.prove, needs=(facts.axes_from_left,), gives=(facts.placed, facts.batch_symbolic)),
    # Totals over the batch that are used as values become each sample's own.
    Pass(localize, needs=(facts.placed,), gives=(facts.totals_local,)),
    # Every path to a gradient ends in sums over samples that have a form.
    Pass(explain, needs=(facts.totals_local,), gives=(facts.explained,)),
    # Choose how each norm is found.
    Pass(plan, needs=(facts.explained,)),
    # Emit squared norms and clip factors.
    Pass(measure),
    # Re-weight every sum by the factors.
    Pass(clip),
    # Add noise, once for each parameter, and put the result in the gradient's place.
    Pass(noise, gives=(facts.private_outputs, facts.noise_once)),
    # Retrace to plain aten ops.
    Pass(lower, gives=(facts.batch_symbolic,)),
)

Scales = tuple[float, float, float]
PROOF = PASSES[:4]
STRATEGIES = ("auto", *get_args(Strategy))


def compile(  # noqa: A001 - torch.compile's name
    model: nn.Module,
    *,
    loss_fn: Callable[..., Tensor] | None = None,
    max_grad_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    strategy: str = "auto",
    backend: str = "inductor",
    batch_dims: BatchDims = 0,
    rules: Table = RULES,
) -> "PrivateModule":
    """Compile a model into one whose `loss.backward()` leaves private gradients.

    Nothing is captured until the first step. `p.grad` then holds, for each trainable parameter,
    (sum_i min(1, C / |g_i|) g_i + sigma C xi) / L, where g_i is the gradient that sample i would
    give alone, over all trainable parameters, and xi is standard normal (Abadi et al.,
    arXiv:1607.00133, algorithm 1).

    Args:
        model: any module that torch.compile captures whole.
        loss_fn: called as `loss_fn(model(*inputs), target)`; must return a loss that is 0-d or
            [N]. Without it the model returns a loss, alone, first in a tuple, or as `.loss`.
        max_grad_norm: the clip bound C, above 0; `math.inf` clips nothing.
        noise_multiplier: sigma, at least 0.
        expected_batch_size: L, the public number that the sum is divided by.
        strategy: "auto", "instantiate", "ghost", "crb", "naive" or "multi"; equal in result.
        backend: "inductor" or "eager".
        batch_dims: the axis of the samples, for all arguments or by argument name (the loss's is
            "target"); None for an argument that all samples share.
        rules: the table of rules; rules that you add are listed as assumptions.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    check_parameters(model)
    scales, settings = checked_options(
        max_grad_norm, noise_multiplier, expected_batch_size, strategy, backend, rules
    )
    return PrivateModule(model, loss_fn, scales, settings, batch_dims)


def checked_options(
    max_grad_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    strategy: str = "auto",
    backend: str = "inductor",
    rules: Table = RULES,
) -> tuple[Scales, Settings]:
    """What both doors are told, checked.

    Raises:
        TypeError, ValueError: an option is not as `compile` describes it.
    """
    scales = (max_grad_norm, noise_multiplier, expected_batch_size)
    check_scales(*scales)
    one_of("strategy", strategy, STRATEGIES)
    one_of("backend", backend, get_args(Backend))
    settings = Settings(strategy, backend, rules)  # type: ignore[arg-type]
    return (float(scales[0]), float(scales[1]), float(scales[2])), settings


def check_scales(
    max_grad_norm: float, noise_multiplier: float, expected_batch_size: float
) -> None:
    """Check the numbers that a release depends on."""
    number("max_grad_norm", max_grad_norm, positive=True)
    number("noise_multiplier", noise_multiplier)
    number("expected_batch_size", expected_batch_size, positive=True)
    if math.isinf(noise_multiplier) or math.isinf(expected_batch_size):
        raise ValueError("noise_multiplier and expected_batch_size must be finite")
    if math.isinf(max_grad_norm) and noise_multiplier > 0:
        raise ValueError("max_grad_norm must be finite where noise_multiplier is above 0")


def number(name: str, value: Any, positive: bool = False) -> None:
    """Check a number: real, no NaN, not negative, and above 0 if `positive`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if math.isnan(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be {'above' if positive else 'at least'} 0, not {value}")


def one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Check a word against those that are known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def check_parameters(model: nn.Module) -> None:
    """A model must have something to train, and nothing that cannot be."""
    for name, p in model.named_parameters():
        if not (p.is_floating_point() or p.is_complex()):
            raise TypeError(f"model's parameter {name!r} has dtype {p.dtype}; make it a buffer")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no trainable parameter: set requires_grad on at least one")


class PrivateModule(nn.Module):
    """A model whose training steps are private; made by `fxdp.compile`.

    It has the model's own parameters, buffers and submodules, under their own names.

    Guarantees:
        - After `loss.backward()`, what was added to each `p.grad` is the clipped, noised sum of
          `fxdp.compile`, and was made from one noise draw.
        - The released sum changes by at most `sensitivity` in L2 norm when one sample is added
          or removed.
        - Nothing is released where capture, proof or the check of compiled code fails.

        ===========================  ============================================
        case                         what happens
        ===========================  ============================================
        empty batch                  noise alone is released; the loss is 0
        one sample                   as any batch
        a norm of 0                  factor 1
        a norm that is inf or NaN    that sample adds nothing
        a row masked out             that row adds nothing, to loss and gradient
        ===========================  ============================================

    Attributes:
        max_grad_norm, noise_multiplier, expected_batch_size: may be set between steps.
        releases: how many private gradients were released.
    """

    _model: nn.Module
    _step: Callable[..., Any]

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor] | None,
        scales: Scales,
        settings: Settings,
        batch_dims: BatchDims,
    ) -> None:
        super().__init__()
        # The same parameters, buffers and submodules, not copies and not one level down.
        for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[shared] = model.__dict__[shared]
        self.__dict__["_model"] = model
        self.training = model.training
        self.max_grad_norm, self.noise_multiplier, self.expected_batch_size = scales
        self._loss_fn = loss_fn
        self._batch_dims = batch_dims
        self._settings = settings
        self._record = Record()
        self._dynamic = True
        self._inspection: Inspection | None = None
        self.__dict__["_step"] = compiled_step(model, loss_fn, settings, self._record)

    def forward(self, *args: Any, sample_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """One step's loss, the mean of the samples' own losses, 0-d.

        With a model that returns a loss among other things, those come along without gradients.
        In eval mode, or without gradients, the model runs as it is.

        Args:
            *args, **kwargs: the model's arguments, and the target last where there is a loss_fn.
            sample_mask: bool [N]; rows that are False are padding.

        Raises:
            ProofError: the model cannot be proven private.
            TypeError, ValueError: the arguments do not fit together.
        """
        if not self.training or not torch.is_grad_enabled():
            return self._plain(args, kwargs)
        inputs, mask = self._prepared(args, kwargs, sample_mask)
        return self._captured(self._step, inputs, mask, self.noise_multiplier)

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model as it is; with a target, its loss."""
        wanted = argument_names(self._model, args, kwargs, has_target=False)
        if self._loss_fn is not None and ("target" in kwargs or wanted[-1:] == [f"args[{len(args) - 1}]"]):
            *own, target = (*args, kwargs.pop("target")) if "target" in kwargs else args
            return self._loss_fn(self._model(*own, **kwargs), target)
        return self._model(*args, **kwargs)

    def _prepared(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mask: Any
    ) -> tuple[Inputs, Tensor]:
        """Checked arguments with at least two rows, and the mask of the real ones."""
        inputs = gather(self._model, args, kwargs, self._batch_dims, self._loss_fn is not None)
        if mask is None:
            mask = torch.ones(inputs.size, dtype=torch.bool, device=inputs.device)
        if not isinstance(mask, Tensor):
            raise TypeError(f"sample_mask must be a bool tensor, not {type(mask).__name__}")
        if mask.dtype != torch.bool or tuple(mask.shape) != (inputs.size,):
            raise ValueError(
                f"sample_mask must be bool of shape [{inputs.size}], not {mask.dtype} of shape "
                f"{list(mask.shape)}"
            )
        if inputs.size < SMALLEST:
            mask = torch.cat([mask, mask.new_zeros(SMALLEST - inputs.size)])
            inputs = inputs.resized(SMALLEST)
        return inputs, mask

    def _captured(self, step: Any, inputs: Inputs, mask: Tensor, sigma: float) -> Any:
        """Run a compiled step on checked inputs."""
        check_scales(self.max_grad_norm, sigma, self.expected_batch_size)
        scales = tuple(
            torch.tensor(v, dtype=torch.float64, device=mask.device)
            for v in (self.max_grad_norm, sigma, self.expected_batch_size)
        )
        leaves: list[Any] = []
        for leaf, dim in zip(inputs.leaves, inputs.dims, strict=True):
            if dim is not None:
                leaf = leaf.detach()
                torch._dynamo.mark_dynamic(leaf, dim)
            leaves.append(leaf)
        mask = mask.detach()
        torch._dynamo.mark_dynamic(mask, 0)
        call = functools.partial(step, scales, mask, tuple(leaves), inputs.dims, inputs.spec)
        loss, others = self._traced(call)
        return loss if others is None else Outcome.of(loss, others)

    def _traced(self, call: Callable[[], Any]) -> Any:
        """Run a step, capturing it first where it has to be.

        Sizes that change between steps become symbols, like the batch size. Where the proof
        cannot follow a model through those, each size gets a graph of its own from then on.
        """
        compiled_before = self._record.compilations > 0
        try:
            with capture_settings(self._model, self._dynamic), capture_errors():
                return call()
        except ProofError as error:
            if isinstance(error, Proven) or not (self._dynamic and compiled_before):
                raise
        self._dynamic = False
        with capture_settings(self._model, self._dynamic), capture_errors():
            return call()

    @contextlib.contextmanager
    def _silent(self) -> Any:
        """A step that releases nothing: no noise, no count, no change of the generators."""
        releases = self._record.releases
        with torch.random.fork_rng():
            yield
        self._record.releases = releases

    def per_sample_norms(self, *args: Any, **kwargs: Any) -> Tensor:
        """[N] gradient norms, one a sample, over all trainable parameters. Not private."""
        self._extras(self._step, args, kwargs)
        return self._record.extras["norms"][: self._size(args, kwargs)]

    def per_sample_grads(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """{parameter: [N, *shape]} gradients, one a sample. Not private; for debugging.

        Runs eagerly and materialises everything.
        """
        if self._inspection is None:
            settings = Settings("instantiate", "eager", self._settings.table, inspect=True)
            record = Record()
            step = compiled_step(self._model, self._loss_fn, settings, record)
            self._inspection = Inspection(step, record)
        self._extras(self._inspection.step, args, kwargs)
        size = self._size(args, kwargs)
        extras = self._inspection.record.extras
        return {k: v[:size] for k, v in extras.items() if k != "norms"}

    def _size(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return gather(self._model, args, kwargs, self._batch_dims, self._loss_fn is not None).size

    def _extras(self, step: Any, args: Any, kwargs: Any) -> None:
        """Run a step and its backward pass without a release, for what it returns beside."""
        inputs, mask = self._prepared(args, kwargs, None)
        with self._silent(), torch.enable_grad():
            out = self._captured(step, inputs, mask, 0.0)
            loss = out.loss if isinstance(out, Outcome) else out
            trained = [p for p in self.parameters() if p.requires_grad]
            torch.autograd.grad(loss, trained, allow_unused=True)

    @property
    def sensitivity(self) -> float:
        """How far one sample, added or removed, moves the released gradient: C / L, in L2 norm.

        Before the user scales the loss by a constant, which scales this too.
        """
        return self.max_grad_norm / self.expected_batch_size

    @property
    def releases(self) -> int:
        return self._record.releases

    @property
    def graph_module(self) -> GraphModule:
        """The joint graph after the last pass that is made for reading."""
        readable = self._study().readable
        assert readable is not None
        return readable

    def report(self) -> Report:
        """One row for each parameter: its sums, their form, strategy and predicted cost."""
        return report(self._study())

    def certificate(self, *args: Any, **kwargs: Any) -> Certificate:
        """What is proven and what is assumed; of the last compilation, or of given inputs.

        Raises:
            ProofError: these inputs cannot be proven.
            RuntimeError: nothing was compiled yet and no inputs are given.
        """
        if not args and not kwargs:
            return certify(self._study(), RULES, self._record.fallbacks)
        inputs, mask = self._prepared(args, kwargs, None)
        return proven(self, inputs, mask)

    def _study(self) -> Study:
        if self._record.study is None or self._record.study.readable is None:
            raise RuntimeError("nothing was compiled yet: run a step first")
        return self._record.study

    def train(self, mode: bool = True) -> "PrivateModule":
        """Training mode releases private gradients; eval mode is the model as it is."""
        self._model.train(mode)
        self.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrivateModule":
        """A private module over a copy of the model, with the same settings; not compiled yet."""
        scales = (self.max_grad_norm, self.noise_multiplier, self.expected_batch_size)
        model = copy.deepcopy(self._model, memo)
        return PrivateModule(model, self._loss_fn, scales, self._settings, self._batch_dims)

    def __reduce__(self) -> Any:
        raise TypeError(
            "compiled code cannot be pickled: save the state_dict() and compile the model again"
        )

    def extra_repr(self) -> str:
        return (
            f"max_grad_norm={self.max_grad_norm}, noise_multiplier={self.noise_multiplier}, "
            f"expected_batch_size={self.expected_batch_size}"
        )


@dataclass(frozen=True)
class Inspection:
    """A step that also returns per-sample gradients, and where it leaves them."""

    step: Callable[..., Any]
    record: Record


class Outcome(dict[str, Any]):
    """The outputs of a model beside its loss, by name; and the loss."""

    @classmethod
    def of(cls, loss: Tensor, others: Any) -> Any:
        """A dict where the model returned names, a tuple where it returned a tuple."""
        if not isinstance(others, Mapping):
            return (loss, *others)
        return cls({"loss": loss} | dict(others))

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def compiled_step(
    model: nn.Module, loss_fn: Callable[..., Any] | None, settings: Settings, record: Record
) -> Callable[..., Any]:
    """A step of the model as torch.compile makes it, with our pipeline inside."""

    def fxdp(gm: GraphModule, example_inputs: Any) -> Callable[..., Any]:
        return compile_marked(gm, example_inputs, PASSES, settings, record)

    return torch.compile(own_step(model, loss_fn), backend=fxdp, fullgraph=True)


class Proven(ProofError):
    """Raised to leave a capture once the proof is done; no error."""

    def __init__(self) -> None:
        super().__init__()


def proven(private: PrivateModule, inputs: Inputs, mask: Tensor) -> Certificate:
    """Capture a step and run only the proof on it."""
    record = Record()

    def stop(gm: GraphModule) -> GraphModule:
        raise Proven

    def fxdp(gm: GraphModule, example_inputs: Any) -> Callable[..., Any]:
        return compile_marked(gm, example_inputs, (*PROOF, Pass(stop)), private._settings, record)

    step = torch.compile(own_step(private._model, private._loss_fn), backend=fxdp, fullgraph=True)
    with contextlib.suppress(Proven):
        private._captured(step, inputs, mask, 0.0)
    assert record.study is not None
    return certify(record.study, RULES, private._record.fallbacks)


def prove(
    model: nn.Module,
    *args: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    batch_dims: BatchDims = 0,
    rules: Table = RULES,
    **kwargs: Any,
) -> Certificate:
    """Prove a model without compiling or running it, on real, fake or meta tensors.

    Args:
        model, loss_fn, batch_dims, rules: as for `fxdp.compile`.
        *args, **kwargs: the arguments of a step, for their shapes and dtypes.

    Raises:
        ProofError: the model cannot be proven; its diagnostics say why.
        TypeError, ValueError: the arguments do not fit together.
    """
    private = compile(
        model, loss_fn=loss_fn, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=1.0,
        backend="eager", batch_dims=batch_dims, rules=rules,
    )  # fmt: skip
    return private.certificate(*args, **kwargs)
