"""Functions between the layers: what moves, joins, orders and mixes the values of a sample."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracle import Applied, compare, score

pytestmark = pytest.mark.usefixtures("double")
N = 5


def written_where(h: Tensor) -> Tensor:
    """What masks select, of a sample or of all of them, set to one value or a row of values."""
    h = h.clone()
    h[h > 1] = 0.0
    h[h[..., 0] < 0] = h.new_tensor([1.0, 2, 3, 4, 5, 6])
    h[:, torch.tensor([True, False, True, False])] = 0.25
    return h.index_put((h[:, :, 1] > 0,), h.new_tensor(0.5), accumulate=True)


# Of [N, 4, 6]: a sequence of 4 with 6 features.
SEQUENCES = {
    "moved": {
        "cat": lambda h: torch.cat([h, h.flip(1), h[:, :1]], 1),
        "stack": lambda h: torch.stack([h, h.roll(1, 1)], 2),
        "chunk": lambda h: torch.add(*h.chunk(2, -1)),
        "split": lambda h: h.split([1, 3], 1)[1] * h.split(3, 1)[0],
        "unbind": lambda h: sum((i + 1) * x for i, x in enumerate(h.unbind(1))),
        "slice": lambda h: h[:, ::2] * h[:, 1::2] + h[:, -1:],
        "index": lambda h: h[:, torch.tensor([3, 0, 0, 1])] + h[..., [0]],
        "swap": lambda h: h.transpose(0, 1).reshape(4, -1).reshape(4, -1, 6).transpose(0, 1),
        "repeat": lambda h: h.repeat(1, 2, 1) + h.repeat_interleave(2, 1),
        "pad": lambda h: F.pad(h, (1, 2, 0, 3), value=0.5),
        "tril": lambda h: (h @ h.mT).tril(),
        "where": lambda h: torch.where(torch.ones(4, 6).triu().bool(), h, -h),
        "diagonal": lambda h: h.diagonal(dim1=1, dim2=2) * h[:, 0, :4],
        "unfold": lambda h: h.unfold(1, 2, 1).softmax(-1),
    },
    "scanned": {
        "cumsum": lambda h: h.cumsum(1),
        "cumprod": lambda h: h.cumprod(2),
        "logcumsumexp": lambda h: h.logcumsumexp(1),
        "softmax": lambda h: h.softmax(1) + h.log_softmax(-1),
        "logsumexp": lambda h: h.logsumexp(1),
        "var": lambda h: h.var(1) + h.std(-1, keepdim=True).squeeze(-1).sum(1, keepdim=True),
        "norm": lambda h: F.normalize(h, dim=-1) + h.norm(dim=1, keepdim=True),
        "amax": lambda h: h.amax(1) + h.min(dim=1).values,
        "prod": lambda h: h.prod(1),
        "mean": lambda h: h - h.mean((1, 2), keepdim=True),
    },
    "picked": {
        "gather": lambda h: h.gather(2, h.argsort(-1)[..., :2]),
        "index_select": lambda h: h.index_select(1, torch.tensor([2, 0, 2])),
        "topk": lambda h: h.topk(3, -1).values,
        "sort": lambda h: h.sort(-1, descending=True).values * torch.arange(6),
        "kthvalue": lambda h: h.kthvalue(2, -1).values,
        "max": lambda h: h.max(1).values,
        "median": lambda h: h.median(-1).values,
        "own": lambda h: h[torch.arange(h.shape[0]), h[..., 0].argmax(1)],
        "one_hot": lambda h: F.one_hot(h.argmax(-1), 6) * h,
        "scatter": lambda h: torch.zeros_like(h).scatter(2, h.argsort(-1), h),
        "clamp": lambda h: h.clamp(-0.3, 0.3) + h.relu().sqrt().nan_to_num(posinf=1.0),
        "masked": lambda h: h.masked_fill(h > 0.5, 0.5) * (h.detach() > 0),
        "put": written_where,
    },
    "mixed": {
        "einsum": lambda h: torch.einsum("ntd,nsd->nts", h, h),
        "bmm": lambda h: torch.bmm(h, h.mT) @ h,
        "outer": lambda h: h.unsqueeze(2) * h.unsqueeze(1),
        "cdist": lambda h: torch.cdist(h, h[:, :2] + 3),
        "cosine": lambda h: F.cosine_similarity(h[:, 1:], h[:, :1], dim=-1),
        "fft": lambda h: (
            torch.fft.rfft(h, dim=1).abs() + torch.fft.fft2(h).real[..., :1].sum(1, True)
        ),
        "baddbmm": lambda h: torch.baddbmm(h[:, :, :4], h, h.mT, beta=0.5, alpha=2.0),
        "layer norm": lambda h: F.layer_norm(h, (6,)),
        "lerp": lambda h: h.lerp(h.flip(2), 0.3) + torch.addcmul(h, h, h, value=0.2),
    },
}


@pytest.mark.parametrize("theme", SEQUENCES)
def test_of_sequences(theme: str):
    functions = {k.replace(" ", "_"): f for k, f in SEQUENCES[theme].items()}
    compare(Applied(6, **functions), torch.randn(N, 4, 6))


def window_partition(x: Tensor) -> Tensor:
    """Attention-like mixing within shifted windows, as Swin does it."""
    n, h, w, c = x.shape
    x = x.roll((-1, -1), (1, 2)).view(n, h // 2, 2, w // 2, 2, c)
    windows = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    windows = (windows @ windows.mT).softmax(-1) @ windows
    x = windows.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h, w, c).roll((1, 1), (1, 2))


# Of [N, 4, 4, 8]: an image with its channels last.
IMAGES = {
    "resampled": {
        "nearest": lambda h: F.interpolate(h, scale_factor=2),
        "exact": lambda h: F.interpolate(h, size=(3, 5), mode="nearest-exact"),
        "bilinear": lambda h: F.interpolate(h, size=(7, 5), mode="bilinear"),
        "bicubic": lambda h: F.interpolate(h, size=(6, 9), mode="bicubic", align_corners=True),
        "antialias": lambda h: F.interpolate(h, size=(3, 4), mode="bilinear", antialias=True),
        "area": lambda h: F.interpolate(h, size=(2, 4), mode="area"),
        "trilinear": lambda h: F.interpolate(h[:, None], size=(2, 3, 9), mode="trilinear"),
        "linear": lambda h: F.interpolate(h.flatten(1, 2), size=5, mode="linear"),
    },
    "rearranged": {
        "pixel_shuffle": lambda h: F.pixel_shuffle(h, 2).sin() + F.pixel_shuffle(h.cos(), 2),
        "pixel_unshuffle": lambda h: F.pixel_unshuffle(h, 2),
        "channel_shuffle": lambda h: F.channel_shuffle(h, 2),
        "patches": lambda h: F.unfold(h, 3, padding=1, stride=2).transpose(1, 2),
        "fold": lambda h: F.fold(F.unfold(h, 2, stride=1).sin(), (4, 8), 2),
        "windows": window_partition,
        "roll": lambda h: h.roll((1, 2), (1, 3)),
        "reflect": lambda h: F.pad(h, (1, 2, 1, 1), mode="reflect"),
        "circular": lambda h: F.pad(h, (1, 2, 1, 1), mode="circular"),
        "replicate": lambda h: F.pad(h, (1, 2, 1, 1), mode="replicate"),
        "rot90": lambda h: torch.rot90(h, 1, (1, 2)),
        "meshgrid": lambda h: h + torch.stack(torch.meshgrid(
            torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1).sum(-1)[..., None],
        "local response": lambda h: F.local_response_norm(h, 3),
    },
}  # fmt: skip


@pytest.mark.parametrize("theme", IMAGES)
def test_of_images(theme: str):
    functions = {k.replace(" ", "_"): f for k, f in IMAGES[theme].items()}
    compare(Applied(8, **functions), torch.randn(N, 4, 4, 8))


def test_time_folded_into_the_batch():
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)
            self.norm = nn.GroupNorm(3, 3)
            self.gru = nn.GRU(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            frames = self.norm(self.conv(x.flatten(0, 1))).relu().mean((2, 3))
            return score(self.gru(frames.unflatten(0, x.shape[:2]))[0])

    for strategy in ("instantiate", "ghost"):
        compare(Video(), torch.randn(N, 2, 2, 4, 5), strategy=strategy)


def test_time_in_front_of_the_batch():
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, groups=1)
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            frames = self.conv(x.flatten(0, 1)).relu().mean((2, 3))
            return score(self.linear(frames).unflatten(0, x.shape[:2]).transpose(0, 1))

    for strategy in ("instantiate", "ghost"):
        compare(Video(), torch.randn(3, N, 2, 4, 5), batch_dims=1, strategy=strategy)
