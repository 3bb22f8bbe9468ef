"""A model whose training steps are private."""

import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxdp.account import Account
from fxdp.backend import Record, Settings
from fxdp.capture import (
    SMALLEST,
    BatchDims,
    Inputs,
    argument_names,
    capture_errors,
    capture_settings,
    gather,
)
from fxdp.certificate import Certificate, certify
from fxdp.diagnostic import ProofError
from fxdp.graph_pass import Pass, Study
from fxdp.ops import RULES
from fxdp.options import Scales, check_scales
from fxdp.outcome import Outcome, loss_of
from fxdp.pipeline import PROOF, Proven, compiled_step, stop
from fxdp.placement import Shard
from fxdp.privacy.ledger import Ledger
from fxdp.privacy.statement import statement
from fxdp.progress import line, say
from fxdp.report import Report, report


@dataclass(frozen=True)
class Attempt:
    """What came of a proof: a certificate, or an error; and what was found on the way.

    Attributes:
        study: of the captured graph; None where the model could not be captured.
        certificate: where the model was proven.
        error: where it was not.
    """

    study: Study | None
    certificate: Certificate | None
    error: ProofError | None


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
        releases: how many private gradients were released, as the ledger counts them.
    """

    _model: nn.Module
    _loss_fn: Callable[..., Tensor] | None
    _step: Callable[..., Any]

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor] | None,
        scales: Scales,
        settings: Settings,
        batch_dims: BatchDims,
        account: Account | None = None,
    ) -> None:
        super().__init__()
        # The same parameters, buffers and submodules, not copies and not one level down.
        for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[shared] = model.__dict__[shared]
        self.__dict__["_model"] = model
        self.training = model.training
        self.max_grad_norm, self.noise_multiplier, self.expected_batch_size = scales
        # A loss that is a module is none of the model's, whose submodules these are.
        self.__dict__["_loss_fn"] = loss_fn
        self._batch_dims = batch_dims
        self._settings = settings
        self._account = account or Account(Ledger())
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
            StepError: the loss of the step before still waits for its backward pass.
            BudgetExhausted: in `loss.backward()`, if the release would exceed the budget.
        """
        if not self.training or not torch.is_grad_enabled():
            return self._plain(args, kwargs)
        inputs, mask, size = self._prepared(args, kwargs, sample_mask)
        if self._settings.reduction and sample_mask is not None:
            raise ValueError("with loss_reduction, leave padding out of the loss that you make")
        self._account.begin()
        sigma, bound = self.noise_multiplier, self.max_grad_norm
        out = self._captured(self._step, inputs, mask, sigma)
        self._account.watch(loss_of(out), sigma, bound)
        return self._without_padding(out, size) if size < SMALLEST else out

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model as it is; with a target, its loss."""
        wanted = argument_names(self._model, args, kwargs, has_target=False)
        beyond = wanted[-1:] == [f"args[{len(args) - 1}]"]  # one more than the model takes
        if self._loss_fn is not None and ("target" in kwargs or beyond):
            *own, target = (*args, kwargs.pop("target")) if "target" in kwargs else args
            return self._loss_fn(self._model(*own, **kwargs), target)
        return self._model(*args, **kwargs)

    def _prepared(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mask: Any
    ) -> tuple[Inputs, Tensor, int]:
        """Checked arguments with at least two rows, the mask of the real ones, their number."""
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
        size = inputs.size
        if size < SMALLEST:
            mask = torch.cat([mask, mask.new_zeros(SMALLEST - size)])
            inputs = inputs.resized(SMALLEST)
        return inputs, mask, size

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

    def _without_padding(self, out: Any, size: int) -> Any:
        """What a model returned beside its loss, with the rows of the first `size` samples."""
        places = iter(self._study().shown)
        if self._settings.reduction and isinstance(out, Tensor):
            return out[:size]

        def own_rows(x: Tensor) -> Tensor:
            at = next(places)
            if not isinstance(at, Shard):
                return x
            apart = x.unflatten(at.dim, (-1, SMALLEST, int(at.inner)))
            return apart.narrow(at.dim + 1, 0, size).flatten(at.dim, at.dim + 2)

        if isinstance(out, Outcome):
            rest = {k: v for k, v in out.items() if k != "loss"}
            return Outcome.of(out.loss, pytree.tree_map_only(Tensor, own_rows, rest))
        if isinstance(out, tuple):
            return (out[0], *pytree.tree_map_only(Tensor, own_rows, out[1:]))
        return out

    def _traced(self, call: Callable[[], Any]) -> Any:
        """Run a step, capturing it first where it has to be.

        Sizes that change between steps become symbols, like the batch size. Where the proof
        cannot follow a model through those, each size gets a graph of its own from then on.
        """
        compiled_before = self._record.compilations > 0
        with line():
            if not compiled_before:
                say("capturing the model")
            try:
                with capture_settings(self._dynamic), capture_errors(self._model):
                    return call()
            except ProofError as error:
                if isinstance(error, Proven) or not (self._dynamic and compiled_before):
                    raise
            self._dynamic = False
            with capture_settings(self._dynamic), capture_errors(self._model):
                return call()

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
        inputs, mask, _ = self._prepared(args, kwargs, None)
        if self._settings.reduction:
            raise TypeError("norms need a loss: compile with loss_fn= in place of loss_reduction=")
        with torch.random.fork_rng(), torch.enable_grad():
            loss = loss_of(self._captured(step, inputs, mask, 0.0))
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
        return self._account.ledger.releases

    @property
    def graph_module(self) -> GraphModule:
        """The joint graph after the last pass that is made for reading."""
        readable = self._study().readable
        assert readable is not None
        return readable

    def report(self) -> Report:
        """One row for each parameter: its sums, their form, strategy and predicted cost."""
        return report(self._study())

    @property
    def ledger(self) -> Ledger:
        """What was released so far: one entry for each step's backward pass."""
        return self._account.ledger

    def privacy_spent(self, delta: float) -> float:
        """Epsilon, in nats, of all that was released so far; inf without noise.

        Guarantees:
            The released gradients, and whatever was made of them, are (epsilon, delta)
            differentially private for the ledger's neighbours, if batches were drawn as
            `sample_rate` says; without one, whoever knows the batches may be the adversary.

        Args:
            delta: in (0, 1).
        """
        return self.ledger.spent(delta)

    def privacy_statement(self, delta: float, num_samples: int | None = None) -> str:
        """What may be claimed of the training so far, in words, with what it rests on."""
        return statement(self.ledger, delta, num_samples)

    def certificate(self, *args: Any, **kwargs: Any) -> Certificate:
        """What is proven and what is assumed; of the last compilation, or of given inputs.

        Raises:
            ProofError: these inputs cannot be proven.
            RuntimeError: nothing was compiled yet and no inputs are given.
        """
        if not args and not kwargs:
            return certify(self._study(), RULES, self._record.fallbacks)
        inputs, mask, _ = self._prepared(args, kwargs, None)
        return self._proven(inputs, mask)

    def _proven(self, inputs: Inputs, mask: Tensor) -> Certificate:
        """Capture a step and run only the proof on it."""
        record = Record()
        self._prove(inputs, mask, record)
        assert record.study is not None
        return certify(record.study, RULES, self._record.fallbacks)

    def attempt(self, *args: Any, **kwargs: Any) -> Attempt:
        """What the proof makes of given inputs, whether it succeeds or not.

        Raises:
            TypeError, ValueError: the arguments do not fit together.
        """
        inputs, mask, _ = self._prepared(args, kwargs, None)
        record = Record()
        try:
            self._prove(inputs, mask, record)
        except ProofError as error:
            return Attempt(record.study, None, error)
        assert record.study is not None
        return Attempt(record.study, certify(record.study, RULES, []), None)

    def _prove(self, inputs: Inputs, mask: Tensor, record: Record) -> None:
        """Run the proof; the record holds the study also where it fails."""
        passes = (*PROOF, Pass(stop))
        step = compiled_step(self._model, self._loss_fn, self._settings, record, passes)
        with contextlib.suppress(Proven):
            self._captured(step, inputs, mask, 0.0)

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
        account = copy.deepcopy(self._account, memo)
        return PrivateModule(
            model, self._loss_fn, scales, self._settings, self._batch_dims, account
        )

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
