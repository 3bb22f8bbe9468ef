"""Every name of torch that is not public and that fxdp uses: all other modules import them here.

torch promises nothing about them. Where one was renamed between the releases that fxdp supports,
the difference is hidden here too. tests/test_torch_internals.py asks of each whether it is what
fxdp takes it for, so that a new release of torch fails there, by name, before anything else does.
"""

# ruff: noqa: F401 - what is imported here is used elsewhere
# pyright: reportUnusedImport=false

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import sympy

# Where the choice of a convolution's kernel is patched (`_select_conv_backend`).
from torch import _C as torch_c

# Tells the proof that two sizes are one, without a branch in the captured program.
from torch import _check as torch_check

# What torch.compile asks for a backend, and the module in which it looks up `optimize`.
from torch import _dynamo as dynamo

# Ops that torch takes its own apart into.
from torch import _prims as prims

# Which kernels of an op are replaced while a model is captured.
from torch._C import DispatchKey as DispatchKey

# How float32 products are rounded, by backend and op; and no autocast in an op of ours.
from torch._C import _DisableAutocast as DisableAutocast
from torch._C import _get_fp32_precision_getter as get_fp32_precision
from torch._C import _set_fp32_precision_setter as set_fp32_precision

# The saved_tensors_hooks that are set.
from torch._C._autograd import _top_saved_tensors_default_hooks as top_saved_tensors_hooks

# Which transforms of torch.func are at work, and on this tensor?
from torch._C._functorch import TransformType as TransformType
from torch._C._functorch import get_interpreter_stack as get_interpreter_stack
from torch._C._functorch import is_batchedtensor as is_batchedtensor
from torch._C._functorch import (
    is_legacy_batchedtensor as is_legacy_batchedtensor,
)
from torch._C._functorch import peek_interpreter_stack as peek_interpreter_stack

# The tables by which composite ops are decomposed.
from torch._decomp import core_aten_decompositions as core_aten_decompositions
from torch._decomp import decomposition_table as decomposition_table
from torch._decomp import get_decompositions as get_decompositions

# An LSTM as a loop over time.
from torch._decomp.decompositions import lstm_impl as lstm_impl

# Is the backward pass itself being compiled?
from torch._dynamo import compiled_autograd as compiled_autograd

# Settings of capture: recurrent layers, logging, how many graphs a model may have.
from torch._dynamo import config as dynamo_config

# The stance that torch.compiler.set_stance set, and what raises where that forbids to compile.
from torch._dynamo import eval_frame
from torch._dynamo import exc as dynamo_exc

# Makes the batch axis a symbol.
from torch._dynamo import mark_dynamic as mark_dynamic

# What torch.compile calls, with a context that can be entered around captures.
from torch._dynamo import optimize as optimize

# Forgets what was captured, between the models of a lint run.
from torch._dynamo import reset as reset_dynamo

# A joint graph with compilers of our own.
from torch._dynamo.backends.common import aot_autograd as aot_autograd
from torch._dynamo.backends.registry import lookup_backend as lookup_backend

# Held while torch captures something.
from torch._dynamo.convert_frame import compile_lock as compile_lock
from torch._dynamo.eval_frame import OptimizeContext as OptimizeContext

# An error that Dynamo shows as it is, not wrapped into one of its own.
from torch._dynamo.exc import ShortenTraceback as ShortenTraceback

# Makes Dynamo capture again; the torch.compile door derives its own from it.
from torch._dynamo.exc import TensorifyScalarRestartAnalysis as TensorifyScalarRestartAnalysis

# What a model raises on fake tensors, seen by the linter.
from torch._dynamo.exc import TorchRuntimeError as TorchRuntimeError

# A graph break.
from torch._dynamo.exc import Unsupported as Unsupported
from torch._dynamo.exc import UserError as UserError

# Its guard that a function is still the same.
from torch._dynamo.guards import GuardBuilder as GuardBuilder

# What Dynamo captures, and its check of what that returns.
from torch._dynamo.output_graph import OutputGraph as OutputGraph

# What a model writes to while it is captured.
from torch._dynamo.symbolic_convert import (
    InliningGeneratorInstructionTranslator,
    InliningInstructionTranslator,
)
from torch._dynamo.symbolic_convert import InstructionTranslator as InstructionTranslator

# Says that a 0-d float64 tensor stays a tensor.
from torch._dynamo.symbolic_convert import TensorifyState as TensorifyState
from torch._dynamo.variables.base import VariableTracker as VariableTracker

# Where a function of torch's is met by the one that stands in for it.
from torch._dynamo.variables.builder import VariableBuilder as VariableBuilder
from torch._dynamo.variables.functions import UserFunctionVariable as UserFunctionVariable
from torch._dynamo.variables.tensor import TensorVariable as TensorVariable
from torch._dynamo.variables.torch import (
    TorchInGraphFunctionVariable as TorchInGraphFunctionVariable,
)

