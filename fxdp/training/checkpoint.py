"""A private training run in one file, from which it goes on as if it had never stopped.

    fxdp.save_checkpoint(path, private, optimizer, loader=loader, scheduler=scheduler)
    fxdp.load_checkpoint(path, private, optimizer, loader=loader, scheduler=scheduler)

It holds what a plain run saves, and the ledger: a file without one is refused.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from fxdp.autotune import timings
from fxdp.backend.options import checked_scales
from fxdp.data import PrivateLoader, PrivateSampler
from fxdp.diagnostics.errors import StepError
from fxdp.mechanism.run_key import checked as check_keys
from fxdp.module.private_module import PrivateModule
from fxdp.training.atomic_file import read, sweep, write
from fxdp.training.rng_state import check_generator_states, generator_states, set_generator_states

VERSION = 2
SCALES = ("max_grad_norm", "noise_multiplier", "expected_batch_size")
PARTS = ("version", "model", "privacy", "noise", "scales", "rng", "code", "devices", "extra")
OPTIONAL = ("optimizer", "scheduler", "loader")


class Stateful(Protocol):
    """A learning rate scheduler, to a checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> None: ...


def save_checkpoint(
    path: str | os.PathLike[str],
    private: PrivateModule,
    optimizer: Optimizer | None = None,
    *,
    loader: PrivateLoader | PrivateSampler | None = None,
    scheduler: Stateful | None = None,
    extra: Any = None,
) -> None:
    """Write a training run to a file, all of it or nothing.

    `torch.load(path, weights_only=True)["model"]` is what `state_dict()` of the plain model
    gives, under the model's own names.

    Guarantees:
        - At any time, also after a power cut, `path` holds the last checkpoint that was written
          whole; it loads with `weights_only=True`.
        - It holds what was released so far: who trains on from it has that spent.
        - What is released after it and lost in a crash is in no file. With a seeded sampler and
          torch's own noise the resumed run releases just that again, bit for bit, and nothing
          more is spent. With secure noise it releases something else, in addition: save before
          anything made of a step leaves the process (a published model, a log), or after every
          step. The same holds after a change of data or settings; and the noise is then the
          same as before, which is worse: see `load_checkpoint`.

    The file is as secret as the data. The key of the run reveals all noise, and the sampler's key
    all batches: only its owner may read it. Publish what is in "model" alone.

    ==================================  ===================================================
    case                                what happens
    ==================================  ===================================================
    the disk is full, an exception      it is raised; only the old file is there
    killed while writing                the old file stays; `load_checkpoint` removes
                                        what was left next to it
    state that weights_only forbids     TypeError, which names the part; the old file stays
    a loss waits for its backward pass  StepError
    data that take turns, and a batch   StepError, where the account knows the loader
    that was drawn and not released
    before optimizer.step()             what the gradients hold is lost: call it after
    ==================================  ===================================================

    Args:
        path: in a folder that is there; one process writes it.
        private: between steps.
        optimizer, scheduler: whose state goes along.
        loader: of `fxdp.data.private_loader`, or its sampler.
        extra: numbers, strings, tensors and containers of those (an epoch, losses so far).

    Raises:
        TypeError, StepError, OSError: as in the table.
    """
    private._account.begin()
    private._account.settle()
    if private._logical is not None:
        raise StepError("a logical batch has begun: save when it is over")
    state: dict[str, Any] = {
        "version": VERSION,
        "model": private.state_dict(),
        "privacy": private.privacy_state_dict(),
        "noise": private._stepper.keys.state_dict(),
        "scales": {name: getattr(private, name) for name in SCALES},
        "rng": generator_states(),
        "code": {"rows": private._stepper.rows, "times": timings.asked()},
        "devices": devices(private),
        "extra": extra,
    }
    for name, part in zip(OPTIONAL, (optimizer, scheduler, loader), strict=True):
        if part is not None:
            state[name] = part.state_dict()
    write(Path(path), state)


