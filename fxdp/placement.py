"""Where the samples of a batch sit in a tensor.

Think of a batch as a mesh of N devices that hold one sample each and may not talk to each
other. A tensor v of the training graph then has a *placement*, which says how v is made of
the values v_i that the same line of code gives when sample i is the whole batch (the *local
run*). DTensor uses the same three words for the same three relations; `Iota` is ours.
"""

from dataclasses import dataclass

import sympy

ONE = sympy.Integer(1)


@dataclass(frozen=True)
class Replicate:
    """v = v_i for every i: a parameter, a constant, or something made of those alone.

    `zero` is set where every element is known to be 0: only then may a sum over samples be
    written into it, because a sum of N copies of anything else is N times that thing.
    """

    zero: bool = False


@dataclass(frozen=True)
class Shard:
    """Axis `dim` has size outer * N * inner, and its index j belongs to sample (j // inner) % N.

    The slices of that sample, in order, are v_i.
    """

    dim: int
    inner: sympy.Expr = ONE


@dataclass(frozen=True)
class Partial:
    """v is the sum of the v_i; plus a `Replicate` term that holds no sample if `public`.

    A 0-d Partial may also be read sample by sample (a loss, its normaliser, and what is
    computed from them): `localize` gives those readers the N local values instead of the sum.
    """

    public: bool = False


@dataclass(frozen=True)
class Iota:
    """Counts the samples: the element at index j of axis `dim` is step * (j // inner).

    The axis has size N * inner, so the element is `step` times the number of its sample.
    """

    dim: int
    inner: sympy.Expr = ONE
    step: sympy.Expr = ONE


Placement = Replicate | Shard | Partial | Iota


class Mixed(Exception):
    """A rule's refusal: this op would let one sample see another, or no rule can tell.

    Args:
        why: what was met, as the end of the sentence "refused because ...".
        name: the kind of fault, one of the names in `fxdp.diagnostics.codes.CODES`.
    """

    def __init__(self, why: str, name: str = "mixes-samples") -> None:
        super().__init__(why)
        self.why = why
        self.name = name
