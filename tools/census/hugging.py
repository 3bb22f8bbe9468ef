"""Models of Hugging Face: one of each architecture, shrunk by the names of its settings."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from tools.census.subject import Make, N, Step

T, V, SIDE = 6, 60, 32

# Settings by name, in the order in which a name is looked for in a setting's name.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "embedding_size", "emb_dim",
                     "attention_hidden_size", "dim", "hidden_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers",
                     "decoder_layers", "num_encoder_layers", "num_decoder_layers",
                     "num_encoder_blocks_"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads",
                     "encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim",
                     "n_inner", "moe_intermediate_size", "shared_expert_intermediate_size",
                     "ffn_hidden_size", "mlp_dim", "pooler_hidden_size", "d_inner"), 32),
    **dict.fromkeys(("vocab_size", "entity_vocab_size", "vocab_size_per_layer_input"), V),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions",
                     "max_target_positions", "context_length", "max_seq_len"), 64),
    **dict.fromkeys(("head_dim", "d_kv", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim",
                     "qk_rope_head_dim", "v_head_dim", "state_size", "mamba_d_state",
                     "linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim"), 8),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "n_group", "topk_group"), 2),
    "image_size": SIDE, "type_vocab_size": 2,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    **dict.fromkeys(("pad_token_id",), 0), **dict.fromkeys(("bos_token_id",), 1),
    **dict.fromkeys(("eos_token_id", "decoder_start_token_id", "sep_token_id"), 2),
}  # fmt: skip
TASKS = {
    "CAUSAL_LM": "tokens",
    "MASKED_LM": "tokens",
    "SEQ_TO_SEQ_CAUSAL_LM": "tokens",
    "IMAGE_CLASSIFICATION": "images",
    "AUDIO_CLASSIFICATION": "sound",
    "SEQUENCE_CLASSIFICATION": "classified",
    "VIDEO_CLASSIFICATION": "video",
    "SPEECH_SEQ_2_SEQ": "speech",
}


def smaller(known: Any, depth: int = 0) -> dict[str, Any]:
    """Arguments that shrink a configuration, from one with its defaults."""
    found: dict[str, Any] = {}
    names = inspect.signature(type(known).__init__).parameters
    for name in {*names, *vars(known)} - {"self", "kwargs", "args"}:
        value = getattr(known, name, None)
        if isinstance(value, bool) or name.startswith("_"):
            continue
        if isinstance(value, int) and name in SIZES and value > 0:
            found[name] = SIZES[name]
        elif name in ("depths", "num_blocks_repeats") and isinstance(value, list | tuple):
            found[name] = [1] * len(value)
        elif isinstance(value, float) and "dropout" in name:
            found[name] = 0.0
        elif name.endswith("_config") and hasattr(value, "to_dict") and depth < 2:
            found[name] = value.to_dict() | smaller(value, depth + 1)
    return found


def built(config_class: Any, model_class: Any) -> torch.nn.Module:
    """A tiny model on the CPU, or a large one without data where its settings do not shrink."""
    default = config_class()
    options = smaller(default) | {"num_labels": 3}
    try:
        config = config_class(**options)
        with torch.device("meta"):
            model = model_class(config)
    except Exception:
        depth = {k: v for k, v in options.items() if "layer" in k and isinstance(v, int)}
        config = config_class(**depth | {"num_labels": 3})
        with torch.device("meta"):
            model = model_class(config)
    # Experts token by token: the default sorts the tokens of all samples by their expert.
    config._experts_implementation = "batched_mm"
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if sum(p.numel() for p in model.parameters()) > 30_000_000:
        return model
    return model_class(config)


def batch(kind: str, model: Any) -> dict[str, Any]:
    """The arguments of one step."""
    config, high = model.config, V - 4
    ids = torch.randint(3, high, (N, T))
    classes = torch.randint(3, (N,))
    side = getattr(config, "image_size", SIDE)
    side = side if isinstance(side, int) else SIDE
    match kind:
        case "tokens" | "classified":
            taken = inspect.signature(model.forward).parameters
            given: dict[str, Any] = {"input_ids": ids}
            if "attention_mask" in taken:
                mask = torch.ones(N, T, dtype=torch.long)
                mask[1, 4:] = 0
                given["attention_mask"] = mask
            if "bbox" in taken:
                given["bbox"] = torch.randint(0, 9, (N, T, 4))
            return given | {"labels": classes if kind == "classified" else ids}
        case "images":
            channels = getattr(config, "num_channels", 3)
            return {"pixel_values": torch.randn(N, channels, side, side), "labels": classes}
        case "video":
            frames = getattr(config, "num_frames", 4)
            return {"pixel_values": torch.randn(N, frames, 3, side, side), "labels": classes}
        case "sound":
            return {model.main_input_name: torch.randn(N, 3200), "labels": classes}
        case "speech":
            bins = getattr(config, "num_mel_bins", 80)
            return {model.main_input_name: torch.randn(N, bins, 128), "labels": ids}
        case _:
            raise AssertionError(kind)


def subjects() -> Mapping[str, Make]:
    import transformers
    from transformers.models.auto import modeling_auto

    seen: set[str] = set()
    found: dict[str, Make] = {}
    for task, kind in TASKS.items():
        mapping = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
        for model_type, name in mapping.items():
            name = name if isinstance(name, str) else name[0]
            if model_type in seen or not hasattr(transformers, name):
                continue
            seen.add(model_type)

            def make(name: str = name, kind: str = kind) -> Step:
                model_class = getattr(transformers, name)
                model = built(model_class.config_class, model_class)
                meta = next(model.parameters()).device.type == "meta"
                given = {k: v.to("meta") if meta else v for k, v in batch(kind, model).items()}
                return Step(model, (), given)

            found[name] = make
    return found
