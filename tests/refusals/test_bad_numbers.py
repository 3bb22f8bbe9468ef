"""Numbers and data that a private run cannot rest on: refused by name, before anything is released.

One table a kind, through every public call that takes it. `test_bad_input.py` has what else
`fxdp.compile` and a step are given.
"""

import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fxdp
from fxdp.data import (
    FixedSizeSampler,
    PoissonSampler,
    TruncatedPoissonSampler,
    private_loader,
)
from fxdp.privacy import (
    Budget,
    DeltaWarning,
    FixedSize,
    GaussianRelease,
    Ledger,
    Poisson,
    TruncatedPoisson,
    calibrate,
    epsilon,
    steps_within,
)
from tests.keywords import faster, grouped

N, DELTA = 60, 1e-5
DATA = TensorDataset(torch.randn(N, 4, generator=torch.manual_seed(0)), torch.arange(N) % 3)
NOT_NUMBERS = ("0.1", True, None, [0.1], torch.tensor([0.1]), torch.tensor(1j), 1j)
OPTIONAL = ("make_private", "private_loader")  # of what they take here, but for delta and epochs
Call = Callable[[Any], Any]


def compiled(**options: Any) -> fxdp.PrivateModule:
    given = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": 8.0}
    return fxdp.compile(
        nn.Linear(4, 3), loss_fn=F.cross_entropy, backend="eager", **grouped(given | options)
    )


def made(data: Any = DATA, **options: Any) -> Any:
    model = nn.Linear(4, 3)
    if isinstance(data, Dataset):
        options.setdefault("sample_rate", 0.2)
    given = {
        "noise_multiplier": 1.0, "delta": DELTA, "epochs": 1, "max_grad_norm": 1.0,
        "accountant": "rdp", "backend": "eager",
    }  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return fxdp.make_private(model, optimizer, data, F.cross_entropy, **faster(given | options))


RATES: dict[str, Call] = {
    "compile": lambda q: compiled(sample_rate=q),
    "make_private": lambda q: made(sample_rate=q),
    "private_loader": lambda q: private_loader(DATA, sample_rate=q),
    "PoissonSampler": lambda q: PoissonSampler(N, q, 5),
    "TruncatedPoissonSampler": lambda q: TruncatedPoissonSampler(N, q, 20, 5),
    "epsilon": lambda q: epsilon(1.0, q, 5, DELTA),
    "calibrate": lambda q: calibrate(1.0, DELTA, q, 5, "rdp"),
    "steps_within": lambda q: steps_within(1.0, DELTA, q, 1.0, "rdp"),
    "Poisson": Poisson,
    "TruncatedPoisson": lambda q: TruncatedPoisson(q, N, 20),
}
EPSILONS: dict[str, Call] = {
    "compile": lambda e: compiled(budget=Budget(e, DELTA)),
    "make_private": lambda e: made(epsilon=e, noise_multiplier=None),
    "Budget": lambda e: Budget(e, DELTA),
    "calibrate": lambda e: calibrate(e, DELTA, 0.1, 5, "rdp"),
    "steps_within": lambda e: steps_within(e, DELTA, 0.1, 1.0, "rdp"),
}
DELTAS: dict[str, Call] = {
    "compile": lambda d: compiled(budget=(3.0, d)),  # a pair, too
    "make_private": lambda d: made(delta=d),
    "Budget": lambda d: Budget(3.0, d),
    "epsilon": lambda d: epsilon(1.0, 0.1, 5, d),
    "calibrate": lambda d: calibrate(1.0, d, 0.1, 5, "rdp"),
    "steps_within": lambda d: steps_within(1.0, d, 0.1, 1.0, "rdp"),
    "privacy_spent": lambda d: compiled().privacy_spent(d),
    "privacy_statement": lambda d: compiled().privacy_statement(d),
    "Ledger.spent": lambda d: Ledger().spent(d),
}
NOISES: dict[str, Call] = {
    "compile": lambda s: compiled(noise_multiplier=s),
    "make_private": lambda s: made(noise_multiplier=s),
    "epsilon": lambda s: epsilon(s, 0.1, 5, DELTA),
    "steps_within": lambda s: steps_within(1.0, DELTA, 0.1, s, "rdp"),
    "GaussianRelease": lambda s: GaussianRelease(s, None, 1.0),
}
COUNTS: dict[str, Call] = {
    "microbatch_size of compile": lambda n: compiled(microbatch_size=n),
    "microbatch_size of make_private": lambda n: made(microbatch_size=n),
    "epochs of make_private": lambda n: made(epochs=n),
    "num_samples of PoissonSampler": lambda n: PoissonSampler(n, 0.1, 5),
    "batch_size of FixedSizeSampler": lambda n: FixedSizeSampler(N, n, 5),
    "batch_size of FixedSize": lambda n: FixedSize(N, n),
    "max_batch_size of TruncatedPoissonSampler": lambda n: TruncatedPoissonSampler(N, 0.1, n, 5),
}
STEPS: dict[str, Call] = {  # of which there may be none
    "epsilon": lambda n: epsilon(1.0, 0.1, n, DELTA),
    "calibrate": lambda n: calibrate(1.0, DELTA, 0.1, n, "rdp"),
    "private_loader": lambda n: private_loader(DATA, sample_rate=0.1, steps=n),
    "PoissonSampler": lambda n: PoissonSampler(N, 0.1, n),
}


def cases(name: str, calls: dict[str, Call], *bad: Any) -> Iterator[Any]:
    """Each call with each bad value, but for None where it means that nothing is given."""
    for where, call in calls.items():
        wanted = where.split(" of ")[0] if " of " in where else name
        for value in (*bad, *NOT_NUMBERS):
            optional = wanted in ("rate", "microbatch_size") or where in OPTIONAL
            if value is not None or not optional:
                yield pytest.param(call, value, wanted, id=f"{where}-{wanted}-{value!r}")


