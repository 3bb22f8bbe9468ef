"""The trainable layers of torch.nn, behind and in front of a linear layer; and its losses."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.oracle import score
from tools.census.subject import Make, N, Step


class Between(nn.Module):
    """A layer with a trained one in front of it, and one number for each sample behind it."""

    def __init__(self, layer: Any, width: int, turned: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.layer = layer
        self.turned = turned

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        h = self.first(x).tanh()
        out = self.layer(h.transpose(0, 1) if self.turned else h, *others)
        out = out[0] if isinstance(out, tuple) else out
        return score(out.transpose(0, 1) if self.turned else out)


def shaped(make: Callable[[], nn.Module], *shape: int, turned: bool = False) -> Make:
    """A layer of [N, *shape]."""
    return lambda: Step(Between(make(), shape[-1], turned), (torch.randn(N, *shape),))


def indexed(make: Callable[[], nn.Module], *shape: int) -> Make:
    """A layer of ids."""

    def step() -> Step:
        model = nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(2))
        ids = torch.randint(7, (N, *shape))
        model(ids)
        return Step(model, (ids, torch.randint(2, (N,))), loss_fn=nn.functional.cross_entropy)

    return step


def lazy(make: Callable[[], nn.Module], *shape: int) -> Make:
    """A layer that finds out its sizes from its first input."""

    def step() -> Step:
        model, x = Between(make(), shape[-1]), torch.randn(N, *shape)
        model(x)
        return Step(model, (x,))

    return step


SHAPES = {1: (4, 9), 2: (4, 8, 9), 3: (4, 5, 6, 5)}


def by_dimension() -> dict[str, Make]:
    """Convolutions, norms, pools and pads of one, two and three dimensions."""
    found: dict[str, Make] = {}
    for d, shape in SHAPES.items():
        layers: dict[str, tuple[Any, ...]] = {
            f"Conv{d}d": (4, 6, 3),
            f"ConvTranspose{d}d": (4, 6, 3, 2),
            f"InstanceNorm{d}d": (4,),
            f"BatchNorm{d}d": (4,),
            f"MaxPool{d}d": (2,),
            f"AvgPool{d}d": (3, 2, 1, True),
            f"AdaptiveAvgPool{d}d": (3,),
            f"AdaptiveMaxPool{d}d": (3,),
            f"LPPool{d}d": (2, 2),
            f"ConstantPad{d}d": (1, 0.5),
            f"ReflectionPad{d}d": (1,),
            f"ReplicationPad{d}d": (1,),
            f"ZeroPad{d}d": (1,),
            f"CircularPad{d}d": (1,),
            f"Dropout{d}d": (),
        }
        for name, args in layers.items():
            if hasattr(nn, name):
                found[name] = shaped(lambda n=name, a=args: getattr(nn, n)(*a), *shape)
        found[f"LazyConv{d}d"] = lazy(lambda n=f"LazyConv{d}d": getattr(nn, n)(6, 3), *shape)
        for mode in ("reflect", "replicate", "circular"):
            name = f"Conv{d}d"
            found[f"{name} {mode}"] = shaped(
                lambda n=name, m=mode: getattr(nn, n)(4, 6, 3, padding=1, padding_mode=m), *shape
            )
    return found


LAYERS: dict[str, Make] = {
    "Linear": shaped(lambda: nn.Linear(6, 5), 6),
    "LazyLinear": lazy(lambda: nn.LazyLinear(5), 6),
    "NonDynamicallyQuantizableLinear": shaped(
        lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(6, 5), 4, 6
    ),
    "Bilinear": lambda: Step(
        nn.Sequential(Twice(nn.Bilinear(6, 6, 3))), (torch.randn(N, 6),), loss_fn=None
    ),
    "Identity": shaped(nn.Identity, 6),
    "Embedding": indexed(lambda: nn.Embedding(7, 4), 5),
    "Embedding padding": indexed(lambda: nn.Embedding(7, 4, padding_idx=0), 5),
    **{
        f"EmbeddingBag {mode}": indexed(lambda m=mode: nn.EmbeddingBag(7, 4, mode=m), 5)
        for mode in ("sum", "mean", "max")
    },
    "LayerNorm": shaped(lambda: nn.LayerNorm(6), 4, 6),
    "RMSNorm": shaped(lambda: nn.RMSNorm(6), 4, 6),
    "GroupNorm": shaped(lambda: nn.GroupNorm(2, 4), 4, 6, 5),
    "LocalResponseNorm": shaped(lambda: nn.LocalResponseNorm(2), 4, 6, 5),
    "CrossMapLRN2d": shaped(lambda: nn.CrossMapLRN2d(2), 4, 6, 5),
    "PReLU": shaped(lambda: nn.PReLU(4), 4, 6),
    "MultiheadAttention": shaped(lambda: Own(nn.MultiheadAttention(6, 2, batch_first=True)), 4, 6),
    "MultiheadAttention time first": shaped(
        lambda: Own(nn.MultiheadAttention(6, 2)), 4, 6, turned=True
    ),
    "MultiheadAttention zero, bias": shaped(
        lambda: Own(
            nn.MultiheadAttention(6, 2, batch_first=True, add_zero_attn=True, add_bias_kv=True)
        ),
        4,
        6,
    ),
    "TransformerEncoderLayer": shaped(
        lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 4, 6
    ),
    "TransformerEncoder": shaped(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True),
            2, enable_nested_tensor=False,
        ), 4, 6,
    ),
    "TransformerDecoderLayer": shaped(
        lambda: Pair(nn.TransformerDecoderLayer(6, 2, 8, batch_first=True)), 4, 6
    ),
    "Transformer": shaped(
        lambda: Pair(nn.Transformer(6, 2, 1, 1, 8, batch_first=True)), 4, 6
    ),
    **{
        f"{name}{' both ways' if both else ''}": shaped(
            lambda n=name, b=both: getattr(nn, n)(6, 5, 2, batch_first=True, bidirectional=b), 4, 6
        )
        for name in ("RNN", "GRU", "LSTM")
        for both in (False, True)
    },
    **{
        name: shaped(lambda n=name: getattr(nn, n)(6, 5), 6)
        for name in ("RNNCell", "GRUCell", "LSTMCell")
    },
    "LSTM projected": shaped(lambda: nn.LSTM(6, 5, proj_size=3, batch_first=True), 4, 6),
    **{
        f"{name}": shaped(lambda n=name: getattr(nn, n)(), 4, 6)
        for name in (
            "ReLU", "ReLU6", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh",
            "Softplus", "Softsign", "Softshrink", "Hardshrink", "Hardsigmoid", "Hardswish",
            "Hardtanh", "LeakyReLU", "RReLU", "LogSigmoid", "Tanhshrink", "Dropout",
            "AlphaDropout", "FeatureAlphaDropout", "Flatten",
        )
    },
    "Threshold": shaped(lambda: nn.Threshold(0.1, 2.0), 4, 6),
    "GLU": shaped(lambda: nn.GLU(-1), 4, 6),
    "Softmax": shaped(lambda: nn.Softmax(-1), 4, 6),
    "Softmin": shaped(lambda: nn.Softmin(-1), 4, 6),
    "Softmax2d": shaped(lambda: nn.Softmax2d(), 4, 6, 5),
    "LogSoftmax": shaped(lambda: nn.LogSoftmax(-1), 4, 6),
    "FractionalMaxPool2d": shaped(lambda: nn.FractionalMaxPool2d(2, 3), 4, 6, 6),
    "FractionalMaxPool3d": shaped(lambda: nn.FractionalMaxPool3d(2, 3), 4, 6, 6, 6),
    "MaxUnpool2d": shaped(lambda: Unpooled(), 4, 6, 6),
    "PixelShuffle": shaped(lambda: nn.PixelShuffle(2), 4, 6, 6),
    "PixelUnshuffle": shaped(lambda: nn.PixelUnshuffle(2), 4, 6, 6),
    "ChannelShuffle": shaped(lambda: nn.ChannelShuffle(2), 4, 6, 6),
    "Upsample": shaped(lambda: nn.Upsample(scale_factor=2), 4, 6, 6),
    "UpsamplingBilinear2d": shaped(lambda: nn.UpsamplingBilinear2d(scale_factor=2), 4, 6, 6),
    "UpsamplingNearest2d": shaped(lambda: nn.UpsamplingNearest2d(scale_factor=2), 4, 6, 6),
    "Fold": shaped(lambda: nn.Fold((4, 5), 2), 8, 12),
    "Unfold": shaped(lambda: nn.Unfold(2), 4, 6, 6),
    "Unflatten": shaped(lambda: nn.Unflatten(1, (2, 2)), 4, 6),
    "CosineSimilarity": shaped(lambda: Twice(nn.CosineSimilarity(-1)), 4, 6),
    "PairwiseDistance": shaped(lambda: Twice(nn.PairwiseDistance()), 6),
    "weight norm": shaped(lambda: parametrizations.weight_norm(nn.Linear(6, 5)), 6),
    "weight norm, old": shaped(lambda: nn.utils.weight_norm(nn.Linear(6, 5)), 6),
    "spectral norm": shaped(lambda: parametrizations.spectral_norm(nn.Linear(6, 5)), 6),
    "spectral norm, old": shaped(lambda: nn.utils.spectral_norm(nn.Linear(6, 5)), 6),
    **{
        f"orthogonal {how}": shaped(
            lambda h=how: parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map=h), 6
        )
        for how in ("matrix_exp", "cayley", "householder")
    },
    "AdaptiveLogSoftmaxWithLoss": lambda: Step(
        Adaptive(), (torch.randn(N, 6), torch.randint(20, (N,)))
    ),
}  # fmt: skip


class Own(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, x, x)


class Pair(nn.Module):
    """A layer of two sequences."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, x.flip(1))


class Twice(nn.Module):
    """A layer of two values of a sample; one number for it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return score(self.layer(x, x.roll(1, -1) + 1))


class Unpooled(nn.Module):
    """Max pooling and back."""

    def forward(self, x: Tensor) -> Tensor:
        out, where = nn.functional.max_pool2d(x, 2, return_indices=True)
        return nn.functional.max_unpool2d(out * 2, where, 2)


class Adaptive(nn.Module):
    """The layer that is a loss, and looks at which rows have which targets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.AdaptiveLogSoftmaxWithLoss(6, 20, [4, 10])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x, y).loss


def subjects() -> Mapping[str, Make]:
    return LAYERS | by_dimension()
