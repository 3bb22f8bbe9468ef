"""Models of Hugging Face: made of a configuration, and called with what they usually get."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fxdp.lint.models.inputs import ROWS
from fxdp.lint.trouble import Trouble

LENGTH, SOUND, FRAMES, SIDE = 16, 16000, 128, 224  # where the configuration says nothing


def is_hugging(thing: Any) -> bool:
    """Is this a class of models with a configuration class, or one that picks such a class?"""
    return inspect.isclass(thing) and (
        getattr(thing, "config_class", None) is not None or hasattr(thing, "_model_mapping")
    )


def construct(model_class: Any, settings: dict[str, Any]) -> nn.Module:
    """A model of a configuration; nothing is downloaded.

    The cache of keys and values is switched off: it is for generation, not for training.
    """
    if model_class.__module__.startswith("transformers.models.auto"):
        from transformers import AutoConfig  # only where transformers is asked for

        if "model_type" not in settings:
            raise Trouble(f"{model_class.__name__} needs a model_type in --config")
        config: Any = AutoConfig.for_model(**settings)
        make = model_class.from_config
    else:
        config, make = model_class.config_class(**settings), model_class
    if getattr(config, "use_cache", False):
        config.use_cache = False
    return make(config)


def usual(model: Any, device: torch.device) -> dict[str, Tensor] | None:
    """The keyword arguments of a training step; None for a model of another kind."""
    main, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if not isinstance(main, str) or config is None or not hasattr(model, "get_input_embeddings"):
        return None
    taken = inspect.signature(model.forward).parameters
    config = getattr(config, "text_config", config) if main == "input_ids" else config

    def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(ROWS, *shape, dtype=dtype, device=device)

    given = {main: main_input(main, config, zeros)}
    if main == "input_ids":
        if "attention_mask" in taken:
            given["attention_mask"] = torch.ones_like(given[main])
        if "bbox" in taken:
            given["bbox"] = zeros(LENGTH, 4)
    kind = type(model).__name__
    if "labels" in taken:
        given["labels"] = labels(kind, main, zeros)
    elif "start_positions" in taken:
        given |= {"start_positions": zeros(), "end_positions": zeros()}
    elif "decoder_input_ids" in taken:
        given["decoder_input_ids"] = zeros(LENGTH)
    if "next_sentence_label" in taken:
        given["next_sentence_label"] = zeros()
    return given


def main_input(main: str, config: Any, zeros: Any) -> Tensor:
    """The input that a model is mainly made for."""
    match main:
        case "input_ids" | "decoder_input_ids":
            return zeros(LENGTH)
        case "pixel_values":
            size: Any = getattr(config, "image_size", SIDE)
            height, width = size if isinstance(size, list | tuple) else (size, size)
            return zeros(getattr(config, "num_channels", 3), height, width, dtype=torch.float32)
        case "pixel_values_videos":
            side, frames = getattr(config, "image_size", SIDE), getattr(config, "num_frames", 8)
            return zeros(frames, 3, side, side, dtype=torch.float32)
        case "input_values":
            return zeros(SOUND, dtype=torch.float32)
        case "input_features":
            bins = getattr(config, "num_mel_bins", 80)
            frames = 2 * getattr(config, "max_source_positions", FRAMES // 2)
            return zeros(bins, frames, dtype=torch.float32)
        case _:
            raise Trouble(f"cannot know what {main} looks like: pass --input '{main}=f32[N,...]'")


def labels(kind: str, main: str, zeros: Any) -> Tensor:
    """Labels, by what the class is for."""
    if main == "pixel_values" and "Segmentation" in kind:
        return zeros(SIDE, SIDE)
    one = ("SequenceClassification", "ImageClassification", "AudioClassification",
           "VideoClassification", "MultipleChoice", "NextSentence")  # fmt: skip
    if any(word in kind for word in one) or main in ("pixel_values", "input_values"):
        return zeros()
    return zeros(LENGTH)
