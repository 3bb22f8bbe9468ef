"""Refuses totals of a batch that are computed outside the step and passed to it as an argument.

A loss that is divided by the tokens of the batch lets each sample move the gradients of all
others, and no graph shows where the number came from. Names that such totals go by are refused.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Of Hugging Face's Trainer, fairseq, DETR, MMDetection, NeMo and their likes, in lower case.
KNOWN = frozenset(
    {"num_items", "n_items", "total_items", "item_count"}
    | {"num_tokens", "n_tokens", "ntokens", "total_tokens", "token_count", "tokens_count"}
    | {"num_valid_tokens", "num_target_tokens", "num_label_tokens", "num_loss_tokens"}
    | {"num_valid", "num_examples", "n_examples", "num_sentences", "nsentences"}
    | {"num_sequences", "num_boxes", "num_masks", "num_pos", "num_positives", "num_total_pos"}
    | {"num_total_samples", "avg_factor", "normalizer", "loss_normalizer", "denominator"}
    | {"total_weight", "sum_weights", "batch_size", "batchsize", "bsz"}
)
ENDINGS = ("_in_batch", "_per_batch", "_of_batch")


def check_total(name: str, value: Any, axis: int | None) -> None:
    """Refuse an argument that is known as a total of the batch.

    ======================================  ============================================
    case                                    what happens
    ======================================  ============================================
    a number, or a tensor that all share    ValueError, if its name is known
    one number for each sample              fine: it is the sample's own
    None, a bool or a string                fine: it is no total
    a mapping                               its items likewise
    ======================================  ============================================

    Args:
        name, value: of the argument.
        axis: of the samples, if it is a tensor that has one.

    Raises:
        ValueError: it is.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_total(str(key), item, axis)
        return
    known = name.lower() in KNOWN or name.lower().endswith(ENDINGS)
    if not known or not isinstance(value, Tensor | int | float) or isinstance(value, bool):
        return
    if not isinstance(value, Tensor) or axis is None or value.dim() == 0:
        raise ValueError(
            f"argument {name!r} is known as a total of the batch (of items, tokens, samples), "
            "which every sample has a part in: a loss that is divided by it lets each move the "
            "gradients of all others, beyond the clip bound, and no proof sees that. Leave it out "
            "(of a Hugging Face Trainer: self.model_accepts_loss_kwargs = False), and divide each "
            "sample's loss by its own number, which may be passed as a tensor [N]; the batch size "
            "is x.shape[0] in forward, which fxdp knows; and a constant that was chosen without "
            "the data is the model's own, under another name"
        )
