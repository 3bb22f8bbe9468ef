"""Keeps plain gradients from the parameters of a step that torch.compile made.

`torch.compile(model, backend="fxdp")` hands out a step of torch's making: where torch does not
compile (a stance, a setting, a limit, a graph break, an error that it swallows), the model itself
would run, and its gradients would be plain. So the parameters are fenced: what autograd is about to
add to one of them must be what a release delivered.
"""

import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxdp.diagnostics.errors import NotCompiled, StepError


class InThisThread:
    """An attribute, a number that each thread has for itself; 0 at first."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}_by_thread"

    def __get__(self, of: Any, owner: type | None = None) -> int:
        return getattr(self._of(of), "number", 0)

    def __set__(self, of: Any, number: int) -> None:
        self._of(of).number = number

    def _of(self, of: Any) -> threading.local:
        found = of.__dict__.get(self.name)
        return found or of.__dict__.setdefault(self.name, threading.local())


class Post:
    """The fence of one parameter.

    Attributes:
        node: where autograd adds to `grad`; as long as it lives, so does the hook on it.
        expected: what a release delivers, until it has arrived.
        lifted: how many `fxdp.unprotected` are around.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.node: Any = torch.autograd.graph.get_gradient_edge(parameter).node
        self.expected: Tensor | None = None
        self.lifted = 0
        own = weakref.ref(self)  # or node and post would hold each other for ever

        def arrived(gradients: tuple[Tensor | None, ...]) -> None:
            if (post := own()) is not None:
                post.arrived(gradients)

        self.node.register_prehook(arrived)

    def arrived(self, gradients: tuple[Tensor | None, ...]) -> None:
        """Refuse a gradient that no release delivered, before it is added.

        Raises:
            NotCompiled: it is one.
            StepError: it is the sum of one and of what a release delivered, which was counted.
        """
        expected, self.expected = self.expected, None
        (gradient,) = gradients
        if gradient is None or gradient is expected or self.lifted:
            return
        if expected is not None:
            raise StepError(
                "a loss had a part that no release made, and the gradient of the whole was about "
                'to be added to a parameter of a step of torch.compile(backend="fxdp"); it was '
                "not. The release that is the other part was counted. Make one loss inside the step"
            )
        raise NotCompiled(
            "a gradient that no release made was about to be added to a parameter of a step of "
            'torch.compile(backend="fxdp")'
        )


# Of the parameters of all steps, by id; a post, which holds its parameter, goes with its fences.
POSTS: "weakref.WeakValueDictionary[int, Post]" = weakref.WeakValueDictionary()


class Fence:
    """The posts of one step's parameters; they stand as long as it does.

    Guarantees:
        While a step of `torch.compile(backend="fxdp")` exists, no gradient is added to a parameter
        that it was seen to train, but one that a release delivered, or within `fxdp.unprotected`.

        ============================================  ========================================
        case                                          what happens
        ============================================  ========================================
        the loss has a part that the step did not     StepError, for the sum is no release;
        make                                          the release was counted
        loss.backward() of the model itself           StepError
        torch.autograd.grad of the model itself       it adds to no parameter, and is let pass
        the dtype or device of a parameter changes    its post is set up again at the next step
        ============================================  ========================================
    """

    def __init__(self) -> None:
        self.posts: dict[int, Post] = {}

    def around(self, parameters: Iterable[Tensor]) -> None:
        """Set up the posts that are missing."""
        for p in parameters:
            if not (p.requires_grad and p.is_leaf):
                continue
            post = POSTS.get(id(p))
            if post is None or post.node is not torch.autograd.graph.get_gradient_edge(p).node:
                post = POSTS[id(p)] = Post(p)
            self.posts[id(p)] = post

    def lift(self, by: int) -> None:
        """Open the fence once more (1), or once less (-1)."""
        for post in self.posts.values():
            post.lifted += by


def announce(gradients: Mapping[Tensor, Tensor]) -> None:
    """Tell the posts of parameters what a release is about to deliver.

    They hold it, so that autograd cannot add another gradient to it in place.
    """
    for parameter, gradient in gradients.items():
        post = POSTS.get(id(parameter))
        if post is not None:
            post.expected = gradient
