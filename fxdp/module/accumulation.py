"""Gradient accumulation: logical batches of any size, in pieces of one size, with noise once.

The clipped sum of a batch is the sum of those of its pieces. Each piece runs the same compiled
step, forward and backward, without noise; the noise comes with the last one. So memory is that of
one piece, whatever the batch, and the graph that adds the noise is the graph that was proven.

Letters: N samples of the logical batch, m of a piece.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fxdp.backend.delivery import Gradients, Ran, delivered
from fxdp.capture.inputs import Inputs
from fxdp.diagnostics.errors import StepError
from fxdp.forms.batch import HALVES
from fxdp.module.state import State

# Runs the compiled step: arguments, mask, noise multiplier, whether none follows.
Run = Callable[[Inputs, Tensor, float, bool], Ran]


@dataclass
class Trained:
    """What the pieces of one logical batch train: all of them the same.

    The noise comes with the last one. A parameter that another piece has clipped sums of, and the
    last one has not, would get these without noise: one that was frozen or replaced in between, or
    that the model did not use any more.

    Attributes:
        leaves: the parameters themselves, and their dtypes.
        noisy: the names of those that get noise.
        public: the names of those whose gradients have terms without samples.
    """

    leaves: frozenset[tuple[int, torch.dtype]] | None = None
    noisy: frozenset[str] = frozenset()
    public: frozenset[str] = frozenset()

    def hold(self, ran: Ran, gradients: Gradients) -> None:
        """Hold a piece to those before it.

        Raises:
            StepError: it trains other parameters.
        """
        leaves = frozenset((id(p), p.dtype) for p in gradients)
        if self.leaves is None:
            self.leaves, self.noisy, self.public = leaves, ran.noisy, ran.public
            self._alive = list(gradients)  # so that no other tensor gets the identity of one
        if (leaves, ran.noisy, ran.public) != (self.leaves, self.noisy, self.public):
            names = sorted((ran.noisy ^ self.noisy) | (ran.public ^ self.public))
            raise StepError(
                "the pieces of one logical batch train other parameters than its first one"
                f"{' (' + ', '.join(names) + ')' if names else ''}: what some pieces add up would "
                "have no noise from the last. Nothing was released. Freeze and replace parameters, "
                "and change what the model computes, between batches"
            )


@dataclass(frozen=True)
class Piece:
    """What pieces are run with.

    Attributes:
        run: the compiled step.
        seen: called with the mask of each piece whose backward pass is over.
        before: the state of the model when the logical batch began.
        trained: what the pieces train, which the first one says.
    """

    run: Run
    seen: Callable[[Tensor], None]
    before: State
    trained: "Trained" = field(default_factory=lambda: Trained())

    @property
    def has_public(self) -> bool:
        """Have gradients terms without samples, which every piece repeats?"""
        return bool(self.trained.public)

    def __call__(
        self, inputs: Inputs, mask: Tensor, sigma: float, last: bool = True
    ) -> tuple[Tensor, Gradients]:
        """The loss of a piece, and its gradients; from the state before the batch."""
        self.before.put_back()
        with torch.enable_grad():
            ran = self.run(inputs, mask, sigma, last)
        gradients = ran.gradients()
        self.trained.hold(ran, gradients)
        self.seen(mask)
        return ran.value.detach(), gradients

    def without_samples(self, inputs: Inputs, mask: Tensor, sigma: float) -> Gradients:
        """What a piece of padding alone gives: noise, and the terms without samples. The model's
        state stays as the samples left it."""
        after = self.before.now()
        gradients = self(inputs, torch.zeros_like(mask), sigma)[1]
        after.put_back()
        return gradients


@dataclass(frozen=True)
class Sum:
    """The clipped sums of some samples, over the expected batch size.

    Attributes:
        loss: 0-d, the mean of their losses.
        gradients: for each parameter; with terms without samples once.
        last: a piece of theirs, arguments and mask, for what needs the sizes of one.
    """

    loss: Tensor
    gradients: Gradients
    last: tuple[Inputs, Tensor]


def pieces(inputs: Inputs, mask: Tensor, size: int) -> Iterator[tuple[Inputs, Tensor]]:
    """The batch in pieces of `size` samples, the last one padded; one piece if it is empty."""
    rows = inputs.piece(size)
    for start in range(0, max(inputs.size, 1), size):
        stop = min(start + size, inputs.size)
        own = mask[start:stop]
        yield inputs.part(start, stop).resized(rows), torch.cat([own, own.new_zeros(rows)])[:rows]


def summed(step: Piece, inputs: Inputs, mask: Tensor, size: int, sigma: float) -> Sum:
    """The clipped sums of a batch, piece by piece, with the noise in the last one.

    Args:
        size: samples a piece.
        sigma: the noise multiplier; 0 for clipped sums alone.
    """
    parts = list(pieces(inputs, mask, size))
    total: Gradients = {}
    loss, weight = torch.zeros((), device=mask.device), int(mask.sum())
    for k, (own, part) in enumerate(parts, start=1):
        last = k == len(parts)
        mean, gradients = step(own, part, sigma if last else 0.0, last)
        loss = loss + mean * (int(part.sum()) / max(weight, 1))
        if len(parts) > 1:
            refuse_halves(gradients)
        total = added(total, gradients)
    if len(parts) > 1 and step.has_public:
        total = added(total, step.without_samples(*parts[-1], 0.0), 1 - len(parts))
    return Sum(loss, total, parts[-1])


def refuse_halves(trained: Iterable[Tensor]) -> None:
    """Refuse to add pieces up in half precision: a sum would be rounded before it has its noise,
    and a sample could move it by more than the clip bound.

    Raises:
        TypeError: a parameter of less than 32 bits.
    """
    if found := {p.dtype for p in trained} & set(HALVES):
        raise TypeError(
            f"pieces of a batch are added up in the dtype of the parameters, and {found.pop()} "
            "would round their sum before it has its noise: keep parameters in float32 and use "
            "torch.autocast, or run the batch in one piece"
        )


def added(one: Gradients, other: Gradients, scale: float = 1.0) -> Gradients:
    """one + scale * other, where there is something to add."""
    total = dict(one)
    for leaf, b in other.items():
        a = total.get(leaf)
        total[leaf] = a.add(b, alpha=scale) if a is not None else b if scale == 1 else b * scale
    return total


def scaled(gradients: Gradients, tangent: Tensor) -> Gradients:
    """Gradients times what arrives at the loss: the user's constant."""
    return {leaf: g * tangent.to(g.dtype) for leaf, g in gradients.items()}


