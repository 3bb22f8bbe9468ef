"""The private names of torch that fxdp uses: each is there, is what it is taken for, and is
imported in one place."""

import ast
import copy
import dis
import inspect
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from torch import nn
from torch.fx import GraphModule, Node, symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

from fxdp import torch_internals
from fxdp.capture.patches import one_kernel

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "fxdp" / "torch_internals.py"
FILES = [
    path
    for folder in ("fxdp", "passes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if (ROOT / "fxdp" / "passes") not in path.parents
]
ADD = torch.ops.aten.add.Tensor
# Of a namedtuple, and of classes of transformers.
NOT_TORCH = {"_fields", "_model_mapping", "_can_record_outputs", "_exit"}


def takes(function: Any, *names: str) -> bool:
    """Are these among the names of a function's parameters?"""
    return set(names) <= set(inspect.signature(function).parameters)


def has(owner: Any, *names: str) -> bool:
    """Does it have these attributes?"""
    return all(hasattr(owner, name) for name in names)


def takes_anything(function: Any) -> bool:
    """Does a function take keywords that its signature does not list?"""
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def captures_instructions() -> bool:
    """Are there tables of what captures an instruction, with entries for those fxdp replaces?"""
    store = dis.opmap["STORE_ATTR"]
    return all(len(t) == 256 and callable(t[store]) for t in torch_internals.translators())


def traced() -> GraphModule:
    """A small graph of aten ops."""
    return make_fx(lambda x: (x + 1).sin() * (x + 1).sin())(torch.ones(2))


def symbolic(*sizes: int) -> torch.Tensor:
    """A fake tensor, the sizes of which are symbols."""
    mode = torch_internals.FakeTensorMode(shape_env=torch_internals.ShapeEnv())
    return mode.from_tensor(torch.ones(sizes))


def asks_about_sizes() -> bool:
    """Does a branch on a size leave a guard that says what was asked, and where?"""
    x = symbolic(5)
    env: Any = x.fake_mode.shape_env  # type: ignore[attr-defined]
    size: Any = x.shape[0]
    assert size > 3
    guard = env.guards[-1]
    return (
        isinstance(guard, torch_internals.ShapeGuard)
        and has(guard.sloc, "maybe_user_loc", "framework_loc")
        and has(guard.sloc.framework_loc, "filename", "name")
        and env.simplify(size.node.expr) in guard.expr.free_symbols
        and has(env.var_to_range[size.node.expr], "lower", "upper")
    )


def makes_a_module() -> bool:
    """Is it a module that computes what its graph says?"""
    gm = traced()
    made = torch_internals.make_graph_module(gm, gm.graph)
    return isinstance(made, GraphModule) and torch.equal(made(torch.ones(2)), gm(torch.ones(2)))


def waits_for_a_call() -> bool:
    """Has a module no code until it is called, and then its graph's?"""
    gm = traced()
    with torch_internals.code_when_called(True):
        made: Any = torch_internals.make_graph_module(gm, gm.graph)
    return made._needs_recompile() and torch.equal(made(torch.ones(2)), gm(torch.ones(2)))


def answers_at_once() -> bool:
    """Is what an op returns on fake tensors looked up in the table?"""
    x, op = symbolic(5), torch.ops.aten.sin.default
    T.fast_fakes()[op] = lambda mode, *_: x
    try:
        return op(symbolic(5)) is x
    finally:
        del T.fast_fakes()[op]


def suppresses() -> bool:
    """Does nothing leave a guard while guards are suppressed?"""
    x = symbolic(5)
    env: Any = x.fake_mode.shape_env  # type: ignore[attr-defined]
    with env.suppress_guards():
        assert x.shape[0] > 3
    return not env.guards


def fresh_sizes() -> bool:
    """Is a size with a known value one term, of which the value can be asked?"""
    x = symbolic(5)
    env: Any = x.fake_mode.shape_env  # type: ignore[attr-defined]
    term = x.shape[0].node.expr * 2  # type: ignore[union-attr]
    known = torch_internals.values_at_capture(env)
    made = env.create_symintnode(term, hint=10)
    return int(torch_internals.value_at_capture(env)(term)) == 10 and made == 10 and len(known) > 0


def is_a_rare_float() -> bool:
    """Can a symbol be told to be a float's?"""
    made = sympy.Symbol("zf3")
    kind = torch_internals.SymT.FLOAT
    return torch_internals.symbol_is_type(made, kind) == made.name.startswith("zf")


def bounds() -> bool:
    """Is a comparison decided by the ranges of what is in it?"""
    n = sympy.Symbol("n", integer=True, positive=True)
    whole = torch_internals.ValueRanges(2, torch_internals.int_oo)
    found = torch_internals.bound_sympy(n >= 2, {n: whole})
    return bool(found.is_singleton()) and found.lower == sympy.true


def merges_equal_nodes() -> bool:
    """Are common subexpressions one node, and can random ops be kept apart?"""
    merged = torch_internals.fx_graph_cse(traced().graph)
    return len(list(merged.nodes)) < len(list(traced().graph.nodes))


def sorts() -> bool:
    """Is a graph sorted where it is?"""
    graph = traced().graph
    order = list(graph.nodes)
    torch_internals.stable_topological_sort(graph)
    return list(graph.nodes) == order


def copies_strides() -> bool:
    """Does a copy have strides of its own kind, and memory of its own?"""
    x = torch.zeros(3, 4).t()
    y = torch_internals.clone_preserve_strides(x)
    return y.stride() == x.stride() and y.data_ptr() != x.data_ptr()


def disables() -> bool:
    """Are tensors real in the middle of a trace?"""
    with torch_internals.FakeTensorMode(), torch_internals.disable_current_modes():
        return type(torch.ones(1)) is torch.Tensor


def finds_a_compiler() -> bool:
    """Is there a compiler, or the error that fxdp expects?"""
    try:
        return bool(torch_internals.get_cpp_compiler())
    except torch_internals.InvalidCxxCompiler:
        return True


def settings(config: Any, *names: str) -> bool:
    """Does a module of settings have these, to be changed for a while?"""
    return has(config, "patch", *names)


T = torch_internals


def told_of_vmap() -> bool:
    """Is a transform seen, and a tensor that is many?"""
    seen: list[bool] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(bool(T.peek_interpreter_stack()) and T.is_batchedtensor(x))
        return x

    torch.vmap(look)(torch.ones(2))
    return seen == [True] and not T.peek_interpreter_stack()


def told_of_tangents() -> bool:
    """Does torch say that a function runs in forward mode?"""
    seen: list[Any] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.extend(level.key() for level in T.get_interpreter_stack())
        return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch loads its own derivatives by torch.jit.script
        torch.func.jvp(look, (torch.ones(2),), (torch.ones(2),))
    return seen == [T.TransformType.Jvp]


def zeros_are_made() -> bool:
    """Is an op on fake tensors what this table says?"""
    op = torch.ops.aten._efficientzerotensor.default
    made = symbolic(3)
    T.op_implementations[op] = lambda mode, func, *args, **options: made
    try:
        with made.fake_mode:
            return op([2]) is made
    finally:
        del T.op_implementations[op]


def hooks_are_seen() -> bool:
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, torch.Tensor.clone):
        seen: Any = T.top_saved_tensors_hooks(False)
    unhooked: Any = T.top_saved_tensors_hooks(False)
    return seen == (torch.Tensor.detach, torch.Tensor.clone) and unhooked is None


