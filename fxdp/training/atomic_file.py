"""A file of tensors and plain values that is written whole or not at all.

A new file is written next to it, flushed to disk, tried, and then replaces the old one.
"""

import io
import os
import pickle
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def read(path: Path) -> dict[str, Any]:
    """What is in a file.

    Raises:
        ValueError: nothing that torch.load(weights_only=True) reads, or no mapping.
    """
    with path.open("rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds, for a file of any content
            raise ValueError(f"{path}: torch.load(weights_only=True) cannot read it") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: must hold a mapping, and holds a {type(state).__name__}")
    return state


def write(path: Path, state: dict[str, Any]) -> None:
    """Replace a file by a new one, at once.

    Raises:
        TypeError: a part of the state cannot be read by torch.load(weights_only=True).
    """
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(number, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        check_readable(Path(name), state)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_readable(written: Path, state: dict[str, Any]) -> None:
    """Raises TypeError if torch.load(weights_only=True) will not read what was written."""
    try:
        torch.load(written, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        name = next(name for name, part in state.items() if not is_plain(part))
        raise TypeError(
            f"{name} holds what torch.load(weights_only=True) refuses: leave numbers, strings, "
            "tensors, and lists, tuples and dicts of those; nothing was saved"
        ) from error


def is_plain(part: Any) -> bool:
    file = io.BytesIO()
    torch.save(part, file)
    try:
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


def sweep(path: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for other in path.parent.iterdir():
        if other.name.startswith(f".{path.name}.") and other.suffix == ".tmp":
            other.unlink(missing_ok=True)
