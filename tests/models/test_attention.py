"""Attention, fused or not, and the layers of torch.nn that are built on it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracle import Branches, compare, score

pytestmark = pytest.mark.usefixtures("double")
N, T, D = 5, 4, 8


class Attention(nn.Module):
    """Two heads of scaled dot-product attention over [N, T, D], in all its ways; a loss [N]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)
        self.register_buffer("added", torch.randn(T, T))
        self.register_buffer("seen", torch.ones(T, T, dtype=torch.bool).tril())

    def forward(self, x: Tensor, own: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        outs = [
            F.scaled_dot_product_attention(q, k, v, is_causal=causal) for causal in (False, True)
        ]
        for mask in (self.added, self.seen, own[:, None, None, :]):
            outs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return sum(score(out.transpose(1, 2)) for out in outs)


def test_scaled_dot_product():
    own = torch.rand(N, T) < 0.7
    own[:, 0] = True
    own[1, 1:] = False
    compare(Attention(), torch.randn(N, T, D), own)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention with everything that it takes; a loss [N]."""

    def __init__(self, first: bool, weights: bool, **settings: bool) -> None:
        super().__init__()
        self.first, self.weights = first, weights
        self.layer = nn.MultiheadAttention(D, 2, batch_first=first, **settings)
        self.register_buffer("mask", torch.ones(T, T, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        out, weights = self.layer(
            x, x, x * 2, key_padding_mask=padding, attn_mask=self.mask, need_weights=self.weights
        )
        loss = score(out if self.first else out.transpose(0, 1))
        return loss + score(weights) if self.weights else loss


class SelfAttentions(nn.Module):
    """With its weights returned, and fused."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SelfAttention(first, weights) for weights in (True, False))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return sum(layer(x, padding) for layer in self.layers)


@pytest.mark.parametrize("first", [True, False], ids=["batch first", "time first"])
def test_multihead(first: bool):
    padding = torch.zeros(N, T, dtype=torch.bool)
    padding[1, 2:] = True
    x = torch.randn(N, T, D) if first else torch.randn(T, N, D)
    compare(SelfAttentions(first), x, padding, batch_dims={"x": 0 if first else 1})


def test_multihead_with_learned_bias():
    padding = torch.zeros(N, T, dtype=torch.bool)
    model = SelfAttention(True, False, add_bias_kv=True)
    compare(model, torch.randn(N, T, D), padding)


def test_cross_attention():
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(D, 2, kdim=3, vdim=5, batch_first=True)

        def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self.layer(x, key, value, need_weights=False)[0]

    compare(Branches(Cross()), torch.randn(N, T, D), torch.randn(N, 3, 3), torch.randn(N, 3, 5))


def encoder(**settings: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(D, 2, 12, dropout=0.0, batch_first=True, **settings)


def test_encoder():
    model = Branches(
        encoder(norm_first=True, bias=False),
        nn.TransformerEncoder(encoder(), 1, enable_nested_tensor=False),
    )
    compare(model, torch.randn(N, T, D))


@pytest.mark.parametrize("first", [True, False], ids=["batch first", "time first"])
def test_decoder(first: bool):
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerDecoderLayer(D, 2, 12, dropout=0.0, batch_first=first)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(T))

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            out = self.layer(x, memory, tgt_mask=self.mask, tgt_is_causal=True)
            return score(out if first else out.transpose(0, 1))

    shapes = ((N, T, D), (N, 3, D)) if first else ((T, N, D), (3, N, D))
    inputs = (torch.randn(*s) for s in shapes)
    compare(Decoder(), *inputs, batch_dims=0 if first else 1)