def compiles_backward_passes() -> bool:
    """Is it said when the backward pass itself is compiled?"""
    seen: list[bool] = []
    with T.compiled_autograd._enable(lambda graph: graph):
        seen.append(T.compiled_autograd.compiled_autograd_enabled)
    seen.append(T.compiled_autograd.compiled_autograd_enabled)
    return seen == [True, False] and not T.compiled_autograd.in_compiled_autograd_region


def told_of_many_gradients() -> bool:
    """Is a tensor seen to be many in a backward pass over many tangents?"""
    seen: list[bool] = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda g: seen.append(T.is_legacy_batchedtensor(g)))
    torch.autograd.grad((x * 2).sum(), x, torch.ones(3), is_grads_batched=True)
    return seen == [True]


def wraps_captures() -> bool:
    """Can what torch calls for a new frame be replaced in its context?"""
    context = T.optimize(lambda gm, _: gm, nopython=True)
    inner = context.callback
    own = inner._torchdynamo_orig_backend
    return isinstance(context, T.OptimizeContext) and callable(inner) and callable(own)


NAMES: dict[str, Callable[[], bool]] = {
    "DistributedDataParallel": lambda: T.active_ddp() is None,
    "DisableAutocast": lambda: has(T.DisableAutocast, "__enter__"),
    "OptimizeContext": wraps_captures,
    "OutputGraph": lambda: has(T.OutputGraph, "compile_and_call_fx_graph"),
    "compile_lock": lambda: has(T.compile_lock, "acquire", "release"),
    "dynamo": lambda: callable(T.dynamo.optimize) and T.active_ddp() is None,
    "dynamo_exc": lambda: all(issubclass(e, Exception) for e in T.NOT_COMPILED),
    "eval_frame": lambda: T.eval_frame._stance.stance == "default" and not T.unsafe_stance(),
    "get_fp32_precision": lambda: isinstance(T.get_fp32_precision("generic", "all"), str),
    "is_batchedtensor": told_of_vmap,
    "is_legacy_batchedtensor": told_of_many_gradients,
    "library_defs": lambda: isinstance(T.library_defs, set),
    "lookup_backend": lambda: callable(T.lookup_backend("eager")),
    "optimize": wraps_captures,
    "peek_interpreter_stack": told_of_vmap,
    "get_interpreter_stack": told_of_tangents,
    "forward_ad": lambda: T.forward_ad._current_level == -1,
    "TransformType": told_of_tangents,
    "op_implementations": zeros_are_made,
    "fast_fakes": answers_at_once,
    "prims": lambda: T.prims.sin is torch.ops.prims.sin.default,
    "set_fp32_precision": lambda: callable(T.set_fp32_precision),
    "top_saved_tensors_hooks": hooks_are_seen,
    "BatchNormBase": lambda: issubclass(nn.BatchNorm2d, T.BatchNormBase),
    "ConstraintViolationError": lambda: issubclass(T.ConstraintViolationError, Exception),
    "DispatchKey": lambda: has(T.DispatchKey, "CompositeImplicitAutograd", "Autograd"),
    "DropoutBase": lambda: issubclass(nn.Dropout2d, T.DropoutBase),
    "FakeTensor": lambda: isinstance(symbolic(2), T.FakeTensor) and has(symbolic(2), "fake_mode"),
    "FakeTensorMode": lambda: takes(T.FakeTensorMode, "allow_non_fake_inputs", "shape_env"),
    "HigherOrderOperator": lambda: (
        isinstance(torch.ops.higher_order.cond, T.HigherOrderOperator)
        and torch.ops.higher_order.cond.name() == "cond"
    ),
    "InliningGeneratorInstructionTranslator": captures_instructions,
    "InliningInstructionTranslator": captures_instructions,
    "InstructionTranslator": lambda: callable(T.InstructionTranslator.current_tx),
    "InvalidCxxCompiler": lambda: issubclass(T.InvalidCxxCompiler, Exception),
    "OpOverload": lambda: isinstance(ADD, T.OpOverload) and has(ADD, "py_kernels", "tags"),
    "OpOverloadPacket": lambda: isinstance(torch.ops.aten.add, T.OpOverloadPacket),
    "OperatorBase": lambda: isinstance(ADD, T.OperatorBase),
    "PT2ArchiveReader": lambda: has(T.PT2ArchiveReader, "get_file_names", "read_string"),
    "ShapeEnv": lambda: suppresses() and fresh_sizes(),
    "ShapeGuard": asks_about_sizes,
    "ShortenTraceback": lambda: takes(T.ShortenTraceback, "first_useful_frame"),
    "SymT": is_a_rare_float,
    "GuardBuilder": lambda: has(T.GuardBuilder, "ID_MATCH"),
    "UserFunctionVariable": lambda: takes(T.UserFunctionVariable, "fn"),
    "TorchInGraphFunctionVariable": lambda: takes(T.TorchInGraphFunctionVariable, "value"),
    "VariableBuilder": lambda: has(T.VariableBuilder, "install_guards"),
    "TensorVariable": lambda: issubclass(T.TensorVariable, T.VariableTracker),
    "TensorifyScalarRestartAnalysis": lambda: takes(
        T.TensorifyScalarRestartAnalysis, "restart_reason"
    ),
    "TensorifyState": lambda: callable(T.TensorifyState.specialize),
    "TorchRuntimeError": lambda: issubclass(T.TorchRuntimeError, Exception),
    "Unsupported": lambda: issubclass(T.Unsupported, Exception),
    "UserError": lambda: issubclass(T.UserError, Exception),
    "ValueRanges": bounds,
    "VariableTracker": lambda: takes(T.VariableTracker.visit, "fn", "value"),
    "aot_autograd": lambda: takes_anything(T.aot_autograd),
    "auto_functionalized": lambda: isinstance(T.auto_functionalized, T.HigherOrderOperator),
    "bound_sympy": bounds,
    "cache_dir": lambda: os.path.isabs(T.cache_dir()),
    "clone_preserve_strides": copies_strides,
    "compile_fx_inner": lambda: takes(T.compile_fx_inner, "gm", "example_inputs"),
    "compiled_autograd": compiles_backward_passes,
    "compile_utils": lambda: isinstance(T.compile_utils.rand_ops, list),
    "core_aten_decompositions": lambda: ADD not in T.core_aten_decompositions(),
    "decomposition_table": lambda: (
        torch.ops.aten.native_layer_norm_backward.default in T.decomposition_table
    ),
    "disable_current_modes": disables,
    "dynamo_config": lambda: settings(
        T.dynamo_config,
        "allow_rnn", "automatic_dynamic_shapes", "fake_tensor_cache_enabled",
        "ignore_logging_functions", "recompile_limit", "specialize_float",
    ),
    "functorch_config": lambda: settings(
        T.functorch_config, "activation_memory_budget", "recompute_views"
    ),
    "fx_graph_cse": merges_equal_nodes,
    "get_cpp_compiler": finds_a_compiler,
    "get_decompositions": lambda: ADD not in T.get_decompositions([torch.ops.aten.addmm]),
    "inductor_config": lambda: settings(
        T.inductor_config, "fallback_random", "emulate_precision_casts", "layout_optimization"
    ),
    "int_oo": lambda: bool(T.int_oo > 2**63),  # type: ignore[operator]
    "load_pt2": lambda: takes(T.load_pt2, "f"),
    "lstm_impl": lambda: takes(T.lstm_impl, "input", "hx", "params", "batch_first"),
    "make_fx": lambda: takes(
        T.make_fx, "decomposition_table", "tracing_mode", "pre_dispatch", "_allow_non_fake_inputs"
    ),
    "make_graph_module": makes_a_module,
    "code_when_called": waits_for_a_call,
    "mark_dynamic": lambda: takes(T.mark_dynamic, "t", "index", "hint_override"),
    "pytree": lambda: has(
        T.pytree,
        "tree_flatten", "tree_leaves", "tree_map", "tree_map_only", "tree_structure",
        "tree_unflatten",
    ),
    "reset_dynamo": lambda: not inspect.signature(T.reset_dynamo).parameters,
    "select_decomp_table": lambda: len(T.select_decomp_table()) > 0,
    "shapes_config": lambda: settings(T.shapes_config, "use_duck_shape"),
    "shorten_filename": lambda: __file__.endswith(T.shorten_filename(__file__)),
    "stable_topological_sort": sorts,
    "statically_known_true": lambda: T.statically_known_true(symbolic(5).shape[0] > 0),
    "symbol_is_type": is_a_rare_float,
    "torch_c": lambda: callable(T.torch_c._select_conv_backend),
    "torch_check": lambda: T.torch_check is torch._check,
    "TracingContext": lambda: len(T.TracingContext.extract_stack()) == 0,
    "get_current_meta": lambda: isinstance(T.get_current_meta(), dict),
}  # fmt: skip


