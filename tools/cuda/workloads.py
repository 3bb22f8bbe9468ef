"""What is run on a GPU: the workloads of `tools/bench`, at sizes that a GPU is bought for."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from tools.bench.images import CLASSES, CROSS_ENTROPY, Mnist, ResNet18, Vit, classified, mnist
from tools.bench.sequences import (
    VOCABULARY,
    Bert,
    Gpt,
    Lstm,
    each_mean_of_tokens,
    mean_of_tokens,
)
from tools.bench.task import Loss, Task
from tools.bench.workloads import WORKLOADS, Recommender

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "tf32", "fp32")


def bert() -> Task:
    ids = torch.randint(VOCABULARY, (64, 512))
    return Task(Bert(512, 768, 4, 12), (ids,), torch.randint(CLASSES, (64,)), CROSS_ENTROPY)


def gpt() -> Task:
    x, y = (torch.randint(VOCABULARY, (16, 1024)) for _ in range(2))
    return Task(Gpt(1024, 1024, 4, 16), (x,), y, Loss(mean_of_tokens, each_mean_of_tokens))


def mlp() -> Task:
    layers = nn.Linear(784, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)
    x, y = torch.randn(4096, 784), torch.randint(10, (4096,))
    return Task(nn.Sequential(*layers), (x,), y, CROSS_ENTROPY)


def lstm() -> Task:
    x, y = torch.randn(256, 128, 128), torch.randint(CLASSES, (256,))
    return Task(Lstm(128, 512), (x,), y, CROSS_ENTROPY)


def recommender() -> Task:
    inputs = torch.randn(4096, 13), torch.randint(1_000_000, (4096, 8))
    loss = Loss(
        F.binary_cross_entropy_with_logits,
        lambda out, y: F.binary_cross_entropy_with_logits(out, y, reduction="none"),
    )
    return Task(Recommender(1_000_000), inputs, torch.randint(2, (4096,)).float(), loss)


LARGE: dict[str, tuple[str, Callable[[], Task]]] = {
    "bert": ("encoder, width 768, 4 layers, N=64, T=512", bert),
    "gpt": ("decoder, width 1024, 4 layers, tied head, N=16, T=1024", gpt),
    "mlp": ("perceptron 784-4096-4096-10, N=4096", mlp),
    "resnet18": (
        "ResNet-18 with GroupNorm, N=256",
        lambda: classified(ResNet18(64), 256, 3, 32, 32),
    ),
    "vit": ("ViT-small, 12 layers, N=256", lambda: classified(Vit(384, 12, 6), 256, 3, 32, 32)),
    "mnist": ("MNIST CNN, N=4096", lambda: mnist(4096, Mnist())),
    "lstm": ("LSTM, width 512, N=256, T=128", lstm),
    "recommender": ("table of 1,000,000 x 16, N=4096", recommender),
}
# For whether steps are right: how many samples of a workload of `tools/bench`.
SMALL = {
    "mlp": 32, "mnist": 16, "gradcnn-10": 6, "gradcnn-wide": 4, "resnet18": 8, "vit": 8, "bert": 4,
    "gpt": 4, "lstm": 8, "recommender": 32,
}  # fmt: skip


def small(name: str) -> Task:
    return WORKLOADS[name].task(SMALL[name])


@contextlib.contextmanager
def at(precision: Precision, device: str) -> Iterator[None]:
    """Products in a precision: torch's settings for it, or autocast."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    half = torch.autocast(device, torch.bfloat16) if precision == "bf16" else None
    with half or contextlib.nullcontext():
        yield
