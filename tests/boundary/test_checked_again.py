"""Generated code is compared with its graph at each kind of batch size, on few rows of a large one.

Each test has code generated wrongly for some batch sizes, and goes through a front door.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn

import fxdp
from fxdp.backend import check, halves, settings
from fxdp.backend.check import MiscompilationWarning
from fxdp.backend.rows import Layout, Place, Rows, kind
from tests.keys import same_noise
from tests.keywords import grouped

Wrong = Callable[[int], bool]


class Net(nn.Module):
    """Samples on the second axis, positions on the first: what is kept has N times something."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.drop = nn.Linear(4, 3), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.layer(x).tanh()).square().sum((0, 2)).mean()


class Generated:
    """Stands for Inductor: the graph as it is, but wrong in one half at some batch sizes."""

    def __init__(self, half: str, wrong: Wrong) -> None:
        self.half, self.wrong = half, wrong
        self.asked: list[tuple[str, int]] = []

    def __call__(self, graph: Any, args: Any, is_backward: bool) -> Callable[[list[Any]], Any]:
        half = "backward" if is_backward else "forward"
        run = halves.make_boxed_func(halves.safe_views(halves.copied(graph)))

        def compiled(args: list[Any]) -> Any:
            # What has samples and positions is [T, N, ...], in both halves.
            count = next(a.shape[1] for a in args if isinstance(a, Tensor) and a.dim() == 3)
            self.asked.append((half, count))
            out = list(run(list(args)))
            if half == self.half and self.wrong(count):
                out = [o * 1.5 if isinstance(o, Tensor) and o.is_floating_point() else o
                       for o in out]  # fmt: skip
            return out

        compiled._boxed_call = True
        return compiled


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Wrong], Generated]:
    def install(half: str, wrong: Wrong) -> Generated:
        torch._dynamo.reset()
        found = Generated(half, wrong)
        monkeypatch.setattr(halves, "compile_fx_inner", found)
        monkeypatch.setattr(settings, "has_compiler", lambda: True)
        return found

    return install


def private_of(**options: Any) -> fxdp.PrivateModule:
    options = {"noise_multiplier": 0.0} | options
    return fxdp.compile(
        Net(),
        max_grad_norm=1.0,
        expected_batch_size=4.0,
        backend="inductor",
        batch_dims=1,
        **grouped({"plan": "fixed"} | options),
    )


def step(private: fxdp.PrivateModule, n: int) -> list[Tensor]:
    """The gradients of a step of n samples, the same for the same n."""
    torch.manual_seed(n)
    private.zero_grad()
    private(torch.randn(5, n, 4)).backward()
    return [p.grad for p in private.parameters() if p.grad is not None]


@functools.cache
def eager() -> fxdp.PrivateModule:
    return fxdp.compile(
        Net(),
        max_grad_norm=1.0,
        noise_multiplier=0.0,
        expected_batch_size=4.0,
        backend="eager",
        batch_dims=1,
        options={"plan": "fixed"},
    )


@functools.cache
def right(n: int) -> list[Tensor]:
    return [g.clone() for g in step(eager(), n)]


def same(got: list[Tensor], want: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("half", ["forward", "backward"])
@pytest.mark.parametrize(
    ("first", "size"), [(8, 16), (8, 40), (40, 7), (40, 3), (40, 2), (3, 2), (16, 600)]
)
def test_code_that_is_wrong_at_some_sizes(
    half: str, first: int, size: int, generated: Callable[[str, Wrong], Generated]
) -> None:
    """It is right at the first size; when the other comes, the graph takes its place for good."""
    generated(half, lambda n: kind(n) == kind(size))
    private = private_of()
    assert same(step(private, first), right(first))
    with pytest.warns(MiscompilationWarning, match=f"differs from its {half} graph"):
        found = step(private, size)
    assert same(found, right(size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(step(private, size), right(size))
    assert len(private.certificate().fallbacks) == 1


def test_each_kind_once(generated: Callable[[str, Wrong], Generated]) -> None:
    """A step of a kind that was seen runs the code once in each half."""
    code = generated("forward", lambda n: False)
    private = private_of()
    times = []
    for n in (20, 31, 16, 32, 5, 15, 2, 3, 2, 1, 0):
        code.asked.clear()
        step(private, n)
        times.append(len(code.asked))
    assert times == [4, 2, 2, 4, 4, 2, 4, 4, 2, 2, 2]  # 1 and 0 run as 2


def test_dropout_and_noise_go_on_as_if_nothing_was_compared(
    generated: Callable[[str, Wrong], Generated],
) -> None:
    generated("forward", lambda n: False)
    found = []
    for compared in (True, False):
        private = private_of(noise_multiplier=1.0)
        if not compared:
            private._stepper.step = private._stepper.another(
                settings.Settings(plan="fixed", check=False), private._stepper.record
            )
        torch.manual_seed(0)
        same_noise(private)
        steps = []
        for n in (20, 5, 40):
            private.zero_grad()
            private(torch.ones(5, n, 4)).backward()
            steps += [p.grad for p in private.parameters()]
        found.append([*steps, torch.rand(3)])
        assert private.releases == 3
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("half", ["forward", "backward"])
def test_few_rows_of_a_large_batch(
    half: str, generated: Callable[[str, Wrong], Generated], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2, 5, and as many as are small; and one of them finds what is wrong at all sizes."""
    monkeypatch.setattr(check, "SMALL", 2000)
    code = generated(half, lambda n: False)
    private = private_of()
    assert same(step(private, 64), right(64))
    for own in ("forward", "backward"):
        asked = [n for which, n in code.asked if which == own]
        assert asked[0] == 2
        assert 5 in asked
        assert asked[-1] == 64
        assert asked.count(64) == 1  # which is the step
    generated(half, lambda n: True)
    private = private_of()
    with pytest.warns(MiscompilationWarning):
        found = step(private, 64)
    assert same(found, right(64))


def test_an_exception_delivers_nothing_and_the_next_call_compares(
    generated: Callable[[str, Wrong], Generated],
) -> None:
    fail = True

    def interrupted(n: int) -> bool:
        if fail:
            raise KeyboardInterrupt
        return True

    generated("backward", interrupted)
    private = private_of(noise_multiplier=1.0)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        step(private, 8)
    assert private.releases == 0
    assert all(p.grad is None for p in private.parameters())
    fail = False
    with pytest.warns(MiscompilationWarning):
        step(private, 8)
    assert private.releases == 1
    assert before.shape == torch.get_rng_state().shape


def test_an_index_that_leads_out_of_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that does not run on a part is compared on the whole."""
    calls: list[int] = []

    def graph(args: list[Any]) -> list[Tensor]:
        x, at = args
        calls.append(len(x))
        return [x[at]]

    n = sympy.Symbol("n", integer=True, positive=True)
    one = sympy.Integer(1)
    layouts = (Layout((n,), (one,)), Layout((n,), (one,)))
    monkeypatch.setattr(check, "SMALL", 1)
    run = check.Checked(graph, graph, None, [], rows=Rows(n, 2, layouts, Place(0, 0, 1)))
    x = torch.arange(8.0)
    assert torch.equal(run([x, torch.arange(7, -1, -1)])[0], x.flip(0))
    assert calls[-3:] == [8, 8, 8]
