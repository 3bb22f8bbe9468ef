"""Layers of torch.nn: what fxdp releases is what autograd gives one sample at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxdp
from tests.oracle import Branches, compare, score

pytestmark = pytest.mark.usefixtures("double")
N = 5


class Apart(Branches):
    """Several modules, each on an input of its own, and a loss [N] in which all of them count."""

    def forward(self, *x: Tensor) -> Tensor:
        return sum(score(module(own)) for module, own in zip(self.branches, x, strict=True))


@pytest.mark.parametrize("strategy", ["instantiate", "ghost", "naive", "multi"])
def test_linear(strategy: str):
    shapes = ((4,), (3, 4), (2, 3, 4), (4,), (3, 4))
    layers = (nn.Linear(4, 3, bias=i < 3) for i in range(len(shapes)))
    compare(Apart(*layers), *(torch.randn(N, *s) for s in shapes), strategy=strategy)


# Settings of layers with 4 channels in, 8 out, and a kernel of 3.
CONVOLUTIONS = (
    (nn.Conv1d, (9,), {"padding": 1, "stride": 2, "dilation": 2, "groups": 2}),
    (nn.Conv1d, (9,), {"padding": "valid", "groups": 4, "bias": False}),
    (nn.Conv2d, (9, 8), {"padding": 1, "stride": 2, "dilation": 2, "groups": 2}),
    (nn.Conv2d, (9, 8), {"padding": (1, 0), "stride": (3, 2), "bias": False}),
    (nn.Conv2d, (9, 8), {"padding": "same", "dilation": (1, 2), "bias": False}),
    (nn.Conv2d, (9, 8), {"padding": "valid", "groups": 4, "bias": False}),
    (nn.Conv3d, (4, 5, 4), {"padding": 1, "stride": (1, 2, 1), "groups": 2}),
)
TRANSPOSED = (
    (nn.ConvTranspose1d, (5,), {"padding": 1, "stride": 2, "output_padding": 1, "groups": 2}),
    (nn.ConvTranspose1d, (5,), {"dilation": 2, "bias": False}),
    (nn.ConvTranspose2d, (4, 3), {
        "padding": 1, "stride": 3, "output_padding": (2, 1), "groups": 2,
    }),
    (nn.ConvTranspose2d, (4, 3), {
        "padding": (0, 1), "stride": (2, 1), "dilation": (1, 2), "groups": 4, "bias": False,
    }),
    (nn.ConvTranspose3d, (3, 2, 3), {"padding": 1, "stride": 2, "output_padding": 1, "groups": 2}),
)  # fmt: skip
# What they pad with is put around their input before the convolution, whatever its strategy.
PADDED = (
    (nn.Conv1d, (9,), {"padding": "same", "padding_mode": "circular"}),
    (nn.Conv1d, (9,), {"padding": 2, "padding_mode": "reflect", "bias": False}),
    (nn.Conv1d, (9,), {"padding": (2,), "padding_mode": "replicate"}),
    (nn.Conv2d, (7, 8), {"padding": (2, 1), "padding_mode": "reflect"}),
    (nn.Conv2d, (7, 8), {"padding": "same", "padding_mode": "replicate"}),
    (nn.Conv2d, (7, 8), {"padding": 1, "stride": 2, "padding_mode": "circular"}),
    (nn.Conv3d, (4, 5, 4), {"padding": "same", "padding_mode": "circular"}),
    (nn.Conv3d, (4, 5, 4), {"padding": 1, "padding_mode": "replicate"}),
)


STRATEGIES = ("auto", "crb", "ghost")


@pytest.mark.parametrize(
    ("layers", "strategy"),
    [
        *((CONVOLUTIONS, how) for how in STRATEGIES),
        *((TRANSPOSED, how) for how in STRATEGIES),
        (PADDED, "auto"),
    ],
)
def test_convolution(layers: tuple[Any, ...], strategy: str):
    model = Apart(*(layer(4, 8, 3, **settings) for layer, _, settings in layers))
    inputs = (torch.randn(N, 4, *shape) for _, shape, _ in layers)
    compare(model, *inputs, strategy=strategy)


def test_convolution_per_sample():
    model = Branches(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1))
    compare(model, torch.randn(N, 4, 5, 6), each=True)


def upon(layer: nn.Module, *modules: nn.Module) -> nn.Module:
    """Modules on the output of one layer, whose gradient is wrong if that of any of them is."""
    return nn.Sequential(layer, Branches(*modules))


def test_norms():
    on_axes = upon(
        nn.Linear(6, 6), nn.LayerNorm(6), nn.LayerNorm((4, 6)), nn.LayerNorm(6, bias=False),
        nn.RMSNorm(6), nn.RMSNorm((4, 6)),
    )  # fmt: skip
    of_1d = upon(
        nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True),
        nn.BatchNorm1d(4).eval(),
    )  # fmt: skip
    of_2d = upon(
        nn.Conv2d(4, 4, 1), nn.GroupNorm(4, 4), nn.GroupNorm(1, 4),
        nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4).eval(),
    )  # fmt: skip
    of_3d = upon(
        nn.Conv3d(4, 4, 1), nn.GroupNorm(2, 4), nn.InstanceNorm3d(4, affine=True),
        nn.BatchNorm3d(4).eval(),
    )  # fmt: skip
    compare(Apart(on_axes, of_2d), torch.randn(N, 4, 6), torch.randn(N, 4, 3, 5), each=True)
    inputs = torch.randn(N, 4, 6), torch.randn(N, 4, 2, 3, 2)
    compare(Apart(of_1d, of_3d), *inputs)


def test_pools():
    of_1d = upon(
        nn.Conv1d(2, 2, 1), nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(3, 2, 1), nn.AdaptiveMaxPool1d(3),
        nn.AdaptiveAvgPool1d(3), nn.LPPool1d(2, 2), nn.AdaptiveAvgPool1d(1),
    )  # fmt: skip
    of_2d = upon(
        nn.Conv2d(2, 2, 1), nn.MaxPool2d(2, 1), nn.MaxPool2d((3, 2), 2, (1, 0), dilation=(1, 2)),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AdaptiveMaxPool2d((2, 3)),
        nn.AdaptiveAvgPool2d((4, None)), nn.AdaptiveAvgPool2d(1), nn.LPPool2d(2, (2, 3)),
    )  # fmt: skip
    of_3d = upon(
        nn.Conv3d(2, 2, 1), nn.MaxPool3d(2, 1), nn.AvgPool3d(2, 2, (0, 0, 1)),
        nn.AdaptiveMaxPool3d(2), nn.AdaptiveAvgPool3d((2, 1, 3)), nn.LPPool3d(2, 2),
    )  # fmt: skip
    shapes = ((8,), (6, 7), (4, 4, 5))
    compare(Apart(of_1d, of_2d, of_3d), *(torch.randn(N, 2, *s) for s in shapes))


def test_activations():
    model = upon(
        nn.Linear(4, 4), nn.CELU(), nn.ELU(), nn.GELU(), nn.GELU("tanh"), nn.GLU(),
        nn.Hardshrink(0.1), nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh(-0.5, 0.5),
        nn.LeakyReLU(), nn.LogSigmoid(),
        nn.LogSoftmax(-1), nn.Mish(), nn.PReLU(), nn.ReLU(), nn.ReLU6(), nn.RReLU(0.2, 0.2),
        nn.SELU(), nn.SiLU(), nn.Sigmoid(), nn.Softmax(1), nn.Softmin(-1), nn.Softplus(),
        nn.Softshrink(0.1), nn.Softsign(), nn.Tanh(), nn.Tanhshrink(), nn.Threshold(0.1, 0.5),
        nn.PReLU(3),
    )  # fmt: skip
    # torch works hardsigmoid's sixths out in single precision, here or there.
    compare(model, torch.randn(N, 3, 4), tolerance=(1e-6, 1e-7))


def test_softmax2d_and_channelwise_prelu():
    compare(upon(nn.Conv2d(2, 3, 1), nn.Softmax2d(), nn.PReLU(3)), torch.randn(N, 2, 3, 3))


@pytest.mark.parametrize("strategy", ["instantiate", "ghost"])
def test_embedding(strategy: str):
    model = Branches(nn.Embedding(7, 3), nn.Embedding(7, 4, padding_idx=2))
    ids = torch.randint(7, (N, 6))
    ids[0, :2] = 2
    compare(model, ids, strategy=strategy, each=strategy == "instantiate")


def test_embedding_bag():
    ids = torch.randint(7, (N, 6))
    ids[0] = torch.tensor([3, 3, 3, 1, 1, 2])
    ids[1] = 2
    settings = ((mode, pad) for mode in ("sum", "mean", "max") for pad in (None, 2))
    bags = (nn.EmbeddingBag(7, 3, mode=m, padding_idx=p) for m, p in settings)
    compare(Branches(*bags), ids, each=True)


class Recurrent(nn.Module):
    """The outputs of a recurrent layer, samples first."""

    def __init__(self, kind: type[nn.RNNBase], **settings: bool | int) -> None:
        super().__init__()
        self.layer = kind(3, 4, **settings)

    def forward(self, x: Tensor) -> Tensor:
        first = self.layer.batch_first
        out, state = self.layer(x if first else x.transpose(0, 1))
        state = state[0] + state[1] if isinstance(state, tuple) else state
        out = out if first else out.transpose(0, 1)
        return torch.cat([out.flatten(1), state.transpose(0, 1).flatten(1)], 1)


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent(kind: type[nn.RNNBase]):
    model = Branches(
        Recurrent(kind, batch_first=True),
        Recurrent(kind, bidirectional=True, num_layers=2),
    )
    compare(model, torch.randn(N, 2, 3))


class Twice(nn.Module):
    """Two steps of a recurrent cell."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x)
        state = self.cell(x * 2, state)
        return state[0] if isinstance(state, tuple) else state


