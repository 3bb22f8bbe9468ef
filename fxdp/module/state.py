"""The state that a model writes in forward, and how a batch in pieces writes it once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# What every module keeps in its own way; buffers are looked at by themselves.
KEPT_APART = {"_parameters", "_buffers", "_modules", "training"}


@dataclass(frozen=True)
class State:
    """Buffers and attributes of a module and its submodules, at one moment.

    Buffers that are written to in place have their values put back; an attribute or a buffer that
    is replaced is what it was. What is inside a list or another object of the model's is not
    looked at.

    Attributes:
        root: the module.
        modules: for each submodule its buffers and its attributes.
        values: for each buffer its values and the version that they are of.
    """

    root: nn.Module
    modules: Mapping[nn.Module, tuple[dict[str, Tensor | None], dict[str, Any]]]
    values: Mapping[Tensor, tuple[Tensor, int]]

    @staticmethod
    def of(root: nn.Module) -> "State":
        """The state of a module as it is now."""
        modules = {m: (dict(m._buffers), attributes(m)) for m in root.modules()}
        values = {
            b: (b.detach().clone(), b._version)
            for buffers, _ in modules.values()
            for b in buffers.values()
            if b is not None
        }
        return State(root, modules, values)

    def now(self) -> "State":
        """The state of the same module as it is now."""
        return State.of(self.root)

    def changed_since(self, left: "State") -> "State":
        """This state, with what somebody else than the model has changed since it left it."""
        now = self.now()
        modules = dict(now.modules)
        for module, (buffers, own) in self.modules.items():
            if module in now.modules and module in left.modules:
                given = zip((buffers, own), left.modules[module], now.modules[module], strict=True)
                modules[module] = tuple(merged(*three) for three in given)  # type: ignore[assignment]
        values = {
            buffer: found
            for buffer, found in now.values.items()
            if buffer not in self.values or left.values.get(buffer, found)[1] != found[1]
        }
        return State(self.root, modules, {**self.values, **values})

    def put_back(self) -> None:
        """Make the module's state what it was."""
        for module, (buffers, own) in self.modules.items():
            restored(module._buffers, buffers)
            restored(module.__dict__, own | {k: module.__dict__[k] for k in KEPT_APART})
        with torch.no_grad():
            for buffer, (value, version) in self.values.items():
                if buffer._version != version:
                    buffer.copy_(value)


def merged(before: dict[str, Any], left: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Entries as they were before, but those that changed since they were left."""
    missing = object()
    found = {k: v for k, v in before.items() if k in now or k not in left}
    return found | {k: v for k, v in now.items() if left.get(k, missing) is not v}


def restored(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Give a dict the entries that it had, and touch none that it has."""
    for name in now.keys() - before.keys():
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def attributes(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes other than parameters, buffers and submodules."""
    return {k: v for k, v in module.__dict__.items() if k not in KEPT_APART}
