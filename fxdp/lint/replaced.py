"""What a linted file replaced in this process for good, so that later verdicts rest on it, too."""

import inspect
import os
import sys
from typing import Any

import torch
from torch import nn

HOMES: tuple[Any, ...] = (torch, nn, nn.functional, nn.init, torch.Tensor, torch.autograd)
TORCH = os.path.dirname(torch.__file__)


def state() -> dict[str, Any]:
    """What files could replace: names of torch, methods of layers, settings, the environment."""
    kinds = [v for v in vars(nn).values() if isinstance(v, type)]
    found: dict[str, Any] = {
        f"{i}.{name}": identity(name, value)
        for i, home in enumerate((*HOMES, *kinds))
        for name, value in vars(home).items()
    }
    found["settings"] = (torch.get_default_dtype(), torch.is_grad_enabled(), tuple(sys.path))
    found["environment"] = dict(os.environ)
    return found


def replaced(before: dict[str, Any]) -> bool:
    """Is anything another than it was? What was only added does not count."""
    now = state()
    return any(now.get(name) != value for name, value in before.items())


def identity(name: str, value: Any) -> int:
    """What tells a thing from another. torch itself replaces two methods of modules when it first
    compiles, by ones that call those."""
    by_torch = inspect.isfunction(value) and value.__code__.co_filename.startswith(TORCH)
    return 0 if by_torch and name in ("__init__", "__setstate__") else id(value)
