"""`--diff` and `--fix`: the files that define refused models, with group norms for batch norms.

A fix changes what the model computes, so all fixes known so far are unsafe in ruff's sense, and are
written with `--unsafe-fixes` alone.

| case | what happens |
|---|---|
| a file that is not below the current folder, links resolved | it is left alone |
| a file of site-packages, a saved program | likewise |
| a file that changed since the run began | nothing is written to it, and that is said |
| a class of another model in the same file | its norms stay |
| a write that fails | the file is as before |
"""

import difflib
import inspect
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fxdp.diagnostics import sources
from fxdp.diagnostics.fix import substitute
from fxdp.diagnostics.location import ends, is_library
from fxdp.diagnostics.printed import plain_lines
from fxdp.lint.paths import shortened
from fxdp.lint.result import Result
from fxdp.lint.rewriting import rewritten
from fxdp.lint.trouble import Trouble


@dataclass(frozen=True)
class Edit:
    """A file and what it is to be.

    Attributes:
        file: without links, below the current folder.
        before, after: its whole content.
        changes: how many places are different.
    """

    file: Path
    before: bytes
    after: bytes
    changes: int

    def diff(self) -> str:
        """The difference as `git apply` takes it, of printed characters."""
        name = shortened(str(self.file))
        old, new = (text.decode("utf-8", "replace").splitlines(keepends=True)
                    for text in (self.before, self.after))  # fmt: skip
        lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
        return "".join(plain_lines(line.replace("\r\n", "\n")) for line in lines)

    def write(self, since: float) -> None:
        """Replace the file, at once.

        Args:
            since: when the run began, in seconds since the epoch.

        Raises:
            Trouble: it changed since, or cannot be written.
        """
        name = shortened(str(self.file))
        try:
            about = os.stat(self.file)
            if about.st_ctime >= since or self.file.read_bytes() != self.before:
                raise Trouble(f"{name} changed meanwhile: nothing was written to it")
            replace(self.file, self.after, stat.S_IMODE(about.st_mode))
        except OSError as error:
            raise Trouble(f"cannot write {name}: {error.strerror}") from error


def replace(file: Path, content: bytes, mode: int) -> None:
    """Write a new file next to one, and put it in its place."""
    number, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".tmp")
    try:
        with os.fdopen(number, "wb") as new:
            new.write(content)
            new.flush()
            os.fsync(new.fileno())
        os.chmod(name, mode)
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    ends.cache_clear()  # where expressions stood in the old text


def edits(results: Iterable[Result]) -> list[Edit]:
    """What to change in the files of refused models."""
    found: list[Edit] = []
    for file, classes in faulty(results).items():
        before = file.read_bytes()
        with suppress(SyntaxError):
            new = rewritten(before, frozenset(classes))
            compile(new.content, str(file), "exec", dont_inherit=True)
            if new.changes:
                found.append(Edit(file, before, new.content, new.changes))
    return found


def faulty(results: Iterable[Result]) -> dict[Path, set[str]]:
    """The classes whose norms mix samples, by file."""
    found: dict[Path, set[str]] = {}
    for result in results:
        if result.model is None or result.target.endswith(".pt2"):
            continue
        for path in {path for f in result.findings for path in f.modules}:
            for kind in owners(result.model, path):
                if (file := own_file(kind)) is not None:
                    found.setdefault(file, set()).add(kind.__qualname__.partition(".")[0])
    return found


def owners(model: nn.Module, path: str) -> Iterator[type]:
    """The classes of the modules around a norm that can be replaced, and their bases."""
    try:
        if substitute(model.get_submodule(path)) is None:
            return
    except AttributeError:
        return
    parts = path.split(".") if path else []
    for end in range(len(parts)):
        yield from type(model.get_submodule(".".join(parts[:end]))).__mro__


def own_file(kind: type) -> Path | None:
    """The file that defines a class, where it may be written; its module may be forgotten."""
    names = {f.__code__.co_filename for f in vars(kind).values() if inspect.isfunction(f)}
    own = [n for n in names if not is_library(n) and sources.lines(n) and sources.is_shown(n)]
    if len(own) != 1:
        return None
    file = Path(os.path.realpath(own[0]))
    return None if {"site-packages", "dist-packages"} & set(file.parts) else file