def load_checkpoint(
    path: str | os.PathLike[str],
    private: PrivateModule,
    optimizer: Optimizer | None = None,
    *,
    loader: PrivateLoader | PrivateSampler | None = None,
    scheduler: Stateful | None = None,
    forget_ledger: bool = False,
) -> Any:
    """Go on with the training run that a file holds; call it before the first step.

    Guarantees:
        - Everything is checked before anything is changed.
        - What the run has spent is loaded first: no other part is there without it.
        - The run goes on as it would have without a break, bit for bit: parameters, optimizer,
          losses, batches, noise, ledger; on the same machine and versions, and as long as what
          the data set and its collate function do is a function of their arguments and of the
          generators of torch, Python and numpy.
        - Runs that go on from one file have the same noise. Where they differ in anything else,
          the difference of what they release has none: publish one of them, and no other.

    ==================================  ===================================================
    case                                what happens
    ==================================  ===================================================
    no ledger in the file               ValueError; with `forget_ledger` a warning, and what
                                        the file has is loaded, if only a state_dict
    releases were counted here          StepError: they would be forgotten
    names, shapes, dtypes differ        ValueError, which names them
    another way to draw                 ValueError, which names what differs
    optimizer, scheduler or loader in   ValueError: pass what was saved, and no more
    the file and not here, or here
    and not in the file
    other scales than here              those of the file, as learning rates; set others after
    the model is on another device      a warning: the run's key makes other noise on another
                                        kind of device, and generators get new seeds
    a file of another version           ValueError
    ==================================  ===================================================

    Args:
        path: of a file of `save_checkpoint`.
        private, optimizer, loader, scheduler: made as those that were saved.
        forget_ledger: load a file without a ledger, or ignore its ledger.

    Returns:
        `extra`, as it was saved.

    Raises:
        ValueError, StepError: as in the table; nothing has changed then.
        OSError: the file cannot be read.
    """
    path = Path(path)
    state = read(path)
    if "privacy" not in state or "model" not in state:
        if not forget_ledger:
            raise ValueError(
                f"{path}: has no ledger, so that what was spent on training it would be "
                "forgotten: load a file of fxdp.save_checkpoint, or, if it was trained without "
                "these data, pass forget_ledger=True"
            )
        found: dict[str, Any] = state if "model" in state else {"model": state}
        state = found
    elif state.get("version") != VERSION or not set(PARTS) <= set(state):
        raise ValueError(
            f"{path}: must have version {VERSION} and {', '.join(PARTS[1:])}; it has version "
            f"{state.get('version')!r} and {', '.join(k for k in state if k != 'version')}"
        )
    parts: dict[str, Any] = dict(zip(OPTIONAL, (optimizer, scheduler, loader), strict=True))
    for name, part in parts.items():
        if (part is None) != (name not in state):
            there, here = ("no", "pass none") if name not in state else ("the", "pass it")
            raise ValueError(f"{path}: it has {there} {name}: {here}, to go on as it was saved")
    try:
        try:
            check(state, private, parts)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"malformed ({error!r})") from error
        if forget_ledger:
            warnings.warn(
                f"{path}: what was spent on training it is forgotten, as forget_ledger=True asks",
                stacklevel=2,
            )
        else:
            private.load_privacy_state_dict(state["privacy"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    private.load_state_dict(state["model"])
    if "noise" in state:
        private._stepper.keys.load_state_dict(state["noise"])
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(state[name])
    for name, value in state.get("scales", {}).items():
        setattr(private, name, value)
    if "code" in state:
        private._stepper.rows = state["code"]["rows"]
        timings.know(state["code"]["times"])
    if "rng" in state:
        set_generator_states(state["rng"])
        reseed_elsewhere(path, state["devices"], devices(private))
    sweep(path)
    return state.get("extra")


def check(state: dict[str, Any], private: PrivateModule, parts: dict[str, Any]) -> None:
    """Raises ValueError where a part of a file does not fit what it is for; changes nothing."""
    check_model(state["model"], private.state_dict())
    if "scales" in state:
        if set(state["scales"]) != set(SCALES):
            raise ValueError(f"scales: must be {SCALES}, got {sorted(state['scales'])}")
        checked_scales(*(state["scales"][name] for name in SCALES))
    if "noise" in state:
        check_keys(state["noise"])
    if "rng" in state:
        check_generator_states(state["rng"])
        if not all(isinstance(d, str) for d in state["devices"]):
            raise ValueError(f"devices must be names, got {state['devices']!r}")
    if "code" in state:
        rows = state["code"].get("rows")
        if not isinstance(rows, int | None) or set(state["code"]) != {"rows", "times"}:
            raise ValueError(f"code: rows must be a whole number or None, got {rows!r}")
        timings.check(state["code"]["times"])
    if (optimizer := parts["optimizer"]) is not None:
        check_optimizer(state["optimizer"], optimizer)
    if (scheduler := parts["scheduler"]) is not None:
        same_names("scheduler", state["scheduler"], scheduler.state_dict())
    if (loader := parts["loader"]) is not None:
        batches = loader.batches if isinstance(loader, PrivateLoader) else loader
        batches.checked(state["loader"])


def check_model(saved: Any, own: Mapping[str, Any]) -> None:
    """Names, shapes and dtypes of parameters and buffers must be the model's."""
    same_names("model", saved, own)
    for name, value in own.items():
        if not isinstance(value, Tensor):
            continue
        there = saved[name]
        if not isinstance(there, Tensor) or (there.shape, there.dtype) != (
            value.shape,
            value.dtype,
        ):
            got = described(there) if isinstance(there, Tensor) else type(there).__name__
            raise ValueError(f"model: {name} is {got}, and here {described(value)}")


def check_optimizer(saved: Any, optimizer: Optimizer) -> None:
    """An optimizer's state must be of one with the same groups of parameters and settings."""
    own = optimizer.state_dict()
    same_names("optimizer", saved, own)
    there, here = saved["param_groups"], own["param_groups"]
    sizes = [[len(g["params"]) for g in groups] for groups in (there, here)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"optimizer: has groups of {sizes[0]} parameters, and here {sizes[1]}")
    for i, (one, other) in enumerate(zip(there, here, strict=True)):
        same_names(f"optimizer: group {i}", one, other)


def same_names(where: str, saved: Any, own: Mapping[str, Any]) -> None:
    """A saved mapping must have the keys of the one that it is for."""
    if not isinstance(saved, Mapping):
        raise ValueError(f"{where}: must be a mapping, and is a {type(saved).__name__}")
    if set(saved) != set(own):
        lacks, more = sorted(set(own) - set(saved)), sorted(map(str, set(saved) - set(own)))
        raise ValueError(f"{where}: lacks {lacks or 'nothing'}, and also has {more or 'nothing'}")


def described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def devices(private: PrivateModule) -> list[str]:
    """Where the parameters are."""
    return sorted({str(p.device) for p in private.parameters()})


def reseed_elsewhere(path: Path, there: list[str], here: list[str]) -> None:
    """New seeds for torch's generators where the devices were others, or their generators are not
    in the file. Noise needs none: its keys are of releases that are still to come."""
    known = all(torch.device(d).type in ("cpu", "cuda") for d in here)
    if there == here and known:
        return
    torch.seed()
    warnings.warn(
        f"{path}: the model was on {', '.join(there)} and is on {', '.join(here)}: its noise and "
        "random numbers are others there, and the run will differ from one without a break",
        stacklevel=3,
    )
