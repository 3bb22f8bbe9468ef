"""`PrivateModule`: a model whose training steps are private."""

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxdp.arguments import require_whole
from fxdp.backend.delivery import Gradients, Ran, delivered, refuse_transforms
from fxdp.backend.fence import InThisThread
from fxdp.backend.options import Scales
from fxdp.backend.settings import Settings
from fxdp.capture.inputs import BatchDims, Inputs
from fxdp.diagnostics.errors import StepError
from fxdp.distributed.guard import Unwrapped, own, refuse_step
from fxdp.graph.study import Readable, Study
from fxdp.mechanism.clipping import Clipping
from fxdp.module.account import Account
from fxdp.module.accumulation import Accumulation, Piece, scaled, summed
from fxdp.module.correlated_noise import Following
from fxdp.module.inspection import Attempt, Inspector
from fxdp.module.leftovers import Leftovers
from fxdp.module.lot import Lot
from fxdp.module.output import joined, without_gradients
from fxdp.module.reports import Reports
from fxdp.module.scale import Scale
from fxdp.module.stepper import Stepper
from fxdp.module.tally import Tally
from fxdp.ops import RULES
from fxdp.privacy.ledger import Ledger
from fxdp.privacy.release import Release
from fxdp.proof.certificate import Certificate, certify