def conv_backend() -> bool:
    """Is the kernel of a convolution chosen with the input first, and with its name?"""
    x, w, spec = torch.ones(2, 1, 4, 4), torch.ones(1, 1, 2, 2), ([1, 1], [0, 0], [1, 1])
    rest = (False, [0, 0], 1)
    chosen = T.torch_c._select_conv_backend(x, w, None, *spec, *rest)
    with one_kernel():
        named = T.torch_c._select_conv_backend(
            input=x, weight=w, bias=None, stride=[1, 1], padding=[0, 0], dilation=[1, 1],
            transposed=False, output_padding=[0, 0], groups=1,
        )  # fmt: skip
        again = T.torch_c._select_conv_backend(x, w, None, *spec, *rest)
    return chosen == named == again


def seen_by_dynamo() -> list[Any]:
    """What Dynamo hands a backend: the graph, and its placeholders."""
    seen: list[Any] = []

    def backend(gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        seen.append(gm)
        return gm.forward

    torch.compile(nn.Linear(2, 1), backend=backend)(torch.ones(3, 2))
    return seen


def sources() -> bool:
    """Does each placeholder of a captured graph say where its value was found?"""
    (gm,) = seen_by_dynamo()
    return all(n._dynamo_source is not None for n in gm.graph.find_nodes(op="placeholder"))


def marks() -> bool:
    """Are marked axes noted in the tensor?"""
    x = torch.ones(4, 2)
    T.mark_dynamic(x, 1)
    return x._dynamo_dynamic_indices == {1}  # type: ignore[attr-defined]


def first_node() -> Node:
    """A node in a graph."""
    return next(iter(symbolic_trace(nn.Linear(2, 1)).graph.nodes))


def renames() -> bool:
    """Does an fx node take another name?"""
    node = first_node()
    node._rename("other")
    return node.name == "other"


def notes_lines() -> bool:
    """Is a question about sizes noted with where it was asked, first of what is returned?"""
    sloc: Any = T.ShapeEnv()._get_stack_summary(True)[0]
    return has(sloc, "maybe_user_loc", "framework_loc")


ATTRIBUTES: dict[str, Callable[[], bool]] = {
    "_fsdp_flattened": lambda: "_fsdp_flattened" in source_of("torch.distributed.fsdp"),
    "_is_flat_param": lambda: "_is_flat_param" in source_of("torch.distributed.fsdp"),
    "_qualified_op_name": lambda: torch.ops.aten.add._qualified_op_name == "aten::add",
    "_torchdynamo_orig_backend": wraps_captures,
    "_version": lambda: torch.ones(1)._version == 0,
    "_boxed_call": lambda: "_boxed_call" in source_of("torch._functorch"),
    "_get_stack_summary": notes_lines,
    "_id_dispatch": lambda: isinstance(T.VariableBuilder._id_dispatch(), dict),
    "_buffers": lambda: isinstance(nn.Linear(1, 1)._buffers, dict),
    "_cdata": lambda: isinstance(torch.ones(1).untyped_storage()._cdata, int),
    "_current_level": lambda: T.forward_ad._current_level == -1,
    "_dispatch_cache": lambda: isinstance(ADD._dispatch_cache, dict),
    "_dynamo_dynamic_indices": marks,
    "_dynamo_source": sources,
    "_erased": lambda: first_node()._erased is False,
    "_opname": lambda: ADD._opname == "add",
    "_modules": lambda: isinstance(nn.Linear(1, 1)._modules, dict),
    "_non_persistent_buffers_set": lambda: nn.Linear(1, 1)._non_persistent_buffers_set == set(),
    "_param_name_to_source": lambda: has(seen_by_dynamo()[0], "_param_name_to_source"),
    "_parameters": lambda: "weight" in nn.Linear(1, 1)._parameters,
    "_rename": renames,
    "_schema": lambda: [a.name for a in ADD._schema.arguments] == ["self", "other", "alpha"],
    "_select_conv_backend": conv_backend,
}


def source_of(package: str) -> str:
    """The text of a package of torch's."""
    folder = Path(torch.__file__).parent.joinpath(*package.split(".")[1:])
    return "\n".join(p.read_text() for p in folder.rglob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_it_is_taken_for(name: str) -> None:
    assert NAMES[name]()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_is_what_it_is_taken_for(name: str) -> None:
    assert ATTRIBUTES[name]()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ('E((ConstantVariable(str: "it\'s"),))', 'E("it\'s")'),
        ("E([ConstantVariable(str: 'no (a) [b]')])", "E('no (a) [b]')"),
        ("E([ConstantVariable(str: 'a'), ConstantVariable(int: 3)])", "E('a', 3)"),
        ("E('(a)')", "E('(a)')"),
        ("E()", "E()"),
    ],
)
def test_arguments_of_an_exception_are_plain(said: str, meant: str) -> None:
    assert T.with_plain_arguments(f"raised exception {said}\n") == f"raised exception {meant}\n"


