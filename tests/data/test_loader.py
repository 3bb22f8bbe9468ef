"""The loader: what it keeps, what it refuses, where it stands, and batches without samples."""

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fxdp.data import FixedSizeSampler, PoissonSampler, TruncatedPoissonSampler, private_loader
from fxdp.privacy import Poisson


class Numbers(Dataset[Any]):
    """The numbers 0, 1, ... as tensors; it can grow and shrink."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)

    def __len__(self) -> int:
        return self.length


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


class Boundless(Dataset[Any]):
    def __getitem__(self, index: int) -> int:
        return index


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stacked(samples: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(samples)


def begin(worker: int) -> None:
    pass


KEPT = (
    "dataset",
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)
WORKERS: list[dict[str, Any]] = [
    {},
    {"num_workers": 1, "prefetch_factor": 4},
    {"num_workers": 2, "persistent_workers": True},
]


@pytest.mark.parametrize("workers", WORKERS)
def test_empty_batches_are_batches_like_any_other(workers: dict[str, Any]) -> None:
    data = TensorDataset(torch.randn(4, 1, 8, 8), torch.arange(4))
    sizes: list[int] = []
    for x, y in private_loader(data, sample_rate=0.25, steps=12, generator=seeded(), **workers):
        assert x.shape[1:] == (1, 8, 8)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert len(x) == len(y)
        sizes.append(len(x))
    assert len(sizes) == 12
    assert 0 in sizes
    assert max(sizes) > 0


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("stop", [1, 5, 6, 8])
def test_the_position_is_what_the_loop_was_given(workers: dict[str, Any], stop: int) -> None:
    def make(seed: int) -> Any:
        return private_loader(
            Numbers(50), sample_rate=0.2, steps=6, generator=seeded(seed), **workers
        )

    uninterrupted = [batch.tolist() for loader in [make(0)] for _ in range(2) for batch in loader]
    loader, resumed = make(0), make(1)
    given: list[Any] = []
    while len(given) < stop:
        for batch in loader:
            given.append(batch.tolist())
            assert loader.batches.position == len(given)
            if len(given) == stop:
                # In the body of the loop, while workers read ahead.
                resumed.load_state_dict(loader.state_dict())
                break
    rest = [batch.tolist() for batch in resumed]
    while len(given) + len(rest) < 12:
        rest += [batch.tolist() for batch in resumed]
    assert given == uninterrupted[:stop]
    assert rest == uninterrupted[stop:]


def test_a_fixed_size_needs_no_empty_batch() -> None:
    # Samples along another axis have no empty batch, and none is asked for.
    def along_axis_1(samples: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(samples, dim=-1)[None]

    batches = FixedSizeSampler(10, 3, 2)
    loader = private_loader(Numbers(10), batches, collate_fn=along_axis_1)
    assert [batch.shape for batch in loader] == [(1, 3), (1, 3)]


def test_a_plain_loader_draws_the_same_batches() -> None:
    ours = private_loader(Numbers(50), sample_rate=0.2, generator=seeded())
    plain = DataLoader(Numbers(50), batch_sampler=PoissonSampler(50, 0.2, 5, seeded()))
    assert [b.tolist() for b in ours] == [b.tolist() for b in plain]


class TestWhatIsKept:
    def test_settings_of_a_loader(self) -> None:
        source = DataLoader(
            Numbers(10),
            batch_size=2,
            shuffle=True,
            num_workers=1,
            collate_fn=stacked,
            worker_init_fn=begin,
            multiprocessing_context="spawn",
            generator=seeded(),
            prefetch_factor=3,
            persistent_workers=True,
            timeout=60,
        )
        loader = private_loader(source, steps=3)
        for name in KEPT:
            assert getattr(loader, name) is getattr(source, name)
        assert isinstance(loader, DataLoader)
        assert loader.collate_fn([torch.ones(2)]).tolist() == [[1, 1]]
        assert loader.collate_fn([]).shape == (0,)

    def test_the_mean_size_of_a_batch_and_the_length_of_a_pass(self) -> None:
        loader = private_loader(DataLoader(Numbers(10), batch_size=2))
        assert loader.batches.sampling == Poisson(0.2)
        assert loader.batches.expected_batch_size == 2
        assert len(loader) == loader.batches.steps == 5

    def test_a_batch_size_above_the_length(self) -> None:
        loader = private_loader(DataLoader(Numbers(10), batch_size=64))
        assert loader.batches.sampling == Poisson(1.0)

    def test_the_loaders_generator_gives_the_key(self) -> None:
        def batches(seed: int) -> list[Any]:
            source = DataLoader(Numbers(10), batch_size=5, generator=seeded(seed))
            return [batch.tolist() for batch in private_loader(source)]

        assert batches(0) == batches(0) != batches(1)

    def test_settings_can_be_changed(self) -> None:
        source = DataLoader(Numbers(10), batch_size=2)
        loader = private_loader(source, sample_rate=0.5, collate_fn=stacked)
        assert loader.batches.sampling == Poisson(0.5)

    def test_a_sampler_of_ones_own(self) -> None:
        for batches in (
            TruncatedPoissonSampler(10, 0.5, 6, 4, seeded()),
            FixedSizeSampler(10, 3, 4, seeded()),
        ):
            loader = private_loader(DataLoader(Numbers(10), batch_size=2), batches)
            assert loader.batches is batches
            sizes = [len(batch) for batch in loader]
            assert len(sizes) == 4
            assert max(sizes) <= 6

    def test_secure(self) -> None:
        loader = private_loader(Numbers(10), sample_rate=0.5, secure=True)
        assert loader.state_dict()["stream"] == "chacha20"
        source = DataLoader(Numbers(10), generator=seeded())
        assert private_loader(source, secure=True).state_dict()["stream"] == "chacha20"


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "sampler",
        [
            WeightedRandomSampler([1.0] * 10, 10),
            RandomSampler(range(10), replacement=True),
            RandomSampler(range(10), num_samples=5),
            [3, 1, 2],
            type("Mine", (SequentialSampler,), {})(range(10)),
        ],
    )
    def test_a_sampler(self, sampler: Any) -> None:
        source = DataLoader(Numbers(10), batch_size=2, sampler=sampler)
        with pytest.raises(ValueError, match=f"draws by {type(sampler).__name__}, which"):
            private_loader(source)

    def test_a_batch_sampler(self) -> None:
        mine = type("Mine", (BatchSampler,), {})(SequentialSampler(range(10)), 2, False)
        with pytest.raises(ValueError, match="makes its batches by Mine"):
            private_loader(DataLoader(Numbers(10), batch_sampler=mine))

    def test_a_private_loader(self) -> None:
        with pytest.raises(ValueError, match="makes its batches by _Ahead"):
            private_loader(private_loader(Numbers(10), sample_rate=0.5))

    def test_no_batch_size(self) -> None:
        with pytest.raises(ValueError, match="by no batch size"):
            private_loader(DataLoader(Numbers(10), batch_size=None))

    def test_drop_last(self) -> None:
        with pytest.raises(ValueError, match="drop_last=True"):
            private_loader(DataLoader(Numbers(10), batch_size=3, drop_last=True))

    def test_out_of_order(self) -> None:
        with pytest.raises(ValueError, match="in_order=False"):
            private_loader(DataLoader(Numbers(10), num_workers=2, in_order=False))

    def test_an_iterable_data_set(self) -> None:
        for source in (Stream(), DataLoader(Stream())):
            with pytest.raises(TypeError, match="Stream is an IterableDataset"):
                private_loader(source, sample_rate=0.1)

    def test_no_length(self) -> None:
        with pytest.raises(TypeError, match="Boundless has no length"):
            private_loader(Boundless(), sample_rate=0.1)

    def test_an_empty_data_set(self) -> None:
        with pytest.raises(ValueError, match="Numbers is empty"):
            private_loader(Numbers(0), sample_rate=0.1)

    def test_a_sampler_for_another_number_of_samples(self) -> None:
        with pytest.raises(ValueError, match="draws from 11 samples, and the data set has 10"):
            private_loader(Numbers(10), PoissonSampler(11, 0.5, 1))

    def test_two_answers_to_one_question(self) -> None:
        with pytest.raises(ValueError, match="the sampler has its own"):
            private_loader(Numbers(10), PoissonSampler(10, 0.5, 1), sample_rate=0.5)

    def test_no_rate(self) -> None:
        with pytest.raises(ValueError, match="^sample_rate must be given"):
            private_loader(Numbers(10))

    @pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
    def test_a_rate_out_of_range(self, rate: float) -> None:
        for source in (Numbers(10), DataLoader(Numbers(10))):
            with pytest.raises(ValueError, match="^sample_rate must be in"):
                private_loader(source, sample_rate=rate)

    @pytest.mark.parametrize("name", ["batch_size", "shuffle", "sampler", "drop_last", "in_order"])
    def test_what_the_sampler_decides(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"^{name} is decided by the sampler"):
            private_loader(Numbers(10), sample_rate=0.5, **{name: True})

    @pytest.mark.parametrize("workers", WORKERS)
    def test_a_data_set_that_changes_its_length(self, workers: dict[str, Any]) -> None:
        data = Numbers(10)
        loader = private_loader(data, sample_rate=0.5, steps=2, **workers)
        assert len(list(loader)) == 2
        data.length = 9
        with pytest.raises(ValueError, match="has 9 samples now, and had 10"):
            next(iter(loader))
        assert loader.batches.position == 2

    def test_two_loops_at_once(self) -> None:
        loader = private_loader(Numbers(10), sample_rate=0.5, steps=4)
        one, other = iter(loader), iter(loader)
        next(one)
        next(other)
        with pytest.raises(RuntimeError, match="stands at 2"):
            next(one)

    def test_a_state_loaded_in_the_middle(self) -> None:
        loader = private_loader(Numbers(10), sample_rate=0.5, steps=4)
        state, loop = loader.state_dict(), iter(loader)
        next(loop)
        loader.load_state_dict(state)
        with pytest.raises(RuntimeError, match="iterate anew"):
            next(loop)


class Chance(Numbers):
    """Numbers with noise of all three generators."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, torch.rand(1).item(), random.random(), np.random.rand()])


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("workers", WORKERS)
def test_an_iteration_draws_nothing(workers: dict[str, Any], given: bool) -> None:
    """A resumed run begins one more than the run without a break."""
    data: Any = Numbers(20)
    if given:
        data = DataLoader(data, batch_size=5, generator=seeded())
    loader = private_loader(data, sample_rate=0.25, steps=4, **workers)
    own = loader.generator or torch.default_generator
    before, states = own.get_state(), (random.getstate(), np.random.get_state()[2])
    for _ in range(2):
        assert len(list(loader)) == 4
    assert torch.equal(own.get_state(), before)
    assert (random.getstate(), np.random.get_state()[2]) == states


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_augmentation_in_workers_resumes(workers: dict[str, Any]) -> None:
    def make(seed: int) -> Any:
        return private_loader(
            Chance(20), sample_rate=0.4, steps=6, generator=seeded(seed), **workers
        )

    whole, broken, resumed = make(0), make(0), make(1)
    wanted = list(whole) + list(whole)
    for i, _ in enumerate(broken):
        if i == 3:
            resumed.load_state_dict(broken.state_dict())
            break
    torch.manual_seed(9)
    got = list(resumed) + list(resumed)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted[4:], strict=True))
    assert len({float(x) for batch in wanted for x in batch[:, 1]}) == sum(map(len, wanted))


def test_a_copy_of_indices_leaves_the_generators() -> None:
    loader = private_loader(Numbers(20), sample_rate=0.4, steps=6, generator=seeded())
    before = torch.get_rng_state()
    drawn = next(iter(loader.batch_sampler or ()))
    assert copy.deepcopy(drawn) == drawn == loader.batches.batch(0)
    assert torch.equal(torch.get_rng_state(), before)
