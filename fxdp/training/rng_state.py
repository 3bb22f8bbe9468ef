"""The states of a process's random generators, in plain types.

Dropout masks and random augmentation come from torch's generators, Python's `random` and numpy's. A
training run that is to go on as if nothing had happened needs all of them back. Noise comes from
none of them, but from a run's key (`fxdp.mechanism.run_key`).
"""

import random
from typing import Any

import numpy as np
import torch

NAMES = {"torch", "cuda", "python", "numpy"}


def generator_states() -> dict[str, Any]:
    """The states of torch's generators, of Python's and of numpy's global ones.

    Returns:
        A mapping that `torch.load(weights_only=True)` reads: "torch" uint8 [bytes], "cuda" one
        such tensor for each device if CUDA is in use, "python" and "numpy" as nested lists.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": _plain(random.getstate()),
        "numpy": _plain(np.random.get_state(legacy=False)),
    }


def check_generator_states(states: object) -> None:
    """Raises ValueError unless `set_generator_states` can take `states`; changes nothing."""
    if not isinstance(states, dict) or set(states) != NAMES:
        raise ValueError(f"rng: must be a mapping of {sorted(NAMES)}")
    try:
        torch.Generator().set_state(states["torch"])
        for device, state in _cuda(states).items():
            torch.Generator(device).set_state(state)
        random.Random().setstate(_frozen(states["python"]))
        np.random.RandomState(_numpys_kind()).set_state(_arrays(states["numpy"]))
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise ValueError(f"rng: no states of the generators here ({error})") from error


def set_generator_states(states: dict[str, Any]) -> None:
    """Sets all generators; of CUDA's those of devices that are here."""
    torch.set_rng_state(states["torch"])
    for device, state in _cuda(states).items():
        torch.cuda.set_rng_state(state, device)
    random.setstate(_frozen(states["python"]))
    np.random.set_state(_arrays(states["numpy"]))


def _cuda(states: dict[str, Any]) -> dict[str, torch.Tensor]:
    here = torch.cuda.device_count() if states["cuda"] else 0
    return {f"cuda:{i}": state for i, state in enumerate(states["cuda"][:here])}


def _numpys_kind() -> Any:
    """A bit generator of the kind that numpy's global one has."""
    kind: Any = vars(np.random)["get_bit_generator"]  # which numpy's own types leave out
    return type(kind())()


def _plain(state: Any) -> Any:
    match state:
        case dict():
            return {key: _plain(value) for key, value in state.items()}
        case tuple() | list():
            return [_plain(value) for value in state]
        case np.ndarray() | np.generic():
            return state.tolist()
        case _:
            return state


def _frozen(state: Any) -> Any:
    return tuple(map(_frozen, state)) if isinstance(state, list) else state


def _arrays(state: Any) -> Any:
    match state:
        case dict():
            return {key: _arrays(value) for key, value in state.items()}
        case list():
            return np.array(state, dtype=np.uint64)  # which numpy brings to what it holds
        case _:
            return state