def test_settings_can_be_logged() -> None:
    """Torch 2.11 writes them as JSON at every capture, where a set of functions is an error."""
    ignored = T.IgnoredFunctions({print, min})
    logged = copy.deepcopy(ignored)
    assert not isinstance(logged, set)
    assert json.dumps({"ignored": logged}, sort_keys=True) == '{"ignored": {}}'
    assert print in ignored
    assert max not in ignored
    assert set(iter(logged)) == {print, min}


def is_private(name: str) -> bool:
    """Is this dotted name of torch one that it promises nothing about?"""
    parts = name.split(".")
    hidden = any(p.startswith("_") and not p.startswith("__") for p in parts)
    return parts[0] == "torch" and (hidden or name.startswith("torch.fx.experimental."))


def imported(tree: ast.Module) -> dict[str, str]:
    """What a file imports of torch: {name in the file: dotted name}."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                head = a.name.split(".")[0]
                found[a.asname or head] = a.name if a.asname else head
                if is_private(a.name):
                    found[a.name] = a.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return {k: v for k, v in found.items() if v.split(".")[0] == "torch"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute of attributes of a name; "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{owner}.{node.attr}" if (owner := dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def private_names(path: Path) -> set[str]:
    """The private names of torch that a file imports, or reaches through an import."""
    tree = ast.parse(path.read_text())
    known = imported(tree)
    reached = {dotted(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    parts = [r.partition(".") for r in reached]
    full = {f"{known[head]}.{rest}" for head, _, rest in parts if head in known}
    return {name for name in {*known.values(), *full} if is_private(name)}


def defined(tree: ast.AST) -> set[str]:
    """Private attributes that a file gives to objects of its own."""
    found = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node.value) in ("self", "cls", "own"):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


OURS = set[str]().union(*(defined(ast.parse(p.read_text())) for p in FILES))


def private_attributes(path: Path) -> set[str]:
    """Private attributes of objects that are not ours, spelt out or named in a getattr.

    Ops are no attributes: `torch.ops.aten._softmax` is in a registry, and is missed at import.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and not dotted(node).startswith(("aten.", "torch.ops.")):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and dotted(node.func) in ("getattr", "hasattr", "setattr"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)} - {None}
    hidden = {a for a in found if isinstance(a, str) and a[:1] == "_" and a[:2] != "__"}
    return hidden - (OURS - set(T.ATTRIBUTES)) - NOT_TORCH


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_private_names_are_imported_in_one_place(path: Path) -> None:
    if path != HOME:
        assert not private_names(path)
        assert private_attributes(path) <= set(T.ATTRIBUTES)


