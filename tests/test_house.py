"""The order of the house: who may import whom, and what stays out of where."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    ("torch_internals", "errors"),
    ("keystream", "precision", "processes", "fence", "delivery"),
    (
        "placement",
        "shapes",
        "codes",
        "definition",
        "deviation",
        "atomic",
        "clipping",
        "generators",
        "operators",
        "grams",
        "liveness",
        "naming",
        "opaque",
        "origin",
        "outcome",
        "printed",
        "progress",
        "recurrent",
        "chain_rule",
        "run_key",
        "segments",
        "sources",
        "state",
        "draws",
        "tally",
        "timings",
        "totals",
        "unfolding",
        "weighing",
    ),
    ("diagnostic", "recurrent_layers", "released"),
    ("rules",),
    ("forms",),
    ("ops", "trials"),
    ("graph_pass", "trace", "sums", "facts", "guards", "fix", "dataless", "layout", "recomputing"),
    ("faults", "fingerprint", "placing", "rows"),
    ("passes",),
    ("backend", "check", "capture", "capture_errors", "certificate", "report"),
    ("options", "privacy", "correlated", "public"),
    ("account", "data"),
    ("logical", "pipeline", "lot"),
    ("stepper",),
    ("following", "inspection"),
    ("private_module",),
    ("compiler",),
    ("schedule", "training", "verify"),
    ("audit", "checkpoint", "make_private", "demo", "door", "lint"),
    ("torch_backend", "unprotected"),
    ("__init__",),
)
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}
# Beside the compiler: they know nothing of it. Each with those of them that it may know.
APART = {"privacy": {"privacy"}, "data": {"data", "privacy", "processes"}}


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
    if part(module) in APART:
        assert {part(i) for i in imports(SOURCES[module])} <= APART[part(module)]
        return
    assert part(module) in LEVEL, f"{module} has no place in the order of layers"
    up = {i for i in imports(SOURCES[module]) if LEVEL[part(i)] > LEVEL[part(module)]}
    assert not up


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
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES.values(), ids=SOURCES)
def test_files_are_ascii_and_explain_themselves(path: Path) -> None:
    text = path.read_text()
    assert text.isascii()
    assert ast.get_docstring(ast.parse(text))
