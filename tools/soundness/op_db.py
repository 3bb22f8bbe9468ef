"""PyTorch's own operators, with PyTorch's own sample inputs, under every placement.

torch tests each of its operators with a database of sample inputs. Here the tensors of a sample
get placements: one axis of one tensor, or of several, holds N samples. What fxdp claims about
the results and gradients is then compared with runs on each sample alone.
"""

import contextlib
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxdp.graph.nodes import outputs
from fxdp.ops import RULES
from fxdp.placement import Partial, Placement, Replicate
from fxdp.rules import Table
from tools.soundness.local_runs import (
    alone,
    held,
    own_cotangent,
    run_plain,
    run_whole,
    same,
    trouble,
    value_of,
)
from tools.soundness.programs import (
    NotCapturedError,
    Program,
    Refused,
    captured,
    claims,
    differentiable,
    is_random,
)

SEED = 0
LOOKED_AT = 24  # samples of an operator to choose from
BATCHES = (2, 3)
LARGEST = 10  # batch that a sample of the database may come with
DTYPES = (torch.float64, torch.float32, torch.complex128, torch.int64, torch.bool)
# Whose kernels in torch, without fxdp, too, write outside of their memory where indices do not fit
# what they point into, as those of a slice of the samples may not.
WRITE_OUTSIDE = {"_segment_reduce.offsets", "lu_unpack"}
# Those that leave memory as it was.
LEFT_OUT = {"to_sparse", "item", "resize_", "resize_as_", "sparse.mm", "sparse.sampled_addmm"}


@dataclass
class Tally:
    """What became of operators and their samples.

    Attributes:
        checked: claims about results, once for each batch; `untried` are those for which no
            batch could be run, for instance because one sample alone is no valid input.
        skipped, missing: why operators were left out, and samples could not be captured.
        refused: results about which nothing is claimed though brute force finds a placement, by
            operator and reason.
        false: claims that are not true, each with what is needed to see it again.
        crashed: operators whose process died, each with how.
    """

    ops: int = 0
    samples: int = 0
    placements: int = 0
    claimed: int = 0
    unproven: int = 0
    checked: int = 0
    untried: int = 0
    skipped: dict[str, str] = field(default_factory=lambda: {})
    missing: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    false: list[str] = field(default_factory=lambda: [])
    crashed: list[str] = field(default_factory=lambda: [])

    def __iadd__(self, other: "Tally") -> "Tally":
        for name in (f.name for f in fields(self)):
            mine, more = getattr(self, name), getattr(other, name)
            setattr(self, name, {**mine, **more} if type(mine) is dict else mine + more)
        return self


def database() -> list[Any]:
    """Every OpInfo, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_methods_invocations  # noqa: PLC0415 - slow
    return sorted(common_methods_invocations.op_db, key=full_name)


def full_name(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Some of the items, evenly from first to last."""
    if len(items) <= count:
        return list(items)
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def samples_of(op: Any, count: int) -> list[Any]:
    """Sample inputs with a tensor that can hold samples."""
    supported = op.supported_dtypes("cpu")
    dtype = next(d for d in DTYPES if d in supported)
    grad = op.supports_autograd and (dtype.is_floating_point or dtype.is_complex)
    torch.manual_seed(SEED)
    found = itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=grad), LOOKED_AT)
    return spread([s for s in found if any(axes(x) for x in tensors_of(s))], count)


