"""LoRA adapters of PEFT on a language model, trained privately.

Parameters without requires_grad are constants: only the adapters (and the new head) are clipped
and noised, and the account is for them. The model here is tiny, with random weights.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import fxdp
from tools.examples.text import LENGTH, WORDS, Sentences


def network() -> nn.Module:
    """A BERT whose attention has adapters."""
    config = BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=LENGTH, num_labels=2,
    )  # fmt: skip
    adapters = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    return get_peft_model(BertForSequenceClassification(config), adapters)


def main(epochs: int = 2, samples: int = 512, **options):
    """Train, and return the private module."""
    torch.manual_seed(0)
    model = network()
    trained = [p for p in model.parameters() if p.requires_grad]
    private, optimizer, loader = fxdp.make_private(
        model,
        torch.optim.AdamW(trained, lr=0.01),
        torch.utils.data.DataLoader(Sentences(samples), batch_size=64),
        epsilon=3.0,
        delta=1e-5,
        epochs=epochs,
        max_grad_norm=1.0,
        **options,
    )
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            private(**batch).loss.backward()
            optimizer.step()
    count = sum(p.numel() for p in trained)
    print(f"epsilon {private.privacy_spent(1e-5):.2f} for {count} trained numbers")
    return private


if __name__ == "__main__":
    main()
