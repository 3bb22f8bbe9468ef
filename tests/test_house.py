"""The order of the house: who may import whom, and what stays out of where."""

import ast
import contextlib
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import fxdp

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
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
    "checker",
    "torch_compile",
    "training",
    "auditing",
    "lint",
    "__init__",
)
LEVEL = {name: i for i, name in enumerate(ORDER)}
LOOSE = 8
# Modules without a test of their own name, by the test that covers them.
COVERED = {
    "auditing/test_audit": """
        auditing.canary auditing.correlation auditing.neighbours auditing.noise auditing.releases
        auditing.report""",
    "backend/test_check": "backend.halves",
    "boundary/test_batches": "data.handed",
    "boundary/test_checked_again": "backend.rows backend.settings",
    "boundary/test_door": "backend.fence torch_compile.door",
    "boundary/test_foreign_files": "diagnostics.printed diagnostics.sources lint.apart",
    "boundary/test_keys": "mechanism.run_key",
    "boundary/test_mode": "torch_compile.unprotected",
    "boundary/test_names": "capture.naming",
    "boundary/test_numbers": "kernels.precision mechanism.deviation",
    "boundary/test_one_release": "backend.delivery diagnostics.errors",
    "boundary/test_pieces": "module.state",
    "boundary/test_processes": "distributed.guard",
    "boundary/test_public": "capture.totals data.padding module.public",
    "boundary/test_rules": "graph.passes pipeline",
    "capture/test_recurrent": "capture.settings",
    "checker/test_check": "checker.ends checker.walk",
    "checker/test_rules": "checker.call checker.elements checker.families",
    "data/test_samplers": "data.sampler",
    "forms/test_conv": "kernels.crb kernels.grouped",
    "forms/test_conv_grid": "kernels.unfold",
    "forms/test_outer": "forms.batch kernels.clipped_sum",
    "kernels/triton/test_forms": "kernels.each_outer",
    "kernels/triton/test_ghost": "kernels.triton.launch kernels.triton.tiles",
    "lint/test_cache": "lint.replaced lint.witness",
    "lint/test_cli": """
        lint.__main__ lint.checking
        lint.config lint.models.building lint.models.discovery lint.models.hugging
        lint.models.loading lint.models.losses lint.models.step lint.models.targets
        lint.models.walking lint.models.wanted
        lint.failures lint.linting lint.options lint.paths lint.selection lint.trouble""",
    "lint/test_exported": "lint.models.exported",
    "lint/test_formats": """
        lint.formats.machine lint.formats.sarif lint.formats.table lint.formats.text
        lint.result""",
    "lint/test_html": """
        lint.formats.html lint.formats.html_graph lint.formats.html_layout
        lint.formats.html_parts""",
    "lint/test_inputs": "lint.models.inputs",
    "lint/test_fixing": "lint.rewriting",
    "lint/test_starting": "diagnostics.version",
    "lint/test_suggestions": """
        lint.models.configs lint.models.guesses lint.models.seen lint.models.shapes
        lint.models.suggesting""",
    "mechanism/test_clipping": "mechanism.clipping_rule",
    "mechanism/test_correlated": "mechanism.noise module.correlated_noise",
    "models/test_open_layouts": "proof.layouts",
    "models/test_attention": "ops.softmax",
    "models/test_functions": "ops.compose",
    "models/test_layers": "ops.bag ops.convolution",
    "models/test_ragged": "proof.ragged",
    "models/test_streams": "forms.streamed",
    "models/test_strategies": "graph.report kernels.loops",
    "models/test_huggingface": "module.output",
    "models/test_speech": "capture.hugging",
    "module/test_account": "module.accounting",
    "module/test_private_module": """
        backend.partition capture.symbolic_batch module.reports""",
    "module/test_tally": "module.inspection",
    "ops/test_each": "forms.each",
    "ops/test_linalg": "kernels.matrix_exp",
    "ops/test_own_rule": "proof.ownership",
    "ops/test_recurrent": "kernels.recurrent kernels.recurrent_loops",
    "ops/test_rules": "ops.decompositions rules",
    "passes/test_explain": "graph.sums",
    "passes/test_measure": "graph.emit",
    "passes/test_noise": "graph.ends",
    "passes/test_plan": "graph.kinds",
    "passes/test_share": "graph.nodes",
    "privacy/test_ledger": "privacy.budget privacy.state",
    "privacy/test_planning": "privacy.search",
    "privacy/test_sampling": "privacy.sampling_rule",
    "proof/test_certificate": "proof.fingerprint proof.program",
    "proof/test_facts": "graph.marks graph.records",
    "refusals/test_bad_input": "capture.inputs",
    "refusals/test_messages": "capture.pairs",
    "refusals/test_rows": "capture.segments",
    "refusals/test_ragged": "capture.ragged",
    "refusals/test_bad_numbers": "backend.options compiler",
    "refusals/test_capture": "capture.errors diagnostics.location proof.guards",
    "refusals/test_loss": "capture.step",
    "refusals/test_refusals": "graph.origin proof.faults proof.placing",
    "test_shapes": "placement",
    "test_torch_internals": "capture.patches",
    "training/test_checkpoint": "training.atomic_file training.rng_state",
}
# Who knows nothing of whom, though it stands below.
STRANGERS = {
    # A check of fxdp's proof has its own rules: of the proof it reads the certificate alone.
    "checker": {"passes", "ops", "rules", "placement", "shapes", "forms", "backend"},
    "privacy": {"mechanism", "kernels", "rules"},
    "mechanism": {"privacy", "data"},
}


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


def test_every_module_has_a_test() -> None:
    """Of its own name, or one that is named for it."""
    own = set[str]()
    for module in SOURCES:
        package, _, name = module.rpartition(".")
        if (TESTS / package.replace(".", "/") / f"test_{name}.py").exists():
            own.add(module)
    named = [module for modules in COVERED.values() for module in modules.split()]
    assert len(named) == len(set(named))
    assert not own & set(named), "listed, with a test of its own name"
    assert not set(named) - set(SOURCES), "listed, and not there"
    lacking = {m for m in set(SOURCES) - own - set(named) if not m.endswith("__init__")}
    assert not lacking, "without a test: add one, or list the test that covers it"
    assert all((TESTS / f"{test}.py").exists() for test in COVERED)


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


def exists(name: str) -> bool:
    """Is a dotted name a module, or something in one?"""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found: Any = importlib.import_module(".".join(parts[:end]))
            for attribute in parts[end:]:
                if not hasattr(found, attribute):
                    return False
                found = getattr(found, attribute)
            return True
    return False


def test_names_in_texts_exist() -> None:
    """What docstrings, comments and READMEs call by its place is there."""
    texts = [*SOURCES.values(), *ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/README.md")]
    wrong: list[str] = []
    for path in texts:
        text = path.read_text()
        files = re.findall(r"`((?:fxdp|passes|tests|tools)/[\w/.]*\w)", text)
        wrong += [f"{path.name}: {file}" for file in files if not (ROOT / file).exists()]
        names = re.findall(r"`(fxdp(?:\.\w+)+)", text)
        wrong += [f"{path.name}: {name}" for name in names if not exists(name)]
    assert not wrong
