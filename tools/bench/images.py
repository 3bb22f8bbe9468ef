"""Workloads of images: convolutional nets, a residual net, a vision transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.bench.attention import Block, Position
from tools.bench.task import Loss, Sized, Task

CLASSES = 10
CROSS_ENTROPY = Loss(F.cross_entropy, lambda out, y: F.cross_entropy(out, y, reduction="none"))


class Mnist(nn.Module):
    """The convolutional net of Opacus's MNIST example (examples/mnist.py there).

    Args:
        linear: makes the two linear layers.
    """

    def __init__(self, linear: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 8, stride=2, padding=3)
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2)
        self.fc1 = linear(512, 32)
        self.fc2 = linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2, 1)
        x = F.max_pool2d(self.conv2(x).relu(), 2, 1)
        return self.fc2(self.fc1(x.flatten(1)).relu())


class LinearWithExtraParam(nn.Module):
    """A layer with a parameter in addition to its submodule's, as in Opacus's pull request 510."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.scale = nn.Parameter(1 + 0.1 * torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale


class MnistWithExtraParam(Mnist):
    """The same, with a parameter at the root."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.eye(CLASSES) + 0.1 * torch.randn(CLASSES, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.mix


class GradCnn(nn.Module):
    """The nets that gradcnn was measured with (arXiv:1912.06015)."""

    def __init__(self, channels: tuple[int, ...], side: int, kernel: int = 5) -> None:
        super().__init__()
        pairs = zip((3, *channels[:-1]), channels, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, kernel, padding=kernel // 2) for i, o in pairs)
        side //= 2 ** (len(channels) // 2)
        self.head = nn.Linear(channels[-1] * side * side, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = conv(x).relu()
            x = F.max_pool2d(x, 2, 2) if i % 2 else x
        return self.head(x.flatten(1))


class Residual(nn.Module):
    """The basic block of a residual net, with group norms."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.GroupNorm(8, outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(out)) + self.shortcut(x)).relu()


class ResNet18(nn.Module):
    """Four stages of two blocks; a stem for small images."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, width)
        blocks, inputs = [], width
        for stage in range(4):
            outputs = width * 2**stage
            blocks += [Residual(inputs, outputs, 2 if stage else 1), Residual(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm(self.stem(x)).relu())
        return self.head(x.mean((2, 3)))


class ClassToken(nn.Module):
    """Puts a token of its own before each sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], 1, -1), x], 1)


class Vit(nn.Module):
    """ViT-tiny at half its depth, for images of 32 x 32 in patches of 4 x 4."""

    def __init__(self, width: int = 192, depth: int = 6, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = ClassToken(width)
        self.position = Position(65, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.blocks(self.position(self.token(x)))
        return self.head(self.norm(x[:, 0]))


def classified(model: nn.Module, n: int, *shape: int) -> Task:
    """A model that tells the class of each image."""
    return Task(model, (torch.randn(n, *shape),), torch.randint(CLASSES, (n,)), CROSS_ENTROPY)


def mnist(n: int, model: nn.Module) -> Task:
    return classified(model, n, 1, 28, 28)


WORKLOADS = {
    "mnist": Sized("Opacus's MNIST net", lambda n: mnist(n, Mnist()), 256),
    "gradcnn-10": Sized(
        "gradcnn's net, 25-25", lambda n: classified(GradCnn((25, 25), 32), n, 3, 32, 32), 10
    ),
    "gradcnn-64": Sized(
        "gradcnn's net, 25-25", lambda n: classified(GradCnn((25, 25), 32), n, 3, 32, 32), 64
    ),
    "gradcnn-wide": Sized(
        "gradcnn's net, 25-50-100",
        lambda n: classified(GradCnn((25, 50, 100), 64), n, 3, 64, 64),
        8,
    ),
    "resnet18": Sized(
        "ResNet-18, width 32, group norm", lambda n: classified(ResNet18(), n, 3, 32, 32), 32
    ),
    "vit": Sized("ViT, width 192, 6 layers", lambda n: classified(Vit(), n, 3, 32, 32), 32),
    "pr510-standard": Sized("Opacus's MNIST net", lambda n: mnist(n, Mnist()), 64),
    "pr510-mid": Sized(
        "two leaves with a parameter more", lambda n: mnist(n, Mnist(LinearWithExtraParam)), 64
    ),
    "pr510-extreme": Sized(
        "a parameter at the root", lambda n: mnist(n, MnistWithExtraParam()), 64
    ),
}
