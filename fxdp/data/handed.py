"""Which batches of a sampler were handed out, and which of them were released: none twice.

A sampler counts what it hands out, an account what is released of it. Where the two know each
other (`fxdp.make_private`, or `fxdp.compile(sample_rate=sampler)`), the account asks here first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet, ref

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ticket:
    """One batch that was handed out.

    Attributes:
        home: where it is counted.
        order: how many were handed out before it.
        stale: whether it had been handed out before.
    """

    home: "Handed"
    order: int
    stale: bool = False


# The batch that a tensor is a part of, by its identity; None for one that is part of several.
TICKETS: dict[int, tuple["ref[Tensor]", Ticket | None]] = {}


@dataclass(eq=False)
class Handed:
    """The batches of one sampler and of the copies of it, in this process.

    Guarantees:
        Releases that were asked for by `refusal` and reported to `release` are never more than the
        batches that were handed out for the first time. A batch whose tensors come as the loader
        made them is known, and released at most once.

        | edge case                             | what happens                                 |
        |---------------------------------------|----------------------------------------------|
        | batches that are left out             | fine, but where the data take turns          |
        | a batch as a list, copied, or moved   | its tensors are not known, and count alone   |
        |                                       | tells                                        |
        | a position that is set back           | what is handed out again cannot be released, |
        |                                       | once something was                           |
        | a tensor that several batches share   | says nothing of its batch                    |
        | a copy, deep or not                   | the same object: copies count together       |

    Attributes:
        drawn: batches handed out, those that were handed out before left out.
        released: how many of them were released.
    """

    drawn: int = 0
    released: int = 0
    _next: int | None = field(default=None, repr=False)  # the batch after the last released
    _spent: "WeakSet[Ticket]" = field(default_factory=lambda: WeakSet(), repr=False)
    _below: dict[bytes, int] = field(default_factory=lambda: {}, repr=False)

    def forget(self) -> None:
        """Batches that nobody has released anything of may be handed out anew, and only so."""
        if not self.released:
            self.drawn = 0
            self._below.clear()

    def hand(self, key: bytes, step: int) -> Ticket:
        """Count batch `step` of the stream with this key, which is handed out now."""
        if step < self._below.get(key, step):
            self.drawn = self.released  # which of those before were released is not known
            return Ticket(self, self.drawn, stale=self.released > 0)
        self._below[key] = step + 1
        self.drawn += 1
        return Ticket(self, self.drawn - 1)

    def refusal(self, ticket: Ticket | None, in_turn: bool = False) -> str | None:
        """Why a batch cannot be released; None if it can.

        Args:
            ticket: of the batch, if it is known.
            in_turn: whether every batch has to be released, in order.
        """
        if ticket is not None and ticket.home is not self:
            return "it is a batch of another loader than the one that the account was given"
        if ticket is not None and ticket.stale:
            return "the loader was set back, and this batch was handed out before: make a new one"
        if ticket is not None and ticket in self._spent:
            return "it was released before"
        if self.released >= self.drawn:
            return (
                f"{self.drawn} batches were drawn, and as many releases made, so that it was "
                "released before, or the loader did not draw it"
            )
        order = self.drawn - 1 if ticket is None else ticket.order
        if in_turn and order != (order if self._next is None else self._next):
            return (
                f"batch {self._next} comes next (from 0, in this process), and this is batch "
                f"{order}: where the data take turns, every batch is released, in order, and the "
                "loader is iterated by nobody who reads ahead"
            )
        return None

    @property
    def waits(self) -> bool:
        """Whether there are batches after the last that was released."""
        return self._next is not None and self.drawn > self._next

    def release(self, ticket: Ticket | None) -> None:
        """Count a release of a batch."""
        self.released += 1
        self._next = 1 + (self.drawn - 1 if ticket is None else ticket.order)
        if ticket is not None:
            self._spent.add(ticket)

    def __copy__(self) -> "Handed":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Handed":
        return self


def mark(batch: Any, ticket: Ticket) -> None:
    """Let the tensors of a batch tell which one it is."""
    for x in tensors(batch):
        key = id(x)
        shared = key in TICKETS
        TICKETS[key] = ref(x, partial(_drop, key)), None if shared else ticket


def _drop(key: int, _: object) -> None:
    TICKETS.pop(key, None)


def tickets(values: Any) -> set[Ticket]:
    """The batches that arguments are known to be of."""
    found = set[Ticket]()
    for x in tensors(values):
        whose, ticket = TICKETS.get(id(x), (None, None))
        if whose is not None and whose() is x and ticket is not None:
            found.add(ticket)
    return found


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in mappings, lists and tuples."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):  # faster than a union
        for value in values:
            yield from tensors(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors(value)
