"""One loss is one release, whatever the caller does with it, and whatever goes wrong."""

import functools
import threading
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import compiled_autograd

import fxdp
from tests.keys import same_noise
from tests.keywords import grouped

X, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def compiled(model: nn.Module | None = None, **options: Any) -> fxdp.PrivateModule:
    given: dict[str, Any] = {
        "loss_fn": None if options.get("loss_reduction") else F.cross_entropy,
        "max_grad_norm": 0.5, "noise_multiplier": 10.0, "expected_batch_size": 6.0,
        "backend": "eager", "plan": "fixed",
    }  # fmt: skip
    return fxdp.compile(model or nn.Linear(5, 3), **grouped(given | options))


@functools.cache
def kept(**options: Any) -> fxdp.PrivateModule:
    return compiled(**options)


def anew(**options: Any) -> fxdp.PrivateModule:
    """As `compiled`, at the beginning of a run; compiled once for all tests."""
    private = kept(**options)
    same_noise(private)
    private.zero_grad()
    return private


def parameters(private: nn.Module) -> list[nn.Parameter]:
    return list(private.parameters())


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("reduction", [None, "mean"])
def test_a_second_pass(backend: str, reduction: str | None) -> None:
    """Also where torch keeps the buffers that it needs for one."""
    private = compiled(backend=backend, loss_reduction=reduction)
    with torch._functorch.config.patch(donated_buffer=False):
        out = private(X) if reduction else private(X, Y)
    losses = [F.cross_entropy(out, (Y + i) % 3) if reduction else out * (i + 1) for i in (0, 1)]
    torch.autograd.grad(losses[0], parameters(private), retain_graph=True)
    with pytest.raises(fxdp.StepError, match="release again"):
        torch.autograd.grad(losses[1], parameters(private))
    assert private.releases == 1


def test_many_tangents_at_once() -> None:
    """They would be many sums with one noise."""
    private = compiled(loss_reduction="mean")
    losses = F.cross_entropy(private(X), Y, reduction="none")
    with pytest.raises(fxdp.StepError, match="is_grads_batched"):
        torch.autograd.grad(losses, parameters(private), torch.eye(6), is_grads_batched=True)
    assert private.releases == 0


