"""Samplers: the laws that batches are drawn by, resuming, and the tables of edge cases.

Statistical tests compare with the law at a z of 5.5 or 6 in every cell, seeds fixed. Over all
their cells (some 700, normal approximation) a correct sampler with fresh seeds would fail one
with a probability below 1e-4.
"""

import io
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxdp.data import (
    CyclicPoissonSampler,
    FixedSizeSampler,
    PoissonSampler,
    PrivateSampler,
    TruncatedPoissonSampler,
    private_loader,
)
from fxdp.privacy import CyclicPoisson, FixedSize, Poisson, TruncatedPoisson

STEPS = 4000
# Of seed 0: two batches of each kind.
KNOWN = (
    [[2, 9, 11, 13], [0, 2, 3, 5, 6, 7, 8, 10, 12, 14, 15]],
    [[0, 2, 3, 4, 12, 16], [6, 8, 9, 12, 14, 17, 18]],
    [[0, 6, 8, 13, 14, 18], [8, 10, 11, 12, 14, 18]],
    [[0, 2, 3, 6], [4, 5, 7, 9, 12, 13, 15, 17, 18, 19]],
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samplers(steps: int, **options: Any) -> list[PrivateSampler]:
    """One of each kind, over 20 samples, 6 of them expected in a batch."""
    return [
        PoissonSampler(20, 0.3, steps, **options),
        TruncatedPoissonSampler(20, 0.3, 7, steps, **options),
        FixedSizeSampler(20, 6, steps, **options),
        CyclicPoissonSampler(20, 0.9, 3, steps, **options),
    ]


def drawn(sampler: PrivateSampler) -> torch.Tensor:
    """Bool as float [steps, samples]: who was in which batch."""
    table = torch.zeros(len(sampler), sampler.num_samples)
    for step, batch in enumerate(sampler):
        table[step, batch] = 1
    return table


class TestPoissonLaw:
    @pytest.mark.parametrize("secure", [False, True])
    def test_every_index_is_drawn_at_the_rate_and_on_its_own(self, secure: bool) -> None:
        # Secure batches cannot be seeded: here the key is, not the cipher.
        with patch("secrets.token_bytes", return_value=bytes(range(32))):
            sampler = PoissonSampler(20, 0.3, STEPS, None if secure else seeded(), secure=secure)
        table = drawn(sampler)
        rates = (table.mean(0) - 0.3) / (0.21 / STEPS) ** 0.5
        assert rates.abs().max() < 5.5
        between = (torch.corrcoef(table.T) - torch.eye(20)) * STEPS**0.5
        assert between.abs().max() < 6
        one_after_another = torch.corrcoef(torch.cat((table[:-1].T, table[1:].T)))[:20, 20:]
        assert (one_after_another * STEPS**0.5).abs().max() < 6

    def test_batch_sizes_are_binomial(self) -> None:
        sizes = drawn(PoissonSampler(20, 0.3, STEPS, seeded(1))).sum(1).long()
        binomial = torch.distributions.Binomial(20, torch.tensor(0.3, dtype=torch.float64))
        law = binomial.log_prob(torch.arange(21.0).double()).exp()
        seen = torch.bincount(sizes, minlength=21)
        often = law * STEPS >= 20
        z = (seen - STEPS * law) / (STEPS * law * (1 - law)) ** 0.5
        assert z[often].abs().max() < 5.5
        assert seen[~often].sum() < 40 + STEPS * law[~often].sum()

    def test_a_small_rate_is_not_rounded_up(self) -> None:
        # Tosses in float32 are multiples of 2**-24: this rate would act as 2**-24 and draw some 8.
        assert sum(map(len, PoissonSampler(1 << 22, 2.0**-30, 32, seeded()))) <= 2

    def test_pieces_of_the_stream_are_not_seen_in_the_batch(self) -> None:
        # The data set is longer than what is tossed at once.
        whole = PoissonSampler(3000, 0.1, 3, seeded())
        with patch("fxdp.data.samplers.AT_ONCE", 256):
            assert list(PoissonSampler(3000, 0.1, 3, seeded())) == list(whole)


class TestTruncatedPoissonLaw:
    def test_rates_and_sizes(self) -> None:
        table = drawn(TruncatedPoissonSampler(20, 0.3, 7, STEPS, seeded(2)))
        sizes = table.sum(1)
        assert sizes.max() == 7
        binomial = torch.distributions.Binomial(20, torch.tensor(0.3, dtype=torch.float64))
        law = binomial.log_prob(torch.arange(21.0).double()).exp()
        full = law[7:].sum()
        z = ((sizes == 7).double().mean() - full) / (full * (1 - full) / STEPS) ** 0.5
        assert z.abs() < 5.5
        # By symmetry every index is as likely as any other: E[min(size, 7)] / 20.
        rate = (law * torch.arange(21).clamp(max=7)).sum() / 20
        assert ((table.mean(0) - rate) / (rate * (1 - rate) / STEPS) ** 0.5).abs().max() < 5.5

    def test_it_is_the_poisson_sample_where_that_is_small(self) -> None:
        whole = list(PoissonSampler(20, 0.3, 200, seeded()))
        for batch, all_drawn in zip(
            TruncatedPoissonSampler(20, 0.3, 7, 200, seeded()), whole, strict=True
        ):
            assert batch == all_drawn if len(all_drawn) <= 7 else set(batch) < set(all_drawn)


class TestFixedSizeLaw:
    def test_every_pair_is_as_likely_as_any_other(self) -> None:
        table = drawn(FixedSizeSampler(20, 6, STEPS, seeded(3)))
        assert (table.sum(1) == 6).all()
        assert ((table.mean(0) - 0.3) / (0.21 / STEPS) ** 0.5).abs().max() < 5.5
        pairs = (table.T @ table / STEPS)[~torch.eye(20, dtype=torch.bool)]
        law = 6 / 20 * 5 / 19
        assert ((pairs - law) / (law * (1 - law) / STEPS) ** 0.5).abs().max() < 6
        one_after_another = torch.corrcoef(torch.cat((table[:-1].T, table[1:].T)))[:20, 20:]
        assert (one_after_another * STEPS**0.5).abs().max() < 6


class TestCyclicPoissonLaw:
    def test_parts_take_turns_and_each_is_a_poisson_sample(self) -> None:
        table = drawn(CyclicPoissonSampler(60, 0.3, 3, 3 * STEPS, seeded(4)))
        turns = table.view(STEPS, 3, 60)
        own = turns.any(0)  # whose part it is
        assert (own.sum(0) == 1).all()
        rates = turns.mean(0)[own]
        assert ((rates - 0.3) / (0.21 / STEPS) ** 0.5).abs().max() < 5.5
        members = turns.transpose(0, 1)[0][:, own[0]].T
        between = torch.corrcoef(members) - torch.eye(len(members))
        assert (between * STEPS**0.5).abs().max() < 6
        one_after_another = torch.corrcoef(torch.cat((members[:, :-1], members[:, 1:])))
        far = one_after_another[: len(members), len(members) :]
        assert (far * STEPS**0.5).abs().max() < 6

    def test_everybody_finds_a_part_on_their_own(self) -> None:
        """1000 indices in 5 parts; and with fewer of them nobody else's part is another."""
        sampler = CyclicPoissonSampler(1000, 1.0, 5, 5, seeded())
        batches = list(sampler)
        assert sorted(sum(batches, [])) == list(range(1000))
        for batch in batches:
            assert abs(len(batch) - 200) < 5.5 * 160**0.5
        fewer = CyclicPoissonSampler(400, 1.0, 5, 5, seeded())
        assert list(fewer) == [[i for i in batch if i < 400] for batch in batches]
        again = CyclicPoissonSampler(1000, 1.0, 5, 5, seeded(1))
        assert list(again) != batches
        again.load_state_dict(sampler.state_dict() | {"position": 0})  # and so another split
        assert list(again) == batches

    def test_one_part_is_everybody(self) -> None:
        found = list(CyclicPoissonSampler(20, 0.3, 1, 50, seeded()))
        assert found == list(PoissonSampler(20, 0.3, 50, seeded()))

    def test_more_parts_than_samples(self) -> None:
        batches = list(CyclicPoissonSampler(2, 1.0, 50, 50, seeded()))
        assert sorted(sum(batches, [])) == [0, 1]

    def test_a_loader_takes_it(self) -> None:
        data = torch.utils.data.TensorDataset(torch.arange(20))
        sampler = CyclicPoissonSampler(20, 1.0, 40, 40, seeded())
        whole = list(CyclicPoissonSampler(20, 1.0, 40, 40, seeded()))
        found = [x.tolist() for (x,) in private_loader(data, sampler)]
        assert found == whole
        assert [] in found


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    num_samples=st.integers(1, 300),
    rate=st.floats(1e-12, 1),
    part=st.floats(0, 1),
    step=st.integers(0, 2**64 - 1),
    seed=st.integers(0, 2**32),
)
def test_a_batch_is_a_function_of_its_number(
    num_samples: int, rate: float, part: float, step: int, seed: int
) -> None:
    size = 1 + int(part * (num_samples - 1))
    for make in (
        lambda: PoissonSampler(num_samples, rate, 1, seeded(seed)),
        lambda: TruncatedPoissonSampler(num_samples, rate, size, 1, seeded(seed)),
        lambda: FixedSizeSampler(num_samples, size, 1, seeded(seed)),
        lambda: CyclicPoissonSampler(num_samples, rate, size, 1, seeded(seed)),
    ):
        one, other = make(), make()
        other.batch(0)
        batch = one.batch(step)
        assert batch == other.batch(step)
        assert batch == sorted(set(batch))
        assert all(type(index) is int and 0 <= index < num_samples for index in batch)
        if not isinstance(one, PoissonSampler | CyclicPoissonSampler):
            assert len(batch) <= size