def test_each_name_has_a_test() -> None:
    tree = ast.parse(HOME.read_text())
    assert set(imported(tree)) == set(NAMES)
    assert set(T.ATTRIBUTES) == set(ATTRIBUTES)


def test_each_name_is_used() -> None:
    used: set[str] = set()
    attributes: set[str] = set()
    for path in FILES:
        tree = ast.parse(path.read_text())
        if path == HOME:
            used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "fxdp.torch_internals":
                used |= {a.name for a in node.names}
            elif isinstance(node, ast.Attribute):
                attributes.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                attributes.add(node.value)
    assert set(NAMES) <= used
    assert set(T.ATTRIBUTES) <= attributes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from torch._ops import OpOverload", {"torch._ops.OpOverload"}),
        ("from torch.utils import _pytree as p\np.tree_map", {"torch.utils._pytree"}),
        ("import torch\ntorch._dynamo.reset()", {"torch._dynamo.reset"}),
        ("import torch._inductor.config", {"torch._inductor.config"}),
        ("from torch import nn\nnn.modules._Dropout", {"torch.nn.modules._Dropout"}),
        ("import torch\nfrom torch import fx\ntorch.no_grad(), fx.Node, torch.__version__", set()),
    ],
)
def test_a_private_name_is_found(tmp_path: Path, text: str, found: set[str]) -> None:
    (tmp_path / "a.py").write_text(text)
    assert found <= private_names(tmp_path / "a.py")
    assert bool(found) == bool(private_names(tmp_path / "a.py"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x.y()._version", {"_version"}),
        ("getattr(x, '_grad_fn', None)", {"_grad_fn"}),
        ("self._stepper, aten._softmax, x.__dict__", set()),
    ],
)
def test_a_private_attribute_is_found(tmp_path: Path, text: str, found: set[str]) -> None:
    (tmp_path / "a.py").write_text(text)
    assert private_attributes(tmp_path / "a.py") == found
