"""Verdicts of earlier runs, in `.fxdp_lint_cache`, for files that are as they were.

A verdict is taken from there only if nothing that it rests on has changed (`fxdp.lint.witness`):
the linted file, what it imports, how it is linted, fxdp, torch, Python, the environment. In any
doubt a file is linted again. Entries are signed with a key of the user's own, which lies in the
cache folder of their home: a folder of entries that came with a repository proves nothing.

| case | what happens |
|---|---|
| a model that could not be linted | no entry: what is missing may come |
| an entry that was changed, of another user or for another target | linted again |
| a folder or home that cannot be written | no cache |
| `--certificate`, `--fix`, `--diff`, `-v`, HTML | linted again: an entry holds findings alone |
"""

import hashlib
import hmac
import json
import os
import platform
import secrets
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxdp.diagnostics.codes import CODES
from fxdp.diagnostics.version import torch_version
from fxdp.lint.models.wanted import Wanted
from fxdp.lint.result import Finding, LeftOut, Result
from fxdp.lint.witness import OWN, Grounds, installed, stamp

LARGEST = 50_000_000  # bytes of an entry
MOST = 1000  # entries of a folder
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n"  # https://bford.info/cachedir
# What differs from one terminal to the next, and nothing computes with.
IGNORED = {"_", "SHLVL", "PWD", "OLDPWD", "TERM", "COLORTERM", "COLUMNS", "LINES", "WINDOWID",
           "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "TERM_SESSION_ID", "NO_COLOR", "FORCE_COLOR",
           "SSH_TTY", "SSH_CLIENT", "SSH_CONNECTION", "STY", "TMUX", "TMUX_PANE", "PS1",
           "PYTEST_CURRENT_TEST"}  # fmt: skip
FIELDS = ("target", "path", "line", "status", "trouble", "details", "seconds", "assumed")


@dataclass(frozen=True)
class Cache:
    """The entries of a folder.

    Attributes:
        folder: where they lie.
        key: of the user, by which they are signed.
        ground: what all verdicts of this process rest on.
    """

    folder: Path
    key: bytes
    ground: str

    @classmethod
    def of(cls, folder: Path) -> "Cache | None":
        """None where there can be no cache."""
        try:
            if folder.is_symlink() or (key := users_key()) is None:
                return None
            return cls(folder, key, common())
        except (OSError, RuntimeError):
            return None

    def file(self, target: str, plan: Wanted) -> Path:
        """The file of an entry."""
        about = [self.ground, os.getcwd(), target, repr(plan)]
        return self.folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.bin"

    def get(self, target: str, plan: Wanted) -> list[Result | LeftOut] | None:
        """What an earlier run found, if nothing has changed since."""
        file = self.file(target, plan)
        try:
            if file.is_symlink() or file.stat().st_size > LARGEST:
                return None
            data = file.read_bytes()
            signature, packed = data[:32], data[32:]
            if not hmac.compare_digest(signature, self.signed(file, packed)):
                return None
            entry = json.loads(zlib.decompress(packed))
            stamped = {f: s and tuple(s) for f, s in entry["stamped"].items()}
            grounds = Grounds(entry["read"], stamped, entry["folders"])
            return [restored(r) for r in entry["results"]] if grounds.hold() else None
        except (OSError, ValueError, KeyError, TypeError, zlib.error):
            return None

    def put(
        self, target: str, plan: Wanted, results: Sequence[Result | LeftOut], grounds: Grounds
    ) -> None:
        """Keep what a run found; not where a model failed, and quietly not where that fails."""
        if any(isinstance(r, Result) and r.status == "failed" for r in results):
            return
        file = self.file(target, plan)
        entry = asdict(grounds) | {"results": [stored(r) for r in results]}
        packed = zlib.compress(json.dumps(entry).encode(), 1)
        with suppress(OSError):
            prepare(self.folder)
            number, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            with os.fdopen(number, "wb") as new:
                new.write(self.signed(file, packed) + packed)
            os.replace(name, file)
            prune(self.folder)

    def signed(self, file: Path, packed: bytes) -> bytes:
        """The signature of an entry, which holds for its own target alone."""
        return hmac.digest(self.key, file.name.encode() + packed, "sha256")


def users_key() -> bytes | None:
    """The user's key, which nobody else may read; made when there is none."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    file = Path(home) / "fxdp" / "lint.key"
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(number, "wb") as new:
                new.write(secrets.token_bytes(32))
    about = os.lstat(file)
    mine = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    shared = os.name == "posix" and about.st_mode & 0o077
    key = file.read_bytes() if mine and not shared and stat.S_ISREG(about.st_mode) else b""
    return key if len(key) == 32 else None


def common() -> str:
    """What all verdicts rest on: fxdp, torch, Python, what is installed, the environment."""
    sources = hashlib.sha256()
    for file in sorted([*OWN.rglob("*.py"), *(OWN.parent / "passes").rglob("*.py")]):
        sources.update(f"{file}\0".encode() + file.read_bytes() + b"\0")
    environment = sorted((k, v) for k, v in os.environ.items() if k not in IGNORED)
    devices = [d for d in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd") if os.path.exists(d)]
    about = [sources.hexdigest(), torch_version(), sys.version, sys.executable, platform.platform(),
             sys.path, [stamp(folder) for folder in installed()], environment, devices,
             os.cpu_count(), list(sys.flags), sys.warnoptions]  # fmt: skip
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def stored(r: Result | LeftOut) -> dict[str, Any]:
    """A result as JSON: without the model, and what was learned of it."""
    if isinstance(r, LeftOut):
        return asdict(r)
    findings = [vars(f) | {"code": f.code.name} for f in r.findings]
    return {name: getattr(r, name) for name in FIELDS} | {"findings": findings}


def restored(entry: dict[str, Any]) -> Result | LeftOut:
    """The result of an entry.

    Raises:
        KeyError, TypeError: the entry holds something else.
    """
    if "why" in entry:
        return LeftOut(**entry)
    findings = [Finding(**{k: known(k, v) for k, v in f.items()}) for f in entry.pop("findings")]
    fields: dict[str, Any] = {k: known(k, v) for k, v in entry.items()}
    return Result(findings=tuple(findings), **fields)


def known(name: str, value: Any) -> Any:
    """A field of a finding or result."""
    if name == "code":
        return CODES[value]
    return tuple(value) if isinstance(value, list) else value


def prepare(folder: Path) -> None:
    """Make the folder, and tell backups and git to pass it by."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ((".gitignore", "*\n"), ("CACHEDIR.TAG", TAG)):
        with suppress(FileExistsError), open(folder / name, "x") as file:
            file.write(text)


def prune(folder: Path) -> None:
    """Forget the oldest entries of too many."""
    entries = sorted(folder.glob("*.bin"), key=lambda f: f.stat().st_mtime)
    forget(entries[:-MOST])


def forget(files: Iterable[Path]) -> None:
    """Remove files, of which some may be gone."""
    for file in files:
        file.unlink(missing_ok=True)