def test_what_a_seed_gives_does_not_change() -> None:
    # Two releases of fxdp must resume each other's runs.
    assert tuple(list(sampler) for sampler in samplers(2, generator=seeded())) == KNOWN


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("kind", [0, 1, 2, 3])
@pytest.mark.parametrize("stop", [0, 1, 9, 10, 17])
def test_resuming_anywhere_gives_the_batches_that_would_have_followed(
    kind: int, stop: int, secure: bool
) -> None:
    sampler, uninterrupted = samplers(10, secure=secure)[kind], samplers(10, secure=secure)[kind]
    uninterrupted.load_state_dict(sampler.state_dict())
    epochs = [list(uninterrupted) for _ in range(3)]
    for _ in range(stop // 10):
        list(sampler)
    for _ in zip(range(stop % 10), sampler, strict=False):
        pass
    torch.save(sampler.state_dict(), file := io.BytesIO())
    resumed = samplers(10, secure=secure)[kind]
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert resumed.position == stop
    assert list(resumed) == epochs[stop // 10][stop % 10 :]
    assert list(resumed) == epochs[stop // 10 + 1]


def test_the_sampler_states_its_mechanism() -> None:
    assert [s.sampling for s in samplers(1)] == [
        Poisson(0.3),
        TruncatedPoisson(0.3, 20, 7),
        FixedSize(20, 6),
        CyclicPoisson(0.9, 3),
    ]
    assert [s.expected_batch_size for s in samplers(1)] == [6, 6, 6, 6]


def test_secure_batches_differ_from_run_to_run() -> None:
    torch.manual_seed(0)
    one = list(PoissonSampler(50, 0.5, 3, secure=True))
    torch.manual_seed(0)
    assert list(PoissonSampler(50, 0.5, 3, secure=True)) != one


def test_the_key_is_not_shown() -> None:
    sampler = PoissonSampler(5, 0.5, 1, secure=True)
    assert sampler.state_dict()["key"] not in repr(vars(sampler))


def test_the_global_generator_is_used_where_none_is_given() -> None:
    torch.manual_seed(7)
    one = list(PoissonSampler(50, 0.5, 3))
    assert list(PoissonSampler(50, 0.5, 3)) != one
    torch.manual_seed(7)
    assert list(PoissonSampler(50, 0.5, 3)) == one


class TestEdges:
    def test_no_steps(self) -> None:
        for sampler in samplers(0):
            assert len(sampler) == 0
            assert list(sampler) == []

    def test_everybody(self) -> None:
        everybody = [[0, 1, 2]] * 2
        assert list(PoissonSampler(3, 1.0, 2)) == everybody
        assert list(TruncatedPoissonSampler(3, 1.0, 3, 2)) == everybody
        assert list(FixedSizeSampler(3, 3, 2)) == everybody

    def test_nobody(self) -> None:
        assert list(PoissonSampler(2, 1e-12, 3, seeded())) == [[], [], []]
        assert list(TruncatedPoissonSampler(2, 1e-12, 1, 3, seeded())) == [[], [], []]

    def test_never_truncated(self) -> None:
        whole = TruncatedPoissonSampler(20, 0.3, 20, 50, seeded())
        assert list(whole) == list(PoissonSampler(20, 0.3, 50, seeded()))

    def test_iterated_again(self) -> None:
        for sampler in samplers(8):
            first, second = list(sampler), list(sampler)
            assert len(first) == len(second) == len(sampler) == 8
            assert first != second
            assert sampler.position == 16

    def test_left_in_the_middle(self) -> None:
        for sampler in samplers(8):
            whole = [sampler.batch(step) for step in range(8)]
            begun = [batch for batch, _ in zip(sampler, range(3), strict=False)]
            # zip asked for one more before it saw that the range was at its end.
            assert begun + [whole[3]] + list(sampler) == whole

    def test_two_iterations_at_once(self) -> None:
        sampler = PoissonSampler(5, 0.5, 8)
        one, other = iter(sampler), iter(sampler)
        next(one)
        next(other)
        with pytest.raises(RuntimeError, match="stands at 2"):
            next(one)

    def test_state_of_another_sampler(self) -> None:
        sampler = PoissonSampler(5, 0.5, 8, seeded())
        position, batch = sampler.position, sampler.batch(0)
        for other, name in (
            (PoissonSampler(6, 0.5, 8), "num_samples"),
            (PoissonSampler(5, 0.4, 8), "sampling"),
            (PoissonSampler(5, 0.5, 9), "steps"),
            (FixedSizeSampler(5, 2, 8), "sampling"),
            (CyclicPoissonSampler(5, 0.5, 2, 8), "sampling"),
            (PoissonSampler(5, 0.5, 8, secure=True), "stream"),
        ):
            with pytest.raises(ValueError, match=f"sampler state: {name} is"):
                sampler.load_state_dict(other.state_dict())
        assert (sampler.position, sampler.batch(0)) == (position, batch)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"version": 0}, "version is 0"),
            ({"position": -1}, "position must be"),
            ({"position": 1.5}, "position must be"),
            ({"key": "00"}, "key must be 16 bytes"),
            ({"key": "zz" * 16}, "key must be 16 bytes"),
            ({"key": None}, "key must be 16 bytes"),
            ({"more": 1}, "must be a mapping of"),
        ],
    )
    def test_malformed_state(self, change: dict[str, Any], match: str) -> None:
        sampler = PoissonSampler(5, 0.5, 8)
        with pytest.raises(ValueError, match=match):
            sampler.load_state_dict(sampler.state_dict() | change)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", 0),
        ("num_samples", 2.5),
        ("sample_rate", 0.0),
        ("sample_rate", 1.1),
        ("sample_rate", float("nan")),
        ("steps", -1),
        ("max_batch_size", 0),
        ("max_batch_size", 6),
        ("batch_size", 0),
        ("batch_size", 6),
        ("parts", 0),
        ("parts", 1.5),
    ],
)
def test_the_argument_out_of_range_is_named(name: str, value: float) -> None:
    good: dict[str, Any] = {
        "num_samples": 5, "sample_rate": 0.5, "max_batch_size": 2, "batch_size": 2, "steps": 1,
        "parts": 2,
    }  # fmt: skip
    for kind, names in (
        (PoissonSampler, ("num_samples", "sample_rate", "steps")),
        (TruncatedPoissonSampler, ("num_samples", "sample_rate", "max_batch_size", "steps")),
        (FixedSizeSampler, ("num_samples", "batch_size", "steps")),
        (CyclicPoissonSampler, ("num_samples", "sample_rate", "parts", "steps")),
    ):
        if name in names:
            with pytest.raises(ValueError, match=f"^{name} must be"):
                kind(**{key: (good | {name: value})[key] for key in names})


