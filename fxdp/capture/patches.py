"""Changes of torch's own state, made only while something is captured, under torch's lock.

========================  =========================================  ==============================
what                      why                                        what would make it needless
========================  =========================================  ==============================
`_select_conv_backend`    which kernel a convolution will use is      torch suppressing those guards
(`one_kernel`)            asked of its sizes, and would fix N         itself
`TensorifyState`          a step with C, sigma and L as 0-d tensors   one tensor of three numbers
(`scalars_stay_tensors`)  would be captured twice
a check of outputs        a loss that a gradient within the step is    torch seeing that such a loss
(`leaves_within`)         part of hangs on a leaf made there, which   is differentiated by others
                          nobody differentiates by outside
`_get_stack_summary`      a guard names a line in torch or Python,  a user's stack with each guard
(`users_lines`)           and not the user's that called it
how instructions of       a check of values that raises, and        torch asserting what a check
Python are captured       `x.requires_grad = True`, break the       asks, and taking the second for
(`fxdp.capture.bytecode`) graph, and change nothing of a step       `requires_grad_()`
kernels of ops            their Python asks about sizes, and would    a mode around the forward
                          fix N (`fxdp.capture.polyfills`)
dtypes that ops take      fake tensors are of any dtype where        checks of dtypes on fake
(`fxdp.capture.dtypes`)   kernels fail, in the first step           tensors
what common ops return    torch's references in Python take ten     kernels of its own for
on fake tensors           times as long as the question           symbolic sizes
                          (`fxdp.capture.results`)
functions (`stand_ins`),  so do two of `torch.nn.functional`; Dynamo  a packed sequence of padded
calls of RNN layers       does not trace `pack_padded_sequence`, and  rows
(`calls`)                 what it makes has no axis of samples
                          (`fxdp.capture.packed`)
calls of norms, dropout,  within `torch.func` and forward-mode AD     derivatives there that take
and linear layers;        their C++ asks for all sizes                symbols for sizes
zeros without memory      (`fxdp.capture.transforms`)
`torch._dynamo.optimize`  torch.compile has no hook where it hands    such a hook
                          out a step (`fxdp.torch_compile.backend`)
a loss of transformers    it writes the labels of all samples one   a padded loss there
(`fxdp.capture.hugging`)  after the other; torch keeps to its
                          substitute as long as the process lives
the list of random ops    CSE would merge two draws into one          a CSE of fxdp's own
                          (`fxdp.graph.randomness`)
========================  =========================================  ==============================

All are for torch 2.11 to 2.14; `tests/test_torch_internals.py` asks of each name whether it is
there. What else is set while a step is captured are torch's settings (`fxdp.capture.settings`).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule

from fxdp.diagnostics.location import Location, Noted, is_library, locate
from fxdp.torch_internals import (
    FakeTensor,
    GuardBuilder,
    OutputGraph,
    ShapeEnv,
    SymT,
    TensorifyState,
    TracingContext,
    UserFunctionVariable,
    VariableBuilder,
    conv_input,
    get_current_meta,
    symbol_is_type,
    torch_c,
    values_at_capture,
)


def scalars_stay_tensors(gm: GraphModule) -> None:
    """Keep torch from capturing a step twice because it is given 0-d tensors of float64.

    Dynamo has a symbol for what `.item()` would give of each. Where a graph never asks, torch finds
    out when forward and backward are traced, and begins again without them. That is saved where
    they are gone. A float that is an input of the graph is left to torch.
    """
    values = [n.meta.get("example_value") for n in gm.graph.find_nodes(op="placeholder")]
    tensors = [v for v in values if isinstance(v, FakeTensor)]
    env = tensors[0].fake_mode.shape_env if tensors else None
    if env is None:
        return
    used = {s for v in values if isinstance(v, torch.SymFloat) for s in v.node.expr.free_symbols}
    for symbol in values_at_capture(env):
        if symbol_is_type(symbol, SymT.FLOAT) and symbol not in used:
            TensorifyState.specialize(str(symbol))


@contextlib.contextmanager
def one_kernel() -> Iterator[None]:
    """While a model is captured: choose a convolution's kernel by the batch in hand, without a
    guard. The choice tells a captured program nothing but strides; kernels choose again when
    they run."""
    choose: Any = torch_c._select_conv_backend

    def unguarded(*args: Any, **kwargs: Any) -> Any:
        fake = getattr(conv_input(*args, **kwargs), "fake_mode", None)
        env = getattr(fake, "shape_env", None)
        with contextlib.nullcontext() if env is None else env.suppress_guards():
            return choose(*args, **kwargs)

    torch_c._select_conv_backend = unguarded
    try:
        yield
    finally:
        torch_c._select_conv_backend = choose


@contextlib.contextmanager
def leaves_within() -> Iterator[None]:
    """While a model is captured: let the loss hang on a tensor that the model asked a gradient by
    (a penalty on gradients). torch refuses to return such a tensor, for outside nobody could
    differentiate by that leaf; what comes of a step is differentiated by the parameters alone.
    """
    name = "_check_requires_grad_intermediate_outputs"
    check: Any = getattr(OutputGraph, name, None)
    if check is None:
        yield
        return
    setattr(OutputGraph, name, lambda *_: None)
    try:
        yield
    finally:
        setattr(OutputGraph, name, check)


def users_line() -> Location | None:
    """Where in the user's program is what is captured now?"""
    for frame in reversed(TracingContext.extract_stack()):
        if not is_library(frame.filename):
            return Location(frame.filename, frame.lineno or 0, frame.name)
    return locate(get_current_meta().get("stack_trace"))  # of a graph that is captured again


