"""The step of torch.compile(backend="fxdp") keeps account, and fences its parameters."""

import copy
import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.keywords import grouped

X, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
OPTIONS: dict[str, Any] = {
    "max_grad_norm": 0.3, "noise_multiplier": 1.0, "expected_batch_size": 6.0, "backend": "eager",
    "plan": "fixed",
}  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(5, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.fc(self.drop(x)), y)


def compiled(model: nn.Module, **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend="fxdp", fullgraph=True, options=OPTIONS | options)


def test_it_has_a_ledger_norms_and_a_certificate() -> None:
    step = compiled(Net(), accounting=fxdp.Accounting(0.1, accountant="rdp"))
    with pytest.raises(RuntimeError, match="run a step first"):
        step.privacy.certificate()
    for n in (6, 4):
        step(X[:n], Y[:n]).backward()
        assert step.privacy.last_norms.shape == (n,)
    account = step.privacy
    assert account.releases == account.ledger.releases == 2
    assert account.last_nonfinite == 0
    assert account.sensitivity == 0.3 / 6.0
    want = fxdp.privacy.epsilon(1.0, 0.1, 2, 1e-5, "rdp")
    assert account.privacy_spent(1e-5) == pytest.approx(want)
    assert "Poisson" in account.privacy_statement(1e-5)
    assert account.certificate()
    assert "fc.weight" in str(account.report())


def test_a_batch_of_a_loader_is_released_once() -> None:
    data = torch.utils.data.TensorDataset(X.repeat(8, 1), Y.repeat(8))
    loader = fxdp.data.private_loader(data, sample_rate=0.2, steps=3)
    step = compiled(Net(), accounting=fxdp.Accounting(loader))
    batches = list(loader)
    step(*batches[0]).backward()
    with pytest.raises(fxdp.StepError):
        step(*batches[0])
    step(*batches[1]).backward()
    assert step.privacy.releases == 2
    assert step.privacy.ledger.runs[0].release.sampling == loader.batches.sampling


def test_a_budget() -> None:
    model = Net()
    step = compiled(model, accounting=fxdp.Accounting(budget=(1e-3, 1e-5)))
    with pytest.raises(fxdp.BudgetExhausted):
        step(X, Y).backward()
    assert step.privacy.releases == 0
    assert model.fc.weight.grad is None


def test_what_was_spent_goes_on() -> None:
    step = compiled(Net())
    step(X, Y).backward()
    other = compiled(Net())
    other.privacy.load_privacy_state_dict(step.privacy.privacy_state_dict())
    other(X, Y).backward()
    assert other.privacy.releases == 2


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_code_of_another_step(kept: bool, warm: bool) -> None:
    """One of the same class, with other options: a stance lets torch run it."""
    first, model = Net(), Net()
    step: Any = torch.compile(first, backend="fxdp", options=OPTIONS | {"noise_multiplier": 0.0})
    step(X, Y).backward()
    other: Any = torch.compile(model, backend="fxdp", options=OPTIONS | {"noise_multiplier": 9.0})
    if warm:
        other(X, Y).backward()
        other.zero_grad()
    account = step.privacy
    if not kept:
        del step, first
        gc.collect()
    torch.compiler.set_stance("eager_on_recompile")
    try:
        other(X, Y).backward()
    except fxdp.StepError:
        assert model.fc.weight.grad is None
        assert other.privacy.releases == warm
    else:
        assert model.fc.weight.grad is not None
        assert model.fc.weight.grad.std() > 0.1  # 9 C / L = 0.45
        assert other.privacy.releases == warm + 1
    finally:
        torch.compiler.set_stance("default")
    assert account.releases == 1


def test_all_graphs_of_a_step_have_one_account() -> None:
    """Train and eval mode, and validation in between, which is the model as it is."""
    model = Net()
    step = compiled(model)
    for mode in (True, False):
        model.train(mode)
        step(X, Y).backward()
        with torch.no_grad():
            loss = step(X, Y)
            assert not loss.requires_grad
            if not mode:
                assert torch.equal(loss, model(X, Y))
    assert step.privacy.releases == 2


def test_validation_of_a_model_that_returns_logits() -> None:
    class Both(nn.Linear):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            out = super().forward(x)
            return out if y is None else F.cross_entropy(out, y)

    step = compiled(Both(5, 3))
    step(X, Y).backward()
    with torch.no_grad():
        assert step(X).shape == (6, 3)


@pytest.mark.parametrize("what", ["backward", "sum"])
def test_a_gradient_that_no_release_made(what: str) -> None:
    model = Net()
    step = compiled(model)
    loss = model(X, Y) if what == "backward" else step(X, Y) + model.fc.weight.square().sum()
    with pytest.raises(fxdp.StepError, match="no release made"):
        loss.backward()
    assert model.fc.weight.grad is None
    assert torch.autograd.grad(model(X, Y), model.fc.weight)[0].norm() > 0  # to look at


