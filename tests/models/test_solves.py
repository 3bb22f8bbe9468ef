"""Systems of equations inside of a model: a matrix for each sample, or one that all share."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

import fxdp
from tests.oracle import score
from tests.sizes import compare_at

pytestmark = pytest.mark.usefixtures("double")
D = 4
Solve = Callable[[Tensor, Tensor], Tensor]


def root(w: Tensor) -> Tensor:
    return torch.linalg.cholesky(w @ w.mT + torch.eye(D))


def own(h: Tensor) -> Tensor:
    """[N, D, D], a matrix for each sample."""
    return torch.eye(D) + h[:, :, None] * h[:, None]


# Of a shared matrix w [D, D] and rows h [N, D].
SOLVES: dict[str, Solve] = {
    "columns": lambda w, h: torch.linalg.solve(w, h.T).T,
    "rows": lambda w, h: torch.linalg.solve(w, h, left=False),
    "stack": lambda w, h: torch.linalg.solve(
        torch.stack([w, w.T]), torch.stack([h.T, h.T.sin()])
    ).sum(0).T,
    "whitened": lambda w, h: torch.linalg.solve_triangular(root(w), h.T, upper=False).T,
    "whitened rows": lambda w, h: torch.linalg.solve_triangular(w, h, upper=True, left=False),
    "one by one": lambda w, h: torch.linalg.solve_triangular(
        root(w), h[:, :, None], upper=False
    )[:, :, 0],
    "cholesky": lambda w, h: torch.cholesky_solve(h.T, root(w)).T,
    "factors": lambda w, h: torch.linalg.lu_solve(*torch.linalg.lu_factor(w), h.T).T,
    "own": lambda w, h: torch.linalg.solve(own(h), h @ w),
    "own triangle": lambda w, h: torch.linalg.solve_triangular(
        own(h), (h @ w)[:, :, None], upper=True
    )[:, :, 0],
    "own root": lambda w, h: torch.cholesky_solve(
        (h @ w)[:, :, None], torch.linalg.cholesky(own(h))
    )[:, :, 0],
}  # fmt: skip


class Solved(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.layer, self.solves = nn.Linear(D, D), [SOLVES[name] for name in names]
        self.w = nn.ParameterList(2 * torch.eye(D) + torch.randn(D, D) / 10 for _ in names)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).tanh()
        return sum(score(solve(w, h)) for solve, w in zip(self.solves, self.w, strict=True))


@pytest.mark.parametrize(
    ("names", "backend"),
    # For Inductor, each of torch's functions once.
    [(SOLVES, "eager"), (("rows", "one by one", "cholesky", "factors", "own"), "inductor")],
    ids=["eager", "inductor"],
)
def test_solves(names: Iterable[str], backend: str):
    compare_at((7, D, 2, 1), Solved(*names), lambda n: (torch.randn(n, D),), backend=backend)


def gram(w: Tensor, h: Tensor) -> Tensor:
    return torch.linalg.solve(h.T @ h + torch.eye(D), h.T).T


def across(w: Tensor, h: Tensor) -> Tensor:
    return torch.linalg.solve(torch.eye(h.shape[0]), h)


@pytest.mark.parametrize("n", [D, 7])
@pytest.mark.parametrize("solve", [gram, across])
def test_a_matrix_that_is_made_of_the_batch_is_refused(solve: Solve, n: int):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.w = nn.Linear(D, D), nn.Parameter(torch.eye(D))

        def forward(self, x: Tensor) -> Tensor:
            return score(solve(self.w, self.layer(x)))

    with pytest.raises(fxdp.BatchMixingError):
        fxdp.prove(Model(), torch.randn(n, D))