def test_a_seed_and_secure_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="^generator must be None"):
        PoissonSampler(5, 0.5, 1, seeded(), secure=True)


def test_words_are_64_bits_wide() -> None:
    for secure in (False, True):
        words = PoissonSampler(5, 0.5, 1, secure=secure)._stream.at(3)
        first, second = words(1000), words(1000)
        assert first.dtype == np.uint64
        assert not np.array_equal(first, second)
        # Each bit is set in some word and unset in some other: 64 cells of 2**-999.
        assert np.bitwise_or.reduce(first) == 2**64 - 1
        assert np.bitwise_and.reduce(first) == 0


@pytest.mark.parametrize("generator", [3, "seed", object()])
def test_a_generator_of_another_type_is_refused(generator: Any) -> None:
    with pytest.raises(TypeError, match="generator must be a torch.Generator, not"):
        PoissonSampler(8, 0.5, 4, generator)


def test_a_sampler_and_a_loader_say_how_they_draw_and_never_the_key() -> None:
    loader = private_loader(torch.arange(8), sample_rate=0.5, steps=4)  # pyright: ignore
    next(iter(loader))
    sampler = "PoissonSampler(Poisson(rate=0.5), num_samples=8, steps=4, position=1)"
    assert repr(loader.batches) == sampler
    assert repr(loader) == f"PrivateLoader(Tensor, {sampler}, num_workers=0)"
    assert loader.state_dict()["key"] not in repr(loader)