class PrivateModule(Reports, Unwrapped, nn.Module):
    """A model whose training steps are private; made by `fxdp.compile`.

    It has the model's own parameters, buffers and submodules, under their own names.

    Guarantees:
        - After `loss.backward()`, what was added to each `p.grad` is the clipped, noised sum of
          `fxdp.compile`, and was made from one noise draw; in whatever mode the model's layers
          are, and whatever torch is set to. Or an error was raised, and nothing was added and
          nothing counted.
        - The released sum changes by at most `sensitivity` in L2 norm when one sample is added
          or removed.
        - Nothing is released where capture, proof or the check of compiled code fails.

        ===========================  ============================================
        case                         what happens
        ===========================  ============================================
        empty batch                  noise alone is released; the loss is 0
        one sample                   as any batch
        a norm of 0                  factor 1
        positions that cancel        their norm is rounded up, never down
        a norm inf or NaN            that sample adds nothing, and is counted
        an infinite loss             that sample adds nothing, and is counted
        a row masked out             that row adds nothing, to loss and gradient
        ===========================  ============================================

    Attributes:
        max_grad_norm, noise_multiplier, expected_batch_size: may be set between steps; a wrong
            value raises at once.
        microbatch_size: samples per piece; None for the whole batch.
        releases: how many private gradients were released, as the ledger counts them.
        unprotected: how many `fxdp.unprotected` are around it, in this thread.
    """

    _model: nn.Module
    _stepper: Stepper
    _inspector: Inspector
    _lock: Any
    unprotected = InThisThread()
    accepts_loss_kwargs = False  # a Hugging Face Trainer then passes no totals of the batch
    max_grad_norm, noise_multiplier, expected_batch_size = Scale(), Scale(), Scale()

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
        self.__dict__["_inspector"] = Inspector(self._stepper)
        self.microbatch_size = microbatch_size
        self._logical: Accumulation | None = None
        self._last, self._leftovers = Tally(), Leftovers()
        self.__dict__["_lock"] = threading.RLock()
        own(self, model.parameters())

    @torch.compiler.disable(reason="it compiles itself")  # pyright: ignore[reportUntypedFunctionDecorator]
    def forward(self, *args: Any, sample_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """One step's loss, the mean of the samples' own losses, 0-d.

        With a model that returns a loss among other things, those come along without gradients.
        Without gradients (torch.no_grad, torch.inference_mode) the model runs as it is; with them
        this is a private step, in training mode and in eval mode. See `fxdp.unprotected`.

        Args:
            *args, **kwargs: the model's arguments, and the target last where there is a loss_fn.
            sample_mask: bool [N]; rows that are False are padding.

        Raises:
            ProofError: the model cannot be proven private.
            TypeError, ValueError: the arguments do not fit together.
            StepError: the loss of the step before still waits for its backward pass, or the batch
                was released before.
            BudgetExhausted: in `loss.backward()`, if the release would exceed the budget.
        """
        if not torch.is_grad_enabled():
            return without_gradients(self._stepper.plain(args, kwargs))
        if self.unprotected:
            return self._stepper.plain(args, kwargs)
        refuse_transforms()
        with self._lock:
            return self._step(args, kwargs, sample_mask)

    def _step(self, args: tuple[Any, ...], kwargs: dict[str, Any], sample_mask: Any) -> Any:
        apart, process = self._stepper.settings.apart, self._account.process
        refuse_step(apart, process, self.named_parameters(), StepError)
        inputs, mask, size = self._stepper.prepared(args, kwargs, sample_mask)
        if self._stepper.settings.reduction and sample_mask is not None:
            raise ValueError("with loss_reduction, leave padding out of the loss that you make")
        if self.microbatch_size is not None:
            require_whole("microbatch_size", self.microbatch_size, 1)
        self._account.begin()
        self._account.take((args, kwargs), part=bool(self._logical and self._logical.calls))
        if self.microbatch_size or self._logical is not None or self._account.noise:
            loss = self._in_pieces(inputs, mask)
            self._account.public.note(inputs)
            return loss
        lot = self._lot()
        step = self._stepper.step
        others, ran = self._stepper.captured(step, inputs, mask, lot.scales, self.releases)
        self._account.public.note(inputs)

        def work(tangent: Tensor) -> Gradients:
            return self._released(lot, lambda: self._differentiated(ran, tangent, lot, mask))

        loss = delivered(ran.value, work, ran.leaves)
        self._account.watch(loss)
        if size == inputs.size:
            return joined(loss, others)
        if self._stepper.settings.reduction:  # it is the model's output
            loss = loss[:size]
        return joined(loss, self._stepper.without_padding(others, size, inputs.size))

    def _differentiated(self, ran: Ran, tangent: Tensor, lot: Lot, mask: Tensor) -> Gradients:
        self._stepper.record.extras = {}
        gradients = ran.gradients(tangent)
        self._see(lot, mask)
        return gradients

    def _released(self, lot: Lot, work: Callable[[], Gradients]) -> Gradients:
        self._leftovers.look(self.parameters())
        with self._lock:
            return self._account.released(lot.release, work, lambda: self._finish(lot))

    def _lot(self) -> Lot:
        return Lot.of(self._scales, self.clipping, self._stepper.settings.secure, self._account)

    @property
    def _scales(self) -> Scales:
        return self.max_grad_norm, self.noise_multiplier, self.expected_batch_size

    @property
    def clipping(self) -> Clipping:
        """How a sample's gradient is brought to a bounded norm."""
        return self._stepper.settings.clipping

    def planned_release(self, max_grad_norm: float, noise_multiplier: float) -> Release:
        """What a step at these scales would be recorded as."""
        scales = (max_grad_norm, noise_multiplier, self.expected_batch_size)
        return Lot.of(scales, self.clipping, False, self._account).release

    def _see(self, lot: Lot, mask: Tensor) -> None:
        extras = self._stepper.record.extras
        lot.tally.add(extras["norms"], extras["finite"], mask)

    def _finish(self, lot: Lot) -> None:
        """What follows a release that was recorded."""
        self.__dict__["_last"] = lot.tally  # as a module it would look at it first, for long
        bound = lot.next_bound(lambda: self._stepper.keys.next(self.releases))
        if bound != lot.scales[0]:
            self.max_grad_norm = bound

    def _in_pieces(self, inputs: Inputs, mask: Tensor) -> Tensor:
        """The loss of a batch in pieces, or of a part of a logical batch."""
        size, batch = self.microbatch_size or inputs.size, self._logical
        if batch is not None:
            batch.begin()
            return batch.loss(summed(batch.step, inputs, mask, max(size, 1), 0.0))
        lot = self._lot()
        step, following = self._piece(lot), self._following(lot)
        found = summed(step, inputs, mask, size, following.sigma)
        add = following.adding()

        def work(tangent: Tensor) -> Gradients:
            return self._released(lot, lambda: scaled(add(found.gradients, 1.0), tangent))

        loss = delivered(found.loss, work, list(found.gradients))
        self._account.watch(loss)
        return loss

    def _piece(self, lot: Lot) -> Piece:
        """How a piece of a logical batch is run."""
        here, (bound, _, expected) = self._stepper, lot.scales

        def run(inputs: Inputs, mask: Tensor, sigma: float, last: bool) -> Ran:
            step, scales = here.step if last else here.earlier, (bound, sigma, expected)
            return here.captured(step, inputs, mask, scales, self.releases)[1]

        return Piece(run, lambda mask: self._see(lot, mask), here.state())

    def _following(self, lot: Lot) -> Following:
        """How the noise of a batch goes on from that of the steps before."""
        return Following.of(self._account.noise, self._stepper, self._stepper.trained(), lot.scales)

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
            StepError: calls and backward passes do not alternate, or there was no call.
            BudgetExhausted: at the end, if the release would exceed the budget.
        """
        self._account.begin()
        if self._logical is not None:
            raise StepError("a logical batch has begun already: they cannot be nested")
        if self._stepper.settings.reduction:
            raise StepError("with loss_reduction the loss is made outside, and cannot be taken up")
        lot = self._lot()
        following = self._following(lot)
        batch = Accumulation(self._piece(lot), following.sigma)
        self._logical = batch
        try:
            yield
        finally:
            self._logical = None
        batch.begin()

        def work() -> Gradients:
            found = batch.finished()  # which draws the key that `adding` goes by
            return following.adding()(found, batch.tangent or 0.0)

        with torch.no_grad():
            for p, gradient in self._released(lot, work).items():
                p.grad = gradient if p.grad is None else p.grad + gradient

    def per_sample_norms(self, *args: Any, **kwargs: Any) -> Tensor:
        """[N] gradient norms, one a sample, over all trained parameters.

        Not protected by DP: never publish them.
        """
        return self._inspector.norms(args, kwargs, self._scales)

    def per_sample_grads(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """{parameter: [N, *shape]} gradients, one a sample, for debugging.

        Not protected by DP: never publish them. Runs eagerly and materialises everything.
        """
        return self._inspector.gradients(args, kwargs, self._scales)

    @property
    def graph_module(self) -> GraphModule:
        """The joint graph after the last pass that is made for reading."""
        return self._stepper.study().of(Readable).graph

    def _study(self) -> Study:
        return self._stepper.study()

    def certificate(self, *args: Any, **kwargs: Any) -> Certificate:
        """What is proven and what is assumed; of the last compilation, or of given inputs.

        Raises:
            ProofError: these inputs cannot be proven.
            RuntimeError: nothing was compiled yet and no inputs are given.
        """
        public = self._account.public
        if not args and not kwargs:
            record, study = self._stepper.record, self._stepper.study()
            return certify(study, RULES, record.fallbacks, self._account.assumptions())
        return self._inspector.proven(args, kwargs, public)

    def attempt(self, *args: Any, **kwargs: Any) -> Attempt:
        """What the proof makes of given inputs, whether it succeeds or not.

        Raises:
            TypeError, ValueError: the arguments do not fit together.
        """
        return self._inspector.attempt(args, kwargs, self._account.public)

    def train(self, mode: bool = True) -> "PrivateModule":
        """The mode of the model's layers; steps with gradients are private in both."""
        self._model.train(mode)
        self.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrivateModule":
        """A private module over a copy of the model, with the same settings; not compiled yet."""
        model = copy.deepcopy(self._model, memo)
        account = copy.deepcopy(self._account, memo)
        here = self._stepper
        return PrivateModule(
            model, here.loss_fn, self._scales, here.settings, here.batch_dims, account,
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
