"""Layers of torch.nn: what fxdp releases is what autograd gives one sample at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxdp
from tests.oracle import Branches, compare

pytestmark = pytest.mark.usefixtures("double")
N = 5


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=["2d", "3d", "4d"])
@pytest.mark.parametrize("strategy", ["instantiate", "ghost", "naive", "multi"])
def test_linear(shape: tuple[int, ...], strategy: str):
    model = Branches(nn.Linear(4, 3), nn.Linear(4, 2, bias=False))
    compare(model, torch.randn(N, *shape, 4), strategy=strategy, each=False)


CONVOLUTIONS = {
    "1d": (nn.Conv1d, (4, 9), [
        {"padding": 1, "stride": 2, "dilation": 2, "groups": 2},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": "valid", "groups": 4},
        {"padding": 2, "padding_mode": "reflect", "bias": False},
        {"padding": (2,), "padding_mode": "replicate"},
    ]),
    "2d": (nn.Conv2d, (4, 9, 8), [
        {"padding": 1, "stride": 2, "dilation": 2, "groups": 2},
        {"padding": (1, 0), "stride": (3, 2), "bias": False},
        {"padding": "same", "dilation": (1, 2)},
        {"padding": "valid", "groups": 4},
    ]),
    "2d padded": (nn.Conv2d, (4, 7, 8), [
        {"padding": (2, 1), "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "replicate"},
        {"padding": 1, "stride": 2, "padding_mode": "circular"},
    ]),
    "3d": (nn.Conv3d, (4, 4, 5, 4), [
        {"padding": 1, "stride": (1, 2, 1), "groups": 2},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "replicate"},
    ]),
    "transposed 1d": (nn.ConvTranspose1d, (4, 5), [
        {"padding": 1, "stride": 2, "output_padding": 1, "groups": 2},
        {"dilation": 2, "bias": False},
    ]),
    "transposed 2d": (nn.ConvTranspose2d, (4, 4, 3), [
        {"padding": 1, "stride": 3, "output_padding": (2, 1), "groups": 2},
        {"padding": (0, 1), "stride": (2, 1), "dilation": (1, 2), "groups": 4},
    ]),
    "transposed 3d": (nn.ConvTranspose3d, (4, 3, 2, 3), [
        {"padding": 1, "stride": 2, "output_padding": 1, "groups": 2},
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("strategy", ["auto", "crb", "ghost"])
def test_convolution(name: str, strategy: str):
    layer, shape, settings = CONVOLUTIONS[name]
    model = Branches(*(layer(4, 8, 3, **s) for s in settings))
    compare(model, torch.randn(N, *shape), strategy=strategy, each=False)


def test_convolution_per_sample():
    model = Branches(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1))
    compare(model, torch.randn(N, 4, 5, 6))


NORMS = {
    "last axes": ((4, 6), [
        nn.LayerNorm(6), nn.LayerNorm((4, 6)), nn.LayerNorm(6, bias=False), nn.RMSNorm(6),
        nn.RMSNorm((4, 6)),
    ]),
    "1d": ((4, 6), [
        nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True), nn.BatchNorm1d(4).eval(),
    ]),
    "2d": ((4, 3, 5), [
        nn.GroupNorm(4, 4), nn.GroupNorm(1, 4), nn.InstanceNorm2d(4, affine=True),
        nn.BatchNorm2d(4).eval(),
    ]),
    "3d": ((4, 2, 3, 2), [
        nn.GroupNorm(2, 4), nn.InstanceNorm3d(4, affine=True), nn.BatchNorm3d(4).eval(),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_norm(name: str):
    shape, layers = NORMS[name]
    layers = [nn.Sequential(nn.Conv1d(4, 4, 1), nn.Unflatten(2, shape[1:]), layer.double())
              for layer in layers]  # fmt: skip
    compare(Branches(*layers), torch.randn(N, 4, torch.Size(shape[1:]).numel()))


POOLS = {
    "1d": (nn.Conv1d, (8,), [
        nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(3, 2, 1), nn.AdaptiveMaxPool1d(3),
        nn.AdaptiveAvgPool1d(3), nn.LPPool1d(2, 2), nn.AdaptiveAvgPool1d(1),
    ]),
    "2d": (nn.Conv2d, (6, 7), [
        nn.MaxPool2d(2, 1), nn.MaxPool2d((3, 2), 2, (1, 0), dilation=(1, 2)),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AdaptiveMaxPool2d((2, 3)),
        nn.AdaptiveAvgPool2d((4, None)), nn.AdaptiveAvgPool2d(1), nn.LPPool2d(2, (2, 3)),
    ]),
    "3d": (nn.Conv3d, (4, 4, 5), [
        nn.MaxPool3d(2, 1), nn.AvgPool3d(2, 2, (0, 0, 1)), nn.AdaptiveMaxPool3d(2),
        nn.AdaptiveAvgPool3d((2, 1, 3)), nn.LPPool3d(2, 2),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", POOLS)
def test_pool(name: str):
    layer, shape, pools = POOLS[name]
    model = Branches(*(nn.Sequential(layer(2, 2, 1), pool) for pool in pools))
    compare(model, torch.randn(N, 2, *shape), each=False)


ACTIVATIONS = [
    nn.CELU(), nn.ELU(), nn.GELU(), nn.GELU("tanh"), nn.GLU(), nn.Hardshrink(0.1),
    nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh(-0.5, 0.5), nn.LeakyReLU(), nn.LogSigmoid(),
    nn.LogSoftmax(-1), nn.Mish(), nn.PReLU(), nn.ReLU(), nn.ReLU6(), nn.RReLU(0.2, 0.2), nn.SELU(),
    nn.SiLU(), nn.Sigmoid(), nn.Softmax(1), nn.Softmin(-1), nn.Softplus(), nn.Softshrink(0.1),
    nn.Softsign(), nn.Tanh(), nn.Tanhshrink(), nn.Threshold(0.1, 0.5), nn.PReLU(3),
]  # fmt: skip


@pytest.mark.parametrize("half", [0, 1])
def test_activation(half: int):
    layers = [nn.Sequential(nn.Linear(4, 4), a.double()) for a in ACTIVATIONS[half::2]]
    # torch works hardsigmoid's sixths out in single precision, here or there.
    compare(Branches(*layers), torch.randn(N, 3, 4), each=False, tolerance=(1e-6, 1e-7))


def test_softmax2d_and_channelwise_prelu():
    layers = [nn.Sequential(nn.Conv2d(2, 3, 1), a) for a in (nn.Softmax2d(), nn.PReLU(3))]
    compare(Branches(*layers), torch.randn(N, 2, 3, 3))


@pytest.mark.parametrize("strategy", ["instantiate", "ghost"])
def test_embedding(strategy: str):
    model = Branches(nn.Embedding(7, 3), nn.Embedding(7, 4, padding_idx=2))
    ids = torch.randint(7, (N, 6))
    ids[0, :2] = 2
    compare(model, ids, strategy=strategy)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bag(mode: str):
    ids = torch.randint(7, (N, 6))
    ids[0] = torch.tensor([3, 3, 3, 1, 1, 2])
    ids[1] = 2
    layers = [nn.EmbeddingBag(7, 3, mode=mode), nn.EmbeddingBag(7, 3, mode=mode, padding_idx=2)]
    compare(Branches(*layers), ids)


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
    compare(model, torch.randn(N, 3, 3), each=False)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_recurrent_cell(kind: type[nn.RNNCellBase]):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = self.cell(x)
            state = self.cell(x * 2, state)
            return state[0] if isinstance(state, tuple) else state

    compare(Branches(Twice()), torch.randn(N, 3))


def test_bilinear():
    compare(Branches(nn.Bilinear(3, 4, 2)), torch.randn(N, 3), torch.randn(N, 4))
    compare(Branches(nn.Bilinear(3, 4, 2)), torch.randn(N, 2, 3), torch.randn(N, 2, 4), each=False)


def test_weight_norm():
    model = Branches(
        parametrizations.weight_norm(nn.Conv1d(4, 2, 3)),
        parametrizations.weight_norm(nn.Conv1d(4, 2, 3), dim=1),
        parametrizations.weight_norm(nn.Linear(6, 3)),
    )
    compare(model, torch.randn(N, 4, 6))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weight_norm_of_old():
    compare(Branches(nn.utils.weight_norm(nn.Linear(4, 3))), torch.randn(N, 3, 4))


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm(wrap):
    # A power iteration at every call would give the oracle other weights for every sample.
    model = Branches(wrap(nn.Linear(4, 3)).eval())
    compare(model, torch.randn(N, 4))


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_iterates(wrap):
    model = Branches(wrap(nn.Linear(4, 3)))
    private = fxdp.compile(model, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=N,
                           backend="eager")  # fmt: skip
    private(torch.randn(N, 4)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "layer", [nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout]
)
def test_dropout_draws_for_each_sample(layer: type[nn.Module]):
    model = Branches(nn.Sequential(nn.Linear(4, 64), layer(0.5), nn.Linear(64, 3)))
    private = fxdp.compile(model, max_grad_norm=1e9, noise_multiplier=0.0, expected_batch_size=N,
                           backend="eager")  # fmt: skip
    x = torch.randn(1, 16, 4).expand(N, 16, 4).contiguous()
    private(x).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    norms = private.per_sample_norms(x)
    assert len(norms.unique()) == N
