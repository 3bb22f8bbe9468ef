"""The rules of aten: everything fxdp knows about its ops, a file for each family."""

from dataclasses import replace
from typing import Any

from fxdp.ops import (
    attention,
    bag,
    compose,
    contraction,
    convolution,
    ctc,
    decompositions,
    distance,
    factory,
    index,
    linalg,
    norm,
    pointwise,
    pool,
    ragged,
    recurrent,
    reduce,
    softmax,
    views,
)
from fxdp.ops.each import EACH
from fxdp.rules import Rule, Table

ALL: Table = (
    dict(pointwise.RULES)
    | dict(views.RULES)
    | dict(compose.RULES)
    | dict(reduce.RULES)
    | dict(contraction.RULES)
    | dict(convolution.RULES)
    | dict(softmax.RULES)
    | dict(attention.RULES)
    | dict(distance.RULES)
    | dict(pool.RULES)
    | dict(index.RULES)
    | dict(bag.RULES)
    | dict(factory.RULES)
    | dict(linalg.RULES)
    | dict(norm.RULES)
    | dict(recurrent.RULES)
    | dict(ctc.RULES)
)

ON_EACH = (
    EACH
    | pool.EACH
    | compose.EACH
    | convolution.EACH
    | linalg.EACH
    | norm.EACH
    | recurrent.EACH
    | ctc.EACH
)

DECOMPOSITIONS = decompositions.DECOMPOSITIONS | norm.DECOMPOSITIONS
FOR_INDUCTOR = decompositions.FOR_INDUCTOR | norm.FOR_INDUCTOR


class Rules(dict[Any, Rule]):
    """fxdp's own table. It prints as its name, because it is a default that `help` shows."""

    def __repr__(self) -> str:
        return "fxdp.RULES"


OF_ROWS = ragged.rows(ALL)
RULES: Table = Rules(
    {op: replace(rule, each=ON_EACH.get(op), **OF_ROWS.get(op, {})) for op, rule in ALL.items()}
)

__all__ = ["DECOMPOSITIONS", "FOR_INDUCTOR", "RULES"]
