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


@dataclass(frozen=True)
class Segment:
    """Axis `dim` has size outer * R * inner, and its index j belongs to row (j // inner) % R of a
    ragged axis, one that samples have different numbers of rows of.

    R is the symbol `rows`, one for each ragged axis; which sample a row belongs to says a tensor
    [R] that the step is given. The slices of a sample's rows, in order, are v_i.
    """

    dim: int
    rows: sympy.Symbol
    inner: sympy.Expr = ONE


@dataclass(frozen=True)
class Owner:
    """The number of the sample that each row belongs to, along axis `dim`, of size R; the same all
    along the other axes. A sample's own rows are all of sample 0 in its local run."""

    dim: int
    rows: sympy.Symbol


@dataclass(frozen=True)
class Pointer:
    """Numbers of rows of the ragged axis `to`, along axis `dim` of size `rows`: the element at a
    row names a row of the same sample, which in its local run are counted from its first."""

    dim: int
    rows: sympy.Symbol
    to: sympy.Symbol


@dataclass(frozen=True)
class Starts:
    """[N]: where each sample's rows begin, on a ragged axis where they lie one after the other."""

    rows: sympy.Symbol


Ragged = Segment | Owner | Pointer | Starts
Placement = Replicate | Shard | Partial | Iota | Ragged


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
