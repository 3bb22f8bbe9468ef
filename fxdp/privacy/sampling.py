"""Batches drawn as the privacy accountant assumes: every sample joins by its own coin toss.

Poisson sampling makes the size of a batch random, and now and then 0. Such a step still
releases noise and still counts, so it has to reach the model like any other:
`PoissonBatchSampler` yields the empty list of indices, and `poisson_collate` turns it into
tensors with no rows.

    loader = DataLoader(data, batch_sampler=sampler, collate_fn=poisson_collate(data))
"""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler, default_collate

Collate = Callable[[list[Any]], Any]


class PoissonBatchSampler(Sampler[list[int]]):
    """Yields the indices of one Poisson sample of the data for each step.

    Guarantees:
        In each step every index is in the batch with probability `sample_rate`, independently
        of all other indices, of all other steps, and of the data. That is the sampling which
        `fxdp.privacy.accounting` amplifies by, provided that nobody learns the batches: who
        knows the generator's seed knows them.

    | edge case       | what comes out                                            |
    |-----------------|-----------------------------------------------------------|
    | steps = 0       | nothing                                                   |
    | sample_rate = 1 | every index in every step, in order                       |
    | nobody is drawn | the empty list: the step is neither skipped nor redrawn   |
    | iterated again  | `steps` new batches, to be accounted for once more        |

    Args:
        num_samples: size of the data set, > 0. Under the add-or-remove-one relation it is not
            public, so set `sample_rate`, not the expected batch size, if it must stay secret.
        sample_rate: q in (0, 1].
        steps: how many batches one iteration yields, >= 0.
        generator: source of the coin tosses; torch's global one if None.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        num_samples: int,
        sample_rate: float,
        steps: int,
        generator: torch.Generator | None = None,
    ) -> None:
        if num_samples <= 0:
            raise ValueError(f"num_samples must be > 0, got {num_samples}")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate must be in (0, 1], got {sample_rate}")
        if steps < 0:
            raise ValueError(f"steps must be >= 0, got {steps}")
        self.num_samples = num_samples
        self.sample_rate = sample_rate
        self.steps = steps
        self.generator = generator

    @property
    def expected_batch_size(self) -> float:
        """The mean size of a batch, in samples: what the clipped sum is divided by."""
        return self.num_samples * self.sample_rate

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.steps):
            # In float32 the tosses are multiples of 2**-24, too coarse for a small rate.
            toss = torch.rand(self.num_samples, generator=self.generator, dtype=torch.float64)
            yield torch.nonzero(toss < self.sample_rate).flatten().tolist()


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
    return partial(_collate_or_empty, collate, _without_rows(collate([dataset[0]])))


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
