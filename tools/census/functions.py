"""Functions of torch on the values of a sample, on a weight, and as models often spell them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.models.test_functions import IMAGES, SEQUENCES
from tests.oracle import score
from tools.census.subject import Make, N, Step

Function = Callable[[Tensor], Tensor]


class Of(nn.Module):
    """A function of a layer's output."""

    def __init__(self, function: Function, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return score(self.function(self.layer(x)))


class OfWeight(nn.Module):
    """A linear layer whose weight is a function of a parameter."""

    def __init__(self, function: Function, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) * 0.3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        w = self.function(self.weight).reshape(-1)
        rows = w.shape[0] // 2
        return score(x[:, :1] * w[:rows] + x[:, 1:2].sin() * w[-rows:].tanh())


class Squared(torch.autograd.Function):
    """A function with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]


def selective_scan(h: Tensor) -> Tensor:
    """A state-space model, step by step."""
    state, out = torch.zeros_like(h[:, 0]), []
    for t in range(h.shape[1]):
        state = state * h[:, t].sigmoid() + h[:, t]
        out.append(state)
    return torch.stack(out, 1)


def rotary(h: Tensor) -> Tensor:
    position = torch.arange(h.shape[1], device=h.device)
    angle = position[:, None] * (10000.0 ** -(torch.arange(0, 6, 2) / 6))[None]
    cos, sin = (f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin))
    a, b = h.chunk(2, -1)
    return h * cos + torch.cat([-b, a], -1) * sin


def rotary_complex(h: Tensor) -> Tensor:
    angle = torch.outer(torch.arange(h.shape[1]), torch.ones(3))
    turn = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(h.unflatten(-1, (3, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(2)


def alibi(h: Tensor) -> Tensor:
    t = torch.arange(h.shape[1])
    bias = -(t[None] - t[:, None]).abs() * 0.5
    mask = torch.full((4, 4), float("-inf")).triu(1)
    return (h @ h.mT + bias + mask).softmax(-1) @ h


def padding_mask(h: Tensor) -> Tensor:
    lengths = (h[..., 0] > 0).sum(1)
    mask = torch.arange(h.shape[1])[None] < lengths[:, None]
    return (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def position_ids(h: Tensor) -> Tensor:
    mask = (h[..., 0] > 0).long()
    where = mask.cumsum(1) * mask
    return h + torch.linspace(0, 1, 9)[where][..., None]


def routed(h: Tensor) -> Tensor:
    """A mixture of experts: every token goes through its two best."""
    gates, best = h.softmax(-1).topk(2, -1)
    experts = torch.stack([(h * (i + 1)).sin() for i in range(6)], 2)
    chosen = experts.gather(2, best[..., None].expand(-1, -1, -1, 6))
    return (chosen * gates[..., None]).sum(2)


MORE: dict[str, Function] = {
    "selective scan": selective_scan,
    "rotary": rotary,
    "rotary complex": rotary_complex,
    "alibi": alibi,
    "padding mask": padding_mask,
    "position ids": position_ids,
    "routed": routed,
    "checkpoint": lambda h: checkpoint(lambda x: x.sin() @ x.mT, h, use_reentrant=False),
    "autograd function": Squared.apply,
    "take_along_dim": lambda h: h.take_along_dim(h.argsort(1), 1),
    "take_along_dim spread": lambda h: h.take_along_dim(h[..., :1].argsort(1), 1),
    "cat cut": lambda h: torch.cat([h, h], 1)[:, :5],
    "einsum": lambda h: torch.einsum("btd,bsd,bsf,f->btf", h, h, h, torch.arange(6.0)),
    "einsum heads": lambda h: torch.einsum(
        "bthd,bshd->bhts", h.unflatten(-1, (2, 3)), h.unflatten(-1, (2, 3))
    ),
    "sdpa": lambda h: F.scaled_dot_product_attention(h, h, h, is_causal=True),
    "sdpa heads": lambda h: F.scaled_dot_product_attention(
        *[h.unflatten(-1, (2, 3)).transpose(1, 2)] * 3, attn_mask=torch.ones(4, 4).tril().bool()
    ),
    "searchsorted": lambda h: h + torch.searchsorted(torch.linspace(-1, 1, 5), h),
    "cross": lambda h: torch.linalg.cross(h[..., :3], h[..., 3:], dim=-1),
    "svdvals": lambda h: torch.linalg.svdvals(h),
    "eigvalsh": lambda h: torch.linalg.eigvalsh(h @ h.mT),
    "cholesky": lambda h: torch.linalg.cholesky(h @ h.mT + torch.eye(4)),
    "solve": lambda h: torch.linalg.solve(h @ h.mT + torch.eye(4), h),
    "inv": lambda h: torch.linalg.inv(h @ h.mT + torch.eye(4)),
    "det": lambda h: torch.linalg.det(h @ h.mT + torch.eye(4))[:, None],
    "slogdet": lambda h: torch.linalg.slogdet(h @ h.mT + torch.eye(4))[1][:, None],
    "matrix_exp": lambda h: torch.linalg.matrix_exp(h[..., :4]),
    "matrix_power": lambda h: torch.linalg.matrix_power(h[..., :4], 3),
    "qr": lambda h: torch.linalg.qr(h.mT)[1],
    "renorm": lambda h: h / h.norm(dim=-1, keepdim=True).clamp(min=1),
    "unique counts": lambda h: F.one_hot(h.argmax(-1), 6).sum(1).float() * h.sum(1),
    "bincount": lambda h: h.new_zeros(h.shape[0], 6).scatter_add(1, h.argmax(-1), h[..., 0]),
    "index_add": lambda h: torch.zeros(h.shape[0], 3, 6).index_add(
        1, torch.tensor([0, 2, 2, 1]), h
    ),
    "index_copy": lambda h: h.index_copy(1, torch.tensor([2, 0]), h[:, 1:3]),
    "index_fill": lambda h: h.index_fill(1, torch.tensor([2, 0]), 0.5),
    "masked_scatter": lambda h: torch.where(h > 0, h.flip(1), h),
    "scatter_reduce": lambda h: torch.zeros_like(h).scatter_reduce(
        1, h.argsort(1), h, "amax"
    ),
    "tensor_split": lambda h: h.tensor_split(3, 1)[1],
    "gumbel": lambda h: F.gumbel_softmax(h, dim=-1, hard=True),
    "dropout": lambda h: F.dropout1d(F.dropout(h, 0.5), 0.3),
    "row dropout": lambda h: h * h.new_empty(h.shape[0], 1, 1).bernoulli_(0.8),
    "bernoulli": lambda h: h * torch.bernoulli(h.sigmoid().detach()),
    "multinomial": lambda h: h.gather(2, torch.multinomial(
        h.detach().flatten(0, 1).softmax(-1), 2).unflatten(0, h.shape[:2])),
    "normal": lambda h: h + torch.randn_like(h) * torch.randn(h.shape[0], 1, 6),
    "diff": lambda h: h.diff(dim=1),
    "trapezoid": lambda h: torch.trapezoid(h, dim=1),
    "cov": lambda h: (h - h.mean(1, True)).mT @ (h - h.mean(1, True)) / 3,
    "quantile": lambda h: h.quantile(0.3, dim=1),
    "nanmean": lambda h: h.nanmean(1),
    "logaddexp": lambda h: torch.logaddexp(h, h.flip(1)),
    "atan2": lambda h: torch.atan2(h, h.flip(1)) + torch.hypot(h, h.flip(1)),
    "special": lambda h: torch.special.erfinv(h.tanh()) + torch.lgamma(h.exp()) + h.i0(),
    "bucketize": lambda h: h + torch.bucketize(h, torch.linspace(-1, 1, 5)),
    "stft": lambda h: torch.stft(
        h.flatten(1), 8, 4, window=torch.hann_window(8), return_complex=True
    ).abs(),
    "tril indices": lambda h: (h @ h.mT)[:, *torch.tril_indices(4, 4)],
    "movedim": lambda h: h.movedim(0, 2).flip(0).movedim(2, 0).swapaxes(1, 2),
    "vmap": lambda h: torch.vmap(lambda x: x @ x.T)(h),
    "loop over rows of a sample": lambda h: torch.stack([h[:, i] * i for i in range(4)], 1),
    "max pool of a sequence": lambda h: F.max_pool1d(h, 2),
    "where any": lambda h: torch.where((h > 1).any(1, keepdim=True), h, h.cumsum(1)),
}  # fmt: skip

OF_IMAGES: dict[str, Function] = {
    "grid_sample": lambda h: F.grid_sample(h, h[:, :2, :, :2].tanh(), align_corners=False),
    "grid_sample reflect": lambda h: F.grid_sample(
        h, h[:, :2, :, :2].tanh(), "nearest", "reflection", align_corners=True
    ),
    "grid_sample bicubic": lambda h: F.grid_sample(
        h, h[:, :2, :, :2].tanh(), "bicubic", "border", align_corners=True
    ),
    "grid_sample 3d": lambda h: F.grid_sample(
        h[:, None], h[:, None, :, :, :3].tanh(), align_corners=False
    ),
    "affine_grid": lambda h: F.grid_sample(
        h, F.affine_grid(h[:, :2, 0, :3], [h.shape[0], 4, 3, 3], align_corners=False),
        align_corners=False,
    ),
    "adaptive average": lambda h: F.adaptive_avg_pool2d(h, (3, 5)),
    "adaptive maximum": lambda h: F.adaptive_max_pool2d(h, (3, 5)),
    "average, ceil": lambda h: F.avg_pool2d(h, 3, 2, 1, True, False),
    "average, divisor": lambda h: F.avg_pool2d(h, 3, 2, 1, divisor_override=2),
    "maximum, ceil": lambda h: F.max_pool2d(h, 3, 2, 1, 1, True),
    "squeeze and excite": lambda h: h * h.mean((2, 3), keepdim=True).relu().sigmoid(),
    "cubic": lambda h: F.interpolate(h, scale_factor=1.5, mode="bicubic"),
    "area": lambda h: F.interpolate(h, scale_factor=0.5, mode="area"),
    "antialias linear": lambda h: F.interpolate(h, (3, 3), mode="bilinear", antialias=True),
    "antialias cubic": lambda h: F.interpolate(h, (3, 3), mode="bicubic", antialias=True),
    "fft2": lambda h: torch.fft.irfft2(torch.fft.rfft2(h) * 2j, s=h.shape[-2:]),
    "global response": lambda h: h * h.norm(dim=(1, 2), keepdim=True).div(
        h.norm(dim=(1, 2), keepdim=True).mean(-1, keepdim=True) + 1e-6
    ),
    "batch of frames": lambda h: F.conv2d(h.flatten(0, 1)[:, None], torch.ones(2, 1, 3, 3)
                                          ).unflatten(0, h.shape[:2]),
    "per-sample kernel": lambda h: F.conv2d(
        h.flatten(0, 1)[None], h[:, :, :2, :2].flatten(0, 1)[:, None], groups=h.shape[0] * 4
    ).unflatten(1, h.shape[:2])[0],
}  # fmt: skip

OF_WEIGHTS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "layer norm": (lambda w: F.layer_norm(w, w.shape[1:]), (4, 6)),
    "group norm": (lambda w: F.group_norm(w, 2), (4, 6, 3)),
    "batch norm": (
        lambda w: F.batch_norm(w.reshape(1, 4, -1), None, None, training=True), (4, 3, 2),
    ),
    "instance norm": (lambda w: F.instance_norm(w), (4, 3, 6)),
    "standardised": (lambda w: (w - w.mean(1, True)) / (w.var(1, keepdim=True) + 1e-5).sqrt(),
                     (4, 6)),
    "normalised": (lambda w: F.normalize(w, dim=1), (4, 6)),
    "matrix exponential": (lambda w: torch.linalg.matrix_exp(w - w.T), (4, 4)),
    "inverse": (torch.linalg.inv, (4, 4)),
    "solve": (lambda w: torch.linalg.solve(w, w.T), (4, 4)),
    "qr": (lambda w: torch.linalg.qr(w)[0], (6, 4)),
    "cholesky": (lambda w: torch.linalg.cholesky(w @ w.T + torch.eye(4)), (4, 4)),
    "svd": (lambda w: torch.linalg.svdvals(w), (4, 6)),
    "eigh": (lambda w: torch.linalg.eigvalsh(w + w.T), (4, 4)),
    "determinant": (lambda w: torch.linalg.slogdet(w)[1][None].expand(2), (4, 4)),
    "cumprod": (lambda w: w.cumprod(0), (4, 6)),
    "cumsum": (lambda w: w.cumsum(0), (4, 6)),
    "logcumsumexp": (lambda w: w.logcumsumexp(1), (4, 6)),
    "cummax": (lambda w: w.cummax(1).values, (4, 6)),
    "softmax": (lambda w: w.softmax(1) + w.log_softmax(0), (4, 6)),
    "max pool": (lambda w: F.max_pool2d(w, 2), (2, 3, 4, 4)),
    "average pool": (lambda w: F.avg_pool2d(w, 2), (2, 3, 4, 4)),
    "adaptive pool": (lambda w: F.adaptive_avg_pool2d(w, (3, 2)), (2, 3, 4, 4)),
    "convolved": (lambda w: F.conv2d(w, torch.ones(1, 3, 2, 2)), (2, 3, 4, 4)),
    "convolved, transposed": (lambda w: F.conv_transpose2d(w, torch.ones(3, 2, 2, 2), stride=2),
                              (2, 3, 4, 4)),
    "convolved with itself": (lambda w: F.conv1d(w, w[:, :, :2]), (3, 3, 4)),
    "interpolated": (lambda w: F.interpolate(w, (6, 7), mode="bicubic"), (1, 3, 4, 4)),
    "interpolated, linear": (lambda w: F.interpolate(w, 7, mode="linear"), (1, 3, 4)),
    "interpolated, nearest": (lambda w: F.interpolate(w, (6, 7)), (1, 3, 4, 4)),
    "unfolded": (lambda w: F.unfold(w, 2), (2, 3, 4, 4)),
    "padded": (lambda w: F.pad(w, (1, 1), mode="reflect") + F.pad(w, (1, 1), mode="circular"),
               (2, 3, 4)),
    "sorted": (lambda w: w.sort(1).values + w.topk(6, 1).values, (4, 6)),
    "maximum": (lambda w: w.amax(1) + w.max(1).values + w.prod(1), (4, 6)),
    "gathered": (lambda w: w.gather(1, torch.tensor([[0, 1]] * 4)), (4, 6)),
    "taken": (lambda w: w.take_along_dim(w.argsort(1), 1), (4, 6)),
    "masked": (lambda w: w.masked_fill(w > 0, 0.5) * (torch.rand(4, 6) < 0.5), (4, 6)),
    "boolean mask": (lambda w: torch.where(w.abs() > 0.1, w, torch.zeros(())), (4, 6)),
    "joined": (lambda w: torch.cat([w, w.T, torch.ones(2, 4)]), (4, 4)),
    "joined and cut": (lambda w: torch.cat([w, w * 2])[:6], (4, 6)),
    "stacked": (lambda w: torch.stack([w, torch.zeros(4, 6)], 1), (4, 6)),
    "diagonal": (lambda w: torch.diag_embed(w) + torch.diag(w[0]), (4, 4)),
    "triangle": (lambda w: w.tril() + w.triu(1).T, (4, 4)),
    "kron": (lambda w: torch.kron(w, torch.eye(2)), (4, 6)),
    "kron of itself": (lambda w: torch.kron(w, w), (2, 3)),
    "dropout": (lambda w: F.dropout(w, 0.3), (4, 6)),
    "quantised": (lambda w: w + ((w * 4).round() / 4 - w).detach(), (4, 6)),
    "fake quantised": (
        lambda w: torch.fake_quantize_per_tensor_affine(w, 0.1, 0, -8, 7), (4, 6),
    ),
    "weight of a norm": (lambda w: torch._weight_norm(w, w[:, :1], 0), (4, 6)),
    "fft": (lambda w: torch.fft.irfft(torch.fft.rfft(w, dim=1) * 2, dim=1), (4, 6)),
    "fft abs": (lambda w: torch.fft.rfft(w, dim=1).abs(), (4, 6)),
    "distance": (lambda w: torch.cdist(w, w + 1), (4, 6)),
    "cosine": (lambda w: F.cosine_similarity(w[:, None], w[None] + 1, dim=-1), (4, 6)),
    "chunks": (lambda w: torch.add(*w.chunk(2)) * w.split([1, 3])[1][:2], (4, 6)),
    "relative positions": (
        lambda w: w[(torch.arange(3)[:, None] - torch.arange(3)[None]) + 2], (5, 6),
    ),
    "linear of itself": (lambda w: F.linear(w, w @ w), (4, 4)),
    "repeat_interleave": (lambda w: w.repeat_interleave(2, 0), (4, 6)),
    "index_add": (lambda w: torch.zeros(3, 6).index_add(0, torch.tensor([0, 2, 2, 1]), w), (4, 6)),
    "norm": (lambda w: w / w.norm() + w.norm(dim=1, keepdim=True), (4, 6)),
    "variance": (lambda w: w.var(1) + w.std(1), (4, 6)),
    "logsumexp": (lambda w: w.logsumexp(1), (4, 6)),
    "rotation": (lambda w: torch.block_diag(w, w), (4, 4)),
    "strided": (lambda w: w.as_strided((3, 3), (4, 1)), (4, 4)),
    "unfolded windows": (lambda w: w.unfold(1, 3, 1), (4, 6)),
    "grid": (lambda w: F.grid_sample(w, torch.zeros(1, 2, 2, 2), align_corners=False),
             (1, 3, 4, 4)),
    "pixel shuffle": (lambda w: F.pixel_shuffle(w, 2), (1, 4, 3, 3)),
    "complex": (lambda w: torch.view_as_complex(w).exp().abs(), (4, 2)),
    "hypernetwork": (lambda w: torch.tanh(w @ torch.ones(6, 5)) @ torch.ones(5, 3), (4, 6)),
}  # fmt: skip


def of_sample(function: Function, shape: tuple[int, ...]) -> Make:
    return lambda: Step(Of(function, shape[-1]), (torch.randn(N, *shape),))


def of_weight(function: Function, shape: tuple[int, ...]) -> Make:
    return lambda: Step(OfWeight(function, *shape), (torch.randn(N, 4),))


def mean_by_hand() -> Step:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.linear(x).square().sum(1) / len(x)).sum()

    return Step(Model(), (torch.randn(N, 4),))


def subjects() -> Mapping[str, Make]:
    found: dict[str, Make] = {"mean by hand": mean_by_hand}
    for functions, shape in ((SEQUENCES, (4, 6)), (IMAGES, (4, 4, 8))):
        found |= {k: of_sample(f, shape) for fs in functions.values() for k, f in fs.items()}
    found |= {k: of_sample(f, (4, 6)) for k, f in MORE.items()}
    found |= {k: of_sample(f, (4, 4, 8)) for k, f in OF_IMAGES.items()}
    return found | {f"weight: {k}": of_weight(f, s) for k, (f, s) in OF_WEIGHTS.items()}
