"""Says what to write in the place of ragged arguments that are not declared: rows of all samples in
one tensor, which samples have different numbers of, with a second tensor that says whose they are.

Where the arguments do not fit together, names that such second tensors go by decide what the
error advises, and nothing else.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

PADDED = "give every sample as many rows, [N, T, ...], and a mask [N, T] of those that are its own"
DENSE = (
    f"{PADDED} (torch_geometric.utils.to_dense_batch makes both of nodes, to_dense_adj adjacencies "
    "[N, T, T] of edges), and pool by (h * mask.unsqueeze(-1)).sum(1)"
)
BAGS = (
    "pass ids [N, T] without offsets, short bags filled up with padding_idx: nn.EmbeddingBag(..., "
    "padding_idx=0) or F.embedding_bag(ids, weight, padding_idx=0); weights of single ids go in "
    "per_sample_weights [N, T]"
)
PACKED = (
    "pass the padded batch [N, T, ...] and the lengths [N], and call pack_padded_sequence(x, "
    "lengths, batch_first=True, enforce_sorted=False) in forward"
)
# With what rows of samples are declared, for fxdp to follow them.
ROWS = {
    "offsets": 'batch_dims={"ids": fxdp.Ragged(offsets="offsets")} declares whose they are',
    "index": 'batch_dims={"x": fxdp.Ragged(index="batch"), '
    '"edge_index": fxdp.Ragged(points_to="x", dim=1)} declares whose they are',
}
# Names of what says whose the rows are, in lower case, and what helps.
KNOWN = {
    **dict.fromkeys(("offsets", "bag_offsets", "row_offsets"), f"{ROWS['offsets']}; or {BAGS}"),
    **dict.fromkeys(("edge_index", "edge_attr", "edge_weight"), f"{ROWS['index']}; or {DENSE}"),
    **dict.fromkeys(("batch", "batch_index", "ptr"), f"{ROWS['index']}; or {DENSE}"),
    **dict.fromkeys(("cu_seqlens", "cu_seq_lens", "seq_offsets", "segment_ids"), PADDED),
}  # fmt: skip


def padded_way(names: Iterable[str]) -> str | None:
    """What helps, if one of some arguments says by its name that rows are ragged."""
    return next((KNOWN[name.lower()] for name in names if name.lower() in KNOWN), None)


def refuse_ragged(name: str, value: Any) -> None:
    """Refuse an argument of a type that is ragged.

    ======================================  ==================================
    case                                    what the error advises
    ======================================  ==================================
    a PackedSequence                        the padded batch and lengths
    a nested tensor                         `torch.nested.to_padded_tensor`
    a graph or batch of torch_geometric     a dense batch
    ======================================  ==================================

    Args:
        name, value: of the argument.

    Raises:
        TypeError: it is.
    """
    why = None
    if isinstance(value, PackedSequence):
        why = f"a PackedSequence, in which the steps of all samples are mixed: {PACKED}"
    elif isinstance(value, Tensor) and value.is_nested:
        why = f"a nested tensor: torch.nested.to_padded_tensor makes a padded one; {PADDED}"
    elif type(value).__module__.startswith("torch_geometric."):
        why = (
            f"a {type(value).__name__}, in which the nodes of all graphs are one axis: pass its "
            f"tensors, and {ROWS['index']}; or {DENSE}"
        )
    if why is not None:
        raise TypeError(f"argument {name!r} is {why}")
