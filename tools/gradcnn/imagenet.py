"""AlexNet and VGG16 as torchvision has them, without weights: the nets of the paper's table 1.

Both end in the same way: the image is averaged to a fixed size whatever it was, and goes through
three linear layers with dropout. `width` scales the channels, for machines without an accelerator.
"""

from torch import Tensor, nn

# Filters of VGG16's convolutions (configuration D of arXiv:1409.1556); 0 is a max-pool.
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class Classifier(nn.Module):
    """Convolutions, an adaptive average, linear layers."""

    def __init__(self, features: nn.Sequential, side: int, head: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = head

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def alexnet(classes: int = 1000, width: float = 1.0) -> nn.Module:
    """AlexNet (arXiv:1404.5997), 61,100,840 parameters."""
    a, b, c, d, hidden = (int(n * width) for n in (64, 192, 384, 256, 4096))
    features = nn.Sequential(
        nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(a, b, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(c, d, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(d, d, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    head = nn.Sequential(
        nn.Dropout(), nn.Linear(d * 6 * 6, hidden), nn.ReLU(inplace=True),
        nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    return Classifier(features, 6, head)


def vgg16(classes: int = 1000, width: float = 1.0) -> nn.Module:
    """VGG16 without batch norm, 138,357,544 parameters."""
    layers: list[nn.Module] = []
    before = 3
    for filters in (int(n * width) for n in VGG16):
        if filters:
            layers += [nn.Conv2d(before, filters, 3, padding=1), nn.ReLU(inplace=True)]
            before = filters
        else:
            layers.append(nn.MaxPool2d(2, 2))
    hidden = int(4096 * width)
    head = nn.Sequential(
        nn.Linear(before * 7 * 7, hidden), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    return Classifier(nn.Sequential(*layers), 7, head)
