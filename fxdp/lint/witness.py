"""What a verdict rests on: the files that were read for it, and the folders that were searched.

Python reports what it opens and starts to audit hooks. A model that does what no list of files
shows (it starts a process, asks the network, writes a file) has a verdict that is not kept at all.
"""

import ast
import hashlib
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fxdp

OWN = Path(fxdp.__file__).resolve().parent
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SPOILS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
          "os.startfile", "socket.", "sqlite3.", "urllib.", "http.")  # fmt: skip
DEVICES = ("/dev/", "/proc/", "/sys/")
# What sources may ask that leaves no trace: is there such a file, what time is it.
UNSEEN = re.compile(
    r"\b(exists|is_file|is_dir|isfile|isdir|glob|iglob|access|l?stat|getmtime|random\.\w+\(\)|"
    r"from_file|from_pretrained|__import__|exec|eval|"
    r"(?:np|numpy)\.random|import random|time\(|now\(|today\(|uuid\d|urandom|gethostname|getpid)\b"
)
# Whoever else is imported may open files in a language that Python's hooks do not see.
KNOWN = (sys.stdlib_module_names - {"ctypes", "mmap", "dbm", "importlib", "multiprocessing"}) | {
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "numpy",
    "einops",
    "fxdp",
}
SUFFIXES = (".py", ".pyc", ".so", ".pyd")
Stamp = tuple[int, int, int] | None  # of a file: its size, time and number; None if there is none


def stamp(file: str) -> Stamp:
    """What changes where a file does, without reading it."""
    try:
        about = os.stat(file)
    except (OSError, ValueError):
        return None
    return about.st_size, about.st_mtime_ns, about.st_ino


def content(file: str) -> str:
    """The hash of a file; "" if there is none."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return ""


def listing(folder: str) -> str:
    """The hash of the names in a folder that an import could find."""
    try:
        entries = [e for e in os.scandir(folder) if not e.name.startswith((".", "__pycache__"))]
        names = sorted(e.name for e in entries if e.name.endswith(SUFFIXES) or e.is_dir())
    except (OSError, ValueError):
        return ""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def installed() -> tuple[str, ...]:
    """The folders of Python and of what is installed, whose files are told by their stamps."""
    paths = {sysconfig.get_paths()[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {p for p in sys.path if "site-packages" in p or "dist-packages" in p}
    return tuple(f"{os.path.abspath(p)}{os.sep}" for p in sorted(paths))


@dataclass
class Grounds:
    """What a verdict rests on.

    Attributes:
        read: own files, by the hash of what they hold; "" for those that were not there.
        stamped: installed files, by their stamps.
        folders: by the hash of their names.
    """

    read: dict[str, str] = field(default_factory=lambda: {})
    stamped: dict[str, Stamp] = field(default_factory=lambda: {})
    folders: dict[str, str] = field(default_factory=lambda: {})

    def hold(self) -> bool:
        """Is everything as it was?"""
        return (
            all(content(f) == h for f, h in self.read.items())
            and all(listing(f) == h for f, h in self.folders.items())
            and all(stamp(f) == s for f, s in self.stamped.items())
        )


class Witness:
    """Sees what is opened while a target is linted; there is one, as hooks stay for good."""

    def __init__(self) -> None:
        self.first: dict[str, Stamp] = {}
        self.opened: set[str] = set()
        self.listed: set[str] = set()
        self.spoilt = False
        self.tainted = False  # by a target that replaced something in this process
        self.watches = False
        self.before: set[str] | None = None  # what this process imported before any target

    def begin(self) -> None:
        """From here on it is another target."""
        if self.before is None:
            sys.addaudithook(self.hook)
            self.before = set(imported(sys.modules.values()))
        self.opened, self.listed, self.spoilt = set(), set(), False
        self.watches = True

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """What Python calls; it raises nothing."""
        if not self.watches:
            return
        try:
            if event == "open":
                self.see(args[0], args[2] if len(args) > 2 else 0)
            elif event in ("os.listdir", "os.scandir"):
                path = "." if args[0] is None else args[0]
                if isinstance(path, str | bytes | os.PathLike):
                    self.listed.add(os.path.abspath(os.fsdecode(path)))
            elif event.startswith(SPOILS):
                self.spoilt = True
        except Exception:  # there may be no current folder
            self.spoilt = True

    def see(self, path: Any, flags: Any) -> None:
        """A file is opened."""
        if not isinstance(path, str | bytes | os.PathLike):
            return
        file = os.path.abspath(os.fsdecode(path))
        if file.startswith(DEVICES):
            return
        self.spoilt |= isinstance(flags, int) and bool(flags & WRITES)
        for name in (file, source_of(file)):
            self.first.setdefault(name, stamp(name))
        self.opened.add(file)

    def grounds(self) -> Grounds | None:
        """What the verdict rests on; None where that cannot be told, or changed meanwhile."""
        self.watches = False
        if self.spoilt:
            return None
        found, library = Grounds(), installed()
        for file in {*self.opened, *imported(sys.modules.values())}:
            if Path(file).is_relative_to(OWN) or Path(file).is_relative_to(OWN.parent / "passes"):
                continue
            source = source_of(file)
            if source.startswith(library) or file in (self.before or ()):
                found.stamped[file] = stamp(file)
                continue
            changed = any(self.first.get(f, stamp(f)) != stamp(f) for f in (file, source))
            if changed or is_doubtful(file, source):
                return None
            found.read[source] = content(source)
            if source.endswith(".py"):
                found.folders[os.path.dirname(source)] = ""
        own = {os.path.abspath(p) for p in sys.path} | self.listed
        for folder in {*own, *found.folders}:
            if not f"{folder}{os.sep}".startswith(library):
                found.folders[folder] = listing(folder)
        return found


def imported(modules: Iterable[Any]) -> list[str]:
    """The files of modules; those of built-in ones have none."""
    files = (getattr(module, "__file__", None) for module in list(modules))
    return [os.path.abspath(f) for f in files if isinstance(f, str)]


def source_of(file: str) -> str:
    """The source that a file of bytecode was made of; any other file is its own."""
    try:
        return importlib.util.source_from_cache(file) if file.endswith(".pyc") else file
    except ValueError:
        return file


def is_doubtful(file: str, source: str) -> bool:
    """May the verdict depend on more than the text of this file?

    Bytecode that was written in the second in which its source was last changed may be of the text
    before; and a source may ask for what no hook sees.
    """
    if file != source:
        old, new = stamp(file), stamp(source)
        if old is not None and (new is None or old[1] // 10**9 <= new[1] // 10**9):
            return True
    if not source.endswith(".py"):
        return False
    try:
        text = Path(source).read_text("utf-8", "replace")
    except OSError:
        return False
    try:
        names = set(modules_in(text))
    except (SyntaxError, ValueError, RecursionError):
        return True
    return UNSEEN.search(text) is not None or any(map(is_foreign, names - KNOWN))


def modules_in(text: str) -> Iterator[str]:
    """The modules that a source imports, by the first part of their names."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def is_foreign(name: str) -> bool:
    """Is a module none of the user's own, which are read like the file that imports them?"""
    if name in sys.stdlib_module_names:
        return True  # one of those that may open files so
    file = getattr(sys.modules.get(name), "__file__", None)
    return isinstance(file, str) and os.path.abspath(file).startswith(installed())


WITNESS = Witness()
