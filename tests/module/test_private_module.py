"""What a PrivateModule releases, and that it is the model in everything else."""

import copy
import math
import pickle
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.backend import partition
from tests.keywords import grouped
from tests.oracle import clipped_sum, per_sample

N, D, C = 6, 4, 3
X, Y = torch.randn(40, D, generator=torch.manual_seed(1)), torch.arange(40) % C


def net(width: int = D) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, width), nn.Tanh(), nn.Dropout(0.0), nn.Linear(width, C))


def private_of(model: nn.Module, **options: Any) -> fxdp.PrivateModule:
    given = {
        "loss_fn": F.cross_entropy, "max_grad_norm": 0.5, "noise_multiplier": 0.0,
        "expected_batch_size": 8.0, "backend": "eager",
    }  # fmt: skip
    return fxdp.compile(model, **grouped(given | options))


def released(private: fxdp.PrivateModule, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """The gradients of one step."""
    private.zero_grad()
    private(*args, **kwargs).backward()
    return {k: p.grad.clone() for k, p in private.named_parameters()}


def flat(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in grads.values()])


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, g in got.items():
        torch.testing.assert_close(g, want[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def shared() -> fxdp.PrivateModule:
    """One compilation for the tests that do not mind."""
    return private_of(net())


def wanted(model: nn.Module, rows: Any, bound: float = 0.5, expected: float = 8.0):
    x, y = X[rows], Y[rows]
    each, _ = per_sample(model, F.cross_entropy, (x, y), {}, len(x))
    return clipped_sum(each, bound, expected)


def test_it_is_the_model():
    model = net()
    private = private_of(model)
    assert list(private.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(private.parameters(), model.parameters(), strict=True))
    other = net(D)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    private.load_state_dict(other.state_dict())
    same(dict(model.state_dict()), other.state_dict())
    other.load_state_dict(private.state_dict())
    assert private.eval() is private
    assert not model.training
    assert not model[2].training
    private.train()
    assert model[2].training
    assert "max_grad_norm=0.5" in repr(private)


def test_the_scales_of_a_step_are_its_own(shared: fxdp.PrivateModule):
    """Code that writes over its inputs, as compiled code may, changes sigma for no other step."""
    cpu, scales = torch.device("cpu"), (1.0, 2.0, 3.0)
    for _ in range(2):
        given = shared._stepper.numbers_on(cpu, scales)
        assert [float(x) for x in given] == [1, 2, 3]
        for x in given:
            x.zero_()
    assert [float(x) for x in shared._stepper.numbers_on(cpu, (1.0, 5.0, 3.0))] == [1, 5, 3]


def test_without_gradients_it_runs_the_model_as_it_is(shared: fxdp.PrivateModule):
    model, before = shared._model, shared.releases
    for mode in (True, False):
        shared.train(mode)
        with torch.no_grad():
            assert torch.equal(shared(X), model(X))
            assert torch.equal(shared(X, Y), F.cross_entropy(model(X), Y))
            assert torch.equal(shared(X, target=Y), F.cross_entropy(model(X), Y))
    shared.train()
    assert shared.releases == before


def test_all_batch_sizes_from_one_compilation():
    model = net()
    private = private_of(model)
    for step, n in enumerate([0, 1, 2, 7, 32, 1, 0, 40]):
        got = released(private, X[:n], Y[:n])
        if n:
            same(got, wanted(model, slice(n)))
        else:
            assert flat(got).abs().max() == 0
        assert private.releases == step + 1
    assert private._stepper.record.compilations == 1
    assert private(X[:0], Y[:0]).detach() == 0.0


def test_convolutions_have_one_compilation_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, C))
    private = private_of(model)
    for n in (2, 15, 16, 40, 1):
        released(private, X[:n, None], Y[:n])
    assert private._stepper.record.compilations == 1


def test_the_loss_is_the_mean_of_local_losses(shared: fxdp.PrivateModule):
    want = F.cross_entropy(shared._model(X[:N]), Y[:N])
    torch.testing.assert_close(shared(X[:N], Y[:N]).detach(), want.detach())


