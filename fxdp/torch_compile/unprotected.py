"""Plain gradients, asked for by name."""

import contextlib
from collections.abc import Iterator
from typing import Any

from fxdp.module.private_module import PrivateModule
from fxdp.torch_compile.door import Door


@contextlib.contextmanager
def unprotected(private: Any) -> Iterator[None]:
    """Let a private model run as it is, gradients included: for data that are public.

        with fxdp.unprotected(private):
            F.cross_entropy(private(x_public), y_public).backward()

    Guarantees:
        Nothing that happens inside is released by fxdp or counted as a release: what is made of
        the gradients is as public as the data that they were made of. The ledger counts each such
        block, and the statement and the certificate say so.

    ==========================================  ===========================================
    case                                        what happens
    ==========================================  ===========================================
    a backward pass after the block             works: the plain loss was made inside; with
                                                torch.compile's step, the fence stands: StepError
    in another thread, meanwhile                steps are private
    inside of `accumulate()`                    the block's gradients are no part of the batch
    another private module inside               is private
    blocks inside of blocks                     work, and count each
    ==========================================  ===========================================

    Args:
        private: of `fxdp.compile`, or the step of `torch.compile(backend="fxdp")`.

    Raises:
        TypeError: it is neither.
    """
    door = private if isinstance(private, PrivateModule) else getattr(private, "privacy", None)
    if not isinstance(door, PrivateModule | Door):
        raise TypeError(
            "unprotected takes a module of fxdp.compile or a step of "
            f'torch.compile(backend="fxdp"), not a {type(private).__name__}'
        )
    door.ledger.note_unprotected()
    fence = door.fence if isinstance(door, Door) else None
    door.unprotected += 1
    if fence is not None:
        fence.lift(1)
    try:
        yield
    finally:
        door.unprotected -= 1
        if fence is not None:
            fence.lift(-1)