# Its list of random ops, in which some are missing, is made whole for a while.
from torch._functorch import compile_utils as compile_utils

# How much the partitioner may recompute.
from torch._functorch import config as functorch_config

# Common subexpressions.
from torch._functorch.compile_utils import fx_graph_cse as fx_graph_cse

# Where in the user's program Dynamo is.
from torch._guards import TracingContext as TracingContext

# An op that writes to its operands, as a graph without writes holds it.
from torch._higher_order_ops.auto_functionalize import auto_functionalized as auto_functionalized

# Settings and entry of the code generator.
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx_inner as compile_fx_inner

# Is there a C++ compiler?
from torch._inductor.cpp_builder import get_cpp_compiler as get_cpp_compiler
from torch._inductor.decomposition import select_decomp_table as select_decomp_table
from torch._inductor.exc import InvalidCxxCompiler as InvalidCxxCompiler

# Nodes in an order in which each comes after its operands.
from torch._inductor.pattern_matcher import stable_topological_sort as stable_topological_sort

# Where torch keeps what outlives a process.
from torch._inductor.runtime.cache_dir_utils import cache_dir as cache_dir

# A copy with the same strides, for the check of compiled code.
from torch._inductor.utils import clone_preserve_strides as clone_preserve_strides

# Classes of what a graph calls.
from torch._ops import HigherOrderOperator as HigherOrderOperator
from torch._ops import OperatorBase as OperatorBase
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket

# Tensors without numbers.
from torch._subclasses import FakeTensor as FakeTensor
from torch._subclasses import FakeTensorMode as FakeTensorMode

# Which ops make them without a reference in Python, and what ops make of them where that is not
# what the op itself would.
from torch._subclasses.fake_impls import get_fast_op_impls as fast_fakes
from torch._subclasses.fake_impls import op_implementations_dict as op_implementations

# How deep in forward mode we are.
from torch.autograd import forward_ad as forward_ad

# Reads saved programs; torch's public reader trusts the file.
from torch.export.pt2_archive._package import PT2ArchiveReader as PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2 as load_pt2

# A module around a graph that gets its code when it is first called, if torch says so.
from torch.fx._lazy_graph_module import _make_graph_module as make_graph_module
from torch.fx._lazy_graph_module import _use_lazy_graph_module as code_when_called

# Settings of symbolic sizes.
from torch.fx.experimental import _config as shapes_config

# Traces a function into a graph of aten ops.
from torch.fx.experimental.proxy_tensor import make_fx as make_fx

# A size that a model fixes, though it was said to vary.
from torch.fx.experimental.symbolic_shapes import (
    ConstraintViolationError as ConstraintViolationError,
)

# What torch knows of sizes, and what it asked about them.
from torch.fx.experimental.symbolic_shapes import ShapeEnv as ShapeEnv
from torch.fx.experimental.symbolic_shapes import ShapeGuard as ShapeGuard
from torch.fx.experimental.symbolic_shapes import statically_known_true as statically_known_true

# Which node is run while a graph is captured again.
from torch.fx.traceback import get_current_meta as get_current_meta

# Which ops were defined from Python.
from torch.library import _defs as library_defs

# The classes that batch norms and dropouts derive from.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.nn.modules.dropout import _DropoutNd as DropoutBase

# Which of them calls its module now (`active_ddp`).
from torch.nn.parallel import DistributedDataParallel

# Nested inputs and outputs.
from torch.utils import _pytree as pytree

# Real tensors in the middle of a trace, for timings.
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

# Ranges of symbolic sizes.
from torch.utils._sympy.numbers import int_oo as int_oo
from torch.utils._sympy.symbol import SymT as SymT
from torch.utils._sympy.symbol import symbol_is_type as symbol_is_type
from torch.utils._sympy.value_ranges import ValueRanges as ValueRanges
from torch.utils._sympy.value_ranges import bound_sympy as bound_sympy

# How torch cuts off the front of a path that it notes with a guard.
from torch.utils._traceback import shorten_filename as shorten_filename

