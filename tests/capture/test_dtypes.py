"""What is refused for its dtypes during capture is what the kernels refuse."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.capture.dtypes import CHECKS, DtypeError, dtypes_of_kernels, floating
from fxdp.capture.results import results_at_once
from fxdp.torch_internals import FakeTensorMode, OpOverload, ShapeEnv, pytree

aten = torch.ops.aten
KINDS = (torch.float64, torch.float32, torch.bfloat16, torch.int64)
ROW, GRID = torch.tensor([0, 1]), torch.zeros(1, 2, 2, 2)
X, V, P = torch.rand(2, 2), torch.rand(2), torch.rand(2, 2) * 0.5 + 0.2
BATCH = torch.rand(1, 2, 2, 2)
# Arguments that the ops take, all in float32.
TAKEN: dict[OpOverload, tuple[Any, ...]] = {
    aten._cdist_forward.default: (X, X, 2.0, None),
    aten._embedding_bag.default: (X, ROW, ROW, False, 0, False, V),
    aten._embedding_bag_forward_only.default: (X, ROW, ROW, False, 0, False, V),
    aten._log_softmax.default: (X, 1, False),
    aten.addbmm.default: (X, X[None], X[None]),
    aten.addmm.default: (V, X, X),
    aten.addmv.default: (V, X, V),
    aten.binary_cross_entropy.default: (P, P, P),
    aten.complex.default: (X, X),
    aten.grid_sampler_2d.default: (BATCH, GRID, 0, 0, False),
    aten.grid_sampler_3d.default: (BATCH[None], torch.zeros(1, 2, 2, 2, 3), 0, 0, False),
    aten.huber_loss.default: (X, X),
    aten.index_add.default: (X, 0, ROW, X),
    aten.index_copy.default: (X, 0, ROW, X),
    aten.index_put.default: (X, [ROW], V),
    aten.index_reduce.default: (X, 0, ROW, X, "amax"),
    aten.linalg_cross.default: (torch.rand(2, 3), torch.rand(2, 3)),
    aten.log_sigmoid_forward.default: (X,),
    aten.mm.default: (X, X),
    aten.multi_margin_loss.default: (X, ROW, 1, 1.0, V),
    aten.mv.default: (X, V),
    aten.native_batch_norm.default: (BATCH, V, V, V, V + 1, False, 0.1, 1e-5),
    aten.native_group_norm.default: (BATCH, V, V, 1, 2, 4, 1, 1e-5),
    aten.native_layer_norm.default: (X, [2], V, V, 1e-5),
    aten.nll_loss_forward.default: (X, ROW, V, 1, -100),
    aten.polar.default: (X, X),
    aten.put.default: (X, ROW, V),
    aten.soft_margin_loss.default: (X, X),
}  # fmt: skip


def fails(op: OpOverload, args: Any) -> bool:
    try:
        op(*pytree.tree_map_only(Tensor, Tensor.clone, args))
    except (RuntimeError, NotImplementedError):
        return True
    return False


def refused(op: OpOverload, args: Any) -> bool:
    """Is it refused during capture, in our words or in torch's, whatever sizes are?"""
    args = pytree.tree_map_only(Tensor, Tensor.clone, args)
    found = refused_with(op, args, None)
    assert refused_with(op, args, ShapeEnv()) or not found
    return found


def refused_with(op: OpOverload, args: Any, env: ShapeEnv | None) -> bool:
    """The same where first sizes are symbols, or with None are not."""

    def fake(x: Tensor) -> Tensor:
        if env is not None:
            torch._dynamo.mark_dynamic(x, 0)
        return mode.from_tensor(x, static_shapes=True if env is None else None)

    with FakeTensorMode(shape_env=env) as mode, dtypes_of_kernels(), results_at_once():
        return fails(op, pytree.tree_map_only(Tensor, fake, args))


@pytest.mark.parametrize("op", CHECKS, ids=str)
def test_as_the_kernel_does(op: OpOverload) -> None:
    flat, spec = pytree.tree_flatten(TAKEN[op])
    spots = [i for i, x in enumerate(flat) if isinstance(x, Tensor) and x.is_floating_point()]
    assert not refused(op, TAKEN[op])
    seen = 0
    pairs = itertools.combinations(KINDS, 2)
    for kinds in (k for pair in pairs for k in itertools.product(pair, repeat=len(spots))):
        if len(set(kinds)) == 1 and CHECKS[op] is not floating:
            continue  # what a kernel does not take at all is not asked
        given = list(flat)
        for i, kind in zip(spots, kinds, strict=True):
            given[i] = given[i].to(kind)
        args = pytree.tree_unflatten(given, spec)
        if refused(op, args):
            seen += 1
            if op is aten.addmv.default and torch.__version__ < (2, 12):
                continue  # which takes more, and is refused all the same
            assert fails(op, args), kinds
        elif kinds[0].is_floating_point and CHECKS[op] is not floating:
            assert not fails(op, args), kinds
    assert seen


class Net(nn.Module):
    """Layers of float32, of which a test takes one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).float().square().mean()  # here


LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(4, 3),
    "without bias": lambda: nn.Linear(4, 3, bias=False),
    "convolution": lambda: nn.Conv1d(3, 2, 1),
    "layer norm": lambda: nn.LayerNorm(4),
    "group norm": lambda: nn.GroupNorm(1, 3),
    "recurrent": lambda: nn.GRU(4, 3, batch_first=True),
    "bilinear": lambda: Bilinear(4, 4, 2),
}


class Bilinear(nn.Bilinear):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x, x)


NUMBERS = {"integers": torch.arange(24).reshape(2, 3, 4), "doubles": torch.rand(2, 3, 4).double()}


@pytest.mark.parametrize("x", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_layer_says_which_line_and_what_helps(make: Any, x: Tensor) -> None:
    model = Net(make())
    if make is LAYERS["recurrent"]:
        model.layer.forward = first(model.layer.forward)
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=2, backend="eager"
    )
    for call in (lambda: fxdp.prove(model, x), lambda: private(x).backward()):
        with pytest.raises(fxdp.CaptureError) as found:
            call()
        (d,) = found.value.diagnostics
        assert d.code.code == "FXD501"
        assert d.location is not None
        assert d.location.file == __file__
        assert "x.float()" in d.remedy
    assert private.releases == 0
    assert all(p.grad is None for p in model.parameters())
    private(x.float()).backward()
    assert private.releases == 1


def first(layer: Any) -> Any:
    return lambda x: layer(x)[0]


@pytest.mark.parametrize("x", NUMBERS.values(), ids=NUMBERS)
def test_so_does_the_door_of_torch_compile(x: Tensor) -> None:
    torch._dynamo.reset()
    options = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": 2}
    step: Any = torch.compile(
        Net(nn.Linear(4, 3)), backend="fxdp", fullgraph=True, options=options | {"backend": "eager"}
    )
    with pytest.raises(fxdp.CaptureError, match=r"test_dtypes.py:\d+: FXD501.*one dtype"):
        step(x)
    assert step.privacy.releases == 0


def test_classes_are_whole_numbers() -> None:
    with pytest.raises(fxdp.CaptureError, match=r"y.long\(\)"):
        fxdp.prove(nn.Linear(4, 3), torch.rand(2, 4), torch.rand(2), loss_fn=F.cross_entropy)


def test_the_words() -> None:
    with pytest.raises(DtypeError, match="must be of one dtype, and are float32 and int64"):
        CHECKS[aten.mm.default](X, X.long())
    with pytest.raises(DtypeError, match="floating-point numbers, and is given int64"):
        floating(X.long())
