"""Checks of the numbers that a privacy account rests on: each names the argument at fault.

A number is any `numbers.Real`, NumPy's scalars among them, or a 0-d tensor; what checks it returns
it as Python's own. An argument that is not a number is a TypeError, with the same message as the
ValueErrors. Every comparison is written so that NaN fails it.
"""

import dataclasses
import math
import warnings
from numbers import Integral, Real
from typing import Any, get_args

from torch import Tensor


class DeltaWarning(UserWarning):
    """delta is so large that publishing one whole sample at random would satisfy it."""


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raises ValueError("<name> must be <wanted>, got <value>") unless `holds`."""
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def require_number(name: str, value: object) -> int | float:
    """The number, as Python's own. Raises TypeError unless it is a real number; True is not."""
    if type(value) is float:  # what a step checks has been checked before, and is one
        return value
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        held = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that float64 holds") from None
    return int(value) if isinstance(value, Integral) else held


def plain(record: Any) -> None:
    """Make the numbers among a frozen dataclass's fields Python's own, in place."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if not isinstance(value, bool | int | float) and isinstance(value, Real | Tensor):
            object.__setattr__(record, field.name, require_number(field.name, value))


def require_flag(name: str, value: object) -> None:
    """Raises TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def require_one_of(literal: Any, name: str, value: object) -> None:
    """Raises ValueError unless `value` is one of the strings of the type `literal`."""
    known: tuple[str, ...] = get_args(literal)
    require(value in known, name, value, " or ".join(map(repr, known)))


def require_whole(name: str, value: float, least: int) -> int:
    """The number. Raises ValueError unless it is whole, `least` or larger; inf is not."""
    if type(value) is int and least <= value < 1 << 53:
        return value
    value = require_number(name, value)
    holds = least <= value < math.inf and value % 1 == 0
    require(holds, name, value, f"a whole number >= {least}")
    return int(value)


def require_rate(name: str, value: float) -> float:
    """The number. Raises ValueError unless it is in (0, 1]."""
    value = require_number(name, value)
    require(0 < value <= 1, name, value, "in (0, 1]")
    return value


def require_noise(name: str, value: float) -> float:
    """The number. Raises ValueError unless it is in [0, inf)."""
    value = require_number(name, value)
    require(0 <= value < math.inf, name, value, "in [0, inf)")
    return value


def require_epsilon(value: float) -> float:
    """The number. Raises ValueError unless it, a budget, is in (0, inf]."""
    value = require_number("epsilon", value)
    require(0 < value <= math.inf, "epsilon", value, "in (0, inf]")
    return value


def require_delta(value: float, num_samples: int | None = None) -> float:
    """The number. Raises ValueError unless it is in (0, 1); warns if it is 1 / num_samples or more.

    Args:
        value: delta.
        num_samples: size of the data set, >= 1; None where it is not known.

    Warns:
        DeltaWarning: a mechanism that publishes each sample with probability delta is
            (0, delta)-private, and at this delta publishes one or more on average.
    """
    value = require_number("delta", value)
    require(0 < value < 1, "delta", value, "in (0, 1)")
    if num_samples is None:
        return value
    require_whole("num_samples", num_samples, 1)
    if value * num_samples >= 1:
        text = (
            f"delta = {value:g} is not below 1 / {num_samples}, one over the number of samples: "
            "publishing one sample at random would satisfy it; choose a smaller delta"
        )
        warnings.warn(text, DeltaWarning, stacklevel=3)
    return value
