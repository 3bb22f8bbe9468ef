"""Two statements of Python that torch does not capture, and that change nothing of a step.

A check of values that raises (`if labels.max() >= classes: raise ...`) is left out, as assertions
are: no sample's gradient hangs on it, and a sample that fails it gets the gradient that the rest of
the program gives it. Taken out is only what raises in a straight line, where no `try` could catch
it. `x.requires_grad = True` becomes `x.requires_grad_()`, which torch captures.
"""

import contextlib
import dis
from collections.abc import Callable, Iterator
from typing import Any

from fxdp.torch_internals import TensorVariable, translators

Handler = Callable[[Any, Any], Any]
# What ends a straight line, by how the names of its instructions begin.
TURNS = ("RETURN", "STORE", "DELETE", "YIELD", "FOR_ITER", "SEND", "RERAISE", "BEFORE_WITH")


def raises(instructions: list[Any], start: int) -> bool:
    """Is an exception raised there in any case, and caught by nothing around it?"""
    for at in instructions[start:]:
        if at.opname == "RAISE_VARARGS":
            return at.exn_tab_entry is None
        if "JUMP" in at.opname or at.opname.startswith(TURNS):
            return False
    return False


def is_caught(tx: Any) -> bool:
    """Might a function that called this one catch what it raises?"""
    while (tx := tx.parent) is not None:
        if tx.current_instruction.exn_tab_entry is not None:
            return True
    return False


def past_checks(jump: Handler) -> Handler:
    """A jump by a condition; where a tensor decides whether to raise, the way that does not."""

    def run(tx: Any, inst: Any) -> Any:
        if not isinstance(tx.stack[-1].realize(), TensorVariable) or is_caught(tx):
            return jump(tx, inst)
        on = raises(tx.instructions, tx.instruction_pointer)
        there = raises(tx.instructions, tx.indexof[inst.target])
        if on == there:
            return jump(tx, inst)
        tx.pop()
        return tx.jump(inst) if on else None

    return run


def marks_leaves(store: Handler) -> Handler:
    """An attribute that is set; the one that makes a tensor a leaf, by the method."""

    def run(tx: Any, inst: Any) -> Any:
        if inst.argval != "requires_grad":
            return store(tx, inst)
        x, value = tx.stack[-1].realize(), tx.stack[-2]
        true = value.is_python_constant() and value.as_python_constant() is True
        if not (true and isinstance(x, TensorVariable)):
            return store(tx, inst)
        tx.popn(2)
        x.call_method(tx, "requires_grad_", [], {})
        return None

    return run


@contextlib.contextmanager
def statements() -> Iterator[None]:
    """While a model is captured: these in place of torch's own."""
    before: list[tuple[list[Any], int, Handler]] = []
    for table in translators():
        for name, code in dis.opmap.items():
            jumps = name.startswith("POP_JUMP") and name.endswith(("IF_TRUE", "IF_FALSE"))
            own = past_checks if jumps else marks_leaves if name == "STORE_ATTR" else None
            if own is not None and table[code] is not None:
                before.append((table, code, table[code]))
                table[code] = own(table[code])
    try:
        yield
    finally:
        for table, code, handler in before:
            table[code] = handler
