"""Whose fault a failed capture is: asks the model as it is, without fxdp, on the same arguments."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fxdp.capture.inputs import Inputs, padded
from fxdp.diagnostics.location import Location, is_library

Run = Callable[[Inputs], Any]


@dataclass(frozen=True)
class Plain:
    """A step as it is, for questions.

    Attributes:
        inputs: what the capture failed on.
        run: computes the model's loss from inputs, and leaves model and generators as they were.
    """

    inputs: Inputs
    run: Run

    def error(self) -> Exception | None:
        """What the step raises without fxdp; None where it raises nothing."""
        return self._error(self.inputs)

    def pair_axis(self) -> str | None:
        """A second axis of samples in an argument, such as that of an adjacency matrix, in words.

        With more samples on the first axis alone the model fails, and with as many on both it
        runs: so the two are axes of the same samples.
        """
        inputs = self.inputs
        more = inputs.resized(inputs.size + 1)
        if self._error(more) is None:
            return None
        for i, (leaf, dim) in enumerate(zip(inputs.leaves, inputs.dims, strict=True)):
            for axis in range(leaf.dim()) if dim is not None else ():
                if axis != dim and leaf.shape[axis] == inputs.size:
                    changed = list(more.leaves)
                    changed[i] = padded(more.leaves[i], axis, inputs.size + 1)
                    if self._error(replace(more, leaves=tuple(changed))) is None:
                        return f"axis {axis} of {inputs.names[i]!r}"
        return None

    def _error(self, inputs: Inputs) -> Exception | None:
        try:
            self.run(inputs)
        except Exception as error:  # of the user's code: any
            # Without gradients it may fail where it takes gradients itself, which says nothing.
            return None if "grad" in str(error) else error
        return None


def place_of(error: Exception) -> Location | None:
    """The user's innermost line that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not is_library(f.filename)]
    return Location(own[-1].filename, own[-1].lineno or 0, own[-1].name) if own else None
