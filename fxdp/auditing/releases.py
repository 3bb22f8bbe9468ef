"""Steps of a private module that leave no trace: the real call, and nothing of it stays."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxdp.backend.check import random_state, set_random_state
from fxdp.capture.inputs import Inputs
from fxdp.graph.study import ClippedSums
from fxdp.mechanism.run_key import RunKey, seed_root
from fxdp.module.account import Account
from fxdp.module.output import loss_of
from fxdp.module.private_module import PrivateModule
from fxdp.privacy.ledger import Ledger
from fxdp.torch_internals import pytree

Gradients = dict[str, Tensor]
SILENT = 1e-30  # a noise multiplier
NOTHING = 1e-26  # more than it adds where there is nothing
SAME = 1e-5  # relative: sums on a GPU differ by less from one time to the next


@dataclass(frozen=True)
class Batch:
    """Samples, and which of them are there.

    Attributes:
        inputs: the arguments of a step.
        mask: bool [N]; rows that are False are padding.
    """

    inputs: Inputs
    mask: Tensor

    @property
    def present(self) -> list[int]:
        """The rows that are no padding."""
        return [i for i, there in enumerate(self.mask.tolist()) if there]

    def masked_out(self, i: int) -> "Batch":
        """Row i made padding."""
        mask = self.mask.clone()
        mask[i] = False
        return replace(self, mask=mask)

    def left_out(self, i: int) -> "Batch":
        """One row fewer."""
        return self._of([k for k in range(len(self.mask)) if k != i])

    def replaced(self, i: int, other: int) -> "Batch":
        """A copy of another row in the place of row i."""
        return self._of([other if k == i else k for k in range(len(self.mask))])

    def _of(self, picked: Sequence[int]) -> "Batch":
        return Batch(self.inputs.picked(picked), self.mask[list(picked)])


class Releases:
    """The releases of a private module, by its own call.

    Use it within `untouched`. Each release starts at the same parameters and buffers.
    """

    def __init__(self, private: PrivateModule) -> None:
        self.private = private
        self.trained = {k: p for k, p in private.named_parameters() if p.requires_grad}
        self.buffers = {b: b.clone() for b in private.buffers()}

    def __call__(self, batch: Batch, sigma: float, bound: float) -> Gradients:
        """What a step at this noise multiplier and clip bound would add to each `p.grad`."""
        put_back(self.buffers)
        self.private.noise_multiplier, self.private.max_grad_norm = sigma, bound
        args, kwargs = pytree.tree_unflatten(batch.inputs.leaves, batch.inputs.spec)
        loss = loss_of(self.private(*args, sample_mask=batch.mask, **kwargs))
        grads = torch.autograd.grad(loss, list(self.trained.values()), allow_unused=True)
        found: list[tuple[str, Tensor | None]] = list(zip(self.trained, grads, strict=True))
        return {k: g for k, g in found if g is not None}

    def clean(self, batch: Batch, bound: float, state: object) -> Gradients:
        """The same without noise, from a state of the random generators, which stay as they are.

        A step with noise draws its key before the model draws. So this one is made with noise, but
        with so little that it vanishes in rounding: the release of that state without its noise.
        """
        now = random_state()
        set_random_state(state)
        found = self(batch, SILENT, bound)
        set_random_state(now)
        return {k: g.masked_fill(g.abs() < NOTHING, 0) for k, g in found.items()}

    def is_random(self, batch: Batch, bound: float, seed: int) -> bool:
        """Does the model draw numbers, as dropout does?"""
        state = random_state()
        one = self.clean(batch, bound, state)
        seeded(seed + 1)
        other = self.clean(batch, bound, random_state())
        set_random_state(state)
        return length(gap(one, other)) > SAME * length(one)

    def noisy(self) -> set[str]:
        """The parameters whose gradients are sums over samples; others need no noise."""
        return self.private._stepper.study().of(ClippedSums).noisy


@contextlib.contextmanager
def untouched(private: PrivateModule, seed: int) -> Iterator[None]:
    """Put back all that releases change; the ledger counts none of those made inside.

    Args:
        seed: of torch's generators, meanwhile.
    """
    bound, sigma = private.max_grad_norm, private.noise_multiplier
    account, record = private._account, private._stepper.record
    extras, buffers = record.extras, {b: b.clone() for b in private.buffers()}
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    last, private._account = private._last, Account(Ledger())
    stepper, keys = private._stepper, private._stepper.keys
    meanwhile = RunKey(keys.secure, seed_root(seed), numbers=dict(keys.numbers))
    stepper.keys = record.keys = meanwhile
    try:
        with torch.random.fork_rng(devices), torch.enable_grad():
            seeded(seed)
            yield
    finally:
        private._account, private._last, record.extras = account, last, extras
        stepper.keys = record.keys = keys
        private.max_grad_norm, private.noise_multiplier = bound, sigma
        put_back(buffers)


def seeded(seed: int) -> None:
    """Seed the generators that are in use; `torch.manual_seed` would reach others, later on."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def put_back(buffers: dict[Tensor, Tensor]) -> None:
    """Give buffers the values that they had."""
    with torch.no_grad():
        for buffer, was in buffers.items():
            buffer.copy_(was)


def gap(one: Gradients, other: Gradients) -> Gradients:
    """The difference of two releases, in float64."""
    return {k: g.double() - other[k].double() for k, g in one.items()}


def dot(one: Gradients, other: Gradients) -> float:
    """The inner product over all parameters."""
    return sum(float((g.double() * other[k].double()).sum()) for k, g in one.items())


def length(gradients: Gradients) -> float:
    """The norm over all parameters, in float64."""
    return dot(gradients, gradients) ** 0.5


def grain(x: Tensor) -> Tensor:
    """How far apart the numbers of x's dtype are around each value of x, at most; float64."""
    known = torch.finfo(x.dtype)
    return x.detach().double().abs().clamp(min=known.tiny) * known.eps
