"""Batches without samples: what a collate function makes of an empty list.

    loader = DataLoader(data, batch_sampler=sampler, collate_fn=poisson_collate(data))

`private_loader` does this by itself.
"""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

Collate = Callable[[list[Any]], Any]


def poisson_collate(dataset: Dataset[Any], collate: Collate = default_collate) -> Collate:
    """Returns a collate function for a DataLoader whose batches may be empty.

    A batch with samples goes to `collate`. A batch without gets the structure that `collate`
    gives to `dataset[0]` alone: tuples, lists and mappings keep their types and keys, each
    tensor [1, *shape] becomes an empty [0, *shape] of the same dtype and device, and a list of
    strings becomes an empty list. Of that first sample only shapes and dtypes are kept.

    Args:
        dataset: map-style and not empty.
        collate: list of samples to batch, with the samples along axis 0.

    Returns:
        A function of a list of samples; it can be pickled if `collate` can.

    Raises:
        ValueError: a tensor of the collated sample has no axis of size 1 in front, so that an
            empty batch of it is not defined.
        TypeError: the collated sample holds something that is not a tensor, a container, or a
            list of strings.
    """
    own = getattr(collate, "of_nobody", None)  # of a collate function that chooses a length
    batch = collate([dataset[0]]) if own is None else own(dataset[0])
    return partial(_collate_or_empty, collate, _without_rows(batch))


def _collate_or_empty(collate: Collate, empty: Any, samples: list[Any]) -> Any:
    # A copy, because training code may write into the batch that it is given.
    return collate(samples) if samples else copy.deepcopy(empty)


def _without_rows(batch: Any) -> Any:
    match batch:
        case torch.Tensor() if batch.ndim > 0 and batch.shape[0] == 1:
            return batch.new_empty((0, *batch.shape[1:]))
        case torch.Tensor():
            raise ValueError(
                f"collating one sample gave a tensor of shape {list(batch.shape)}: "
                "its samples do not lie along axis 0"
            )
        case MutableMapping():
            # A copy keeps the type, which may be one that allows attribute access.
            emptied = copy.copy(batch)
            emptied.update({key: _without_rows(value) for key, value in batch.items()})
            return emptied
        case Mapping():
            return {key: _without_rows(value) for key, value in batch.items()}
        case list() if all(isinstance(item, str | bytes) for item in batch):
            return []
        case list():
            return [_without_rows(item) for item in batch]
        case tuple() if hasattr(batch, "_fields"):
            return type(batch)(*map(_without_rows, batch))
        case tuple():
            return tuple(map(_without_rows, batch))
        case _:
            raise TypeError(f"cannot make an empty batch of a {type(batch).__name__}")
