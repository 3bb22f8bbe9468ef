"""Bags of embeddings: rows of a table, added up or averaged over the ids of a bag.

Which ids belong to a bag is said by offsets, numbers that could draw the border between two
samples anywhere. They are followed only where they count the samples: bag n starts at n * T, as
`EmbeddingBag` has it for ids of shape [N, T].

Letters: n samples, t ids of a bag, d features.
"""

from typing import Any

import torch

from fxdp.forms.batch import wide
from fxdp.forms.reduce import Reduce
from fxdp.forms.scatter import Scatter
from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, SumRule, Table, Value, is_shared, refuse_samples
from fxdp.shapes import quotient

aten = torch.ops.aten
MEAN, MAX = 1, 2


def bag(call: Call, ids: Any, offsets: Any, by_frequency: bool, *weights: Any) -> Shard:
    """Where the samples are in the ids, of which each sample has one bag.

    Raises:
        Mixed: the offsets do not cut the ids into one bag a sample.
    """
    if by_frequency:
        raise Mixed("scale_grad_by_freq divides by how often the whole batch holds an id")
    at = ids.placement
    if not isinstance(at, Shard) or quotient(ids.shape[0], call.n * at.inner) != 1:
        raise Mixed("the ids of a bag may come from several samples")
    if offsets.placement != Iota(0, step=at.inner):
        raise Mixed("the offsets of the bags are not known to lie between the samples")
    if any(isinstance(w, Value) and w.placement != at for w in weights):
        raise Mixed("the operands hold their samples on different axes")
    return at


def bagged(
    call: Call, table: Any, ids: Any, offsets: Any, by_frequency: bool, mode: int, sparse: bool,
    weights: Any, with_end: bool, padding: int,
) -> tuple[Placement, ...]:  # fmt: skip
    """The bags; then the bag of each id, the size of each bag, and the ids of the maxima."""
    if is_shared(table, ids, offsets, weights):
        return (Replicate(),) * 4
    refuse_samples(table)
    if with_end:
        raise Mixed("the offsets of the bags are not known to lie between the samples")
    at = bag(call, ids, offsets, by_frequency, weights)
    belongs: Placement = Iota(0, at.inner) if call.out[1][0].has(call.n) else Replicate()
    rest = (Shard(0) if shape[0].has(call.n) else Replicate() for shape in call.out[2:])
    return Shard(0), belongs, *rest


def bagged_back(
    call: Call, grad: Any, ids: Any, offsets: Any, belongs: Any, sizes: Any, maxima: Any, rows: Any,
    by_frequency: bool, mode: int, sparse: bool, weights: Any, padding: int = -1,
) -> Placement:  # fmt: skip
    """The gradient of the table."""
    if sparse:
        raise Mixed("a sparse gradient is none that has noise on every row", "no-rule")
    if is_shared(ids, offsets, weights):
        if isinstance(grad.placement, Partial | Replicate) and is_shared(belongs, sizes, maxima):
            return grad.placement if isinstance(grad.placement, Partial) else Replicate()
        raise Mixed("the operands hold their samples on different axes")
    bag(call, ids, offsets, by_frequency, weights)
    needed = (grad, sizes, maxima) if mode == MAX else (grad, sizes)
    if any(v.placement != Shard(0) for v in needed):
        raise Mixed("the operands hold their samples on different axes")
    return Partial()


def bag_form(
    grad: Any, ids: Any, offsets: Any, belongs: Any, sizes: Any, maxima: Any, rows: int,
    by_frequency: bool, mode: int, sparse: bool, weights: Any, padding: int = -1,
) -> Scatter | Reduce:  # fmt: skip
    """Each sample's bag, in a table of its own."""
    grad, sizes = grad.samples_first(), sizes.samples_first()  # [N, 1, d], [N, 1]
    if mode == MAX:
        # An empty bag has no maximum.
        grad = wide(grad).masked_fill((sizes == 0).unsqueeze(-1), 0)
        each = grad.new_zeros(grad.shape[0], rows, grad.shape[-1])
        return Reduce(each.scatter_add(1, maxima.samples_first().clamp(min=0), grad))
    if mode == MEAN:
        grad = grad / sizes.clamp(min=1).unsqueeze(-1)
    ids = ids.samples_first()
    grad = grad.expand(-1, ids.shape[1], -1)
    if weights is not None:
        grad = grad * weights.samples_first().unsqueeze(-1)
    return Scatter(ids, grad.masked_fill((ids == padding).unsqueeze(-1), 0), rows)


def weights_back(
    call: Call, grad: Any, table: Any, ids: Any, offsets: Any, belongs: Any, mode: int, padding: int
) -> Placement:
    """The gradient of the weights of the ids."""
    refuse_samples(table)
    at = bag(call, ids, offsets, by_frequency=False)
    if grad.placement != Shard(0):
        raise Mixed("the operands hold their samples on different axes")
    return at


RULES: Table = {
    aten._embedding_bag.default: Rule(bagged),
    aten._embedding_bag_forward_only.default: Rule(bagged),
    aten._embedding_bag_backward.default: SumRule(bagged_back, form=bag_form),
    aten._embedding_bag_per_sample_weights_backward.default: Rule(weights_back),
}
