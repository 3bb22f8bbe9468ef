"""The order of the house: who may import whom, and what stays out of where."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fxdp

ROOT = Path(__file__).parents[1]
# Packages and loose modules, lowest first: each imports from those above it alone.
ORDER = (
    "torch_internals",
    "placement",
    "arguments",
    "status",
    "diagnostics",
    "distributed",
    "shapes",
    "kernels",
    "rules",
    "privacy",
    "data",
    "mechanism",
    "forms",
    "autotune",
    "graph",
    "proof",
    "capture",
    "ops",
    "passes",
    "backend",
    "pipeline",
    "module",
    "compiler",
    "torch_compile",
    "training",
    "auditing",
    "lint",
    "__init__",
)
LEVEL = {name: i for i, name in enumerate(ORDER)}
LOOSE = 8
# Who knows nothing of whom, though it stands below.
STRANGERS = {"privacy": {"mechanism", "kernels", "rules"}, "mechanism": {"privacy", "data"}}


def sources() -> dict[str, Path]:
    """Every module of the package, by its dotted name below fxdp."""
    found = {}
    for folder, prefix in ((ROOT / "fxdp", ""), (ROOT / "passes", "passes.")):
        for path in sorted(folder.rglob("*.py")):
            if folder / "passes" not in path.parents:
                found[prefix + ".".join(path.relative_to(folder).with_suffix("").parts)] = path
    return found


SOURCES = sources()


def imports(path: Path) -> set[str]:
    """The modules of fxdp that a file imports, as dotted names below fxdp."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            names += [f"{node.module}.{a.name}" for a in node.names]
        found |= {n.removeprefix("fxdp.") for n in names if n.startswith("fxdp.")}
    return {n for n in found if n in SOURCES or f"{n}.__init__" in SOURCES}


def part(module: str) -> str:
    """The file or folder below fxdp that a module belongs to."""
    return module.split(".")[0]


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module: str) -> None:
    own = part(module)
    assert own in LEVEL, f"{module} has no place in the order of packages"
    known = {part(i) for i in imports(SOURCES[module])}
    assert not {i for i in known if LEVEL[i] > LEVEL[own]}
    assert not known & STRANGERS.get(own, set())


def test_few_modules_stand_alone() -> None:
    """All others are in a package, which says in a sentence what is in there."""
    alone = {m for m in SOURCES if "." not in m and m != "__init__"}
    assert len(alone) <= LOOSE, alone
    assert {part(m) for m in SOURCES} == set(ORDER)


@pytest.mark.parametrize("folder", ["ops", "passes"])
def test_siblings_do_not_import_each_other(folder: str) -> None:
    for module, path in SOURCES.items():
        if part(module) == folder and not module.endswith("__init__"):
            siblings = {i for i in imports(path) if part(i) == folder and i != folder}
            assert not siblings, f"{module} imports {siblings}"


def code(path: Path) -> str:
    """A file without its docstrings and comments."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.Expr(ast.Constant(None))
    return ast.unparse(tree)


@pytest.mark.parametrize("module", [m for m in SOURCES if part(m) == "passes"])
def test_passes_know_no_aten_op(module: str) -> None:
    assert not re.search(r"\baten\b", code(SOURCES[module]))


def test_the_package_list_is_the_tree() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {f"fxdp.{m}".rsplit(".", 1)[0] for m in SOURCES}
    assert set(setuptools["packages"]) == folders
    assert (ROOT / "fxdp" / "passes").resolve() == ROOT / "passes"


@pytest.mark.parametrize("path", SOURCES.values(), ids=SOURCES)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize("path", SOURCES.values(), ids=SOURCES)
def test_files_are_ascii_and_explain_themselves(path: Path) -> None:
    text = path.read_text()
    assert text.isascii()
    assert ast.get_docstring(ast.parse(text))


def test_public_names_are_loaded_when_they_are_asked_for() -> None:
    """The same names for those who run fxdp and for those who check types."""
    shown: dict[str, str] = {}
    for node in ast.walk(ast.parse((ROOT / "fxdp" / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fxdp"):
            shown |= {a.name: node.module for a in node.names}
    modules = {name: f"{shown[name]}.{name}".replace("fxdp.fxdp", "fxdp") for name in fxdp.MODULES}
    assert shown == fxdp.HOME | {name: shown[name] for name in fxdp.MODULES}
    assert modules == fxdp.MODULES
    assert set(fxdp.HOME) == set(fxdp.__all__)
    for name in (*fxdp.HOME, *fxdp.MODULES):
        assert getattr(fxdp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(fxdp, "nothing")  # noqa: B009
    code = "import sys, fxdp; print(any(m.startswith('fxdp.') for m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
