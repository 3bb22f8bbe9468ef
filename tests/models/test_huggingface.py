"""Models of Hugging Face, tiny and with random weights, as their users call them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracle import compare
from tests.releases import since

copies = since((2, 12), "copies of a configuration are not captured")

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("double")
N, T, V = 4, 6, 19

TINY = {"vocab_size": V, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 16}  # fmt: skip
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def ids() -> Tensor:
    return torch.randint(3, V, (N, T))


def masked() -> dict[str, Tensor]:
    """Token ids with padding, and labels of which some are ignored."""
    tokens, mask = ids(), torch.ones(N, T, dtype=torch.long)
    mask[1, 4:] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def classified() -> dict[str, Tensor]:
    return masked() | {"labels": torch.randint(3, (N,))}


def pictures() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(N, 2, 8, 8), "labels": torch.randint(3, (N,))}


def bert() -> nn.Module:
    config = transformers.BertConfig(**TINY, **STILL, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def albert() -> nn.Module:
    """Its layers share their parameters."""
    config = transformers.AlbertConfig(
        **TINY | {"num_hidden_layers": 2},
        **STILL,
        num_labels=3,
        embedding_size=4,
        classifier_dropout_prob=0.0,
    )
    return transformers.AlbertForSequenceClassification(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=V, n_embd=8, n_layer=1, n_head=2, n_positions=16, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**TINY, num_key_value_heads=1, attention_dropout=0.0)
    )


def gemma() -> nn.Module:
    return transformers.GemmaForCausalLM(
        transformers.GemmaConfig(**TINY, num_key_value_heads=1, head_dim=4, attention_dropout=0.0)
    )


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, num_channels=2, num_labels=3, **STILL,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=V, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2,
        dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "bert": (bert, classified),
    "albert": (albert, classified),
    "gpt2": (gpt2, masked),
    "llama": (llama, masked),
    "gemma": (gemma, masked),
    "vit": (vit, pictures),
    "t5": (t5, masked),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "name", [*(m for m in MODELS if m != "t5"), pytest.param("t5", marks=copies)]
)
def test_model(name: str):
    make, inputs = MODELS[name]
    model, batch = make().double().train(), inputs()
    private = compare(model, **batch, tolerance=(1e-8, 1e-9))
    private.max_grad_norm, private.noise_multiplier = 1.0, 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        private(**batch).loss.backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
