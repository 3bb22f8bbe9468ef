"""Checks of the numbers that a privacy account rests on: each names the argument at fault.

An argument that is not a number is a TypeError, with the same message as the ValueErrors.
Every comparison is written so that NaN fails it.
"""

import math
import warnings
from numbers import Real
from typing import Any, get_args


class DeltaWarning(UserWarning):
    """delta is so large that publishing one whole sample at random would satisfy it."""


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raises ValueError("<name> must be <wanted>, got <value>") unless `holds`."""
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def require_number(name: str, value: object) -> None:
    """Raises TypeError unless `value` is a real number; True is not, nor is a tensor."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")


def require_one_of(literal: Any, name: str, value: object) -> None:
    """Raises ValueError unless `value` is one of the strings of the type `literal`."""
    known: tuple[str, ...] = get_args(literal)
    require(value in known, name, value, " or ".join(map(repr, known)))


def require_whole(name: str, value: float, least: int) -> None:
    """Raises ValueError unless `value` is a whole number, `least` or larger; inf is not."""
    require_number(name, value)
    holds = least <= value < math.inf and value % 1 == 0
    require(holds, name, value, f"a whole number >= {least}")


def require_rate(name: str, value: float) -> None:
    """Raises ValueError unless `value` is in (0, 1]."""
    require_number(name, value)
    require(0 < value <= 1, name, value, "in (0, 1]")


def require_noise(name: str, value: float) -> None:
    """Raises ValueError unless `value` is in [0, inf)."""
    require_number(name, value)
    require(0 <= value < math.inf, name, value, "in [0, inf)")


def require_epsilon(value: float) -> None:
    """Raises ValueError unless `value`, a budget, is in (0, inf]."""
    require_number("epsilon", value)
    require(0 < value <= math.inf, "epsilon", value, "in (0, inf]")


def require_delta(value: float, num_samples: int | None = None) -> None:
    """Raises ValueError unless `value` is in (0, 1); warns if it is 1 / num_samples or more.

    Args:
        value: delta.
        num_samples: size of the data set, >= 1; None where it is not known.

    Warns:
        DeltaWarning: a mechanism that publishes each sample with probability delta is
            (0, delta)-private, and at this delta publishes one or more on average.
    """
    require_number("delta", value)
    require(0 < value < 1, "delta", value, "in (0, 1)")
    if num_samples is None:
        return
    require_whole("num_samples", num_samples, 1)
    if value * num_samples >= 1:
        text = (
            f"delta = {value:g} is not below 1 / {num_samples}, one over the number of samples: "
            "publishing one sample at random would satisfy it; choose a smaller delta"
        )
        warnings.warn(text, DeltaWarning, stacklevel=3)