def test_the_fence_goes_with_the_step() -> None:
    model = Net()
    step = compiled(model)
    step(X, Y).backward()
    del step
    torch._dynamo.reset()
    gc.collect()
    model.zero_grad()
    model(X, Y).backward()
    assert model.fc.weight.grad is not None


def test_the_fence_follows_a_change_of_dtype() -> None:
    model = Net()
    step = compiled(model)
    step(X, Y).backward()
    model.double().zero_grad()
    step(X.double(), Y).backward()
    assert step.privacy.releases == 2
    with pytest.raises(fxdp.StepError):
        model(X.double(), Y).backward()


@pytest.mark.parametrize("shape", [(), (5,)])
def test_a_gradient_of_what_is_no_parameter(shape: tuple[int, ...]) -> None:
    class Scaled(Net):
        def forward(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
            return super().forward(x * scale, y)

    step = compiled(Scaled(), batch_dims={"scale": None})
    scale = torch.ones(shape, requires_grad=True)
    with pytest.raises(fxdp.ProofError, match="FXD302.*scale requires a gradient"):
        step(X, Y, scale)
    assert scale.grad is None


def test_a_copy_is_refused() -> None:
    """It would run the first one's graphs."""
    with pytest.raises(TypeError, match="copy the model"):
        copy.deepcopy(compiled(Net()))


def test_a_private_module_over_the_same_parameters() -> None:
    """What fxdp.compile's module releases passes the fence of torch.compile's step."""
    model = Net()
    step = compiled(model)
    private = fxdp.compile(model, **grouped(OPTIONS))
    private(X, Y).backward()
    step(X, Y).backward()
    assert (private.releases, step.privacy.releases) == (1, 1)


def test_two_losses_of_one_step() -> None:
    step = compiled(Net())
    loss = step(X, Y)
    with pytest.raises(fxdp.StepError, match="still there"):
        step(X, Y)
    loss.backward()
    assert step.privacy.releases == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"microbatch_size": 4}, "options has"),
        ({"loss_fn": F.cross_entropy}, "compute it in forward"),
        ({"checkpoint": "except_last"}, "in pieces"),
        ({"clipping": "adaptive"}, "needs fxdp.compile"),
        ({"guard_filter_fn": lambda guards: [False for _ in guards]}, "guard_filter_fn"),
    ],
)
def test_options_that_it_does_not_take(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compiled(Net(), **options)


def test_what_is_private_already_is_refused() -> None:
    """By both doors, at any depth."""
    private = fxdp.compile(nn.Linear(5, 3), max_grad_norm=1.0, noise_multiplier=1.0,
                           expected_batch_size=6.0, backend="eager")  # fmt: skip
    around = nn.Sequential(nn.Linear(5, 5), private)
    for model in (private, around):
        with pytest.raises(ValueError, match="private"):
            compiled(model)
        with pytest.raises(ValueError, match="private already"):
            fxdp.compile(model, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=6.0)
    with pytest.raises(ValueError, match="private by themselves"):
        torch.compile(lambda x: private(x).sum(), backend="fxdp", options=OPTIONS)


def test_a_module_that_compiles_itself_is_refused() -> None:
    """There would be no step to ask for its ledger."""
    model = Net()
    with pytest.raises(ValueError, match="hands out no step"):
        model.compile(backend="fxdp", options=OPTIONS)
    model(X, Y).backward()


def test_the_backend_alone_is_refused() -> None:
    from fxdp.torch_compile.backend import fxdp as backend

    step = torch.compile(Net(), backend=lambda gm, x: backend(gm, x, options=OPTIONS))
    with pytest.raises(Exception, match="called by torch.compile"):
        step(X, Y)


@pytest.mark.parametrize(
    "name", ["max_grad_norm", "noise_multiplier", "expected_batch_size", "foo"]
)
def test_what_options_settle_cannot_be_set(name: str) -> None:
    """It was taken, and had no effect: a door then said more noise than there was."""
    step = torch.compile(
        nn.Linear(3, 2), backend="fxdp", fullgraph=True,
        options={"max_grad_norm": 0.5, "noise_multiplier": 2.0, "expected_batch_size": 8},
    )  # fmt: skip
    privacy = step.privacy
    with pytest.raises(AttributeError, match=f"no {name} to set"):
        setattr(privacy, name, 100.0)
    found = (privacy.max_grad_norm, privacy.noise_multiplier, privacy.expected_batch_size)
    assert found == (0.5, 2.0, 8.0)
