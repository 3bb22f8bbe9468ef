"""Replaces layers that mix samples by layers that do not: batch norms by group norms."""

import copy
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from fxdp.diagnostics.diagnostic import Diagnostic
from fxdp.torch_internals import BatchNormBase

# The classes themselves, not what is derived from them: a subclass may do more than normalise.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
MOST_GROUPS = 32  # Wu and He, "Group Normalization", arXiv:1803.08494, section 4


class Change(NamedTuple):
    """What became of one module: its path, and how it and its replacement are written."""

    path: str
    before: str
    after: str


class Fixed(NamedTuple):
    """A mended copy of a model, and what is different in it.

    Attributes:
        model: the copy.
        changes: what was replaced.
        left: paths of batch norms that were not, because their class is one of the user's.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        changed = [f"{c.path or 'the model'}: {c.before} -> {c.after}" for c in self.changes]
        left = [f"{path}: left alone, its class does more than normalise" for path in self.left]
        return "\n".join(changed + left) or "nothing to change"


def fix(model: nn.Module) -> Fixed:
    """A copy of a model in which each sample is normalised by itself.

    Batch norms become group norms with the same weight and bias, and instance norms lose their
    running statistics. The copy has to be trained anew, or tuned: it computes something else.

    Raises:
        TypeError: the model is not a module.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    mended = copy.deepcopy(model)
    changes: list[Change] = []
    left: list[str] = []
    made: dict[int, nn.Module] = {}  # a module that is used twice stays one module
    for path, module in list(mended.named_modules(remove_duplicate=False)):
        new = made.get(id(module)) or substitute(module)
        if new is None:
            left += [path] if isinstance(module, BatchNormBase) else []
            continue
        made[id(module)] = new
        changes.append(Change(path, written(module), written(new)))
        if not path:
            mended = new
        else:
            parent, _, name = path.rpartition(".")
            setattr(mended.get_submodule(parent), name, new)
    return Fixed(mended, tuple(changes), tuple(left))


def substitute(module: nn.Module) -> nn.Module | None:
    """What to use instead of a module; None if it can stay, or no substitute is known."""
    if type(module) in INSTANCE_NORMS and getattr(module, "track_running_stats", False):
        new = copy.deepcopy(module)
        new.track_running_stats = False  # type: ignore[assignment]
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            new.register_buffer(name, None)
        return new
    if type(module) not in BATCH_NORMS or not isinstance(module, BatchNormBase):
        return None
    channels = module.num_features
    new = nn.GroupNorm(groups_for(channels), channels, module.eps, module.affine)
    if module.affine:
        new.weight, new.bias = module.weight, module.bias
    return new.train(module.training)


def groups_for(channels: int) -> int:
    """As many groups as divide the channels, up to 32, of two channels or more: a group of one
    value would be normalised to nothing."""
    fitting = [g for g in range(1, MOST_GROUPS + 1) if channels % g == 0 and channels // g > 1]
    return max(fitting, default=1)


def written(module: nn.Module) -> str:
    """A module as one writes it: nn.BatchNorm2d(64)."""
    if isinstance(module, nn.GroupNorm):
        return f"nn.GroupNorm({module.num_groups}, {module.num_channels})"
    tracked = getattr(module, "track_running_stats", False)
    plain = f"nn.{type(module).__name__}({getattr(module, 'num_features', '')}"
    return plain + (", track_running_stats=True)" if tracked and "Inst" in plain else ")")


def advised(d: Diagnostic, model: nn.Module) -> Diagnostic:
    """A fault with the remedy for the very module that has it."""
    for path in d.modules:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        if (new := substitute(module)) is not None:
            text = f"replace {written(module)} by {written(new)}; fxdp.fix(model) does it"
            return replace(d, remedy=text)
    return d