def tensors_of(sample: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return [x for x in leaves if isinstance(x, Tensor)]


def axes(x: Tensor) -> list[int]:
    """Axes that could hold samples."""
    return [d for d, s in enumerate(x.shape) if s > 1] if x.numel() else []


def choices(tensors: Sequence[Tensor], count: int) -> list[tuple[int | None, ...]]:
    """Which axes hold the samples: mostly of tensors that fit together, once of one alone."""
    together: list[tuple[int | None, ...]] = []
    lone: list[tuple[int | None, ...]] = []
    for k, x in enumerate(tensors):
        for d in axes(x):
            n = x.shape[d]
            left = [d if y.dim() > d and y.shape[d] == n else None for y in tensors]
            right = [
                y.dim() + d - x.dim()
                if 0 <= y.dim() + d - x.dim() < y.dim() and y.shape[y.dim() + d - x.dim()] == n
                else None
                for y in tensors
            ]
            together += [tuple(left), tuple(right)]
            lone.append(tuple(d if i == k else None for i in range(len(tensors))))
    together = list(dict.fromkeys(together))
    lone = [dims for dims in dict.fromkeys(lone) if dims not in together]
    return [*spread(together, count - 1 if lone else count), *spread(lone, 1)]


def program_of(op: Any, sample: Any, dims: Sequence[int | None]) -> Program:
    """An operator as a function of the tensors of a sample."""
    flat, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    spots = [i for i, x in enumerate(flat) if isinstance(x, Tensor)]

    def function(*tensors: Tensor) -> list[Tensor]:
        values = list(flat)
        for i, x in zip(spots, tensors, strict=True):
            values[i] = x
        own, args, kwargs = pytree.tree_unflatten(values, spec)
        return [y for y in pytree.tree_leaves(op.op(own, *args, **kwargs)) if is_tensor(y)]

    tensors = [flat[i].detach().contiguous() for i in spots]
    wanted = [flat[i].requires_grad and differentiable(flat[i]) for i in spots]
    return Program(function, tensors, tuple(dims), wanted)


def is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided


def batch(program: Program, n: int, seed: int) -> list[Tensor]:
    """Fresh samples of the same kind: each between two of the given ones, or made of their ints."""
    dice = torch.Generator().manual_seed(seed)
    made: list[Tensor] = []
    for x, d in zip(program.tensors, program.dims, strict=True):
        if d is None:
            made.append(x)
            continue
        shape = [n if i == d else s for i, s in enumerate(x.shape)]
        if differentiable(x):
            a, b = (torch.randint(x.shape[d], (n,), generator=dice) for _ in range(2))
            share = torch.rand(n, generator=dice, dtype=torch.float64)
            share = share.reshape([n if i == d else 1 for i in range(x.dim())]).to(x.dtype)
            made.append(x.index_select(d, a) * share + x.index_select(d, b) * (1 - share))
        else:
            made.append(x.gather(d, torch.randint(x.shape[d], shape, generator=dice)))
    return made


def check_op(op: Any, tally: Tally, count: int, placements: int, table: Table = RULES) -> None:
    """Try an operator: its samples, their placements, several batches."""
    name = full_name(op)
    if name in WRITE_OUTSIDE:
        tally.skipped[name] = "torch's own kernel writes outside of its memory, without fxdp too"
        return
    try:
        with quiet():
            samples = samples_of(op, count)
    except Exception as error:
        tally.skipped[name] = f"no samples: {type(error).__name__}"
        return
    if op.name in LEFT_OUT or op.name.startswith(("empty", "new_empty")) or not samples:
        tally.skipped[name] = "it leaves memory as it was" if samples else "no tensor has an axis"
        return
    if any(x.layout != torch.strided for s in samples for x in tensors_of(s)):
        tally.skipped[name] = "sparse tensors"
        return
    tally.ops += 1
    with quiet():
        for number, sample in enumerate(samples):
            tally.samples += 1
            for dims in choices(tensors_of(sample), placements):
                check_one(name, number, program_of(op, sample, dims), tally, table)


def tried(op: Any, count: int, placements: int, table: Table = RULES) -> Tally:
    """`check_op` with a tally of its own."""
    tally = Tally()
    check_op(op, tally, count, placements, table)
    return tally


def check_one(name: str, number: int, program: Program, tally: Tally, table: Table) -> None:
    """One sample of an operator under one placement."""
    where = f"--op {name}, sample {number}, samples on axes {list(program.dims)} of " + str(
        [tuple(x.shape) for x in program.tensors]
    )
    tally.placements += 1
    try:
        gm = captured(program, table)
        if is_random(gm):
            tally.placements -= 1
            tally.skipped[name] = "it draws random numbers"
            return
        found = claims(gm)[1:]
    except NotCapturedError as error:
        tally.missing[f"{name}: {error}"] += 1
        return
    tally.claimed += sum(isinstance(c, Placement) for c in found)
    tally.unproven += sum(isinstance(c, Refused) for c in found)
    own = program.size
    trials = [(n, batch(program, n, SEED + n)) for n in (own, *BATCHES) if n <= LARGEST]
    if own <= LARGEST:
        trials.insert(0, (own, list(program.tensors)))
    missed: set[int] | None = None
    gaps: dict[tuple[int, int], Tensor] = {}
    for n, tensors in trials:
        try:
            trial = Trial(gm, program, tensors, n, found)
        except Exception as error:  # samples in between may be no valid input
            tally.missing[f"{name}: no run of {n} samples: {type(error).__name__}"] += 1
            continue
        tally.checked += sum(isinstance(c, Placement) for c in found)
        for i, why in trial.troubles(gaps):
            tally.false.append(f"{where}, N={n}, result {i}: claims {found[i]}, but {why}")
        flags = trial.true_though_refused()
        missed = flags if missed is None else missed & flags
    if missed is None:
        tally.untried += sum(isinstance(c, Placement) for c in found)
    for i in missed or ():
        refused = found[i]
        assert isinstance(refused, Refused)
        tally.refused[name, refused.why] += 1


class Trial:
    """One batch, run whole and sample by sample."""

    def __init__(
        self, gm: Any, program: Program, tensors: list[Tensor], n: int, found: Sequence[Any]
    ) -> None:
        self.found, self.n = found, n
        self.ends = outputs(gm)[1:]
        self.backs: dict[int, tuple[Tensor, Placement]] = {}
        self.run = run_whole(gm, program, tensors, self.cotangent)
        plain = [self.alone(program, tensors, i) for i in range(n)]
        self.plain = list(zip(*plain, strict=True))
        self.eager = self.eagerly(program, tensors)

    def cotangent(self, index: int, out: Tensor, at: Placement) -> Tensor:
        dice = torch.Generator().manual_seed(index)
        back = torch.randn(out.shape, dtype=out.dtype, generator=dice)
        self.backs[index] = (back, at)
        return back

    def alone(self, program: Program, tensors: list[Tensor], i: int) -> list[Tensor | None]:
        """Results and gradients of one sample; zeros start the backward of what is refused."""

        def back(index: int, out: Tensor) -> Tensor:
            if index not in self.backs:
                return torch.zeros_like(out)
            return own_cotangent(self.backs[index][0], out, self.backs[index][1], i, self.n)

        return run_plain(program, alone(tensors, program.dims, i), back)

    def eagerly(self, program: Program, tensors: list[Tensor]) -> list[Tensor | None]:
        """The whole batch by PyTorch alone, for what fxdp refuses."""

        def back(index: int, out: Tensor) -> Tensor:
            return self.backs[index][0] if index in self.backs else torch.zeros_like(out)

        return run_plain(program, tensors, back)

    def troubles(self, gaps: dict[tuple[int, int], Tensor]) -> Iterator[tuple[int, str]]:
        """The claims that are not true.

        Args:
            gaps: by number of samples and result, what sums hold beside the samples' terms: it
                must be the same for other samples.
        """
        for i, (end, claim) in enumerate(zip(self.ends, self.found, strict=True)):
            if not isinstance(claim, Placement) or end is None:
                continue
            locals_ = [torch.zeros(()) if x is None else x for x in self.plain[i]]
            at, whole = value_of(self.run, end)
            if isinstance(at, Partial) and at.public:
                gap = whole - torch.stack(locals_).sum(0)
                if not same(gaps.setdefault((self.n, i), gap), gap):
                    yield i, "the samples are not in it as a sum"
                continue
            if (why := trouble(at, whole, locals_)) is not None:
                yield i, why

    def true_though_refused(self) -> set[int]:
        """The results without a claim for which brute force finds a placement."""
        found: set[int] = set()
        for i, claim in enumerate(self.found):
            whole, locals_ = self.eager[i], self.plain[i]
            if not isinstance(claim, Refused) or whole is None or any(x is None for x in locals_):
                continue
            if bool((whole == 0).all()):
                continue  # a gradient without a cotangent
            at = held(whole, [x for x in locals_ if x is not None])
            # Nothing of the samples is in what does not depend on them.
            if at is not None and not isinstance(at, Replicate):
                found.add(i)
        return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch warns of many of its own ops."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
