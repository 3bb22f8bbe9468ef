"""Ops over the last axes of a stack: matrices (torch.linalg), and images on a grid.

Every entry of the stack is worked on by itself. The samples stay on the axis of the stack that
holds them, in all results.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxdp.forms.each import Each, folded, given
from fxdp.kernels.matrix_exp import matrix_exp, matrix_exp_backward
from fxdp.placement import Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, Value, is_shared
from fxdp.torch_internals import OpOverload

aten = torch.ops.aten


@dataclass(frozen=True)
class Stack:
    """An operand and how many of its last axes belong together."""

    value: Value
    own: int

    @property
    def rank(self) -> int:
        """The axes of the stack."""
        return self.value.rank - self.own


def place_stack(*stacks: Stack) -> Placement:
    """Where the samples are in the operands, and in the results, which have the same stack.

    Raises:
        Mixed: they are among the last axes, or not on the same axis of the same stack.
    """
    places = {s.value.placement for s in stacks if not is_shared(s.value)}
    if not places:
        return Replicate()
    at = places.pop()
    if places or not isinstance(at, Shard):
        raise Mixed("the operands hold their samples on different axes")
    held = [s for s in stacks if s.value.placement == at]
    if any(at.dim >= s.rank for s in held):
        raise Mixed("it works along the batch axis")
    sizes = {(s.rank, s.value.shape[at.dim]) for s in held}
    others = [s for s in stacks if s.value.placement != at]
    # What has no samples is for all of them: one, or a stack of size 1 there.
    fits = all(
        s.rank == 0 or (s.rank == held[0].rank and s.value.shape[at.dim] == 1) for s in others
    )
    if len(sizes) > 1 or not fits:
        raise Mixed("the operands hold their samples on different axes")
    return at


def stacked(call: Call, *operands: Any, **_: Any) -> Any:
    """An op on a stack of matrices."""
    at = place_stack(*(Stack(x, 2) for x in operands if isinstance(x, Value)))
    return results(call, lambda _: at)


def is_linear(x: Any, *others: Any) -> bool:
    """Is x a sum over samples, in an op that is linear in it and takes no other samples?"""
    if not isinstance(x.placement, Partial):
        return False
    if not is_shared(*others):
        raise Mixed("the operands hold their samples on different axes")
    return True


def apart(b: Any, *shared: Any, left: bool = True) -> Shard | None:
    """Where the samples are if they are columns of b, or rows where x stands on the left: each is
    solved for by itself, with a matrix (or its factors) that all share."""
    at = b.placement
    if not isinstance(at, Shard) or not is_shared(*shared):
        return None
    aside = at.dim == b.rank - (1 if left else 2)
    return at if aside and all(x.rank <= b.rank for x in shared) else None


def solved(call: Call, a: Any, b: Any, *, left: bool = True, **_: Any) -> tuple[Placement, ...]:
    """a x = b for matrices or vectors b; then the factors of a."""
    if is_linear(b, a):
        return b.placement, Replicate(), Replicate(), Replicate()
    if b.rank > 1 and (found := apart(b, a, left=left)) is not None:
        return found, Replicate(), Replicate(), Replicate()
    vectors = b.rank == 1 or b.rank == a.rank - 1
    at = place_stack(Stack(a, 2), Stack(b, 1 if vectors else 2))
    if isinstance(at, Shard) and is_shared(a):
        return at, *(Replicate() for _ in call.out[1:])
    return tuple(at for _ in call.out)


def solved_by_factors(
    call: Call, lu: Any, pivots: Any, b: Any, *, left: bool = True, **_: Any
) -> Placement:
    """a x = b, with the factors of a."""
    if is_linear(b, lu, pivots):
        return b.placement
    if (found := apart(b, lu, pivots, left=left)) is not None:
        return found
    return place_stack(Stack(lu, 2), Stack(pivots, 1), Stack(b, 2))


def solved_triangular(call: Call, a: Any, b: Any, *, left: bool = True, **_: Any) -> Placement:
    """a x = b for a triangle a."""
    if is_linear(b, a):
        return b.placement
    return apart(b, a, left=left) or place_stack(Stack(a, 2), Stack(b, 2))


def solved_cholesky(call: Call, b: Any, factor: Any, *_: Any) -> Placement:
    """a x = b, with the root of a."""
    return solved_triangular(call, factor, b)


def results(call: Call, place: Callable[[int], Placement]) -> Any:
    """One placement, or one for each result."""
    found = tuple(place(i) for i, _ in enumerate(call.out))
    return found[0] if len(found) == 1 else found


def checked_errors(call: Call, info: Any, *_: Any, **__: Any) -> tuple[Placement, ...]:
    """An assertion that matrices were regular, which has no results."""
    return ()


def exponential_back(call: Call, grad: Any, x: Any) -> Placement:
    """The gradients of matrices whose exponentials were taken, linear in the incoming ones."""
    return grad.placement if is_linear(grad, x) else place_stack(Stack(grad, 2), Stack(x, 2))


def sampled(call: Call, x: Any, grid: Any, *_: Any) -> Placement:
    """Values of images at the points of grids, image by image."""
    return x.placement if is_linear(x, grid) else on_grids(x, grid)


def on_grids(*values: Any) -> Placement:
    """The batch axis of images and grids, which is the first of all of them."""
    if is_shared(*values):
        return Replicate()
    if any(v.placement != values[0].placement for v in values):
        raise Mixed("the operands hold their samples on different axes")
    at = values[0].placement
    if not isinstance(at, Shard) or at.dim != 0:
        raise Mixed("it works along the batch axis")
    return at


def sampled_back(
    call: Call, grad: Any, x: Any, grid: Any, mode: Any, padding: Any, corners: Any, mask: Any
) -> tuple[Placement | None, ...]:
    """The gradients of the images and of the grids, linear in the incoming one."""
    at = grad.placement if is_linear(grad, x, grid) else on_grids(grad, x, grid)
    return tuple(at if wanted else None for wanted in mask)


STACKED = (
    aten._linalg_det.default,
    aten._linalg_slogdet.default,
    aten._linalg_svd.default,
    aten._linalg_eigh.default,
    aten.linalg_eig.default,
    aten.linalg_cholesky_ex.default,
    aten.linalg_inv_ex.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_matrix_exp.default,
    aten.linalg_qr.default,
    aten.cholesky_inverse.default,
)

RULES: Table = {op: Rule(stacked) for op in (*STACKED, matrix_exp.default)} | {
    op: Rule(place)
    for op, place in {
        matrix_exp_backward.default: exponential_back,
        aten._linalg_check_errors.default: checked_errors,
        aten._linalg_solve_ex.default: solved,
        aten.linalg_lu_solve.default: solved_by_factors,
        aten.linalg_solve_triangular.default: solved_triangular,
        aten.cholesky_solve.default: solved_cholesky,
        aten.grid_sampler_2d.default: sampled,
        aten.grid_sampler_3d.default: sampled,
        aten.grid_sampler_2d_backward.default: sampled_back,
        aten.grid_sampler_3d_backward.default: sampled_back,
    }.items()
}


def each_solved(a: Tensor, b: Each, **how: Any) -> tuple[Each]:
    """Vectors differ from matrices by their number of axes."""
    if b.rank == 1 or b.rank == a.dim() - 1:
        columns = aten._linalg_solve_ex(a, b.value.unsqueeze(-1), **how)[0]
        return (Each(columns.squeeze(-1)),)
    return (Each(aten._linalg_solve_ex(a, b.value, **how)[0]),)


def each_solved_triangular(a: Tensor, b: Each, **how: Any) -> Each:
    return Each(aten.linalg_solve_triangular(a, b.value, **how))


def each_solved_by_factors(lu: Tensor, pivots: Tensor, b: Each, **how: Any) -> Each:
    n = b.value.shape[0]
    return Each(aten.linalg_lu_solve(given(lu, n), given(pivots, n), b.value, **how))


def each_solved_cholesky(b: Each, factor: Tensor, *upper: Any) -> Each:
    return Each(aten.cholesky_solve(b.value, given(factor, b.value.shape[0]), *upper))


def each_exponential_back(grad: Each, x: Tensor) -> Each:
    return Each(matrix_exp_backward(grad.value, given(x, grad.value.shape[0])))


EACH: dict[OpOverload, Callable[..., Any]] = {
    matrix_exp_backward.default: each_exponential_back,
    aten._linalg_solve_ex.default: each_solved,
    aten.linalg_solve_triangular.default: each_solved_triangular,
    aten.linalg_lu_solve.default: each_solved_by_factors,
    aten.cholesky_solve.default: each_solved_cholesky,
    aten.grid_sampler_2d.default: folded(aten.grid_sampler_2d.default, 2),
    aten.grid_sampler_3d.default: folded(aten.grid_sampler_3d.default, 3),
    aten.grid_sampler_2d_backward.default: folded(aten.grid_sampler_2d_backward.default, 2),
    aten.grid_sampler_3d_backward.default: folded(aten.grid_sampler_3d_backward.default, 3),
}