@pytest.mark.parametrize("door", ["compile", "torch.compile"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_hooks_on_what_is_saved(door: str, backend: str) -> None:
    """The noise's scale and key are saved for the backward pass: no hook of the caller's gets at
    them, nor at anything else. These would make all of it zero."""
    model, step = nn.Linear(5, 3), None
    options: dict[str, Any] = {"noise_multiplier": 100.0, "backend": backend}
    if door == "compile":
        step = compiled(model, **options)
    else:
        options |= {"max_grad_norm": 0.5, "expected_batch_size": 6.0, "plan": "fixed"}
        step = torch.compile(
            lambda x, y: F.cross_entropy(model(x), y), backend="fxdp", fullgraph=True,
            options=options,
        )  # fmt: skip
    hooks = torch.autograd.graph.saved_tensors_hooks(Tensor.clone, torch.zeros_like)
    with pytest.warns(UserWarning, match="saved_tensors_hooks"), hooks:
        loss = step(X, Y)
    loss.backward()
    released = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert 2 < released.std() < 30  # 100 C / L = 8.3
    assert len(released.unique()) == 18


def test_a_training_loop_that_is_compiled() -> None:
    """By torch.compile, from the step to the optimizer: it runs a private step, and does not trace
    what makes one."""
    private = compiled()
    optimizer = torch.optim.SGD(private.parameters(), 0.1)

    def train(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = private(x, y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    before = [p.detach().clone() for p in private.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the `grad` of a loss
        torch.compile(train, backend="eager")(X, Y)
    assert private.releases == 1
    moved = [(p - q).flatten() for p, q in zip(private.parameters(), before, strict=True)]
    assert torch.cat(moved).std() > 0.02  # 0.1 * 10 C / L = 0.083 of noise
    torch.compile(private, backend="eager")(X, Y).backward()
    assert private.releases == 2


def test_what_changes_before_the_backward_pass() -> None:
    private = compiled()
    loss = private(X, Y)
    with torch.no_grad():
        private.weight.mul_(2)
    last = nn.Linear(3, 3)
    other = compiled(nn.Sequential(nn.Linear(5, 3), last))
    late = other(X, Y)
    with torch.no_grad():
        last.weight.mul_(2)
    with pytest.raises(fxdp.StepError, match="changed in place"):
        late.backward()
    assert other.releases == 0
    loss.backward()  # which needs no weight
    assert private.releases == 1


class Kept(nn.Module):
    """It keeps what it computes of its weight, outside of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.kept = (self.fc.weight * 1000).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.kept)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's, as it looks at such a tensor
def test_what_was_computed_from_parameters_outside() -> None:
    """Its gradient goes on to them, through what no graph shows."""
    model = Kept()
    private = compiled(model)
    with pytest.raises(fxdp.StepError, match="outside of forward"):
        private(X, Y).backward()
    assert private.releases == 0
    model.kept = model.kept.detach()
    private(X, Y).backward()
    assert private.releases == 1


def test_compiled_autograd() -> None:
    """It would trace what makes the gradients, the ledger and all."""
    private = compiled(budget=(0.5, 1e-5))
    loss = private(X, Y)
    as_it_is = torch.compile(backend="eager")
    with (
        pytest.raises(fxdp.StepError, match="compiled autograd"),
        compiled_autograd._enable(as_it_is),
    ):
        loss.backward()
    assert private.releases == 0
    assert all(p.grad is None for p in private.parameters())


@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev"])
def test_transforms(transform: str) -> None:
    private = anew()
    run = getattr(torch.func, transform)(lambda x: private(x, Y))
    with pytest.raises(fxdp.StepError, match="torch.func"):
        run(X[None] if transform == "vmap" else X)
    assert private.releases == 0
    private(X, Y).backward()
    assert private.releases == 1


def test_an_interrupt_while_gradients_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    private = anew()
    private(X, Y).backward()
    private.zero_grad()
    loss = private(X, Y)
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loss.backward()
    assert private.releases == 1
    assert all(p.grad is None for p in private.parameters())
    with pytest.raises(fxdp.StepError, match="release again"):  # its buffers may be gone
        loss.backward()
    private(X, Y).backward()
    assert private.releases == 2


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_an_interrupt_on_delivery() -> None:
    """What reaches a parameter first was counted."""
    private = anew()
    hook = private.bias.register_hook(interrupt)  # type: ignore[union-attr]
    with pytest.raises(KeyboardInterrupt):
        private(X, Y).backward()
    hook.remove()
    assert private.releases == 1


def test_hooks_of_parameters_see_what_is_released() -> None:
    """And not the sums of pieces, which have no noise yet."""
    private = compiled(microbatch_size=2)
    seen: list[Tensor] = []
    private.weight.register_hook(seen.append)  # type: ignore[union-attr]
    private(X, Y).backward()
    (only,) = seen
    assert torch.equal(only, private.weight.grad)


def test_gradients_are_handed_over_and_not_copied() -> None:
    private = anew()
    seen: list[int] = []
    hook = private.weight.register_hook(lambda g: seen.append(g.data_ptr()))  # type: ignore[union-attr]
    private(X, Y).backward()
    hook.remove()
    assert seen == [private.weight.grad.data_ptr()]


def test_what_the_last_step_left_is_gone() -> None:
    private = anew()
    private(X, Y).backward()
    assert private._stepper.record.extras
    loss = private(X, Y)
    assert not private._stepper.record.extras
    loss.backward()


def test_several_outputs_of_a_loss_made_outside() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    with pytest.raises(fxdp.CaptureError, match="several that require a gradient"):
        compiled(Two(), loss_reduction="mean")(X)


def test_shared_arguments_have_no_gradients() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return super().forward(x) * scale

    private = compiled(Scaled(5, 3), batch_dims={"scale": None})
    with pytest.raises(ValueError, match="'scale' requires a gradient"):
        private(X, torch.tensor(2.0, requires_grad=True), Y)


def test_two_modules_step_in_two_threads() -> None:
    """torch is patched while something is captured, by one of them at a time."""
    trouble: list[BaseException] = []
    modules = [compiled(nn.Sequential(nn.Linear(5, k), nn.Linear(k, 3))) for k in (3, 4)]

    def train(private: fxdp.PrivateModule) -> None:
        try:
            for n in (6, 3, 5, 4, 2):
                private(X[:n], Y[:n]).backward()
        except BaseException as error:  # noqa: BLE001 - the thread would keep it to itself
            trouble.append(error)

    threads = [threading.Thread(target=train, args=(m,)) for m in modules]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not trouble
    assert [m.releases for m in modules] == [5, 5]
    assert torch.backends.opt_einsum.enabled == torch.backends.opt_einsum.is_available()


def test_one_module_in_two_threads_keeps_its_budget() -> None:
    private = compiled(noise_multiplier=1.0, budget=(6.0, 1e-5))
    allowed = 0
    probe = compiled(noise_multiplier=1.0, budget=(6.0, 1e-5))
    try:
        while True:
            probe(X, Y).backward()
            allowed += 1
    except fxdp.BudgetExhausted:
        assert allowed
    stopped: list[BaseException] = []

    def train() -> None:
        try:
            for _ in range(20):
                private(X, Y).backward()
        except (fxdp.BudgetExhausted, fxdp.StepError) as error:
            stopped.append(error)

    threads = [threading.Thread(target=train) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(stopped) == 3
    assert private.releases <= allowed
