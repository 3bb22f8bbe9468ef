"""Hugging Face's models of speech, tiny and random, as `from_pretrained` gives them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxdp
from tests.releases import since
from tests.sizes import compare_at

captured = since((2, 12), "copies and `x.requires_grad = True` are not captured")

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.usefixtures("double"),
    # What torch and transformers say of each other.
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
V, S, SOUNDS = 7, 4, 60

TINY = {
    "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6,
    "conv_dim": (4, 4), "conv_kernel": (4, 3), "conv_stride": (3, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 2, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 5,
    "vocab_size": V, "num_labels": 3, "hidden_dropout": 0.0, "activation_dropout": 0.0,
    "attention_dropout": 0.0, "final_dropout": 0.0, "feat_proj_dropout": 0.0,
}  # fmt: skip
WHISPER = {
    "vocab_size": V, "d_model": 4, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 6,
    "decoder_ffn_dim": 6, "num_mel_bins": 3, "max_source_positions": 8, "max_target_positions": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "dropout": 0.0,
}  # fmt: skip


class Called(nn.Module):
    """A model with its arguments by name."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *given: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, given, strict=True))).loss


def wav2vec2(kind: str = "CTC", **more: Any) -> nn.Module:
    config = transformers.Wav2Vec2Config(**TINY, **more)
    return getattr(transformers, f"Wav2Vec2For{kind}")(config)


def hubert(kind: str = "SequenceClassification", **more: Any) -> nn.Module:
    return getattr(transformers, f"HubertFor{kind}")(transformers.HubertConfig(**TINY, **more))


def whisper(**more: Any) -> nn.Module:
    config = transformers.WhisperConfig(**WHISPER, **more)
    return transformers.WhisperForConditionalGeneration(config)


def spoken(n: int) -> tuple[Tensor, ...]:
    """Sounds of two lengths, and labels, of which some are left out anywhere."""
    mask, labels = torch.ones(n, SOUNDS, dtype=torch.long), torch.randint(1, V, (n, S))
    mask[::2, 50:] = 0
    labels[::2, 1] = -100
    labels[1::3, 2:] = -100
    return torch.randn(n, SOUNDS), mask, labels


def classified(n: int) -> tuple[Tensor, ...]:
    return torch.randn(n, SOUNDS), torch.randint(3, (n,))


def written(n: int) -> tuple[Tensor, ...]:
    labels = torch.randint(3, V, (n, S))
    labels[::2, 3:] = -100
    return torch.randn(n, 3, 16), labels


Make, Draw = Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]
SPOKEN, CLASSIFIED = ("input_values", "attention_mask", "labels"), ("input_values", "labels")
STILL = {"layerdrop": 0.0, "apply_spec_augment": False}
MODELS: dict[str, tuple[Make, Draw, tuple[str, ...], bool]] = {
    "wav2vec2": (lambda: wav2vec2(**STILL), spoken, SPOKEN, True),
    "hubert": (hubert, classified, CLASSIFIED, False),
    "whisper": (whisper, written, ("input_features", "labels"), False),
}


@captured
@pytest.mark.parametrize("name", MODELS)
def test_as_single_samples(name: str, tmp_path: Path) -> None:
    make, draw, names, training = MODELS[name]
    model: Any = make()
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    assert not model.training
    # Their CTC loss is in float32, whatever the model is in.
    compare_at((7, S, 2, 1), Called(model.train(training), *names), draw, tolerance=2e-5)


def refusal(model: nn.Module, draw: Draw, *names: str) -> fxdp.Diagnostic:
    with pytest.raises(fxdp.CaptureError) as caught:
        fxdp.prove(Called(model.train(), *names), *draw(5))
    return caught.value.diagnostics[0]


@captured
@pytest.mark.parametrize("make", [hubert, wav2vec2])
def test_masks_drawn_outside_of_torch_are_refused_with_what_to_set(make: Any) -> None:
    found = refusal(make("SequenceClassification", layerdrop=0.0), classified, *CLASSIFIED)
    assert "apply_spec_augment = False" in found.remedy


@captured
def test_layers_dropped_for_all_samples_are_refused_with_what_to_set() -> None:
    plain = {"apply_spec_augment": False}
    found = refusal(hubert(**plain), classified, *CLASSIFIED)
    assert "layerdrop = 0.0" in found.remedy
    found = refusal(whisper(encoder_layerdrop=0.5), written, "input_features", "labels")
    assert "layerdrop = 0.0" in found.remedy


def test_a_second_step_is_not_captured_anew() -> None:
    private = fxdp.compile(
        wav2vec2().eval(), max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=1.0,
        backend="eager",
    )  # fmt: skip
    for n in (3, 5):
        given = dict(zip(SPOKEN, spoken(n), strict=True))
        private(**given).loss.backward()
    assert private._stepper.record.compilations == 1
