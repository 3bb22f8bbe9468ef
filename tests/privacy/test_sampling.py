"""Poisson batches: the law they are drawn from, their edges, and empty ones in a DataLoader."""

import pickle
from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fxdp.privacy.sampling import PoissonBatchSampler, poisson_collate


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


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def empty_batch_of(dataset: Dataset[Any]) -> Any:
    return poisson_collate(dataset)([])


def test_every_index_is_drawn_at_the_rate_and_on_its_own() -> None:
    # 4000 coins for each of 20 indices: standard deviations 0.0073 (rates), 0.016 (pairs).
    steps, rate = 4000, 0.3
    drawn = torch.zeros(steps, 20)
    for step, batch in enumerate(PoissonBatchSampler(20, rate, steps, seeded())):
        drawn[step, batch] = 1
    assert torch.allclose(drawn.mean(0), torch.full((20,), rate), atol=5 * 0.0073)
    between_indices = torch.corrcoef(drawn.T) - torch.eye(20)
    assert between_indices.abs().max() < 5 * 0.016
    sizes = drawn.sum(1)
    assert sizes.mean() == pytest.approx(6.0, abs=5 * (4.2 / steps) ** 0.5)
    assert sizes.var() == pytest.approx(4.2, rel=0.15)
    between_steps = torch.corrcoef(torch.stack((sizes[:-1], sizes[1:])))[0, 1]
    assert between_steps.abs() < 5 * 0.016


def test_a_small_rate_is_not_rounded() -> None:
    # Tosses in float32 are multiples of 2**-24: this rate would act as 2**-24 and draw some 8.
    sampler = PoissonBatchSampler(1 << 22, 2.0**-30, 32, seeded())
    assert sum(map(len, sampler)) <= 2


def test_the_generator_decides_the_batches() -> None:
    assert list(PoissonBatchSampler(50, 0.2, 9, seeded(1))) == list(
        PoissonBatchSampler(50, 0.2, 9, seeded(1))
    )
    assert list(PoissonBatchSampler(50, 0.2, 9, seeded(1))) != list(
        PoissonBatchSampler(50, 0.2, 9, seeded(2))
    )


def test_expected_batch_size() -> None:
    assert PoissonBatchSampler(1500, 0.17, 1).expected_batch_size == pytest.approx(255.0)


class TestEdgesOfTheSampler:
    def test_no_steps(self) -> None:
        sampler = PoissonBatchSampler(5, 0.5, 0)
        assert len(sampler) == 0
        assert list(sampler) == []

    def test_full_batch(self) -> None:
        assert list(PoissonBatchSampler(3, 1.0, 2, seeded())) == [[0, 1, 2], [0, 1, 2]]

    def test_nobody_is_drawn(self) -> None:
        assert list(PoissonBatchSampler(2, 1e-9, 3, seeded())) == [[], [], []]

    def test_iterated_again(self) -> None:
        sampler = PoissonBatchSampler(50, 0.5, 4, seeded())
        first, second = list(sampler), list(sampler)
        assert len(first) == len(second) == len(sampler) == 4
        assert first != second


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", 0),
        ("sample_rate", 0.0),
        ("sample_rate", 1.1),
        ("sample_rate", float("nan")),
        ("steps", -1),
    ],
)
def test_the_argument_out_of_range_is_named(name: str, value: float) -> None:
    good: dict[str, Any] = {"num_samples": 5, "sample_rate": 0.5, "steps": 1}
    with pytest.raises(ValueError, match=f"^{name} must be"):
        PoissonBatchSampler(**(good | {name: value}))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_yields_empty_batches_like_any_other(num_workers: int) -> None:
    data = TensorDataset(torch.randn(4, 1, 8, 8), torch.arange(4))
    loader = DataLoader(
        data,
        batch_sampler=PoissonBatchSampler(4, 0.25, 12, seeded()),
        collate_fn=poisson_collate(data),
        num_workers=num_workers,
    )
    sizes: list[int] = []
    for x, y in loader:
        assert x.shape[1:] == (1, 8, 8)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert len(x) == len(y)
        sizes.append(len(x))
    assert len(sizes) == 12
    assert 0 in sizes
    assert max(sizes) > 0


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
