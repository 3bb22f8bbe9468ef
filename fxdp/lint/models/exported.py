"""Saved programs, `.pt2`: checked before they are loaded, so that loading runs no code of theirs.

torch.export.load trusts its file. It unpickles weights, constants and example inputs without
limits where the limited way fails, it lets sympy evaluate the text of sizes, it imports modules
that the file names, and it looks up the functions that the file calls by any dotted name below
`torch`. So everything of the kind that a plain exported model does not need is refused first,
with torch's own reader of the archive, and unpickling is limited to tensors.
"""

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from fxdp.diagnostics.sources import FOREIGN
from fxdp.lint.failures import said
from fxdp.lint.trouble import Trouble
from fxdp.torch_internals import PT2ArchiveReader, load_pt2

# What a graph may call, and what in there does more than compute.
CALLED = re.compile(
    r"(torch\.ops\.(aten|prims|higher_order)\.[A-Za-z]\w*(\.[A-Za-z]\w*)?"
    r"|torch\.ops\.(aten|prims)\._[a-z]\w*\.[A-Za-z]\w*"
    r"|math\.[a-z]\w*|torch\.sym_[a-z]+|torch\._sym_[a-z]+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_"
    r"|pos|xor|lshift|rshift))"
)
NOT_CALLED = re.compile(r"from_file|triton|call_torchbind|run_with|print|inductor_compiled")
SYMBOL = re.compile(r"[\w.+-]*")  # the only text that a size may hold
SIZES = {"Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Eq",
         "Ne", "Gt", "Ge", "Lt", "Le", "And", "Or", "Not", "FloorDiv", "ModularIndexing", "Where",
         "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift",
         "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToInt", "RoundToInt",
         "ToFloat", "Identity", "floor", "ceiling", "StrictLessThan", "LessThan",
         "StrictGreaterThan", "GreaterThan", "Equality", "Unequality",
         "IsNonOverlappingAndDenseIndicator"}  # fmt: skip
PARTS = (ast.Expression, ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.operator,
         ast.unaryop, ast.Call, ast.keyword, ast.Compare, ast.cmpop)  # fmt: skip
IMPORTED = ("__enum__", "default_factory_module", "defaultdict")


def load(file: Path) -> ExportedProgram:
    """A saved program, whose file was looked through first.

    Raises:
        Trouble: the file is not one, or holds what would run code.
    """
    try:
        reader = PT2ArchiveReader(str(file))
        names = reader.get_file_names()
    except (RuntimeError, AssertionError) as error:
        raise Trouble(f"not a program saved by torch.export.save: {said(error)}") from error
    check(reader, names)
    # torch tries again without limits where limited unpickling fails; this variable forbids it.
    with mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}):
        try:
            programs = load_pt2(str(file)).exported_programs
        except Exception as error:
            raise Trouble(f"torch cannot load the program: {said(error)}") from error
    mark_foreign(programs["model"])
    return programs["model"]


def mark_foreign(program: ExportedProgram) -> None:
    """Let the files that the program's stack traces name be known as a stranger's words.

    They are reported to the user, and never opened: no line of theirs gets into a report, and no
    comment in them allows a fault.
    """
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            trace = node.meta.get("stack_trace")
            if trace is not None:
                node.meta["stack_trace"] = str(trace).replace('File "', f'File "{FOREIGN}')


def check(reader: PT2ArchiveReader, names: list[str]) -> None:
    """Refuse an archive that holds anything but graphs of known ops, and tensors.

    Raises:
        Trouble: it does.
    """
    if len(set(names)) < len(names):
        raise Trouble("the archive holds two files of one name")
    if "models/model.json" not in names:
        raise Trouble("the archive holds no exported program")
    for name in names:
        if name.startswith("data/aotinductor"):
            raise Trouble("the archive holds compiled code, which is not loaded")
        if re.fullmatch(r"data/(weights|constants)/\w+\.pt", name):
            raise Trouble(f"{name} is pickled, which is not loaded: save the program again")
        if name.endswith("_config.json"):
            check_payload(read(reader, name))
        if name.startswith("models/"):
            check_graph(read(reader, name))


def read(reader: PT2ArchiveReader, name: str) -> Any:
    """A JSON file of the archive."""
    try:
        return json.loads(reader.read_string(name))
    except (ValueError, RuntimeError) as error:
        raise Trouble(f"{name} in the archive is no JSON: {said(error)}") from None


def check_payload(config: Any) -> None:
    """Weights and constants must be stored as plain bytes, and be tensors."""
    for key, value in items(config):
        if key == "use_pickle" and value is not False:
            raise Trouble("a weight or constant is pickled, which is not loaded")
        if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
            raise Trouble(f"the constant {value!r} is an object, which is not loaded")


def check_graph(model: Any) -> None:
    """A graph may call known ops, with sizes that are arithmetic."""
    for key, value in items(model):
        if key == "target" and isinstance(value, str):
            if not CALLED.fullmatch(value) or NOT_CALLED.search(value):
                raise Trouble(f"the program calls {value!r}, which is not looked up")
        elif key == "expr_str" and not is_arithmetic(str(value)):
            raise Trouble(f"a size in the program is {str(value)[:60]!r}, which is not evaluated")
        elif isinstance(value, str) and any(word in value for word in IMPORTED):
            raise Trouble("the program's arguments name modules, which are not imported")


def items(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a JSON value, with the key it is under."""
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield "key", name
            yield from items(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from items(inner, key)


def is_arithmetic(text: str) -> bool:
    """Is this an expression of sizes, and nothing that evaluating it could call?"""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, PARTS):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in SIZES
        ):
            return False
        if isinstance(node, ast.Constant) and not SYMBOL.fullmatch(str(node.value)):
            return False
    return True


def module_of(program: ExportedProgram) -> torch.nn.Module:
    """The program as a model; its checks of sizes are left out, the proof has its own."""
    return program.module(check_guards=False)
