"""What is nearest: prototypes, codebooks (VQ-VAE), and tables that are taken from."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.oracle import score
from tests.sizes import compare_at

pytestmark = pytest.mark.usefixtures("double")
D, K, T = 4, 3, 5
Use = Callable[["Book", Tensor], Tensor]


class Book(nn.Module):
    """A loss [N] of encoded rows and tables of codes."""

    def __init__(self, uses: dict[str, Use], codes: int = K) -> None:
        super().__init__()
        self.uses = uses
        self.layer = nn.Linear(D, D)
        self.tables = nn.ParameterList(torch.randn(codes, D) for _ in uses)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return sum(score(use(e, h)) for use, e in zip(self.uses.values(), self.tables, strict=True))


def nearest(e: Tensor, h: Tensor) -> Tensor:
    """The nearest code, straight through, with both of VQ-VAE's losses."""
    flat = h.reshape(-1, D)
    found = F.embedding(torch.cdist(flat, e).argmin(1), e).view(h.shape)
    own = (h - found.detach()).square().mean(-1) / 4 + (found - h.detach()).square().mean(-1)
    return torch.cat([h + (found - h).detach(), own.unsqueeze(-1)], -1)


def expanded(e: Tensor, h: Tensor) -> Tensor:
    """The same by the squares' formula and a one-hot product."""
    far = h.square().sum(-1, keepdim=True) - 2 * h @ e.T + e.square().sum(1)
    found = F.one_hot(far.argmin(-1), K).to(h) @ e
    return h + (found - h).detach() + (found - h.detach()).square()


USES: dict[str, Use] = {
    "prototypes": lambda e, h: -torch.cdist(h.flatten(0, -2), e).unflatten(0, h.shape[:-1]),
    "from prototypes": lambda e, h: torch.cdist(e, h[:, 0]).T,
    "city blocks": lambda e, h: torch.cdist(h[:, 0], e, p=1),
    "of each stack": lambda e, h: torch.cdist(h, e.expand(h.shape[0], K, D)),
    "turns": lambda e, h: torch.cdist(h.transpose(0, 1).reshape(-1, D), e).view(T, -1, K).mT[0].T,
    "nearest": nearest,
    "squares": expanded,
    "soft": lambda e, h: (-torch.cdist(h[:, 0], e)).softmax(1) @ e,
    "taken": lambda e, h: torch.take(e, (h > 0).long() + 2 * (h > 1).long()) * h,
    "taken along": lambda e, h: e.take_along_dim((h[:, 0] > 0).long(), 0),
}


def test_codes():
    compare_at((7, D, K, T, 2, 1), Book(USES), lambda n: (torch.randn(n, T, D),))


def test_many_codes():
    """More than 25 rows, for which torch works distances out as a product of matrices."""
    uses = {name: USES[name] for name in ("nearest", "soft", "from prototypes")}
    compare_at((30, 2, 1), Book(uses, 27), lambda n: (torch.randn(n, T, D),))


def test_more_samples_than_torch_takes_for_few():
    compare_at((30, 2), Book({"soft": USES["soft"]}), lambda n: (torch.randn(n, T, D),))


def of_each_other(e: Tensor, h: Tensor) -> Tensor:
    return torch.cdist(h[:, 0], h[:, 1])


def nearest_sample(e: Tensor, h: Tensor) -> Tensor:
    return h[torch.cdist(e, h[:, 0]).argmin(1)].sum((0, 1)).expand(h.shape[0], D)


def mean_prototype(e: Tensor, h: Tensor) -> Tensor:
    return torch.cdist(h[:, 0], h[:, 1].mean(0, keepdim=True))


def taken_from_the_batch(e: Tensor, h: Tensor) -> Tensor:
    return torch.take(h, (h > 0).long()) * h


@pytest.mark.parametrize("n", [K, D, 7])
@pytest.mark.parametrize(
    "use", [of_each_other, nearest_sample, mean_prototype, taken_from_the_batch]
)
def test_distances_of_samples_are_refused(use: Use, n: int):
    with pytest.raises(fxdp.BatchMixingError):
        fxdp.prove(Book({"use": use}), torch.randn(n, T, D))


class Moving(nn.Module):
    """A codebook that follows the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)
        self.register_buffer("codes", torch.randn(K, D))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        hot = F.one_hot(torch.cdist(h, self.codes).argmin(1), K).to(h)
        self.codes.lerp_((hot.T @ h.detach()) / hot.sum(0)[:, None].clamp(min=1), 0.1)
        return score(h)


def test_a_codebook_that_follows_the_batch_is_refused():
    with pytest.raises(fxdp.BatchMixingError, match="FXD301"):
        fxdp.prove(Moving(), torch.randn(7, D))
