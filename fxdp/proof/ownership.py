"""Whether an op is torch's, fxdp's or somebody else's.

An op of torch's is known to compute its result from its operands and from nothing else.
Somebody else's op claims the same, and can do anything: keep what it was given, and return
it, or something made of it, at the next call. What such an op returns is taken for nothing
without a rule.
"""

from typing import Any

from fxdp.torch_internals import (
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    library_defs,
    prims,
)

# The modules whose functions compute sizes in a graph.
ARITHMETIC = {"_operator", "builtins", "math", "torch"}


def is_torchs(target: Any) -> bool:
    """Was an op, or a function that a graph calls, written by torch, and is it open to a proof?

    ==============================================  =======
    case                                            answer
    ==============================================  =======
    an op of ATen                                   yes
    one that was put into its namespace in Python   no
    an op of torch's prims                          yes
    an op of any other namespace                    no
    an operator that runs graphs, or Triton         no
    a function of Python's or torch's on numbers    yes
    ==============================================  =======
    """
    if isinstance(target, OpOverload | OpOverloadPacket):
        namespace, _, name = name_of(target).partition("::")
        if namespace == "prims":
            known = getattr(prims, name, None)
            return isinstance(known, OpOverload) and packet(known) is packet(target)
        # No op of ATen's is defined from Python, unless by somebody else.
        return namespace == "aten" and library_defs.isdisjoint(o.name() for o in overloads(target))
    if isinstance(target, HigherOrderOperator):
        return False
    return str(getattr(target, "__module__", "")).partition(".")[0] in ARITHMETIC


def packet(target: OpOverload | OpOverloadPacket) -> Any:
    """An op with all its overloads."""
    return target.overloadpacket if isinstance(target, OpOverload) else target


def name_of(target: OpOverload | OpOverloadPacket) -> str:
    """The name of an op without its overload's: "aten::add"."""
    return packet(target)._qualified_op_name


def overloads(target: OpOverload | OpOverloadPacket) -> list[OpOverload]:
    """An op, or all that a packet may stand for."""
    if isinstance(target, OpOverload):
        return [target]
    return [getattr(target, o) for o in target.overloads()]


def whose(target: Any) -> str:
    """How an op is called where it is refused for want of a rule."""
    if isinstance(target, OpOverload | OpOverloadPacket) and not is_torchs(target):
        return f"op, which is not torch's and may keep samples between steps ({name_of(target)})"
    return "op"
