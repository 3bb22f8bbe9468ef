"""The nets of gradcnn's benchmarks and of its MNIST example.

`Net` is built in the same order as gradcnn's, random numbers included, so that one seed gives
both the same weights and the same data after them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


class Net(nn.Module):
    """A CNN of any size on images [N, 3, size, size]; layer i has int(channels * rate**i) filters.

    Every second layer is followed by a max-pool that halves the image.
    """

    def __init__(self, size: int, layers: int, channels: int, rate: float, kernel: int) -> None:
        super().__init__()
        widths = [3, *(int(channels * rate**i) for i in range(layers))]
        # The padding is 2 whatever the kernel, as in gradcnn.
        self.conv_layers = nn.ModuleList(
            nn.Conv2d(a, b, kernel, 1, padding=2)
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        with torch.no_grad():
            # An image of random numbers and not of zeros: gradcnn draws them here, too.
            features = self.features(torch.randn(1, 3, size, size)).shape[1]
        self.fc = nn.Linear(features, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.conv_layers):
            x = F.relu(conv(x))
            if i % 2:
                x = F.max_pool2d(x, 2, 2)
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class MnistNet(nn.Module):
    """The net of the MNIST example: [N, 1, 28, 28] to log-probabilities [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(self.conv2(x), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return F.log_softmax(self.fc2(x), dim=1)