@dataclass
class Accumulation:
    """A logical batch that arrives in several calls.

    ===================================  ===========================================
    case                                 what happens
    ===================================  ===========================================
    a call without a backward pass       StepError at the next call, or at the end
    losses that are scaled differently   StepError: one noise cannot fit both
    no call at all                       StepError: there is nothing to release
    pieces that train other parameters   StepError: some would have no noise
    an exception                         nothing is released, nothing is counted
    state that the model writes          is written once, from that before the batch
    state that the caller changes        holds from then on
    ===================================  ===========================================

    Attributes:
        step: how its pieces are run; at the bound and the expected batch size when it began.
        sigma: the noise multiplier that the noise is to be made with.
        left: the model's state as the last call left it.
    """

    step: Piece
    sigma: float
    gradients: Gradients = field(default_factory=lambda: {})
    left: State | None = None
    tangent: float | None = None
    calls: int = 0
    last: tuple[Inputs, Tensor] | None = None
    _open: "weakref.ref[Tensor] | None" = field(default=None, repr=False)

    def begin(self) -> None:
        """Refuse a call, or the end, while a loss waits for its backward pass.

        Raises:
            StepError: it waits.
        """
        if self._open is not None and self._open() is not None:
            raise StepError(
                "a loss of this logical batch waits for its backward pass: call loss.backward() "
                "before the next call, and before the batch ends; nothing was released"
            )
        if self.left is not None:
            before = self.step.before.changed_since(self.left)
            self.step, self.left = replace(self.step, before=before), None

    def loss(self, found: Sum) -> Tensor:
        """The loss of one call, whose backward pass adds its clipped sums here."""

        def take(tangent: Tensor) -> Mapping[Tensor, Tensor]:
            scale = float(tangent)
            if self.tangent not in (None, scale):
                raise StepError(
                    f"the losses of one logical batch were scaled by {self.tangent:g} and "
                    f"{scale:g} before backward(): scale all of them by the same number"
                )
            self.tangent, self._open = scale, None
            self.gradients = added(self.gradients, found.gradients)
            self.calls, self.last = self.calls + 1, found.last
            return {}

        loss = delivered(found.loss, take, list(found.gradients))
        self._open, self.left = weakref.ref(loss), self.step.before.now()
        return loss

    def finished(self) -> Gradients:
        """The clipped sums of all calls with noise, times the constant of the losses.

        Raises:
            StepError: there is nothing to release, or a loss waits.
        """
        self.begin()
        if self.last is None or self.tangent is None:
            raise StepError("this logical batch is over, and no loss in it had a backward pass")
        refuse_halves(self.gradients)
        inputs, mask = self.last
        total = added(self.gradients, self.step.without_samples(inputs, mask, self.sigma))
        if self.step.has_public:  # once in every call, and once with the noise
            nothing = self.step.without_samples(inputs, mask, 0.0)
            total = added(total, nothing, -self.calls)
        return {leaf: g * self.tangent for leaf, g in total.items()}