@pytest.mark.parametrize("junk", [0.0, math.nan, math.inf])
def test_padding_adds_nothing(shared: fxdp.PrivateModule, junk: float):
    mask = torch.tensor([True, False, True, True, False, True])
    x = X[:N].clone()
    x[~mask] = junk
    got = released(shared, x, Y[:N], sample_mask=mask)
    same(got, wanted(shared._model, torch.arange(N)[mask]))
    want = F.cross_entropy(shared._model(X[:N][mask]), Y[:N][mask])
    torch.testing.assert_close(shared(x, Y[:N], sample_mask=mask).detach(), want.detach())
    empty = released(shared, x, Y[:N], sample_mask=torch.zeros(N, dtype=torch.bool))
    assert flat(empty).abs().max() == 0


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("strategy", ["ghost", "instantiate"])
def test_a_gradient_that_is_not_finite_adds_nothing(junk: float, strategy: str):
    model = nn.Linear(D, C)
    private = private_of(model, strategy=strategy)
    x = X[:N].clone()
    x[2] = junk
    got = released(private, x, Y[:N])
    same(got, wanted(model, [0, 1, 3, 4, 5]))


@pytest.mark.parametrize("strategy", ["ghost", "instantiate"])
def test_positions_that_cancel_are_clipped(strategy: str):
    """A hundred times the bound is left of them, which a ghost norm in float32 took for 0."""
    g, sign = torch.Generator().manual_seed(0), torch.ones(100, 1)
    sign[50:] = -1
    x = torch.rand(8, 1, 30, generator=g) + 1e-3 * torch.randn(8, 100, 30, generator=g)
    y = torch.rand(8, 1, 5, generator=g) * sign
    model = nn.Linear(30, 5, bias=False)
    private = private_of(
        model, loss_fn=lambda out, y: (out * y).sum((1, 2)), strategy=strategy,
        max_grad_norm=1e-3, expected_batch_size=1.0,
    )  # fmt: skip
    for i in range(len(x)):
        assert x[i].T.double().mm(y[i].double()).norm() > 10e-3
        moved = released(private, x[i : i + 1], y[i : i + 1])["weight"].norm()
        assert moved <= private.sensitivity * (1 + 1e-6)


def test_norm_zero_has_factor_one():
    model = nn.Linear(D, 1, bias=False)
    private = private_of(model, loss_fn=lambda out, y: out[:, 0] * y)
    got = released(private, X[:N], torch.tensor([0.0, 0, 0, 1, 0, 0]))
    torch.testing.assert_close(got["weight"][0], 0.5 * X[3] / X[3].norm() / 8)


def test_sensitivity_and_scaling(shared: fxdp.PrivateModule):
    assert shared.sensitivity == 0.5 / 8
    once = released(shared, X[:N], Y[:N])
    shared.zero_grad()
    (shared(X[:N], Y[:N]) * 3).backward()
    same({k: p.grad / 3 for k, p in shared.named_parameters()}, once)
    shared.zero_grad()
    for _ in range(2):
        shared(X[:N], Y[:N]).backward()
    same({k: p.grad / 2 for k, p in shared.named_parameters()}, once)