def test_recurrent_cells():
    cells = (nn.RNNCell(3, 3), nn.GRUCell(3, 3), nn.LSTMCell(3, 3))
    compare(Branches(*map(Twice, cells)), torch.randn(N, 3))


def test_bilinear():
    class OfWords(nn.Bilinear):
        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return super().forward(*(torch.stack([x, x.sin()], 1) for x in (one, other)))

    model = Branches(nn.Bilinear(3, 4, 2), OfWords(3, 4, 2))
    compare(model, torch.randn(N, 3), torch.randn(N, 4), each=True)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weight_norm():
    model = Branches(
        parametrizations.weight_norm(nn.Conv1d(4, 2, 3)),
        parametrizations.weight_norm(nn.Conv1d(4, 2, 3), dim=1),
        parametrizations.weight_norm(nn.Linear(6, 3)),
        nn.utils.weight_norm(nn.Linear(6, 3)),
    )
    compare(model, torch.randn(N, 4, 6))


def spectral() -> nn.Module:
    """Torch's way, and its way of old."""
    ways = (parametrizations.spectral_norm, nn.utils.spectral_norm)
    return Branches(*(way(nn.Linear(4, 3)) for way in ways))


def test_spectral_norm():
    # A power iteration at every call would give the oracle other weights for every sample.
    compare(spectral().eval(), torch.randn(N, 4))


def test_spectral_norm_iterates():
    model = spectral()
    private = fxdp.compile(model, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=N,
                           backend="eager")  # fmt: skip
    private(torch.randn(N, 4)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "layer", [nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout]
)
def test_dropout_draws_for_each_sample(layer: type[nn.Module]):
    model = Branches(nn.Sequential(nn.Linear(4, 64), layer(0.5)))
    private = fxdp.compile(model, max_grad_norm=1e9, noise_multiplier=0.0, expected_batch_size=N,
                           backend="eager")  # fmt: skip
    x = torch.randn(1, 16, 4).expand(N, 16, 4).contiguous()
    private(x).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    norms = private.per_sample_norms(x)
    assert len(norms.unique()) == N
