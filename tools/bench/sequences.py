"""Workloads of sequences: BERT's shape, GPT's shape, an LSTM."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.bench.attention import Block, Position
from tools.bench.images import CLASSES, CROSS_ENTROPY
from tools.bench.task import Loss, Sequences, Task

VOCABULARY = 8000


class Bert(nn.Module):
    """An encoder with a classifier on the first token."""

    def __init__(self, length: int, width: int = 256, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = Position(length, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.blocks(self.norm(self.position(self.embedding(ids))))
        return self.head(self.pooler(x[:, 0]).tanh())


class Gpt(nn.Module):
    """A decoder whose head has the embedding's weight."""

    def __init__(self, length: int, width: int = 256, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        nn.init.normal_(self.embedding.weight, std=0.02)  # it makes the logits, too
        self.position = Position(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads, causal=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.position(self.embedding(ids)))))


class Lstm(nn.Module):
    """A recurrent classifier of the last state."""

    def __init__(self, features: int = 64, width: int = 128) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def mean_of_tokens(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def each_mean_of_tokens(logits: Tensor, y: Tensor) -> Tensor:
    tokens = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return tokens.view(y.shape).mean(1)


def bert(n: int, length: int) -> Task:
    ids = torch.randint(VOCABULARY, (n, length))
    return Task(Bert(length), (ids,), torch.randint(CLASSES, (n,)), CROSS_ENTROPY)


def gpt(n: int, length: int) -> Task:
    ids = torch.randint(VOCABULARY, (n, length + 1))
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    return Task(Gpt(length), (x,), y, Loss(mean_of_tokens, each_mean_of_tokens))


def lstm(n: int, length: int) -> Task:
    x = torch.randn(n, length, 64)
    return Task(Lstm(), (x,), torch.randint(CLASSES, (n,)), CROSS_ENTROPY)


WORKLOADS = {
    "bert": Sequences("encoder, width 256, 4 layers", bert, 16, 128),
    "gpt": Sequences("decoder, width 256, 4 layers, tied head", gpt, 8, 128),
    "lstm": Sequences("LSTM, width 128", lstm, 64, 64),
}
