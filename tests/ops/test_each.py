"""Linear ops on all samples at once do to each sample what the op does to it alone."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxdp.forms.each import Each
from fxdp.ops import ON_EACH

aten = torch.ops.aten
N = 5


def each(*shape: int) -> Each:
    return Each(torch.randn(N, *shape, generator=torch.Generator().manual_seed(0)))


def shared(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


IDS, PAIRS, TWO = torch.tensor([1, 0, 3, 1]), torch.tensor([[0, 2], [2, 1]]), torch.tensor([3, 1])
END = 9223372036854775807

CASES: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.add.Tensor, (each(4, 3), each(4, 3))),
    (aten.mul.Tensor, (each(3), shared(4, 3))),
    (aten.mul.Tensor, (shared(4, 1), each(1, 3))),
    (aten.div.Tensor, (each(4, 3), shared(3))),
    (aten.where.self, (shared(4, 3) > 0, each(4, 3), zeros())),
    (aten.neg.default, (each(4),)),
    (aten.masked_fill.Scalar, (each(4, 3), shared(3) > 0, 0)),
    (aten.transpose.int, (each(4, 3, 2), 0, 2)),
    (aten.unsqueeze.default, (each(4, 3), 1)),
    (aten.unsqueeze.default, (each(4, 3), 2)),
    (aten.squeeze.dim, (each(1, 3), 0)),
    (aten.squeeze.dims, (each(1, 3, 1), [0, 2])),
    (aten.flip.default, (each(4, 3), [1])),
    (aten.cumsum.default, (each(4, 3), 0)),
    (aten.slice.Tensor, (each(4, 3), 0, 1, 3, 1)),
    (aten.select.int, (each(4, 3), 1, 2)),
    (aten.split.Tensor, (each(4, 3), 2, 0)),
    (aten.split_with_sizes.default, (each(4, 3), [1, 3], 0)),
    (aten.unbind.int, (each(4, 3), 1)),
    (aten.cat.default, ([each(4, 3), shared(2, 3)], 0)),
    (aten.stack.default, ([each(4, 3), shared(4, 3)], 2)),
    (aten.diagonal.default, (each(4, 4), 1, 0, 1)),
    (aten.diagonal_scatter.default, (zeros(4, 4), each(4), 0, 0, 1)),
    (aten.slice_scatter.default, (zeros(9, 3), each(4, 3), 0, 2, 6, 1)),
    (aten.select_scatter.default, (zeros(9, 3), each(3), 0, 2)),
    (aten.gather.default, (each(4, 3), 0, IDS[:, None])),
    (aten.scatter_add.default, (zeros(9, 3), 0, IDS[:, None].expand(4, 3), each(4, 3))),
    (aten.scatter.src, (zeros(9, 3), 0, torch.tensor([[1, 0, 3]]), each(4, 3))),
    (aten._softmax_backward_data.default, (each(4, 3), shared(4, 3), 1, torch.float32)),
    (aten._log_softmax_backward_data.default, (each(4, 3), shared(4, 3), 0, torch.float32)),
    (aten.tril.default, (each(4, 4),)),
    (aten.constant_pad_nd.default, (each(4, 3), [0, 0, 2, 3], 0)),
    (aten.view.default, (each(4, 3), [2, 6])),
    (aten.expand.default, (each(4, 1), [2, 4, 3])),
    (aten.repeat.default, (each(4, 3), [2, 1, 2])),
    (aten.permute.default, (each(4, 3, 2), [2, 0, 1])),
    (aten.t.default, (each(4, 3),)),
    (aten.t.default, (each(4),)),
    (aten.squeeze.default, (each(1, 3, 1),)),
    (aten.sum.default, (each(4, 3),)),
    (aten.sum.default, (each(),)),
    (aten.sum.dim_IntList, (each(4, 3), [0])),
    (aten.sum.dim_IntList, (each(4, 3), [], False)),
    (aten.sum.dim_IntList, (each(4, 3), [1], True)),
    (aten.sum.dim_IntList, (each(), [])),
    (aten.mm.default, (each(4, 3), shared(3, 2))),
    (aten.mm.default, (shared(2, 4), each(4, 3))),
    (aten.bmm.default, (each(2, 4, 3), shared(2, 3, 2))),
    (aten.bmm.default, (shared(2, 3, 4), each(2, 4, 3))),
    (aten.roll.default, (each(4, 3), [1], [0])),
    (aten.roll.default, (each(4, 3), [2])),
    (aten.select_backward.default, (each(3), [4, 3], 0, 2)),
    (aten.select_backward.default, (each(3), [3, 4], 1, -1)),
    (aten.slice_backward.default, (each(2, 3), [9, 3], 0, 1, 5, 2)),
    (aten.slice_backward.default, (each(9, 3), [9, 3], 0, 0, END, 1)),
    (aten.embedding_dense_backward.default, (each(4, 3), IDS, 9, 1, False)),
    (aten.embedding_dense_backward.default, (each(4, 3), IDS, 9, -1, False)),
    (aten.embedding_dense_backward.default, (each(4, 3), IDS, 9, -1, True)),
    (aten.embedding_dense_backward.default, (each(2, 2, 3), PAIRS, 9, 2, True)),
    (aten.index.Tensor, (each(4, 3), [IDS])),
    (aten.index.Tensor, (each(4, 3), [None, PAIRS])),
    (aten.index.Tensor, (each(4, 3, 4), [PAIRS, None, PAIRS - 1])),
    (aten.index.Tensor, (each(4, 3, 4), [None, PAIRS, PAIRS - 1])),
    (aten.index_put.default, (zeros(9, 3), [IDS], each(4, 3), True)),
    (aten.index_put.default, (zeros(9, 3), [IDS], each(3), True)),
    (aten.index_put.default, (zeros(4, 9, 3), [None, PAIRS], each(4, 2, 2, 3), True)),
    (aten.index_put.default, (zeros(4, 3, 4), [PAIRS, None, PAIRS - 1], each(2, 2, 3), True)),
    (aten.index_put.default, (each(4, 3, 4), [None, PAIRS, PAIRS - 1], shared(4, 2, 2), True)),
    (aten.index_put.default, (zeros(9, 3), [TWO], each(2, 3), False)),
    (aten.index_add.default, (zeros(9, 3), 0, IDS, each(4, 3))),
    (aten.index_select.default, (each(4, 3), 1, torch.tensor([2, 2, 0]))),
    (aten.sub.Tensor, (each(4, 3), each(3))),
    (aten._to_copy.default, (each(4, 3),)),
    (aten.triu.default, (each(4, 4), 1)),
    (
        aten.avg_pool2d_backward.default,
        (each(2, 3, 2, 2), shared(2, 3, 4, 4), [2, 2], [2, 2], [0, 0], False, True, None),
    ),
    (aten.avg_pool2d.default, (each(3, 4, 4), [2, 2])),
    (aten.avg_pool2d.default, (each(2, 3, 4, 4), [2, 2])),
    (aten.reflection_pad1d_backward.default, (each(2, 3, 6), shared(2, 3, 4), [1, 1])),
    (aten.reflection_pad1d_backward.default, (each(3, 6), shared(3, 4), [1, 1])),
    (aten.im2col.default, (each(2, 3, 4, 4), [2, 2], [1, 1], [0, 0], [1, 1])),
    (aten.col2im.default, (each(2, 12, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1])),
    (aten.pixel_shuffle.default, (each(2, 4, 3, 3), 2)),
    (aten.unfold.default, (each(4, 6), 1, 3, 1)),
    (aten.unfold_backward.default, (each(4, 4, 3), [4, 6], 1, 3, 1)),
    (aten.embedding.default, (each(4, 3), IDS)),
    (aten.copy.default, (zeros(4, 3), each(3))),
    (aten.scatter.value, (each(4, 3), 0, torch.tensor([[1, 0, 3]]), 0)),
    (
        aten._cdist_backward.default,
        (each(4, 2), shared(4, 3), shared(2, 3), 2.0, torch.cdist(shared(4, 3), shared(2, 3))),
    ),
    (aten.cholesky_solve.default, (each(4, 3), shared(4, 4).tril())),
    (aten.linalg_lu_solve.default, (*torch.linalg.lu_factor(shared(4, 4)), each(4, 3))),
    (
        aten.convolution.default,
        (each(2, 4, 6), shared(6, 2, 3), None, [2], [1], [1], False, [0], 2),
    ),
    (aten.grid_sampler_2d.default, (each(2, 3, 4, 4), shared(2, 3, 3, 2).tanh(), 0, 0, False)),
    (
        aten._fft_c2c.default,
        (Each(torch.complex(each(4, 3).value, each(4, 3).value)), [1], 0, True),
    ),
    (aten._fft_r2c.default, (each(4, 3), [0], 0, True)),
]


def is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor | Each)


@pytest.mark.parametrize(("op", "args"), CASES, ids=[str(op) for op, _ in CASES])
def test_each(op: Any, args: tuple[Any, ...]):
    got = ON_EACH[op](*args)
    for i in range(N):

        def own(x: Any, i: int = i) -> Any:
            return x.value[i] if isinstance(x, Each) else x

        want = op(*pytree.tree_map(own, args, is_leaf=is_tensor))
        found = pytree.tree_map(own, got, is_leaf=is_tensor)
        for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(want), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("transposed", [False, True])
def test_convolution_backward(transposed: bool):
    """Both gradients of a convolution with a gradient of each sample's own."""
    x, grad = shared(2, 4, 6), each(2, 6, 11 if transposed else 3)
    weight = shared(4, 3, 3) if transposed else shared(6, 2, 3)
    rest = ([0], [2], [1], [1], transposed, [0], 2, [True, True, False])
    got = ON_EACH[aten.convolution_backward.default](grad, x, weight, *rest)
    for i in range(N):
        want = aten.convolution_backward(grad.value[i], x, weight, *rest)
        for a, b in zip(got[:2], want[:2], strict=True):
            torch.testing.assert_close(a.value[i], b)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_solutions(shape: tuple[int, ...]):
    """A vector is told from a matrix by its rank, which the batch axis hides."""
    a, b = shared(4, 4), each(*shape)
    got = ON_EACH[aten._linalg_solve_ex.default](a, b)[0].value
    torch.testing.assert_close(got, torch.stack([torch.linalg.solve(a, x) for x in b.value]))
    triangle = a.triu()
    if len(shape) == 2:
        got = ON_EACH[aten.linalg_solve_triangular.default](triangle, b, upper=True).value
        want = [torch.linalg.solve_triangular(triangle, x, upper=True) for x in b.value]
        torch.testing.assert_close(got, torch.stack(want))
