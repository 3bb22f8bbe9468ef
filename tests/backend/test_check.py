"""Generated code is compared with its graph before anything is released."""

import copy
import operator
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch.fx import Graph, GraphModule

import fxdp
from fxdp.backend.check import Checked, MiscompilationWarning, difference, generators
from fxdp.backend.halves import safe_views
from fxdp.ops import RULES


class MnistNet(nn.Module):
    """Opacus's MNIST example: the net whose gradients Inductor 2.13 computes wrongly on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 8, 2, 3), nn.Conv2d(16, 32, 4, 2)
        self.fc1, self.fc2 = nn.Linear(512, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2, 1)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2, 1)
        return self.fc2(F.relu(self.fc1(x.view(-1, 512))))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(8, 1, 28, 28), torch.randint(10, (8,))


def plain_gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())))


def worst(got: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, wanted, strict=True))


def compiled_by_inductor(model: nn.Module, x: Tensor, y: Tensor, guarded: bool) -> list[Tensor]:
    """Plain gradients from Inductor's code, every graph guarded by `Checked` or not."""

    def half(graph, args):
        eager = make_boxed_func(safe_views(copy.deepcopy(graph)))
        compiled = compile_fx_inner(graph, args)
        return Checked(compiled, eager, None, []) if guarded else compiled

    backend = aot_autograd(fw_compiler=half, decompositions=select_decomp_table())
    step = torch.compile(lambda x, y: F.cross_entropy(model(x), y), backend=backend, fullgraph=True)
    return list(torch.autograd.grad(step(x, y), list(model.parameters())))


class TestTheNetThatInductorGetsWrong:
    def test_guard_defeated_and_on(self, batch: tuple[Tensor, Tensor]) -> None:
        model, (x, y) = MnistNet(), batch
        wanted = plain_gradients(model, x, y)
        unguarded = worst(compiled_by_inductor(model, x, y, guarded=False), wanted)
        torch._dynamo.reset()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            guarded = worst(compiled_by_inductor(model, x, y, guarded=True), wanted)
        assert guarded < 1e-4
        # A torch that has mended its compiler leaves the guard nothing to say.
        warned = any(w.category is MiscompilationWarning for w in caught)
        assert warned == (unguarded > 1e-2)

    @pytest.mark.parametrize("guard", [True, False])
    def test_private_step(self, batch: tuple[Tensor, Tensor], guard: bool) -> None:
        """fxdp's own graph of this net: right with the guard, and with it defeated."""
        model, (x, y) = MnistNet(), batch
        private = fxdp.compile(
            model, loss_fn=F.cross_entropy, max_grad_norm=float("inf"), noise_multiplier=0.0,
            expected_batch_size=8,
        )  # fmt: skip
        settings = replace(private._stepper.settings, check=guard)
        private._stepper.step = private._stepper.another(settings, private._stepper.record)
        private(x, y).backward()
        got = [p.grad for p in model.parameters() if p.grad is not None]
        assert worst(got, plain_gradients(model, x, y)) < 1e-4


def boxed(function):
    return make_boxed_func(function)


