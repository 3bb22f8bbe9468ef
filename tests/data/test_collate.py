"""Batches without samples: they keep the structure, the types and the shapes of the others."""

import pickle
from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from fxdp.data import poisson_collate


class Listed(Dataset[Any]):
    """A data set of given samples."""

    def __init__(self, *samples: Any) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)


class Pair(NamedTuple):
    image: torch.Tensor
    label: int


def empty_batch_of(dataset: Dataset[Any]) -> Any:
    return poisson_collate(dataset)([])


def test_tuple() -> None:
    x, y = empty_batch_of(TensorDataset(torch.ones(2, 3, dtype=torch.float16), torch.ones(2)))
    assert (x.shape, x.dtype) == ((0, 3), torch.float16)
    assert (y.shape, y.dtype) == ((0,), torch.float32)


def test_named_tuple() -> None:
    batch = empty_batch_of(Listed(Pair(torch.ones(2, 2), 3)))
    assert isinstance(batch, Pair)
    assert batch.image.shape == (0, 2, 2)
    assert torch.as_tensor(batch.label).shape == (0,)


def test_mapping_with_strings() -> None:
    batch = empty_batch_of(Listed({"ids": torch.arange(4), "nested": {"n": 1.5}, "text": "a"}))
    assert batch["ids"].shape == (0, 4)
    assert batch["nested"]["n"].dtype == torch.float64
    assert batch["text"] == []


def test_mapping_of_another_type_keeps_it() -> None:
    def collate(samples: list[Any]) -> UserDict[str, torch.Tensor]:
        return UserDict(ids=torch.stack(samples))

    batch = poisson_collate(Listed(torch.arange(4)), collate)([])
    assert isinstance(batch, UserDict)
    assert batch["ids"].shape == (0, 4)


def test_bare_tensor() -> None:
    assert empty_batch_of(Listed(torch.ones(2, 5, dtype=torch.bool))).shape == (0, 2, 5)


def test_samples_go_to_the_collate_function() -> None:
    collate = poisson_collate(Listed(torch.zeros(2)), torch.stack)
    assert torch.equal(collate([torch.ones(2), torch.zeros(2)]), torch.tensor([[1.0, 1], [0, 0]]))


def test_one_empty_batch_does_not_share_memory_with_the_next() -> None:
    collate = poisson_collate(Listed({"x": torch.ones(2)}))
    collate([])["added"] = 1
    assert list(collate([])) == ["x"]


def test_the_collate_function_can_be_sent_to_a_worker() -> None:
    collate = pickle.loads(pickle.dumps(poisson_collate(Listed(torch.ones(2)))))
    assert collate([]).shape == (0, 2)


def test_samples_along_another_axis_are_refused() -> None:
    def along_axis_1(samples: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(samples, dim=1)

    with pytest.raises(ValueError, match=r"shape \[5, 1\]"):
        poisson_collate(Listed(torch.ones(5)), along_axis_1)


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        poisson_collate(Listed(1), lambda samples: object())