BAD = (
    *cases("rate", RATES, 0, -0.1, 1.5, 2, math.nan, math.inf),
    *cases("epsilon", EPSILONS, 0, -1.0, math.nan, -math.inf),
    *cases("delta", DELTAS, 0, 1, -1e-5, math.nan, math.inf),
    *cases("noise_multiplier", NOISES, -1.0, math.nan, math.inf),
    *cases("", COUNTS, 0, -1, 2.5, math.nan, math.inf),
    *cases("steps", STEPS, -1, 2.5, math.nan, math.inf),
)


@pytest.mark.parametrize(("call", "value", "name"), BAD)
def test_a_number_that_cannot_be(call: Call, value: Any, name: str) -> None:
    """It is told which argument was met, and what it must be."""
    with pytest.raises((TypeError, ValueError), match=rf"{name}.* must be |^budget must be "):
        call(value)


def test_every_table_has_a_good_number() -> None:
    """So that it is not something else that is refused."""
    for calls, good in ((RATES, 0.1), (EPSILONS, 3.0), (DELTAS, 1e-6), (NOISES, 1.0)):
        for call in calls.values():
            call(good)
    for calls in (COUNTS, STEPS):
        for call in calls.values():
            call(3)


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor, Fraction])
def test_a_number_of_any_kind_is_taken_as_pythons_own(kind: Callable[[float], Any]) -> None:
    budget, rate = (kind(3.0), kind(2.0**-17)), kind(0.25)
    private = compiled(
        max_grad_norm=kind(0.5), noise_multiplier=kind(2.0), expected_batch_size=kind(8.0),
        accounting=fxdp.Accounting(rate, budget, "rdp"), options={"memory_budget": kind(64.0)},
    )  # fmt: skip
    private.max_grad_norm = kind(0.25)
    private(torch.ones(2, 4), torch.arange(2)).backward()
    assert private.ledger.runs[0].release == GaussianRelease(2.0, Poisson(0.25), 0.25)
    assert json.loads(json.dumps(private.privacy_state_dict())) == private.privacy_state_dict()
    same = epsilon(2.0, 0.25, 5, 2.0**-17, "rdp")
    assert epsilon(kind(2.0), rate, kind(5.0), kind(2.0**-17), "rdp") == same
    assert fxdp.noise.BandMF(kind(2.0)) == fxdp.noise.BandMF(2)
    assert fxdp.clipping.Automatic(kind(0.5)) == fxdp.clipping.Automatic(0.5)


@pytest.mark.parametrize("delta", [1 / N, 0.1])
def test_a_large_delta_is_warned_of(delta: float) -> None:
    for options in ({}, {"epsilon": 3.0, "noise_multiplier": None}):
        with pytest.warns(DeltaWarning, match="not below 1 / 60"):
            made(delta=delta, **options)
        made(delta=0.99 / N, **options)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        raise AssertionError("nobody is to be drawn")


class Endless(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        raise AssertionError("nobody is to be drawn")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Stream(), "Stream is an IterableDataset.*pass a data set with __getitem__ and __len__"),
        (DataLoader(Stream(), 12), "Stream is an IterableDataset"),
        (Endless(), "Endless has no length: give it __len__"),
        (DataLoader(Endless(), 12, sampler=range(5)), "Endless has no length"),
        (TensorDataset(torch.zeros(0, 4)), "TensorDataset is empty: there is nobody to draw"),
        (DataLoader(DATA, batch_size=None), "no batch size.*pass the data set"),
        (3, "int has no length"),
    ],
    ids=["stream", "loader-stream", "endless", "loader-endless", "empty", "no-batches", "int"],
)
def test_data_that_nobody_can_be_drawn_from(data: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        private_loader(data, sample_rate=0.1)
    with pytest.raises((TypeError, ValueError), match=words):
        made(data, sample_rate=0.1)


class Shrinking(Dataset[Any]):
    """A data set that loses samples as a run goes on."""

    def __init__(self) -> None:
        self.length = N

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return DATA[index]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("whole_steps", [0, 1])
def test_a_data_set_that_shrinks(workers: int, whole_steps: int) -> None:
    """The batches that were drawn of all samples are released, and no other."""
    data = Shrinking()
    private, optimizer, loader = made(DataLoader(data, 12, num_workers=workers))
    before = [p.clone() for p in private.parameters()]

    def train() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            private(x, y).backward()
            optimizer.step()

    for _ in range(whole_steps):
        train()
    done = len(loader) * whole_steps
    data.length = N - 1
    with pytest.raises(ValueError, match="has 59 samples now, and had 60.*make a new loader"):
        train()
    assert private.releases == loader.batches.position == done
    unmoved = all(torch.equal(p, was) for p, was in zip(private.parameters(), before, strict=True))
    assert unmoved == (done == 0)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pieces_larger_than_a_batch_and_smaller_are_fine(size: int) -> None:
    private, _, loader = made(microbatch_size=size)
    batches = iter(loader)
    private(*next(batches)).backward()
    x, y = next(batches)
    private(x[:0], y[:0]).backward()
    assert private.releases == 2


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "4"])
def test_a_microbatch_size_that_is_set_later(size: Any) -> None:
    private = compiled()
    private.microbatch_size = size
    with pytest.raises((TypeError, ValueError), match="microbatch_size must be"):
        private(*DATA[:4])
    assert private.releases == 0


def test_a_budget_of_true() -> None:
    with pytest.raises(TypeError, match="epsilon must be a number"):
        compiled(budget=(True, 1e-5))