@contextlib.contextmanager
def users_lines() -> Iterator[None]:
    """While a model is captured: note with each question about sizes the user's line, not one of
    torch, of Python or of fxdp that this one called."""
    env: Any = ShapeEnv
    own = env._get_stack_summary

    def summary(self: Any, *args: Any, **kwargs: Any) -> Any:
        sloc, *rest = own(self, *args, **kwargs)
        if (place := users_line()) is not None:
            noted = Noted(sloc.maybe_user_loc or place)
            noted.location = place
            sloc = replace(sloc, maybe_user_loc=noted)
        return (sloc, *rest)

    env._get_stack_summary = summary
    try:
        yield
    finally:
        env._get_stack_summary = own


@contextlib.contextmanager
def stand_ins(functions: Mapping[Callable[..., Any], Callable[..., Any]]) -> Iterator[None]:
    """While a model is captured: trace these functions in the place of torch's own, by whatever
    name the model has imported those.

    Args:
        functions: those of torch, and what stands in for each.
    """

    def met(other: Callable[..., Any]) -> Callable[[VariableBuilder, Any], Any]:
        def build(builder: VariableBuilder, value: Any) -> Any:
            builder.install_guards(GuardBuilder.ID_MATCH)
            return UserFunctionVariable(other)  # type: ignore[arg-type]

        return build

    known: dict[int, Any] = VariableBuilder._id_dispatch()
    added = {id(own): met(other) for own, other in functions.items() if id(own) not in known}
    known |= added
    try:
        yield
    finally:
        for key in added:
            del known[key]


Chosen = Callable[[Any, Sequence[Any]], Callable[..., Any] | None]


@contextlib.contextmanager
def calls(variable: type, called: Callable[[Any], Any], choose: Chosen) -> Iterator[None]:
    """While a model is captured: trace calls of some functions as those of others. The functions,
    and so torch's guards on them, stay as they are.

    Args:
        variable: Dynamo's class for functions of a kind.
        called: the function that one of those stands for.
        choose: of a function and what it is given, as Dynamo's variables: what is traced in its
            place, or None.
    """
    kind: Any = variable
    own = kind.call_function

    def call(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        other = choose(called(self), (*args, *kwargs.values()))
        if other is None:
            return own(self, tx, args, kwargs)
        return UserFunctionVariable(other).call_function(tx, args, kwargs)  # type: ignore[arg-type]

    kind.call_function = call
    try:
        yield
    finally:
        kind.call_function = own