# Attributes with a name that starts with an underscore, of torch's public objects or by protocol.
ATTRIBUTES = {
    "_boxed_call": "of a callable: AOTAutograd hands it a list that it may empty",
    "_buffers": "of a module: its buffers, which a private module shares",
    "_cdata": "of a storage: which memory it is",
    "_dispatch_cache": "of an op overload: the kernels it found, out of date after a patch",
    "_dynamo_dynamic_indices": "of a tensor: the axes that mark_dynamic made symbols",
    "_dynamo_source": "of a placeholder: where Dynamo found what it stands for",
    "_erased": "of an fx node: it is no longer in its graph",
    "_get_stack_summary": "of ShapeEnv: where a question about sizes was asked",
    "_id_dispatch": "of Dynamo's builder: what it makes of certain objects, by their id",
    "_current_level": "of forward_ad: how deep in forward mode we are, -1 outside",
    "_modules": "of a module: its submodules, which a private module shares",
    "_non_persistent_buffers_set": "of a module: the buffers that no state_dict holds",
    "_opname": "of an op: what it is called without namespace and overload",
    "_param_name_to_source": "of a captured graph: where Dynamo found each parameter",
    "_parameters": "of a module: its parameters, which a private module shares",
    "_rename": "of an fx node: gives it a name",
    "_schema": "of an op overload: names and types of its arguments",
    "_fsdp_flattened": "of a parameter: FSDP has made it a part of another",
    "_is_flat_param": "of a parameter: FSDP has made it of others",
    "_qualified_op_name": "of an op packet: its namespace and name",
    "_torchdynamo_orig_backend": "of what torch calls to capture a frame: whom it calls in turn",
    "_version": "of a tensor: how often it was written to",
    "_select_conv_backend": "of torch._C: chooses the kernel of a convolution",
}


# What torch raises where it would have to compile and may not; some are not in every release.
NOT_COMPILED: tuple[type[Exception], ...] = tuple(
    getattr(dynamo_exc, name)
    for name in ("RecompileError", "FailOnRecompileLimitHit", "RecompileLimitExceeded")
    if hasattr(dynamo_exc, name)
)


def replace_optimize(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Have torch.compile call what `wrap` makes of `torch._dynamo.optimize`.

    torch.compile calls it in every case, whether it compiles or not; torch has no hook there.
    """
    dynamo.optimize = wrap(dynamo.optimize)


def translators() -> list[list[Any]]:
    """How Dynamo captures an instruction of Python, by its number: a table for each kind of frame.
    Some kinds share one."""
    kinds: Any = (
        InstructionTranslator,
        InliningInstructionTranslator,
        InliningGeneratorInstructionTranslator,
    )
    return list({id(kind.dispatch_table): kind.dispatch_table for kind in kinds}.values())


def active_ddp() -> Any:
    """The DistributedDataParallel that is calling its module now, or None."""
    return DistributedDataParallel._active_ddp_module


def is_batched(x: Any) -> bool:
    """Does vmap, or is_grads_batched, run this tensor's ops for many values at once?"""
    return is_batchedtensor(x) or is_legacy_batchedtensor(x)


def unsafe_stance() -> bool:
    """Is torch set to run what it has compiled without checking whether it fits?"""
    return bool(getattr(eval_frame._stance, "skip_guard_eval_unsafe", False))


# `raised exception ValueError([ConstantVariable(str: 'too long'), ConstantVariable(int: 3)])`
VARIABLES = re.compile(r"\([(\[]\w*ConstantVariable\(\w+: (?P<first>.*)\),?[)\]]\)$", re.MULTILINE)
NEXT = re.compile(r"\), \w*ConstantVariable\(\w+: ")


def with_plain_arguments(text: str) -> str:
    """What torch says of an exception that a model raised, with its arguments as Python writes
    them; torch 2.11 says what it has for them."""
    return VARIABLES.sub(lambda found: f"({NEXT.sub(', ', found['first'])})", text)


class IgnoredFunctions(dict[Any, Any]):
    """Functions that Dynamo leaves out of a captured step: its `ignore_logging_functions`.

    Torch 2.11 writes all its settings into a log as JSON, and prints a page of traceback for a set
    of functions. Of these it sees none: it takes them for an empty table.
    """

    def __init__(self, functions: Iterable[Any] = ()) -> None:
        super().__init__()
        self.functions = frozenset(functions)

    def __contains__(self, function: object) -> bool:
        return function in self.functions

    def __iter__(self) -> Iterator[Any]:
        return iter(self.functions)


def conv_input(*args: Any, **kwargs: Any) -> Any:
    """The input among the arguments of `_select_conv_backend`; torch 2.11 passes it by name."""
    return args[0] if args else kwargs["input"]


def values_at_capture(env: ShapeEnv) -> Mapping[sympy.Symbol, Any]:
    """The sizes and numbers that a program was captured with, by their symbols.

    Torch 2.11 calls them var_to_val.
    """
    return getattr(env, "backed_var_to_val", None) or getattr(env, "var_to_val", {})


def value_at_capture(env: ShapeEnv) -> Callable[[sympy.Expr], Any]:
    """What a term is for the sizes that a program was captured with; size_hint in torch 2.11."""
    return getattr(env, "optimization_hint", None) or env.size_hint
