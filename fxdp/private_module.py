"""A model whose training steps are private."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxdp.account import Account, StepError
from fxdp.backend import Record, Settings
from fxdp.capture import (
    SMALLEST,
    BatchDims,
    Inputs,
    gather,
)
from fxdp.certificate import Certificate, certify
from fxdp.diagnostic import ProofError
from fxdp.graph_pass import Pass, Study
from fxdp.logical import Accumulation, Delivered, Piece, scaled, summed
from fxdp.ops import RULES
from fxdp.options import Scales
from fxdp.outcome import loss_of
from fxdp.pipeline import PROOF, Proven, compiled_step, stop
from fxdp.privacy.ledger import Ledger
from fxdp.privacy.statement import statement
from fxdp.report import Report, report
from fxdp.stepper import Stepper


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
        microbatch_size: samples that are worked on at a time; None for all.
        releases: how many private gradients were released, as the ledger counts them.
    """

    _model: nn.Module
    _stepper: Stepper

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor] | None,
        scales: Scales,
        settings: Settings,
        batch_dims: BatchDims,
        account: Account | None = None,
        microbatch_size: int | None = None,
    ) -> None:
        super().__init__()
        # The same parameters, buffers and submodules, not copies and not one level down.
        for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[shared] = model.__dict__[shared]
        self.__dict__["_model"] = model
        self.training = model.training
        self.max_grad_norm, self.noise_multiplier, self.expected_batch_size = scales
        # Not an attribute like others: a loss that is a module is no submodule of the model.
        self.__dict__["_stepper"] = Stepper(model, loss_fn, settings, batch_dims)
        self._account = account or Account(Ledger())
        self._inspection: Inspection | None = None
        self.microbatch_size = microbatch_size
        self._logical: Accumulation | None = None

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
            return self._stepper.plain(args, kwargs)
        inputs, mask, size = self._stepper.prepared(args, kwargs, sample_mask)
        if self._stepper.settings.reduction and sample_mask is not None:
            raise ValueError("with loss_reduction, leave padding out of the loss that you make")
        self._account.begin()
        sigma, bound = self.noise_multiplier, self.max_grad_norm
        if self.microbatch_size is not None or self._logical is not None:
            return self._in_pieces(inputs, mask, sigma, bound)
        out = self._captured(self._stepper.step, inputs, mask, sigma)
        self._account.watch(loss_of(out), sigma, bound)
        return self._stepper.without_padding(out, size) if size < SMALLEST else out

    def _in_pieces(self, inputs: Inputs, mask: Tensor, sigma: float, bound: float) -> Tensor:
        """The loss of a batch in pieces, or of a part of a logical batch."""
        size, batch = self.microbatch_size or inputs.size, self._logical
        if batch is not None:
            batch.begin()
            return batch.loss(summed(batch.step, inputs, mask, max(size, 1), 0.0))
        step = self._piece()
        found = summed(step, inputs, mask, size, sigma)
        deliver = functools.partial(scaled, found.gradients)
        loss: Any = Delivered.apply(found.loss, deliver, *step.trained)
        self._account.watch(loss, sigma, bound)
        return loss

    def _piece(self) -> Piece:
        """How a piece of a logical batch is run: all of it at the scales of now."""
        here, bound, expected = self._stepper, self.max_grad_norm, self.expected_batch_size

        def run(inputs: Inputs, mask: Tensor, sigma: float) -> Tensor:
            return loss_of(here.captured(here.step, inputs, mask, (bound, sigma, expected)))

        def has_public() -> bool:
            return any(c.public is not None for c in here.study().clipped)

        return Piece(run, [p for p in self.parameters() if p.requires_grad], has_public)

    @contextlib.contextmanager
    def accumulate(self) -> Iterator[None]:
        """Make one logical batch of all calls inside: clipped sums add up, and noise comes once.

            with private.accumulate():
                for x, y in pieces:
                    private(x, y).backward()
            optimizer.step()

        `p.grad` changes at the end, by what one call with all samples would have released. No
        sample may come twice.

        Raises:
            StepError: calls and backward passes do not alternate, or there are none.
            BudgetExhausted: at the end, if the release would exceed the budget.
        """
        self._account.begin()
        if self._logical is not None:
            raise StepError("a logical batch has begun already: they cannot be nested")
        if self._stepper.settings.reduction:
            raise StepError("with loss_reduction the loss is made outside, and cannot be taken up")
        batch = Accumulation(self._piece(), self.noise_multiplier, self.max_grad_norm)
        self._logical = batch
        try:
            yield
        finally:
            self._logical = None
        release = self._account.release(batch.sigma, batch.bound)
        batch.begin()
        self._account.ask(release)
        gradients = batch.finished()
        self._account.count(release)
        for p, gradient in zip(batch.step.trained, gradients, strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad + gradient

    def _captured(self, step: Any, inputs: Inputs, mask: Tensor, sigma: float) -> Any:
        """Run a compiled step on checked inputs, at the module's scales but for the noise."""
        scales = (self.max_grad_norm, sigma, self.expected_batch_size)
        return self._stepper.captured(step, inputs, mask, scales)

    def per_sample_norms(self, *args: Any, **kwargs: Any) -> Tensor:
        """[N] gradient norms, one a sample, over all trainable parameters. Not private."""
        self._extras(self._stepper.step, args, kwargs)
        return self._stepper.record.extras["norms"][: self._size(args, kwargs)]

    def per_sample_grads(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """{parameter: [N, *shape]} gradients, one a sample. Not private; for debugging.

        Runs eagerly and materialises everything.
        """
        if self._inspection is None:
            settings = Settings("instantiate", "eager", self._stepper.settings.table, inspect=True)
            record = Record()
            step = self._stepper.another(settings, record)
            self._inspection = Inspection(step, record)
        self._extras(self._inspection.step, args, kwargs)
        size = self._size(args, kwargs)
        extras = self._inspection.record.extras
        return {k: v[:size] for k, v in extras.items() if k != "norms"}

    def _size(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return gather(
            self._model, args, kwargs, self._stepper.batch_dims, self._stepper.loss_fn is not None
        ).size

    def _extras(self, step: Any, args: Any, kwargs: Any) -> None:
        """Run a step and its backward pass without a release, for what it returns beside."""
        inputs, mask, _ = self._stepper.prepared(args, kwargs, None)
        if self._stepper.settings.reduction:
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
        readable = self._stepper.study().readable
        assert readable is not None
        return readable

    def report(self) -> Report:
        """One row for each parameter: its sums, their form, strategy and predicted cost."""
        return report(self._stepper.study())

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

    def privacy_state_dict(self) -> dict[str, Any]:
        """What was released so far, in plain types, for `torch.load(weights_only=True)`.

        It belongs beside `state_dict()` in every checkpoint, which has the model's keys alone.
        """
        return self._account.state_dict()

    def load_privacy_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what another run has spent; before the first step.

        Raises:
            StepError: releases were counted here, which would be forgotten.
            ValueError: the state is malformed, or of another accountant or relation.
        """
        self._account.load_state_dict(state)

    def certificate(self, *args: Any, **kwargs: Any) -> Certificate:
        """What is proven and what is assumed; of the last compilation, or of given inputs.

        Raises:
            ProofError: these inputs cannot be proven.
            RuntimeError: nothing was compiled yet and no inputs are given.
        """
        if not args and not kwargs:
            return certify(self._stepper.study(), RULES, self._stepper.record.fallbacks)
        inputs, mask, _ = self._stepper.prepared(args, kwargs, None)
        return self._proven(inputs, mask)

    def _proven(self, inputs: Inputs, mask: Tensor) -> Certificate:
        """Capture a step and run only the proof on it."""
        record = Record()
        self._prove(inputs, mask, record)
        assert record.study is not None
        return certify(record.study, RULES, self._stepper.record.fallbacks)

    def attempt(self, *args: Any, **kwargs: Any) -> Attempt:
        """What the proof makes of given inputs, whether it succeeds or not.

        Raises:
            TypeError, ValueError: the arguments do not fit together.
        """
        inputs, mask, _ = self._stepper.prepared(args, kwargs, None)
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
        step = compiled_step(
            self._model, self._stepper.loss_fn, self._stepper.settings, record, passes
        )
        with contextlib.suppress(Proven):
            self._captured(step, inputs, mask, 0.0)

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
        here = self._stepper
        return PrivateModule(
            model, here.loss_fn, scales, here.settings, here.batch_dims, account,
            self.microbatch_size,
        )  # fmt: skip

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
