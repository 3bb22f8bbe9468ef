"""Keys of noise: one for a run, and from it one for each release, by the release's number.

Noise that two releases share cancels out of their difference, and with it goes all privacy. So
torch's generators have a part in it once: the first time a run needs noise, the state they are in
becomes its key, so that one seed at the start makes a run repeatable. Whatever is seeded or
restored afterwards changes nothing.
"""

import itertools
import multiprocessing
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from fxdp.mechanism.keystream import KEY_WORDS

RUNS = itertools.count()  # runs of this process so far, which all have keys of their own
ROOT_BYTES = 32
# What tells this process from the one that it was forked from; b"" where it was not forked.
BRANCH: list[bytes] = [b""]


def forked() -> None:
    """Called in a child of os.fork: all keys are others from here on."""
    BRANCH[0] = secrets.token_bytes(ROOT_BYTES)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forked)


@dataclass
class RunKey:
    """The key of one run, and which of its releases are to come.

    Guarantees:
        No two releases of a process and its children have one key, as far as SHA-256 tells their
        inputs apart: a key is a function of the run's and of a number that never comes twice.

        ==========================================  =========================================
        case                                        what happens
        ==========================================  =========================================
        one seed before the first release           the run can be repeated, in a new process
        torch.manual_seed, or a generator's state   nothing: the run has its key
        put back, between two releases
        a release that was drawn and not delivered  its number is not used again
        a child of os.fork                          another key, from the system's entropy
        a copy, a second module, one seed or not    another key
        processes started by multiprocessing, or    other keys, also from one seed
        by torchrun (RANK)
        a checkpoint that is loaded                 goes on with the run's key and number
        a ledger that is loaded without its key     another key; numbers start after its releases
        another kind of device                      the same key, and other noise: a cipher with a
                                                    key of its own (`fxdp.mechanism.chacha`)
        secure                                      each key from the system's entropy
        ==========================================  =========================================

    Attributes:
        secure: whether keys come from the system's entropy, and no run can be repeated.
        root: the run's key, a secret; None before the first release.
        drawn: how many numbers were used.
        numbers: the noise number of each parameter, by name; a name keeps its number.
        branch: which fork the root was drawn in.
    """

    secure: bool = False
    root: bytes | None = field(default=None, repr=False)
    drawn: int = 0
    numbers: dict[str, int] = field(default_factory=lambda: {})
    branch: bytes = field(default=b"", repr=False)

    def next(self, released: int = 0) -> Tensor:
        """int64 [2], the key of the next release.

        Args:
            released: how many releases the ledger knows of, those of other runs included.
        """
        number = self.drawn = max(self.drawn, released) + 1
        if self.secure:
            return as_key(secrets.token_bytes(8 * KEY_WORDS))
        if self.root is None:
            self.root, self.branch = fresh_root(), BRANCH[0]
        if self.branch != BRANCH[0]:
            self.root = sha256(b"fxdp fork" + self.root + BRANCH[0]).digest()
            self.branch = BRANCH[0]
        told = sha256(b"fxdp release" + self.root + number.to_bytes(8)).digest()
        return as_key(told[: 8 * KEY_WORDS])

    def number(self, parameter: str) -> int:
        """The noise number of a parameter: the next free one if it has none."""
        return self.numbers.setdefault(parameter, len(self.numbers))

    def know(self, parameters: Iterable[str]) -> None:
        """Number parameters in their order, whether or not they are trained."""
        for name in parameters:
            self.number(name)

    def anew(self) -> "RunKey":
        """For a copy, which has releases of its own."""
        return RunKey(self.secure, numbers=dict(self.numbers))

    def __deepcopy__(self, memo: Mapping[int, Any]) -> "RunKey":
        return self.anew()

    def state_dict(self) -> dict[str, Any]:
        """In plain types. It tells all noise: as secret as the data."""
        root = None if self.root is None else self.root.hex()
        return {"root": root, "drawn": self.drawn, "numbers": dict(self.numbers)}

    def load_state_dict(self, state: object) -> None:
        """Go on with the noise of the run that gave `state`.

        Raises:
            ValueError: it is malformed; nothing has changed then.
        """
        root, drawn, numbers = checked(state)
        self.root, self.drawn, self.numbers = root, drawn, numbers
        self.branch = BRANCH[0]  # a child of fork that loads a run goes on with it


def checked(state: object) -> tuple[bytes | None, int, dict[str, int]]:
    """The parts of a run key's state.

    Raises:
        ValueError: it is malformed.
    """
    if not isinstance(state, dict) or set(state) != {"root", "drawn", "numbers"}:
        raise ValueError("noise keys: must have root, drawn and numbers")
    root, drawn, numbers = state["root"], state["drawn"], state["numbers"]
    try:
        known = None if root is None else bytes.fromhex(root)
    except (TypeError, ValueError):
        known = b""
    if known is not None and len(known) != ROOT_BYTES:
        raise ValueError(f"noise keys: root must be {ROOT_BYTES} bytes in hexadecimal, or None")
    if not whole(drawn):
        raise ValueError(f"noise keys: drawn must be a whole number, got {drawn!r}")
    if not isinstance(numbers, dict) or not all(isinstance(k, str) for k in numbers):
        raise ValueError("noise keys: numbers must map names of parameters to whole numbers")
    if sorted(numbers.values(), key=str) != sorted(range(len(numbers)), key=str):
        raise ValueError("noise keys: two parameters have one noise number, or one is left out")
    return known, drawn, dict(numbers)


def whole(value: object) -> bool:
    """Is it a whole number, at least 0?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def fresh_root() -> bytes:
    """A run's key: of the state of torch's generator, which is left as it is, and of what tells
    this run from others that start in that state."""
    where = multiprocessing.current_process().name, os.environ.get("RANK", "")
    told = sha256(b"fxdp run" + torch.get_rng_state().numpy().tobytes())
    told.update(repr((next(RUNS), where)).encode() + BRANCH[0])
    return told.digest()


def seed_root(seed: int) -> bytes:
    """A key that a seed decides, for runs whose releases nobody gets to see (`fxdp.audit`)."""
    return sha256(b"fxdp audit" + str(seed).encode()).digest()


def as_key(secret: bytes) -> Tensor:
    """16 bytes as int64 [2]."""
    return torch.frombuffer(bytearray(secret), dtype=torch.int64).clone()
