"""Connects a compiled step to autograd: its backward pass runs once and delivers its gradients.

The compiled step runs on shadows of the parameters (other leaves over the same memory), so that its
gradients come here and nowhere else: a hook on a parameter sees what was released, and never a part
of it without its noise. What the caller differentiates is `Delivered`, of which the parameters are
the inputs.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxdp.backend.fence import announce
from fxdp.diagnostics.errors import NotCompiled, StepError
from fxdp.torch_internals import (
    compiled_autograd,
    is_batched,
    peek_interpreter_stack,
    top_saved_tensors_hooks,
)

Gradients = Mapping[Tensor, Tensor]  # by the tensor that they are the gradients of
Work = Callable[[Tensor], Gradients]
LOCK = threading.Lock()


@dataclass(frozen=True)
class Ran:
    """A compiled step that has run forward.

    Attributes:
        value: what is differentiated: a loss, or a model's output [N, ...].
        shadows: what it was made of.
        leaves: the parameters that those stand for.
        noisy: the parameters, by name, that its graph adds noise to.
        public: those whose gradients have terms without samples.
    """

    value: Tensor
    shadows: Sequence[Tensor]
    leaves: Sequence[Tensor]
    noisy: frozenset[str] = frozenset()
    public: frozenset[str] = frozenset()

    def gradients(self, tangent: Tensor | None = None) -> dict[Tensor, Tensor]:
        """Run the backward pass. A parameter that has no part in it is left out.

        Raises:
            StepError: what it needs was changed since.
        """
        if tangent is None:
            tangent = torch.ones_like(self.value)
        unused: dict[str, Any] = {"allow_unused": True}
        try:
            found: Any = torch.autograd.grad(self.value, self.shadows, tangent, **unused)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise StepError(
                "a parameter or an argument was changed in place between the step and its backward "
                "pass; nothing was released. Change them after loss.backward()"
            ) from error
        gradients: dict[Tensor, Tensor] = {}
        for leaf, gradient in zip(self.leaves, found, strict=True):
            if gradient is not None:
                gradients[leaf] = gradients[leaf] + gradient if leaf in gradients else gradient
        return gradients


def run_apart(
    compiled: Callable[..., Any], args: Sequence[Any], place: int
) -> tuple[list[Any], Ran]:
    """Run a compiled forward half on shadows.

    Args:
        place: which output is to be differentiated; what else has a gradient (a weight that the
            model keeps, made of its parameters) is cut off from it.

    Returns:
        Its outputs, all without gradients; and what is to be differentiated.

    Raises:
        NotCompiled: that output has no gradient.
        StepError: what has a gradient was computed from parameters, outside of the step.
    """
    leaves: list[Tensor] = []
    shadows: list[Tensor] = []
    given: list[Any] = []
    for a in args:
        if isinstance(a, Tensor) and a.requires_grad:
            if not a.is_leaf:
                raise StepError(
                    "the model uses a tensor that was computed from its parameters outside of "
                    "forward, and still has their gradients: what reaches them through it would "
                    "not be bounded; nothing was released. Detach it where it is kept, or compute "
                    "it in forward"
                )
            leaves.append(a)
            shadows.append(a.detach().requires_grad_())
            a = shadows[-1]
        given.append(a)
    with saved_as_they_are():
        outputs = list(compiled(*given))
    value = outputs[place]
    if not isinstance(value, Tensor) or not value.requires_grad:
        raise NotCompiled("its loss has no gradient")
    plain = [x.detach() if isinstance(x, Tensor) and x.requires_grad else x for x in outputs]
    return plain, Ran(value, shadows, leaves)


@contextlib.contextmanager
def saved_as_they_are() -> Iterator[None]:
    """Keep the caller's saved_tensors_hooks from what a backward pass saves.

    Among that are C, sigma and the key of the noise: hooks that compress activations would round
    the noise, and others could leave it out. Of several hooks torch calls the last alone.
    """
    hooks: Any = top_saved_tensors_hooks(False)
    if hooks is None:
        yield
        return
    warnings.warn(
        "fxdp: torch.autograd.graph.saved_tensors_hooks (save_on_cpu, too) have no effect on a "
        "private step: the scale of its noise is among what they would change. Use "
        "microbatch_size= or options={'checkpoint': 'always'} to save memory",
        stacklevel=2,
    )
    with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, Tensor.detach):
        yield


class Once:
    """What a backward pass does, once.

    ===============================================  ======================================
    case                                             what happens
    ===============================================  ======================================
    a second pass, whatever torch's settings         StepError
    after a pass that failed                         StepError: its buffers are gone
    two threads                                      one of them gets a StepError
    is_grads_batched, vmap, jacrev, fake tensors,    StepError: one release has one gradient
    compiled autograd
    a child of a fork since the step ran             StepError: both would add the same noise
    ===============================================  ======================================
    """

    def __init__(self, work: Work) -> None:
        self._work: Work | None = work
        self._process = os.getpid()

    def __call__(self, tangent: Tensor) -> Gradients:
        refuse_transforms(tangent)
        if os.getpid() != self._process:
            raise StepError(
                "this process was forked off after the step had run: its release would have the "
                "noise of the other process's. Nothing was released; compute the loss once more"
            )
        with LOCK:
            work, self._work = self._work, None
        if work is None:
            raise StepError(
                "this loss had its backward pass: a second one would release again. Compute the "
                "loss once more, or add up losses before one backward pass"
            )
        return work(tangent)


def refuse_transforms(value: Tensor | None = None) -> None:
    """Refuse to run inside a transform of torch's, which would run a release many times, or none.

    Raises:
        StepError: torch.func, is_grads_batched, compiled autograd or a fake mode is at work.
    """
    strange = value is not None and (
        compiled_autograd.compiled_autograd_enabled
        or compiled_autograd.in_compiled_autograd_region
        or type(value) is not Tensor
        or is_batched(value)
    )
    if strange or peek_interpreter_stack():
        raise StepError(
            "a private step cannot run inside torch.func (vmap, grad, jacrev, functional_call with "
            "transforms), is_grads_batched, compiled autograd or a fake mode: it releases one "
            "gradient, once; nothing was released. Call loss.backward() on a plain loss"
        )


class Delivered(torch.autograd.Function):
    """A value whose backward pass hands out gradients, once."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, once: Once, *leaves: Tensor) -> Tensor:
        ctx.once, ctx.leaves = once, leaves
        return value.clone()

    @staticmethod
    @torch.compiler.disable(reason="a release is made by compiled code")  # pyright: ignore[reportUntypedFunctionDecorator]
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        once, leaves = ctx.once, ctx.leaves
        with torch.no_grad():
            gradients = dict(once(tangents[0]))
        announce(gradients)
        ctx.leaves = None
        return None, None, *[gradients.pop(leaf, None) for leaf in leaves]


def delivered(value: Tensor, work: Work, leaves: Sequence[Tensor]) -> Tensor:
    """value, with a backward pass that does `work` and delivers what it returns."""
    return Delivered.apply(value.detach(), Once(work), *leaves)  # pyright: ignore[reportReturnType]


def is_delivered(value: Tensor) -> bool:
    """Is it what `delivered` returned?"""
    return type(value.grad_fn).__name__ == f"{Delivered.__name__}Backward"
