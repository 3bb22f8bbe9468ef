"""Everything that is timed, by name: perceptrons here, images and sequences in their own files."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.bench import images, sequences
from tools.bench.images import CLASSES, CROSS_ENTROPY
from tools.bench.task import Loss, Sized, Task, Workload


class Recommender(nn.Module):
    """A large table that few rows of are used, dense features, a perceptron on both."""

    def __init__(self, rows: int = 100_000, width: int = 16, sparse: int = 8, dense: int = 13):
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        self.fc1 = nn.Linear(sparse * width + dense, 128)
        self.fc2 = nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = torch.cat([dense, self.embedding(ids).flatten(1)], 1)
        return self.fc3(self.fc2(self.fc1(x).relu()).relu()).squeeze(-1)


def mlp(n: int) -> Task:
    model = nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, CLASSES)
    )
    return Task(model, (torch.randn(n, 784),), torch.randint(CLASSES, (n,)), CROSS_ENTROPY)


def recommender(n: int) -> Task:
    inputs = (torch.randn(n, 13), torch.randint(100_000, (n, 8)))
    loss = Loss(
        F.binary_cross_entropy_with_logits,
        lambda out, y: F.binary_cross_entropy_with_logits(out, y, reduction="none"),
    )
    return Task(Recommender(), inputs, torch.randint(2, (n,)).float(), loss)


WORKLOADS: dict[str, Workload] = {
    "mlp": Sized("perceptron, 784-1024-1024-10", mlp, 512),
    **images.WORKLOADS,
    **sequences.WORKLOADS,
    "recommender": Sized("table of 100,000 x 16, perceptron", recommender, 512),
}
