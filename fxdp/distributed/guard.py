"""Refuses data parallelism and sharding around a private step, which runs in one process for now.

Whatever adds up, averages or shards gradients between processes knows nothing of the release: it
averages noise that another process has drawn from the same seed, or adds up sums of which each was
clipped and divided as if it were all. Until fxdp does this itself, nothing else may.

Every wrapper is met where it takes hold of parameters: a module of torch's data parallelism when it
is given a module with private parameters, and sharded parameters at the next step.
"""

import gc
import os
import sys
import weakref
from collections.abc import Iterable
from typing import Any, Final

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.weak import WeakIdKeyDictionary

from fxdp.torch_internals import active_ddp


class Unsaid:
    """No mesh was named: nothing is said of other processes."""

    def __repr__(self) -> str:
        return "UNSAID"


UNSAID: Final = Unsaid()
Mesh = Unsaid | None
ALONE = (
    "train in one process; or, with mesh=None, let every process train a model of its own, "
    "and wrap nothing"
)


def trains_apart(mesh: Any) -> bool:
    """Was it said that the processes have nothing to do with each other?

    ===========  ===========================  =======================
    mesh         torch.distributed            what happens
    ===========  ===========================  =======================
    not given    not initialised, or alone    False
    not given    several processes            ValueError
    None         whatever                     True: they train apart
    a value      whatever                     NotImplementedError
    ===========  ===========================  =======================
    """
    if mesh is None:
        return True
    if mesh is not UNSAID:
        raise NotImplementedError(
            f"mesh={mesh!r}: fxdp does not train one model in several processes yet; there is "
            "mesh=None, by which they train apart, each a model of its own"
        )
    refuse_processes(False, ValueError)
    return False


def refuse_processes(apart: bool, error: type[Exception]) -> None:
    """Refuse to be one of several processes that nothing was said of; cheap, for every step.

    Args:
        apart: it was said that they train apart.
        error: what is raised.
    """
    if apart or not dist.is_available() or not dist.is_initialized():
        return
    if (size := dist.get_world_size()) > 1:
        raise error(
            f"torch.distributed has {size} processes here, and no mesh says how they "
            "belong together: each would draw batches and noise, and count releases, by itself, "
            "and none would know of the others. Pass mesh=None if they train apart, each a model "
            "of its own; fxdp does not train one model in several processes yet"
        )


def wrappers() -> tuple[type, ...]:
    """The modules of torch that take hold of another module's parameters, as far as loaded."""
    sharding: Any = sys.modules.get("torch.distributed.fsdp")
    more = (sharding.FullyShardedDataParallel, sharding.FSDPModule) if sharding else ()
    return (DistributedDataParallel, DataParallel, *more)


def is_sharded(p: Tensor) -> bool:
    """Is a parameter spread over processes?"""
    spread: Any = sys.modules.get("torch.distributed.tensor")
    flat = getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False)
    return flat or (spread is not None and isinstance(p, spread.DTensor))


def refuse_wrapped(model: nn.Module, error: type[Exception]) -> None:
    """Refuse a model that is, or has in it, a wrapper of torch's, or whose parameters are sharded.

    Args:
        model: to be made private.
        error: what is raised.
    """
    found = wrappers()
    for name, module in model.named_modules():
        if isinstance(module, found):
            where = f"its submodule {name!r}" if name else "the model"
            kind = next(k.__name__ for k in found if isinstance(module, k))
            raise error(
                f"{where} is wrapped by {kind}, which moves gradients or parameters between "
                f"devices or processes, past clipping and noise: {ALONE}"
            )
    refuse_sharded(model.named_parameters(), error)
    refuse_held(model.parameters(), error)


def refuse_held(parameters: Iterable[Tensor], error: type[Exception]) -> None:
    """Refuse parameters that a wrapper was made of before: it left hooks on them."""
    if (kind := holder(parameters)) is not None:
        raise error(
            f"a {kind} holds the model's parameters, and would average their gradients over "
            f"processes: {ALONE}"
        )


def refuse_sharded(parameters: Iterable[tuple[str, Tensor]], error: type[Exception]) -> None:
    """Refuse parameters of which this process has a part."""
    for name, p in parameters:
        if is_sharded(p):
            raise error(
                f"the parameter {name} is sharded over processes ({type(p).__name__}, by "
                f"fully_shard or the like), so that no sample's gradient is here as a whole: "
                f"{ALONE}"
            )


def holder(parameters: Iterable[Tensor]) -> str | None:
    """The kind of a living wrapper that was made of these parameters, or None."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    own = {id(p) for p in parameters}

    def look() -> str | None:
        for module in gc.get_objects():
            if issubclass(type(module), DistributedDataParallel):
                held = getattr(module, "module", nn.Module()).parameters()
                if not own.isdisjoint(id(p) for p in held):
                    return type(module).__name__
        return None

    if look() is None:
        return None
    gc.collect()  # what nobody needs any more holds nothing
    return look()


def refuse_step(
    apart: bool, process: int, parameters: Iterable[tuple[str, Tensor]], error: type[Exception]
) -> None:
    """Refuse a step that other processes take part in, before anything is computed or counted.

    Args:
        apart: it was said that they train apart.
        process: in which the model was made private.
        parameters: of the model, by name.
        error: what is raised.
    """
    refuse_processes(apart, error)
    active = active_ddp()
    if active is not None:
        raise error(
            f"a private step runs inside of {type(active).__name__}, which averages what is "
            f"released over processes, noise included: {ALONE}"
        )
    if os.getpid() != process and any(p.is_shared() for _, p in parameters):
        raise error(
            f"this process was forked from {process}, with which it shares the memory of the "
            "model's parameters: what it releases would train them there, and that process's "
            "ledger would not count it. Step there, or compile a copy of the model"
        )
    if dist.is_available() and dist.is_initialized():
        refuse_sharded(parameters, error)


# Trained parameters, each with who makes its gradients private.
OWNERS: Any = WeakIdKeyDictionary()


def own(owner: Any, parameters: Iterable[Tensor]) -> None:
    """From now on no wrapper may take hold of these parameters, for as long as `owner` lives."""
    for p in parameters:
        OWNERS.setdefault(p, weakref.WeakSet()).add(owner)
    watch()


def watch() -> None:
    """Look at what modules are given as submodules; once for the process."""
    if not WATCHING:
        WATCHING.append(register_module_module_registration_hook(refuse_wrapper))


WATCHING: list[Any] = []


def refuse_wrapper(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Refuse a wrapper of torch's that is made around private parameters.

    Raises:
        ValueError: it is being made.
    """
    if submodule is None or not isinstance(module, wrappers()):
        return
    if any(OWNERS.get(p) for p in submodule.parameters()):
        gc.collect()  # what nobody needs any more owns nothing
    if any(OWNERS.get(p) for p in submodule.parameters()):
        raise ValueError(
            f"{type(module).__name__} around a private module would move what is released, noise "
            f"included, between devices or processes, and nobody would count it: {ALONE}"
        )


class Unwrapped:
    """A module that no wrapper of torch's may take hold of; for `PrivateModule` to derive from."""

    @property
    def _is_fsdp_managed_module(self) -> bool:
        """What FSDP writes on each module that it is about to shard, or has sharded."""
        return False

    @_is_fsdp_managed_module.setter
    def _is_fsdp_managed_module(self, value: bool) -> None:
        if value:
            raise ValueError(f"a private module's parameters cannot be sharded: {ALONE}")

    def _replicate_for_data_parallel(self) -> Any:
        raise ValueError(f"a private module has no replicas: {ALONE}")