class TestChecked:
    def test_the_eager_graph_takes_over(self) -> None:
        notes: list[str] = []
        run = Checked(boxed(lambda x: [x + 1]), boxed(lambda x: [x + 2]), None, notes)
        with pytest.warns(MiscompilationWarning, match="runs eagerly instead"):
            assert run([torch.zeros(2)])[0].tolist() == [2, 2]
        assert run([torch.ones(2)])[0].tolist() == [3, 3]
        assert len(notes) == 1

    def test_states_of_generators_may_differ(self) -> None:
        """Fused attention returns one that nobody set, where it drops nothing."""
        notes: list[str] = []
        compiled, eager = boxed(lambda x: [x, x + 1]), boxed(lambda x: [x, x + 2])
        run = Checked(compiled, eager, None, notes, generators=frozenset([1]))
        assert run([torch.zeros(2, dtype=torch.int64)])[1].tolist() == [1, 1]
        assert not notes

    def test_the_comparison_runs_without_noise(self) -> None:
        """What differs only where the noise is would be drowned by it."""
        seen: list[float] = []

        def eager(x: Tensor, sigma: Tensor) -> list[Tensor]:
            seen.append(float(sigma))
            return [x + sigma * 1e6]

        def compiled(x: Tensor, sigma: Tensor) -> list[Tensor]:
            seen.append(float(sigma))
            return [x * 1.5 + sigma * 1e6]

        run = Checked(boxed(compiled), boxed(eager), 1, [])
        with pytest.warns(MiscompilationWarning):
            out = run([torch.ones(2), torch.tensor(3.0)])
        assert seen == [0.0, 0.0, 3.0]
        assert out[0].tolist() == [1 + 3e6, 1 + 3e6]

    def test_and_then_with_noise(self) -> None:
        """Code that forgets the noise agrees at multiplier 0."""
        notes: list[str] = []
        eager = boxed(lambda x, sigma: [x + sigma])
        run = Checked(boxed(lambda x, sigma: [x + 0 * sigma]), eager, 1, notes)
        with pytest.warns(MiscompilationWarning):
            assert run([torch.ones(2), torch.tensor(3.0)])[0].tolist() == [4, 4]
        assert len(notes) == 1

    def test_random_numbers_are_drawn_once(self) -> None:
        torch.manual_seed(0)
        wanted = torch.rand(3)
        torch.manual_seed(0)
        run = Checked(boxed(lambda x: [torch.rand(3)]), boxed(lambda x: [torch.rand(3)]), None, [])
        assert torch.equal(run([torch.zeros(1)])[0], wanted)

    def test_a_compiled_graph_may_write_over_its_inputs(self) -> None:
        run = Checked(boxed(lambda x: [x.add_(1)]), boxed(lambda x: [x + 1]), None, [])
        assert run([torch.zeros(2)])[0].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        ([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 2.1])]),
        ([torch.tensor([float("nan")])], [torch.tensor([1.0])]),
        ([torch.zeros(2)], [torch.zeros(3)]),
        ([torch.tensor([True] * 4)], [torch.tensor([False] * 4)]),
        ([2], [3]),
    ],
)
def test_differences_are_seen(got: list, wanted: list) -> None:
    assert difference(got, wanted) is not None


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        ([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 2.0 + 1e-6])]),
        # Next to a large result, a tiny one is rounding.
        ([torch.tensor([1e3]), torch.tensor([1e-6])], [torch.tensor([1e3]), torch.tensor([0.0])]),
        ([torch.tensor([float("inf")])], [torch.tensor([float("inf")])]),
        ([None, 3], [None, 3]),
        ([torch.zeros(0)], [torch.zeros(0)]),
    ],
)
def test_rounding_is_no_difference(got: list, wanted: list) -> None:
    assert difference(got, wanted) is None


def test_the_compiled_graph_gets_inputs_laid_out_as_they_are() -> None:
    """Generated code insists on the strides of what the forward pass saved: a part of a row."""
    base = torch.randn(4, 5, 3)
    given = [base[:, 0], base.transpose(1, 2), base[:1].expand(4, 5, 3)]
    seen: list[list[tuple[int, ...]]] = []

    def graph(args: list[Tensor]) -> list[Tensor]:
        seen.append([a.stride() for a in args])
        return [args[0] + 1]

    notes: list[str] = []
    Checked(graph, graph, None, notes)(list(given))
    assert seen == [[a.stride() for a in given]] * 3
    assert not notes


def test_which_results_are_states_of_generators() -> None:
    """By the rules: those of attention on a GPU after the first two, and no other."""
    graph, op = Graph(), torch.ops.aten._scaled_dot_product_efficient_attention.default
    q = graph.placeholder("q")
    attended = graph.call_function(op, (q, q, q, None, True))
    parts = [graph.call_function(operator.getitem, (attended, i)) for i in range(4)]
    graph.output((*parts, q))
    assert generators(GraphModule({}, graph), RULES) == {2, 3}
