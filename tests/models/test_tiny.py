"""The README's example, and four models end to end."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp

README = Path(__file__).parents[2] / "README.md"


def test_readme_example() -> None:
    """The five lines, as they stand in README."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.randint(3, (6,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    code = re.search(r"## Five lines\n\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    names = {"model": model, "x": x, "y": y, "F": F, "optimizer": optimizer}
    exec(code[1], names)
    assert isinstance(names["private"], fxdp.PrivateModule)
    assert not torch.equal(before, model.weight)


class Attention(nn.Module):
    """A class token, self-attention over the sequence, a head on the token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(self.attention(x, x, x, need_weights=False)[0][:, 0])


class TiedWords(nn.Module):
    """An embedding whose table is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(11, 4), nn.GRU(4, 4, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.mix(self.words(ids))[0], self.words.weight).transpose(1, 2)


CNN = nn.Sequential(
    nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
)
MLP = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("model", "shape", "classes"),
    [(MLP, (5,), ()), (CNN, (2, 4, 4), ()), (Attention(), (3, 8), ()), (TiedWords(), (2,), (2,))],
    ids=["mlp", "cnn", "attention", "tied words"],
)
def test_model(model: nn.Module, shape: tuple[int, ...], classes: tuple[int, ...]) -> None:
    """Compiled gradients are those of the samples alone."""
    torch.manual_seed(0)
    model = model.double()
    words = isinstance(model, TiedWords)
    x = torch.randint(11, (5, *shape)) if words else torch.randn(5, *shape, dtype=torch.double)
    y = torch.randint(3, (5, *classes))
    assert fxdp.verify(model, x, y, loss_fn=F.cross_entropy)
