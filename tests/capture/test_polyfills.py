"""Ops whose own kernels torch cannot capture for every batch size, or not apart; channels last."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxdp
from fxdp.capture.polyfills import FUNCTIONS, KERNELS, symbolic_kernels
from fxdp.torch_internals import VariableBuilder
from tests.oracle import Applied, compare

pytestmark = pytest.mark.usefixtures("double")
N = 5
LAST = torch.channels_last


def warped(h: Tensor) -> Tensor:
    """An image [N, 1, 4, 6] seen through an affine map of its own."""
    grid = F.affine_grid(h.reshape(-1, 4, 6)[:, :2, :3], [len(h), 1, 3, 5], align_corners=True)
    return F.grid_sample(h.reshape(-1, 1, 4, 6), grid, align_corners=True)


def test_sequences() -> None:
    functions = {
        "along": lambda h: h.take_along_dim(h.argsort(1), 1),
        "spread": lambda h: torch.take_along_dim(h, h[..., :1].argsort(1), 1),
        "affine": warped,
        "exponential": lambda h: torch.matrix_exp(h[:, :, :4] / 4),
        "unpooled": lambda h: F.max_unpool2d(
            *F.max_pool2d(h.reshape(-1, 2, 4, 3), (2, 1), return_indices=True), (2, 1)
        ),
    }  # fmt: skip
    compare(Applied(6, **functions), torch.randn(N, 4, 6))


def test_exponential_of_a_weight() -> None:
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="matrix_exp"))
    compare(model, torch.randn(N, 4), torch.randn(N, 4), loss_fn=F.mse_loss)


class Heads(nn.Module):
    """A mean and a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.var = nn.Linear(4, 3), nn.Linear(4, 3)
        self.loss = nn.GaussianNLLLoss(full=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.mean(x), y, F.softplus(self.var(x)))


def test_gaussian_loss() -> None:
    private = compare(Heads(), torch.randn(N, 4), torch.randn(N, 3))
    captured = private._stepper.record.compilations
    private(torch.randn(N, 4), torch.randn(N, 3)).backward()
    assert private._stepper.record.compilations == captured


class Pooled(nn.Module):
    """A network for images, its means over all pixels last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=2)
        self.norm, self.last = nn.GroupNorm(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.second(self.first(x).relu()))
        return self.last(F.adaptive_avg_pool2d(h, 1).flatten(1))


def test_channels_last() -> None:
    model, x = Pooled().to(memory_format=LAST), torch.randn(N, 2, 6, 6).to(memory_format=LAST)
    compare(model, x, torch.randint(3, (N,)), loss_fn=F.cross_entropy)


def test_fractional_pool_is_proven() -> None:
    pool = nn.Sequential(nn.Conv2d(2, 3, 1), nn.FractionalMaxPool2d(2, 3), nn.Flatten())
    fxdp.prove(pool, torch.randn(N, 2, 6, 6), torch.randint(27, (N,)), loss_fn=F.cross_entropy)


def test_fractional_pool_of_volumes() -> None:
    chances = torch.rand(N, 3, 3)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(2, 3, 1)

        def forward(self, x: Tensor, chances: Tensor) -> Tensor:
            h = self.conv(x)
            return (
                F.fractional_max_pool3d(h, 2, 3, _random_samples=chances).square().flatten(1).sum(1)
            )

    compare(Pooled(), torch.randn(N, 2, 6, 6, 6), chances)


def test_a_loss_that_is_a_module_does_not_join_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    fxdp.prove(model, torch.randn(N, 4), torch.rand(N, 3), loss_fn=nn.BCELoss())
    assert len(model) == 2


def test_the_kernels_are_those_of_torch_up_to_rounding() -> None:
    x, ids = torch.randn(2, 3, 4), torch.randint(3, (2, 3, 4))
    theta, image = torch.randn(2, 2, 3), torch.randn(2, 3, 4, 5).to(memory_format=LAST)
    var = torch.rand(2, 1, 4)

    def results(affine_grid: Any, gaussian: Any) -> list[Tensor]:
        return [
            torch.take_along_dim(x, ids, 1),
            torch.take_along_dim(x, ids.flatten()),
            F.adaptive_avg_pool2d(image, 1),
            F.adaptive_avg_pool2d(image, (2, 3)),
            F.adaptive_avg_pool3d(image, 1),
            torch.matrix_exp(x[:, :3, :3]),
            affine_grid(theta, [2, 1, 3, 2], align_corners=True),
            affine_grid(theta, [2, 1, 3, 4], align_corners=False),
            affine_grid(torch.ones(2, 3, 4), [2, 1, 3, 4, 2], align_corners=True),
            gaussian(x, x.flip(0), var.expand_as(x), full=True),
            gaussian(x, x.flip(0), torch.rand(1).expand(2, 3), reduction="none"),
            gaussian(x, x.flip(0), 0.5, reduction="sum"),
        ]

    torch.manual_seed(1)
    want = results(F.affine_grid, F.gaussian_nll_loss)
    torch.manual_seed(1)
    with symbolic_kernels(), torch._C._EnablePythonDispatcher():
        got = results(FUNCTIONS[F.affine_grid], FUNCTIONS[F.gaussian_nll_loss])
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)
    assert VariableBuilder._id_dispatch().keys().isdisjoint(map(id, FUNCTIONS))
    assert not any(op.py_kernels.get(key) is kernel for (op, key), kernel in KERNELS.items())


def test_a_negative_variance_is_no_number() -> None:
    gaussian = FUNCTIONS[F.gaussian_nll_loss]
    assert gaussian(torch.ones(2), torch.ones(2), torch.tensor([1.0, -1.0])).isnan()


@pytest.mark.parametrize(("size", "theta"), [([2, 1, 3, 3], (2, 3, 4)), ([2, 1, 3], (2, 2, 3))])
def test_affine_maps_of_another_shape_are_refused(size: list[int], theta: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="affine matrices"):
        FUNCTIONS[F.affine_grid](torch.ones(theta), size)


def test_operands_of_other_ranks_are_refused() -> None:
    with symbolic_kernels(), torch._C._EnablePythonDispatcher(), pytest.raises(RuntimeError):
        torch.take_along_dim(torch.ones(2, 3), torch.zeros(2, dtype=torch.long), 1)


class RepeatedMedian(nn.Module):
    """The median of equal numbers, which are one number repeated without a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.fc(x)
        repeated = h[:, None].expand(-1, 3, -1)
        middle = repeated.median(1).values
        return middle.square().mean(), middle - h


def test_the_median_of_a_repeated_axis_reads_its_own_memory():
    """torch 2.13's own kernel returns other samples' numbers there, and what lies behind."""
    x = torch.randn(5, 4)
    private = fxdp.compile(
        RepeatedMedian(), max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=5,
        backend="eager",
    )  # fmt: skip
    assert private(x)[1].abs().max() == 0
