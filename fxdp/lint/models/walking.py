"""The files that define models, found without running any, and without torch."""

import ast
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from fxdp.diagnostics.sources import LARGEST
from fxdp.lint.trouble import Trouble

EXAMPLE = "fxdp_example"
SKIPPED = {"site-packages", "node_modules", "__pycache__", "build", "dist", "venv"}
BASE = re.compile(r"^(\w*Module|\w*PreTrainedModel|LightningModule)$")


def expanded(target: str, exclude: Sequence[str] = ()) -> list[str]:
    """A directory's files that define models; any other target as it is, also an excluded one.

    Args:
        target: what the user names.
        exclude: names of files and folders, or paths from the current folder, with `*` and `?`.

    Raises:
        Trouble: a directory without such files.
    """
    path, _, name = split(target)
    if not Path(path).is_dir():
        return [target]
    if name:
        raise Trouble(f"{target}: a directory has no objects: name the file")
    if not (found := files(Path(path))):
        raise Trouble(f"{target}: no Python file in it defines an nn.Module")
    return [str(file) for file in found if not is_excluded(file, exclude)]


def split(target: str) -> tuple[str, str, str]:
    """`PATH:OBJECT` in parts."""
    path, colon, name = target.rpartition(":")
    return (path, colon, name) if colon and "/" not in name else (target, "", "")


def absence(target: str) -> str:
    """Why there is nothing that a target could name; "" where there may be."""
    path, _, name = split(target)
    file = Path(path)
    if path.endswith((".py", ".pt2")):
        return "" if file.is_file() else "no such file"
    if file.exists():
        return "not a Python file, a .pt2 program or a directory"
    if "/" in path or not path.replace(".", "").isidentifier():
        return "no such file or directory"
    return "" if name else f"no such file; of a module name the model too: {path}:Model"


def is_excluded(file: Path, patterns: Sequence[str]) -> bool:
    """Does a pattern name a file, or a folder that it is in?"""
    return any(matches(part, p) for part in (file, *file.parents) for p in patterns)


def matches(file: Path, pattern: str) -> bool:
    """Does a pattern name a file or folder, by its own name or by its path?"""
    pattern = pattern.rstrip("/").removeprefix("./")
    if "/" not in pattern:
        return fnmatch(file.name, pattern)
    return any(fnmatch(str(path), pattern) for path in (file, Path.cwd() / file))


def files(folder: Path) -> list[Path]:
    """The Python files of a folder that define models, without running any; no pipes or devices,
    nothing very large, and no links that lead out of the folder."""
    found = (f for f in sorted(folder.rglob("*.py")) if wanted(f.relative_to(folder)))
    return [f for f in found if is_inside(f, folder) and defines_models(f)]


def is_inside(file: Path, folder: Path) -> bool:
    """Is this a file of sensible size, that is in the folder and not only linked from there?"""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            return False
        return folder.resolve() in file.resolve().parents
    except OSError:
        return False


def wanted(file: Path) -> bool:
    """Is this a file of the project's own?"""
    return not any(p in SKIPPED or p.startswith(".") for p in file.parts)


def defines_models(file: Path) -> bool:
    """Does a file define a subclass of nn.Module, or an example? A broken one might."""
    text = file.read_bytes()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return b"nn.Module" in text
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == EXAMPLE:
            return True
        if isinstance(node, ast.ClassDef) and any(
            BASE.match(n) for n in map(last_name, node.bases)
        ):
            return True
    return False


def last_name(base: ast.expr) -> str:
    """`Module`, of `torch.nn.Module`."""
    match base:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return last_name(value)
        case _:
            return ""
