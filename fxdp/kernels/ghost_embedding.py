"""Norms of lookups by sorted segments.

A sample's gradient of a table has as many rows as the sample has different ids. Its ids are sorted,
so that equal ones stand together; each of these segments gets a row, and what belongs to an id is
added up there. T rows are always enough, where a ghost norm multiplies T x T pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fxdp.kernels.library import define, fake


def segments(ids: Tensor) -> Tensor:
    """[N, T]: for each position a number from 0 to T - 1, the same for those with the same id."""
    ordered, order = ids.sort(dim=1)
    begins = ordered[:, 1:] != ordered[:, :-1]
    numbers = F.pad(begins.cumsum(1), (1, 0))
    return torch.zeros_like(numbers).scatter(1, order, numbers)


def added_up(ids: Tensor, g: Tensor) -> Tensor:
    """[N, T, d]: what g [N, T, d] has for one id of ids [N, T], in one row; the others are 0."""
    n, length, d = g.shape
    first = torch.arange(n, device=ids.device).unsqueeze(1) * length
    at = (segments(ids) + first).flatten()
    return g.new_zeros(n * length, d).index_add(0, at, g.flatten(0, 1)).view(n, length, d)


@define("segment_squares")
def segment_squares(ids: Tensor, g: Tensor) -> Tensor:
    """[N] squared norms of the tables that g [N, T, d] makes when added up at ids [N, T]."""
    rows = torch.linalg.vector_norm(added_up(ids, g), dim=2)
    return torch.linalg.vector_norm(rows, dim=1).square()


@fake("segment_squares")
def _(ids: Tensor, g: Tensor) -> Tensor:
    return g.new_empty(g.shape[0])
