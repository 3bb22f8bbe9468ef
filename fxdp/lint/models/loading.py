"""Importing what is to be linted. This runs the file, like any import."""

import contextlib
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from fxdp.lint.failures import place, said
from fxdp.lint.trouble import Trouble

NUMBERS = itertools.count()


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours, and forget those afterwards.

    Two folders may each have a `layers.py`; a file must not get the other's.
    """
    before, text = set(sys.modules), str(folder)
    sys.path.insert(0, text)
    try:
        yield
    finally:
        sys.path.remove(text)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and folder in Path(file).parents and "site-packages" not in file:
                del sys.modules[name]


def package_of(file: Path) -> tuple[Path, str]:
    """The folder to import from, and the dotted name; "" for a file that is in no package."""
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts) if len(parts) > 1 else ""


def load_file(file: Path) -> ModuleType:
    """Import a file by its path; `beside` its folder.

    Raises:
        Trouble: it does not import.
    """
    _, dotted = package_of(file)
    try:
        if dotted:
            return importlib.import_module(dotted.removesuffix(".__init__"))
        name = f"{file.stem}_lint_{next(NUMBERS)}"  # no name that an installed module could have
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise Trouble(f"the file exits when it is imported (code {error.code})") from error
    except Exception as error:
        raise Trouble(f"the file does not import: {said(error)}{place(error)}") from error
    return module


def load_module(name: str) -> ModuleType:
    """Import a module by its dotted name.

    Raises:
        Trouble: it does not exist, or does not import.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise Trouble(f"no such file or module: {name}") from error
        raise Trouble(f"{name} does not import: {said(error)}{place(error)}") from error
    except SystemExit as error:
        raise Trouble(f"{name} exits when it is imported (code {error.code})") from error
    except Exception as error:
        raise Trouble(f"{name} does not import: {said(error)}{place(error)}") from error


def find(module: ModuleType, dotted: str) -> Any:
    """An object of a module, by its name.

    Raises:
        Trouble: the module has none of that name.
    """
    thing: Any = module
    for name in dotted.split("."):
        try:
            thing = getattr(thing, name)
        except AttributeError:
            raise Trouble(f"there is no {dotted!r} in it") from None
        except (Exception, SystemExit) as error:  # modules may import parts when asked for them
            raise Trouble(f"{dotted!r} does not import: {said(error)}") from error
    return thing
