"""Lists what a step takes as public: sizes, numbers and tensors that all samples share.

Sizes, numbers and tensors that all samples share are the same for every sample of a batch. If they
were made of the samples, as the length that a batch is padded to, one sample moves the gradients
of all others, and no graph shows it. So each is listed, in the certificate and in the statement.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxdp.capture.inputs import Inputs
from fxdp.capture.segments import Role
from fxdp.proof.certificate import ASSUMPTIONS, CALLER, Assumption

EXPECTED = "expected_batch_size"
SIZE = "a size that differed between steps"


class PublicSizeWarning(UserWarning):
    """A size of an argument that all samples share differs between steps."""


@dataclass
class Public:
    """What the steps of one module have taken as public so far.

    ==================================  ===================================================
    case                                what is listed
    ==================================  ===================================================
    an axis of a tensor, other than     the axis, and a warning comes once: whether the size
    the samples', differs in size       is padding that the longest sample decides is not
    from an earlier step                known here
    a size that is always the same      nothing
    the rows of a ragged argument       their number
    an int, float, bool or str          its name and type, not its value
    a tensor that all samples share     its name
    what was derived from the number    the number of samples
    of samples (`fxdp.make_private`)
    ==================================  ===================================================

    Attributes:
        rows: what is listed, each as a phrase.
        shapes: of each argument's tensors in the first step, -1 for the samples' axis.
        derived: what was derived from the number of samples.
    """

    rows: set[str] = field(default_factory=lambda: set[str]())
    shapes: dict[str, list[int]] = field(default_factory=lambda: dict[str, list[int]]())
    derived: tuple[str, ...] = ()
    _warned: bool = field(default=False, repr=False)

    def note(self, inputs: Inputs) -> None:
        """List what a step takes as public.

        Warns:
            PublicSizeWarning: a size differs from that of an earlier step, for the first time.
        """
        self.note_values(inputs)
        changed: list[str] = []
        label, part = "", 0
        for x, dim, name in zip(inputs.leaves, inputs.dims, inputs.names, strict=True):
            part = part + 1 if name == label else 0
            label = name
            if dim is None:
                continue
            alone = inputs.names.count(name) == 1
            shape, key = [*x.shape], name if alone else f"{name}[{part}]"
            shape[dim.dim if isinstance(dim, Role) else dim] = -1
            first = self.shapes.setdefault(key, shape)
            if first != shape:
                changed += differing(key, first, shape)
        fresh = [row for row in changed if row not in self.rows]
        self.rows.update(fresh)
        if fresh and not self._warned:
            self._warned = True
            which = ", ".join(row.removesuffix(f", {SIZE}") for row in fresh)
            warnings.warn(
                f"fxdp: the size of {which} is not what it was in an earlier step, and is taken as "
                "public: if the longest sample of a batch decides it, one sample moves the "
                "gradients of all others, beyond the clip bound. Pad to one length that was chosen "
                "without the data: collate_fn=fxdp.data.pad_collate(length=...). Buckets are fewer "
                "sizes, and not public for that. The certificate lists it",
                PublicSizeWarning,
                stacklevel=7,
            )

    def note_values(self, inputs: Inputs) -> None:
        """List the numbers and shared tensors of a step, without its sizes; and of ragged
        arguments, that it has rows."""
        for x, dim, name in zip(inputs.leaves, inputs.dims, inputs.names, strict=True):
            if isinstance(dim, Role) and dim.kind != "starts":
                self.rows.add(f"the number of rows of `{name}`, all samples' together")
            if dim is None and x is not None:
                shared = isinstance(x, Tensor)
                what = "a tensor that all samples share" if shared else type(x).__name__
                self.rows.add(f"`{name}` ({what})")

    def beside(self, inputs: Inputs) -> "Public":
        """The same, with the numbers and shared tensors of a step that was not made."""
        other = copy.deepcopy(self)
        other.note_values(inputs)
        return other

    def phrases(self) -> tuple[str, ...]:
        """What is taken as public, in an order that does not depend on the run."""
        which = " and ".join(self.derived)
        was = "were" if len(self.derived) > 1 else "was"
        samples = (f"the number of samples, from which {which} {was} derived",)
        return (*(samples if self.derived else ()), *sorted(self.rows))

    def assumptions(self) -> tuple[Assumption, ...]:
        """All rows of a certificate that no graph shows."""
        start = ASSUMPTIONS[1:] if EXPECTED in self.derived else ASSUMPTIONS
        return (*start, *(as_assumed(phrase) for phrase in self.phrases()))

    def state_dict(self) -> dict[str, Any]:
        """In plain types."""
        return {
            "rows": sorted(self.rows),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "derived": list(self.derived),
        }

    def loaded(self, state: Any) -> "Public":
        """This and what another run took as public, in whose place this one goes on.

        Raises:
            ValueError: the state is malformed.
        """
        if state is None:  # of a file that is older than this list
            return self
        try:
            rows, shapes, derived = state["rows"], state["shapes"], state["derived"]
            sizes = [size for shape in shapes.values() for size in shape]
            words = [*rows, *shapes, *derived]
            whole = all(isinstance(size, int) for size in sizes)
            if len(state) != 3 or not whole or not all(isinstance(word, str) for word in words):
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            raise ValueError("privacy state: public must have rows, shapes and derived") from None
        both = tuple(dict.fromkeys((*self.derived, *derived)))
        first = {name: list(shape) for name, shape in shapes.items()}
        return Public(self.rows | set(rows), self.shapes | first, both, self._warned)


def as_assumed(phrase: str) -> Assumption:
    """A row of a certificate about something that is taken as public."""
    return Assumption(f"public: {phrase}", CALLER)


def differing(name: str, one: Sequence[int], other: Sequence[int]) -> list[str]:
    """A phrase for each axis in which two shapes differ."""
    if len(one) != len(other):
        return [f"the number of axes of `{name}`, {SIZE}"]
    pairs = enumerate(zip(one, other, strict=True))
    return [f"axis {axis} of `{name}`, {SIZE}" for axis, (a, b) in pairs if a != b]
