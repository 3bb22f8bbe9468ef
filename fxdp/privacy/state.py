"""Ledgers and ways to draw, in plain types: what JSON and torch.load(weights_only=True) allow.

A kind of release or of sampling is written as a mapping of its fields, with its name under
"kind". Whatever is not exactly that is refused: a ledger that was read wrongly would forget
what has been spent.
"""

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, TypeVar

from fxdp.arguments import require_one_of, require_whole
from fxdp.privacy.release import BandedRelease, CountedRelease, GaussianRelease, Release, Run
from fxdp.privacy.sampling import SAMPLINGS
from fxdp.privacy.sampling_rule import Accountant, Neighbours, Sampling

VERSION = 1
RELEASES = {
    "gaussian": GaussianRelease,
    "counted-gaussian": CountedRelease,
    "banded-gaussian": BandedRelease,
}

Made = TypeVar("Made")


@dataclass(frozen=True)
class LedgerState:
    """What a ledger is made of."""

    accountant: Accountant
    neighbours: Neighbours
    runs: tuple[Run, ...]
    unprotected: int = 0

    def to_plain(self) -> dict[str, Any]:
        """As mappings, lists, strings and numbers."""
        noted = {"unprotected": self.unprotected} if self.unprotected else {}
        return noted | {
            "version": VERSION,
            "accountant": self.accountant,
            "neighbours": self.neighbours,
            "runs": [
                {"count": run.count, "release": _release_to_plain(run.release)} for run in self.runs
            ],
        }

    @staticmethod
    def from_plain(state: object) -> "LedgerState":
        """The inverse of `to_plain`.

        Raises:
            ValueError: the state is of another version or malformed; the message says where.
        """
        names = {"version", "accountant", "neighbours", "runs"}
        if isinstance(state, dict) and "unprotected" in state:  # only where there is something
            names.add("unprotected")
        top = _mapping(state, "ledger", names)
        if top["version"] != VERSION:
            raise ValueError(f"ledger state: version {top['version']!r}, and {VERSION} is known")
        require_one_of(Accountant, "ledger state: accountant", top["accountant"])
        require_one_of(Neighbours, "ledger state: neighbours", top["neighbours"])
        if not isinstance(top["runs"], list):
            raise ValueError(f"ledger state: runs must be a list, got {top['runs']!r}")
        items: list[Any] = top["runs"]
        runs = tuple(_run(item, f"ledger state: run {i}") for i, item in enumerate(items))
        unprotected = top.get("unprotected", 0)
        require_whole("ledger state: unprotected", unprotected, 0)
        return LedgerState(top["accountant"], top["neighbours"], runs, int(unprotected))


def sampling_to_plain(sampling: Sampling | None) -> dict[str, Any] | None:
    """A way to draw as a mapping with its kind; None stays None."""
    if sampling is None:
        return None
    return {"kind": _name_of(SAMPLINGS, sampling)} | _numbers(sampling)


def sampling_from_plain(state: object, where: str) -> Sampling | None:
    """The inverse of `sampling_to_plain`.

    Raises:
        ValueError: malformed; the message begins with `where`.
    """
    if state is None:
        return None
    return _made(SAMPLINGS, state, where)


def _release_to_plain(release: Release) -> dict[str, Any]:
    sampling = sampling_to_plain(release.sampling)
    return {"kind": _name_of(RELEASES, release), "sampling": sampling} | _numbers(release)


def _numbers(value: Any) -> dict[str, Any]:
    """The fields that are numbers.

    A number of NumPy's would do for json, and not for torch.load(weights_only=True).
    """
    numbers = {f: getattr(value, f.name) for f in fields(value) if f.name != "sampling"}
    return {f.name: int(n) if _is_whole(f) else float(n) for f, n in numbers.items()}


def _is_whole(field: "Field[Any]") -> bool:
    return field.type is int


def _run(state: object, where: str) -> Run:
    read = _mapping(state, where, {"count", "release"})
    count = _number(read["count"], f"{where}: count", whole=True)
    require_whole(f"{where}: count", count, 1)
    return Run(_made(RELEASES, read["release"], f"{where}: release"), int(count))


def _made(kinds: Mapping[str, Callable[..., Made]], state: object, where: str) -> Made:
    kind = state.get("kind") if isinstance(state, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{where}: kind must be one of {sorted(kinds)}, got {state!r}")
    known = {field.name: field for field in fields(kinds[kind])}  # pyright: ignore[reportArgumentType]
    read = _mapping(state, where, {"kind", *known})
    values = {
        name: sampling_from_plain(read[name], f"{where}: sampling")
        if name == "sampling"
        else _number(read[name], f"{where}: {name}", whole=_is_whole(field))
        for name, field in known.items()
    }
    try:
        return kinds[kind](**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _mapping(state: object, where: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(state, dict) or set(state) != names:
        raise ValueError(f"{where}: must be a mapping of {sorted(names)}, got {state!r}")
    return state


def _number(value: object, where: str, whole: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        wanted = "a whole number" if whole else "a number"
        raise ValueError(f"{where} must be {wanted}, got {value!r}")
    return value


def _name_of(kinds: Mapping[str, type], value: object) -> str:
    return next(name for name, kind in kinds.items() if type(value) is kind)
