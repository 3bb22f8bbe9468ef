"""What forms and passes write where Triton kernels are: on fake tensors, without triton."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import fxdp
from fxdp.forms import Outer
from fxdp.kernels import library
from fxdp.kernels.clipped_sum import weighed_outer
from fxdp.kernels.each_outer import each_outer
from fxdp.kernels.ghost import ghost_outer, ghost_outers, ghost_whole
from fxdp.kernels.loops import loop_outer
from fxdp.shapes import expr
from tests.passes.graphs import passed, sum_square

SUM, NORM, NORMS, WHOLE, EACH = (
    op.default for op in (weighed_outer, ghost_outer, ghost_outers, ghost_whole, each_outer)
)
FULL, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
D, P = 3, 5


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were there: nothing here runs a kernel."""
    monkeypatch.setattr(library, "has_triton", lambda: True)


def traced(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    of_a: torch.dtype,
    of_b: torch.dtype,
    *inner: int,
) -> GraphModule:
    """What a function does with operands [N, *inner, D] and [N, *inner, P] on CUDA, and factors."""
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC])
    n = mode.from_tensor(torch.empty(4, device="meta"), symbolic_context=context).shape[0]
    with mode:
        a = torch.empty(n, *inner, D, device="cuda", dtype=of_a)
        b = torch.empty(n, *inner, P, device="cuda", dtype=of_b)
        gm = make_fx(function)(a, b, torch.empty(n, device="cuda"))
    assert not env.guards, "any N will do"
    gm.graph.eliminate_dead_code()
    return gm


def targets(gm: GraphModule) -> list[Any]:
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


def norms(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    return Outer(a, b).sq_norm("ghost")


def total(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    return Outer(a, b).total(factor)


@pytest.mark.parametrize(("of_a", "of_b"), [(FULL, FULL), (BF16, BF16), (HALF, HALF), (BF16, FULL)])
def test_operands_stay_what_they_are(of_a: torch.dtype, of_b: torch.dtype) -> None:
    """One op for each, whose result is in float32."""
    calls = [(norms, NORM, 7), (total, SUM, 7), (total, SUM, 1)]
    calls += [(norms, NORM, 1)] if BF16 in (of_a, of_b) else []
    for function, op, t in calls:
        gm = traced(function, of_a, of_b, t)
        assert targets(gm) == [op]
        assert gm.graph.output_node().args[0].meta["val"].dtype == FULL


def test_devices_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written for them is run without Triton's kernels."""
    with FakeTensorMode():
        x = torch.empty(2, device="cuda")
    for version, runs in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, v=version: v)
        library.is_able.cache_clear()
        assert library.is_tiled(x)
        assert library.runs_tiled(x) == runs
    library.is_able.cache_clear()
    assert not library.runs_tiled(torch.ones(2))


def test_weights_of_a_bmm() -> None:
    assert WHOLE in targets(traced(norms, BF16, BF16, 2, 7))


def test_float64_as_before() -> None:
    assert WHOLE in targets(traced(norms, torch.float64, torch.float64, 7))
    assert SUM not in targets(traced(total, torch.float64, torch.float64, 7))


def test_without_triton_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "has_triton", lambda: False)
    assert WHOLE in targets(traced(norms, BF16, BF16, 7))
    assert SUM not in targets(traced(total, BF16, BF16, 7))


@pytest.mark.parametrize("t", [1, 7])
def test_per_sample_gradients(t: int) -> None:
    """Of half precision by one op, which reads the numbers that are summed."""

    def each(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
        return Outer(a, b).per_sample()

    def looped(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
        return Outer(a, b).per_sample("naive")

    assert targets(traced(each, BF16, BF16, t)) == targets(traced(each, BF16, FULL, t)) == [EACH]
    assert EACH not in targets(traced(each, FULL, FULL, t))
    assert targets(traced(looped, BF16, BF16, t)) == [loop_outer.default]
    a, b = torch.randn(4, t, D).bfloat16(), torch.randn(4, t, P).bfloat16()
    wanted = Outer(a.float(), b.float()).per_sample()
    torch.testing.assert_close(each_outer(a, b), wanted)
    torch.testing.assert_close(loop_outer(a, b), wanted)


def summed(out: Tensor, _: Tensor) -> Tensor:
    """A loss whose gradient is the same for all outputs of a sample."""
    return out.float().flatten(1).sum(1).mean()


class Heads(nn.Module):
    """A query, a key and a value of one input, and a layer with one position."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            values = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)
            return self.out(values.mean(1)).unsqueeze(1).float()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU's implementations stand for a device's."""
    monkeypatch.setattr(library, "DEVICES", ("cuda", "cpu"))


def test_a_step(on_cpu: None) -> None:
    """Under autocast norms and sums are of the operands in half precision, of the very same; no
    matrix of positions and positions is in them."""
    t = 11
    x = torch.zeros(4, t, D)
    run = passed(Heads(), sum_square, x, torch.zeros(4), last="share", strategy="ghost")
    run_of_sums = passed(Heads(), sum_square, x, torch.zeros(4), last="clip", strategy="ghost")
    (shared,) = run.gm.graph.find_nodes(op="call_function", target=NORMS)
    common, others = shared.args
    assert len(others) == 3
    assert {node.meta["val"].dtype for node in (common, *others)} == {BF16}
    sums = run_of_sums.gm.graph.find_nodes(op="call_function", target=SUM)
    assert len(sums) == 4
    for node in sums:
        assert node.meta["val"].dtype == FULL
        assert all(given.meta["val"].dtype == BF16 for given in node.args[:2])
    first = next(iter(run.gm.graph.find_nodes(op="call_function", target=NORMS)))
    after = list(run.gm.graph.nodes)
    squared = [
        node
        for node in after[after.index(first) :]
        if isinstance(node.meta.get("val"), Tensor)
        and [expr(s) for s in node.meta["val"].shape[-2:]] == [t, t]
    ]
    assert not squared


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("inner", [(), (6,), (40,)])
def test_a_step_is_what_it_was_in_float32(
    on_cpu: None, device: str, inner: tuple[int, ...]
) -> None:
    """Norms and gradients of a model in half precision are those of the same numbers in float32 on
    a CPU, but for the rounding of what is handed over."""
    if device == "cuda":
        pytest.importorskip("triton", reason="triton is not installed")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    x = torch.randn(4, *inner, D).bfloat16()
    start = nn.Linear(D, P, bias=False, dtype=BF16)
    found: list[tuple[Tensor, Tensor]] = []
    for place, dtype in ((device, BF16), ("cpu", FULL)):
        model = copy.deepcopy(start).to(place, dtype)
        private = fxdp.compile(
            model,
            loss_fn=summed,
            max_grad_norm=0.5,
            noise_multiplier=0.0,
            expected_batch_size=4,
            backend="eager" if place == "cpu" else "inductor",
            options={"plan": "model", "strategy": "ghost"},
        )
        private(x.to(place, dtype), torch.zeros(4, device=place)).backward()
        assert model.weight.grad is not None
        found.append((private.last_norms.cpu().float(), model.weight.grad.cpu().float()))
    (norms_found, grad), (wanted, whole) = found
    torch.testing.assert_close(norms_found, wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad, whole, rtol=2**-8, atol=0)
