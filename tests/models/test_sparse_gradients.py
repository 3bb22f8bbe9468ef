"""Layers that ask for sparse gradients get dense ones: noise falls on every row."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.oracle import clipped_sum, norms, per_sample

pytestmark = pytest.mark.usefixtures("double")
ROWS, T = 7, 5


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.rows = nn.Embedding(ROWS, 4, padding_idx=1, sparse=sparse)
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(ROWS, 4, mode=mode, sparse=sparse) for mode in ("sum", "mean")
        )
        self.head, self.sparse = nn.Linear(4, 3), sparse

    def forward(self, ids: Tensor, y: Tensor) -> Tensor:
        h = self.rows(ids).mean(1) + sum(bag(ids) for bag in self.bags)
        own = F.embedding_bag(
            ids, self.bags[0].weight, mode="sum", sparse=self.sparse,
            per_sample_weights=ids.to(h) + 1,
        )  # fmt: skip
        return F.cross_entropy(self.head(h + own), y)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_sparse_gradients_are_dense(backend: str):
    torch._dynamo.reset()
    model, dense = Words(True), Words(False)
    dense.load_state_dict(model.state_dict())
    private = fxdp.compile(
        model, max_grad_norm=0.3, noise_multiplier=0.0, expected_batch_size=3.0, backend=backend
    )
    for n in (7, T, 2, 1):
        args = torch.randint(ROWS, (n, T)), torch.randint(3, (n,))
        rows, _ = per_sample(dense, None, args, {}, n)
        model.zero_grad()
        private(*args).backward()
        for name, want in clipped_sum(rows, 0.3, 3.0).items():
            grad = model.get_parameter(name).grad
            assert grad.layout == torch.strided
            torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(private.per_sample_norms(*args), norms(rows))


def test_every_row_gets_noise():
    model = Words(True)
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=1.0, backend="eager"
    )
    private(torch.full((2, T), 3), torch.zeros(2, dtype=torch.long)).backward()
    assert (model.rows.weight.grad != 0).all()
    assert (model.bags[1].weight.grad != 0).all()
