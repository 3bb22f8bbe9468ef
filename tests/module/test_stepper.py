"""What a step keeps from the step before, and when it does not hold any more."""

import pytest
import torch
from torch import Tensor, nn

import fxdp
from fxdp.capture.inputs import structure
from fxdp.module.account import Account
from fxdp.module.stepper import Stepper
from fxdp.privacy import Ledger
from fxdp.torch_internals import pytree

CPU = torch.device("cpu")
X, Y = torch.randn(6, 4, generator=torch.manual_seed(0)), torch.arange(6) % 3


def private_of(model: nn.Module, bound: float = 1.0) -> fxdp.PrivateModule:
    return fxdp.compile(
        model, loss_fn=nn.functional.cross_entropy, max_grad_norm=bound, noise_multiplier=1.0,
        expected_batch_size=6, backend="eager",
    )  # fmt: skip


def stepper() -> Stepper:
    return private_of(nn.Linear(4, 3))._stepper


class TestNobodyMasked:
    """The mask of a batch without padding."""

    def test_it_is_kept(self) -> None:
        here = stepper()
        mask = here.nobody_masked(5, CPU)
        assert mask.tolist() == [True] * 5
        assert mask.dtype == torch.bool
        assert here.nobody_masked(5, CPU) is mask

    @pytest.mark.parametrize("size", [0, 1, 4, 6])
    def test_not_for_another_size(self, size: int) -> None:
        here = stepper()
        here.nobody_masked(5, CPU)
        mask = here.nobody_masked(size, CPU)
        assert mask.tolist() == [True] * size
        assert mask.dtype == torch.bool

    def test_not_on_another_device(self) -> None:
        here = stepper()
        here.nobody_masked(5, CPU)
        assert here.nobody_masked(5, torch.device("meta")).device.type == "meta"

    def test_not_if_somebody_wrote_to_it(self) -> None:
        here = stepper()
        mask = here.nobody_masked(5, CPU)
        mask[2] = False
        assert here.nobody_masked(5, CPU).tolist() == [True] * 5

    def test_not_bound_to_the_mode_it_was_made_in(self) -> None:
        here = stepper()
        with torch.inference_mode():
            mask = here.nobody_masked(5, CPU)
        assert not mask.is_inference()


def test_parameters_of_another_dtype_are_asked_again() -> None:
    """Noise that float64 holds and float32 does not: refused at the step, nothing is counted."""
    model = nn.Linear(4, 3).double()
    private = private_of(model, bound=1e-35)
    private(X.double(), Y).backward()
    private.zero_grad()
    model.float()
    for _ in range(2):
        with pytest.raises(ValueError, match="less noise than is counted"):
            private(X, Y)
    assert private.releases == 1
    assert all(p.grad is None for p in model.parameters())
    model.double()
    private(X.double(), Y).backward()
    assert private.releases == 2


def test_parameters_of_now_decide() -> None:
    """Of the step before they had a dtype that does not hold the noise of this one."""
    model = nn.Linear(4, 3)
    private = private_of(model)
    private(X, Y).backward()
    model.double()
    private.max_grad_norm = 1e-35
    private.zero_grad()
    private(X.double(), Y).backward()
    assert private.releases == 2


def test_scales_are_those_of_the_step() -> None:
    """A number that a caller writes over is not the next step's."""
    here = stepper()
    scales = (1.0, 2.0, 3.0)
    for number in here.numbers_on(CPU, scales):
        number.fill_(7.0)
    assert [float(x) for x in here.numbers_on(CPU, scales)] == [1.0, 2.0, 3.0]
    assert [float(x) for x in here.numbers_on(CPU, (1.0, 2.0, 4.0))] == [1.0, 2.0, 4.0]


def test_a_release_is_that_of_its_scales() -> None:
    account = Account(Ledger())
    first = account.release(1.0, 2.0)
    assert account.release(1.0, 2.0) is first
    assert (first.noise_multiplier, first.max_grad_norm) == (1.0, 2.0)
    for sigma, bound in ((1.5, 2.0), (1.5, 3.0), (1.0, 2.0)):
        found = account.release(sigma, bound)
        assert (found.noise_multiplier, found.max_grad_norm) == (sigma, bound)
        assert found.mechanism.noise_multiplier == sigma


@pytest.mark.parametrize(
    "given",
    [
        ((X, Y), {}),
        ((X,), {"target": Y, "scale": X}),
        ((X,), {"scale": X, "target": Y}),
        (({"a": X, "b": [Y, None]},), {"flag": True}),
        ((nn.Parameter(X.clone()), 3), {}),
        ((), {}),
    ],
)
def test_how_arguments_are_put_together(
    given: tuple[tuple[Tensor, ...], dict[str, Tensor]],
) -> None:
    """The one that is remembered is the one that torch finds."""
    leaves, spec = pytree.tree_flatten(given)
    assert structure(*given) == spec
    args, kwargs = pytree.tree_unflatten(leaves, structure(*given))
    assert [id(x) for x in pytree.tree_leaves((args, kwargs))] == [id(x) for x in leaves]
    assert list(kwargs) == list(given[1])