def test_schedules_take_effect_without_a_compilation():
    model = net()
    private = private_of(model)
    released(private, X[:N], Y[:N])
    for bound, expected in ((0.1, 8.0), (10.0, 4.0), (math.inf, 1.0)):
        private.max_grad_norm, private.expected_batch_size = bound, expected
        same(released(private, X[:N], Y[:N]), wanted(model, slice(N), bound, expected))
    private.max_grad_norm, private.noise_multiplier = 0.5, 2.0
    assert not torch.equal(*(flat(released(private, X[:N], Y[:N])) for _ in range(2)))
    assert private._stepper.record.compilations == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_alone(dtype: torch.dtype):
    model = nn.Sequential(nn.Linear(D, 1000), nn.Linear(1000, C)).to(dtype)
    private = private_of(model, max_grad_norm=2.0, noise_multiplier=3.0, expected_batch_size=5.0)
    torch.manual_seed(0)
    steps = [released(private, X[:0].to(dtype), Y[:0]) for _ in range(2)]
    a, b = (flat(s).float() for s in steps)
    want = 3.0 * 2.0 / 5.0
    assert a.numel() == 8003
    for noise in (a, b):
        assert abs(float(noise.std()) / want - 1) < 5 / math.sqrt(2 * a.numel())
        assert abs(float(noise.mean())) < 5 * want / math.sqrt(a.numel())
        assert float(noise.abs().max()) < 6 * want
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(a.numel())
    of_layers = torch.stack([a[:3000], a[5000:8000]])
    assert abs(float(torch.corrcoef(of_layers)[0, 1])) < 5 / math.sqrt(3000)


def test_noise_comes_on_top_of_the_same_sum(shared: fxdp.PrivateModule):
    quiet = flat(released(shared, X[:N], Y[:N]))
    shared.noise_multiplier = 1e-4
    noisy = flat(released(shared, X[:N], Y[:N]))
    shared.noise_multiplier = 0.0
    assert 0 < float((noisy - quiet).abs().max()) < 6e-4 * 0.5 / 8


def test_without_clipping_and_noise_it_is_plain_training():
    plain, model = net(), net()
    private = private_of(model, max_grad_norm=math.inf, expected_batch_size=float(N))
    steps = [torch.optim.AdamW(m.parameters(), lr=0.1, weight_decay=0.1) for m in (plain, private)]
    for _ in range(3):
        for m, loss, step in (
            (plain, lambda: F.cross_entropy(plain(X[:N]), Y[:N]), steps[0]),
            (private, lambda: private(X[:N], Y[:N]), steps[1]),
        ):
            m.zero_grad()
            loss().backward()
            step.step()
    same(dict(model.state_dict()), dict(plain.state_dict()))


def test_two_modules_side_by_side():
    models = [net(), nn.Linear(D, C)]
    both = [private_of(m) for m in models]
    for n in (3, N):
        for m, p in zip(models, both, strict=True):
            same(released(p, X[:n], Y[:n]), wanted(m, slice(n)))
    assert [p.releases for p in both] == [2, 2]


def test_a_copy_is_whole_and_a_pickle_refused():
    private = private_of(net())
    before = released(private, X[:N], Y[:N])
    other = copy.deepcopy(private)
    assert all(a is not b for a, b in zip(other.parameters(), private.parameters(), strict=True))
    same(released(other, X[:N], Y[:N]), before)
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(private)


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(
    rows=st.lists(st.integers(0, 39), max_size=9),
    extra=st.integers(0, 39),
    size=st.sampled_from([1e-3, 1.0, 1e3, 1e20]),
)
def test_neighbours_are_within_the_sensitivity(rows: list[int], extra: int, size: float):
    private = NEIGHBOURS[0] if NEIGHBOURS else private_of(net())
    NEIGHBOURS[:] = [private]
    x = X * size

    def sum_of(chosen: list[int]) -> Tensor:
        return flat(released(private, x[chosen], Y[chosen])).double()

    moved = (sum_of([*rows, extra]) - sum_of(rows)).norm()
    assert float(moved) <= private.sensitivity * (1 + 1e-4)


NEIGHBOURS: list[fxdp.PrivateModule] = []


def test_a_model_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scales are tensors, of whose values torch is not to make numbers."""
    captured: list[int] = []
    inner = partition.compile_marked

    def counted(gm: Any, *args: Any) -> Any:
        captured.append(len(gm.graph.nodes))
        return inner(gm, *args)

    monkeypatch.setattr(partition, "compile_marked", counted)
    private = private_of(net(width=7))
    for bound, expected in ((0.5, 8.0), (0.25, 16.0)):
        private.max_grad_norm, private.expected_batch_size = bound, expected
        same(released(private, X[:N], Y[:N]), wanted(private._model, range(N), bound, expected))
    assert len(captured) == 1
