"""Settings of torch while a step is captured, and at no other time."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fxdp.capture.bytecode import statements
from fxdp.capture.dtypes import dtypes_of_kernels
from fxdp.capture.packed import packed_sequences
from fxdp.capture.patches import leaves_within, one_kernel, users_lines
from fxdp.capture.polyfills import symbolic_kernels
from fxdp.capture.results import results_at_once
from fxdp.capture.transforms import transforms
from fxdp.torch_internals import (
    IgnoredFunctions,
    OptimizeContext,
    compile_lock,
    dynamo_config,
    optimize,
    shapes_config,
)

SHAPES: Any = shapes_config
# Gradients that a model takes itself are traced, where torch knows how to.
GRADIENTS = {"trace_autograd_ops": True} if hasattr(dynamo_config, "trace_autograd_ops") else {}
MOST_GRAPHS = 64  # that one model may have, for sizes and modes that the proof cannot merge


def logging_functions() -> set[Any]:
    """What writes to a log, and may be left out of a captured step."""
    names = ("debug", "info", "warning", "error", "warning_once", "info_once", "warning_advice")
    return {getattr(logging.Logger, name) for name in names if hasattr(logging.Logger, name)}


Captures = Callable[[], contextlib.AbstractContextManager[None]]


class Captured:
    """What torch calls for a frame that it has no code for, within settings.

    The settings are global, so they are entered while something is captured and at no other time,
    by one thread at a time.
    """

    def __init__(self, convert: Any, within: Captures) -> None:
        self.convert, self.within = convert, within
        # By which torch tells whose code it is.
        self._torchdynamo_orig_backend = convert._torchdynamo_orig_backend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with compile_lock, self.within():
            return self.convert(*args, **kwargs)


def captured_within(
    step: nn.Module, backend: Callable[..., Any], within: Captures
) -> Callable[..., Any]:
    """`torch.compile(step, backend=backend, fullgraph=True)`, captured within settings."""
    context: Any = optimize(backend, nopython=True)
    if isinstance(context, OptimizeContext):  # else torch is not to compile
        context.callback = Captured(context.callback, within)
    return context(step)


@contextlib.contextmanager
def capture_settings(dynamic: bool = True) -> Iterator[None]:
    """Settings of torch under which a step is captured.

    With `dynamic`, sizes that change between steps become symbols.

    Sizes that happen to be equal stay different symbols; hooks on modules count, whenever they are
    set; recurrent layers are traced, and gradients that a model takes itself; and what a model
    writes to a log does not break its graph.
    """
    with (
        SHAPES.patch(use_duck_shape=False),
        dynamo_config.patch(
            {
                "allow_rnn": True,
                **GRADIENTS,
                "automatic_dynamic_shapes": dynamic,
                "recompile_limit": MOST_GRAPHS,
                # A hook that is set or removed after the first step is captured with the next.
                "skip_nnmodule_hook_guards": False,
                # It remembers shapes by symbols: to make an entry takes longer than to do without.
                "fake_tensor_cache_enabled": False,
                "ignore_logging_functions": IgnoredFunctions(logging_functions()),
            }
        ),
        # With opt_einsum, a product of three tensors makes their sizes constants.
        torch.backends.opt_einsum.flags(enabled=False),
        users_lines(),
        leaves_within(),
        one_kernel(),
        symbolic_kernels(),
        dtypes_of_kernels(),
        results_at_once(),
        packed_sequences(),
        transforms(),
        statements(),
        quiet(logging.getLogger("torch._subclasses.fake_tensor")),
    ):
        yield


@contextlib.contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    """Without the tracebacks that torch logs of errors which it also raises."""
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
