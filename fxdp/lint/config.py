"""`[tool.fxdp-lint]` of the nearest pyproject.toml that has one.

    [tool.fxdp-lint]
    targets = ["models/net.py", "models/bert.py:make"]
    exclude = ["tests"]
    ignore = ["FXD303"]

    [tool.fxdp-lint.per-file-ignores]
    "models/old/*.py" = ["FXD101"]

    [tool.fxdp-lint.models."models/net.py:Net"]
    input = ["f32[N,3,32,32]"]
    loss = "cross_entropy"

The keys are those of the command line; what the command line says goes first.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxdp.lint.trouble import Trouble

MODEL = {"input", "target", "loss", "train", "args", "kwargs", "config", "batch-dims", "timeout"}
RUN = {
    "targets", "exclude", "select", "ignore", "per-file-ignores", "output-format", "models",
    "unsafe-fixes", "cache-dir",
}  # fmt: skip
LISTS = {"targets", "exclude", "select", "ignore", "input"}


@dataclass(frozen=True)
class Config:
    """What pyproject.toml says.

    Attributes:
        run: of the run, and of all models.
        models: of single ones, by their file, or `PATH:OBJECT`, from the file's own folder.
        folder: where the file lies.
    """

    run: dict[str, Any] = field(default_factory=lambda: {})
    models: dict[str, dict[str, Any]] = field(default_factory=lambda: {})
    folder: Path = field(default_factory=Path)

    @property
    def targets(self) -> list[str]:
        """What is linted where the command line names nothing, from the current directory."""
        here = self.folder.resolve() == Path.cwd().resolve()
        given: list[str] = self.run.get("targets", [*self.models])
        return [t if here or not is_path(t) else str(self.folder / t) for t in given]

    @property
    def exclude(self) -> list[str]:
        """What is left out of directories, from the current directory."""
        return [self.from_here(p) for p in self.run.get("exclude", [])]

    @property
    def per_file_ignores(self) -> dict[str, list[str]]:
        """Codes that are not reported of some files, by patterns from the current directory."""
        given: dict[str, list[str]] = self.run.get("per-file-ignores", {})
        return {self.from_here(p): codes for p, codes in given.items()}

    @property
    def cache_dir(self) -> Path:
        """Where verdicts are kept: next to the file, unless that says otherwise."""
        given = self.run.get("cache-dir", ".fxdp_lint_cache")
        return self.folder / (given if isinstance(given, str) else ".fxdp_lint_cache")

    def from_here(self, pattern: str) -> str:
        """A pattern as it matches from the current directory; a name matches anywhere."""
        mark, path = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
        return pattern if "/" not in path else f"{mark}{self.folder.resolve() / path}"

    def of(self, target: str) -> dict[str, Any]:
        """The settings of a target: those of all models, of its file, and its own."""
        found = {k: v for k, v in self.run.items() if k in MODEL}
        path, _, _ = target.rpartition(":")
        for name, settings in self.models.items():
            own = str(self.folder / name) if is_path(name) else name
            if same(own, target) or (path and same(own, path)):
                found |= settings
        return found


def is_path(target: str) -> bool:
    """Is this a file or folder, and no module?"""
    path = target.partition(":")[0]
    return "/" in path or path.endswith((".py", ".pt2")) or Path(path).exists()


def same(a: str, b: str) -> bool:
    """Do two targets name one thing?"""
    (path_a, _, name_a), (path_b, _, name_b) = a.partition(":"), b.partition(":")
    return name_a == name_b and (
        path_a == path_b or Path(path_a).resolve() == Path(path_b).resolve()
    )


def read(start: Path) -> Config:
    """The settings that hold in a directory.

    Raises:
        Trouble: a file that cannot be read, or a key that means nothing.
    """
    for folder in (start.resolve(), *start.resolve().parents):
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
        except (ValueError, OSError) as error:
            raise Trouble(f"{file}: {error}") from error
        if "fxdp-lint" in table:
            return checked(table["fxdp-lint"], file)
    return Config()


def checked(table: Any, file: Path) -> Config:
    """A table whose keys and kinds of values are right."""
    where = f"{file}: [tool.fxdp-lint]"
    if not isinstance(table, Mapping):
        raise Trouble(f"{where} is not a table")
    models: Any = table.get("models", {})
    if not isinstance(models, Mapping) or not all(isinstance(m, Mapping) for m in models.values()):
        raise Trouble(f"{where} models must be tables, by target")
    for known, keys in ((RUN | MODEL, table), *((MODEL, m) for m in models.values())):
        if unknown := sorted(set(keys) - known):
            raise Trouble(
                f"{where} has an unknown key {unknown[0]!r}: one of {', '.join(sorted(known))}"
            )
        for key in LISTS & set(keys):
            if not is_words(keys[key]):
                raise Trouble(f"{where} {key} must be a list of strings")
    files: Any = table.get("per-file-ignores", {})
    if not isinstance(files, Mapping) or not all(is_words(codes) for codes in files.values()):
        raise Trouble(f"{where} per-file-ignores must be lists of codes, by pattern")
    run = {k: v for k, v in table.items() if k != "models"}
    return Config(run, {k: dict(v) for k, v in models.items()}, file.parent)


def is_words(value: Any) -> bool:
    """Is this a list of strings?"""
    return isinstance(value, list) and all(isinstance(v, str) for v in value)
