"""Logical batches: of any size, in pieces of one size, with noise once.

The clipped sum of a batch is the sum of those of its pieces. Each piece runs the same compiled
step, forward and backward, without noise; the noise comes with the last one. So memory is that of
one piece, whatever the batch, and the graph that adds the noise is the graph that was proven.

Letters: N samples of the logical batch, m of a piece.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxdp.account import StepError
from fxdp.capture import SMALLEST, Inputs
from fxdp.forms.batch import HALVES

# Runs the compiled step: arguments, mask, noise multiplier, whether none follows, to loss.
Run = Callable[[Inputs, Tensor, float, bool], Tensor]
Gradients = list[Tensor | None]


@dataclass(frozen=True)
class Piece:
    """What pieces are run with.

    Attributes:
        run: the compiled step.
        trained: the parameters.
        has_public: whether gradients have terms without samples, which every piece repeats.
        seen: told of the mask of each piece whose backward pass is over.
    """

    run: Run
    trained: Sequence[nn.Parameter]
    has_public: Callable[[], bool]
    seen: Callable[[Tensor], None]

    def __call__(
        self, inputs: Inputs, mask: Tensor, sigma: float, last: bool = True
    ) -> tuple[Tensor, Gradients]:
        """The loss of a piece, and its gradients."""
        loss = self.run(inputs, mask, sigma, last)
        gradients: Gradients = [*torch.autograd.grad(loss, self.trained, allow_unused=True)]
        self.seen(mask)
        return loss.detach(), gradients

    def public(self, inputs: Inputs, mask: Tensor) -> Gradients:
        """The terms without samples: the gradients of a piece that is all padding."""
        return self(inputs, torch.zeros_like(mask), 0.0)[1]


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
    rows = max(size, SMALLEST)
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
    if len(parts) > 1:
        refuse_halves(step.trained)
    total: Gradients = [None] * len(step.trained)
    loss, weight = torch.zeros((), device=mask.device), int(mask.sum())
    for k, (own, part) in enumerate(parts, start=1):
        last = k == len(parts)
        mean, gradients = step(own, part, sigma if last else 0.0, last)
        loss = loss + mean * (int(part.sum()) / max(weight, 1))
        total = added(total, gradients)
    if len(parts) > 1 and step.has_public():
        total = added(total, step.public(*parts[-1]), 1 - len(parts))
    return Sum(loss, total, parts[-1])


def refuse_halves(trained: Sequence[nn.Parameter]) -> None:
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
    pairs = zip(one, other, strict=True)
    return [a if b is None else b * scale if a is None else a.add(b, alpha=scale) for a, b in pairs]


class Delivered(torch.autograd.Function):
    """A loss whose backward pass hands out gradients that are there already, once."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, deliver: Callable[[Tensor], Gradients], *_: Any) -> Tensor:
        ctx.deliver = deliver
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        deliver, ctx.deliver = ctx.deliver, None
        if deliver is None:
            raise StepError("this loss had its backward pass: a second one would release again")
        return None, None, *deliver(tangents[0])


def scaled(gradients: Gradients, tangent: Tensor) -> Gradients:
    """Gradients times what arrives at the loss: the user's constant."""
    return [None if g is None else g * tangent.to(g.dtype) for g in gradients]


@dataclass
class Accumulation:
    """A logical batch that arrives in several calls.

    ===================================  ===========================================
    case                                 what happens
    ===================================  ===========================================
    a call without a backward pass       StepError at the next call, or at the end
    losses that are scaled differently   StepError: one noise cannot fit both
    no call at all                       StepError: there is nothing to release
    an exception                         nothing is released, nothing is counted
    ===================================  ===========================================

    Attributes:
        step: how its pieces are run; at the bound and the expected batch size when it began.
        sigma: the noise multiplier that the noise is to be made with.
    """

    step: Piece
    sigma: float
    gradients: Gradients | None = None
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

    def loss(self, found: Sum) -> Tensor:
        """The loss of one call, whose backward pass adds its clipped sums here."""

        def take(tangent: Tensor) -> Gradients:
            scale = float(tangent)
            if self.tangent not in (None, scale):
                raise StepError(
                    f"the losses of one logical batch were scaled by {self.tangent:g} and "
                    f"{scale:g} before backward(): scale all of them by the same number"
                )
            nothing: Gradients = [None] * len(found.gradients)
            self.tangent, self._open = scale, None
            self.gradients = added(self.gradients or nothing, found.gradients)
            self.calls, self.last = self.calls + 1, found.last
            return nothing

        loss = Delivered.apply(found.loss, take, *self.step.trained)
        assert isinstance(loss, Tensor)
        self._open = weakref.ref(loss)
        return loss

    def finished(self) -> Gradients:
        """The clipped sums of all calls with noise, times the constant of the losses.

        Raises:
            StepError: there is nothing to release, or a loss waits.
        """
        self.begin()
        refuse_halves(self.step.trained)
        if self.gradients is None or self.last is None or self.tangent is None:
            raise StepError("this logical batch is over, and no loss in it had a backward pass")
        inputs, mask = self.last
        noise = self.step(inputs, torch.zeros_like(mask), self.sigma)[1]
        total = added(self.gradients, noise)
        if self.step.has_public():  # once in every call, and once with the noise
            total = added(total, self.step.public(inputs, mask), -self.calls)
        return [None if g is None else g * self.tangent for g in total]
