"""A drawn batch is released at most once, whoever iterates, and whatever is done with batches."""

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxdp
from fxdp.data import CyclicPoissonSampler, FixedSizeSampler, PoissonSampler, private_loader
from fxdp.mechanism.correlated import BandMF
from tests.keywords import faster, grouped

N, STEPS = 24, 6
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, torch.arange(N) % 3)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(**options: Any) -> Any:
    """A loader of the numbers 0 to 39."""
    data = TensorDataset(torch.arange(40.0))
    return private_loader(data, sample_rate=0.2, steps=5, generator=seeded(), **options)


def told(batches: Any) -> list[list[float]]:
    return [x.tolist() for (x,) in batches]


MODEL = nn.Linear(4, 3)
COMPILED: dict[Any, Any] = {}  # what compilation left, for the tests after the first


def made(**options: Any) -> Any:
    """A private module, an optimizer, and a loader of `STEPS` batches."""
    given: dict[str, Any] = {
        "noise_multiplier": 1.0, "delta": 1e-5, "epochs": 2, "max_grad_norm": 1.0,
        "accountant": "rdp", "backend": "eager", "generator": seeded(),
    }  # fmt: skip
    if "sampler" in options:
        del given["generator"]
    loader = options.pop("loader", None) or DataLoader(DATA, N // STEPS)
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    found = fxdp.make_private(MODEL, optimizer, loader, F.cross_entropy, **faster(given | options))
    stepper = COMPILED.setdefault("noise" in options, found[0]._stepper)
    found[0].__dict__["_stepper"] = found[0]._inspector.stepper = stepper
    return found


def turns(bands: int = 3, **options: Any) -> Any:
    sampler = CyclicPoissonSampler(N, 0.8, bands, STEPS, seeded())
    return made(sampler=sampler, noise=BandMF(bands), loader=DATA, **options)


def step(private: Any, batch: Any) -> None:
    x, y = batch
    private(x, y).backward()


def refused(private: Any, batch: Any, words: str = "cannot be released") -> None:
    """Nothing is released, counted or delivered."""
    before = private.releases
    private.zero_grad()
    with pytest.raises(fxdp.StepError, match=words):
        step(private, batch)
    assert private.releases == before
    assert all(p.grad is None for p in private.parameters())


class TestWhoeverIterates:
    """No two iterations are given the same batch."""

    def outside(self, loader: Any, kind: str) -> Any:
        """A loader of somebody else's, made of ours."""
        if kind == "accelerate":
            return Accelerator(cpu=True).prepare(loader)
        if kind == "batch sampler":
            return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler)
        if kind == "sampler alone":
            return DataLoader(loader.dataset, batch_sampler=loader.batches)
        if kind == "workers":
            return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, num_workers=1)
        return copy.copy(loader) if kind == "copy" else copy.deepcopy(loader)

    @pytest.mark.parametrize(
        "kind", ["accelerate", "batch sampler", "sampler alone", "workers", "copy", "deep copy"]
    )
    def test_two_passes_differ(self, kind: str) -> None:
        loader, seen = numbers(), told(numbers())
        theirs = self.outside(loader, kind)
        first, second = told(theirs), told(theirs)
        assert len(first) == len(second) == 5
        assert not any(batch in second for batch in first if batch)
        if kind == "deep copy":
            assert not any(batch in first + second for batch in seen)
        else:
            assert first == seen
            assert loader.batches.position == 10

    def test_the_loader_goes_on_where_others_stopped(self) -> None:
        loader, whole = numbers(), numbers()
        wanted = told(whole) + told(whole)
        got = told(itertools.islice(self.outside(loader, "batch sampler"), 2)) + told(loader)
        got += told(itertools.islice(copy.copy(loader), 3))
        assert got + told(self.outside(loader, "sampler alone")) == wanted

    @pytest.mark.parametrize("workers", [{}, {"num_workers": 2, "prefetch_factor": 2}])
    def test_reading_ahead_does_not_count(self, workers: dict[str, Any]) -> None:
        loader = numbers(**workers)
        for given, _ in enumerate(loader, start=1):
            assert loader.batches.position == loader.batches.handed.drawn == given

    def test_copies_of_a_sampler(self) -> None:
        for sampler in (PoissonSampler(40, 0.2, 5, seeded()), FixedSizeSampler(40, 8, 5, seeded())):
            once, again = copy.copy(sampler), copy.deepcopy(sampler)
            drawn = [list(s) for s in (sampler, once, again, copy.deepcopy(once))]
            flat = [tuple(b) for each in drawn for b in each if b]
            assert len(set(flat)) == len(flat)
        secure = PoissonSampler(40, 0.2, 5, secure=True)
        assert list(copy.deepcopy(secure)) != list(secure)

    def test_what_cannot_be_copied(self) -> None:
        with pytest.raises(TypeError, match="state_dict"):
            pickle.dumps(PoissonSampler(40, 0.2, 5))
        with pytest.raises(TypeError, match="one sampler serves the whole run"):
            copy.deepcopy(CyclicPoissonSampler(40, 0.2, 2, 5))


class TestReleases:
    """A step knows the loader: more releases than batches are refused, before any harm."""

    @pytest.mark.parametrize(
        "workers", [{}, {"num_workers": 2, "prefetch_factor": 2, "persistent_workers": True}]
    )
    def test_ordinary_epochs(self, workers: dict[str, Any]) -> None:
        private, _, loader = made(loader=DataLoader(DATA, N // STEPS, **workers))
        for _ in range(2):
            for batch in loader:
                private.per_sample_norms(*batch)
                private.per_sample_norms(*batch)
                step(private, batch)
        assert private.releases == 2 * STEPS

    def test_a_list_gone_through_twice(self) -> None:
        private, _, loader = made()
        batches = list(loader)
        for batch in batches:
            step(private, batch)
        refused(private, batches[0])
        refused(private, [x.clone() for x in batches[0]])
        step(private, next(iter(loader)))
        assert private.releases == STEPS + 1

    def test_a_cycle(self) -> None:
        private, _, loader = made()
        cycled = itertools.cycle(loader)
        for batch in itertools.islice(cycled, STEPS):
            step(private, batch)
        refused(private, next(cycled))

    def test_two_steps_on_one_batch(self) -> None:
        private, _, loader = made()
        for batch in itertools.islice(loader, 2):
            step(private, batch)
            refused(private, batch)
            refused(private, [x.clone() for x in batch])
        assert private.releases == 2

    def test_a_known_batch_is_refused_though_others_were_left_out(self) -> None:
        private, _, loader = made()
        batches = list(loader)
        step(private, batches[0])
        refused(private, batches[0], "released before")
        step(private, batches[4])  # what is left out is no harm
        assert private.releases == 2

    def test_parts_of_two_batches(self) -> None:
        sampler = FixedSizeSampler(N, 4, STEPS, seeded())
        private, _, loader = made(sampler=sampler, neighbours="replace-one")
        (x, _), (_, y), *_ = loader
        refused(private, (x, y), "samples of two batches")

    def test_a_batch_from_elsewhere(self) -> None:
        private, _, loader = made()
        refused(private, DATA[:5], "0 batches were drawn")
        other = private_loader(DATA, sample_rate=0.5, generator=seeded(9))
        next(iter(loader))
        refused(private, next(iter(other)), "another loader")

    def test_a_position_that_is_set_back(self) -> None:
        private, _, loader = made()
        state = loader.state_dict()
        for batch in itertools.islice(loader, 3):
            step(private, batch)
        next(iter(loader))  # one that is left out
        loader.load_state_dict(state)
        for i, batch in enumerate(loader):
            if i < 4:
                refused(private, batch)
                refused(private, [x.clone() for x in batch])
            else:
                step(private, batch)
        assert private.releases == 5

    def test_nothing_but_drawn_batches_through_accelerate(self) -> None:
        private, _, loader = made()
        theirs = Accelerator(cpu=True).prepare(loader)
        for _ in range(2):
            for batch in theirs:
                step(private, batch)
        refused(private, batch)
        assert private.releases == 2 * STEPS

    @pytest.mark.parametrize("microbatch_size", [None, 2])
    def test_pieces_are_one_release(self, microbatch_size: int | None) -> None:
        private, _, loader = made(microbatch_size=microbatch_size)
        for x, y in itertools.islice(loader, 3):
            with private.accumulate():
                for part in (slice(None, 2), slice(2, None)):
                    private(x[part], y[part]).backward()
        assert private.releases == 3
        with pytest.raises(fxdp.StepError, match="cannot be released"), private.accumulate():
            private(x[:2], y[:2]).backward()
        assert private.releases == 3

    def test_a_logical_batch_is_one_drawn_batch(self) -> None:
        private, _, loader = made()

        def together(batches: Any) -> None:
            with private.accumulate():
                for batch in batches:
                    step(private, batch)

        with pytest.raises(fxdp.StepError, match="two batches"):
            together(loader)
        batch = next(iter(loader))
        with pytest.raises(fxdp.StepError, match="one twice"):
            together([batch, batch])
        assert private.releases == 0
        with private.accumulate():
            step(private, batch)
        assert private.releases == 1

    def test_a_failed_step_leaves_the_batch(self) -> None:
        private, _, loader = made()
        x, y = batch = next(iter(loader))
        with pytest.raises(RuntimeError):
            private(x[:, :2], y)
        loss = private(x, y)
        del loss
        step(private, batch)
        assert private.releases == 1

    def test_copies_count_together(self) -> None:
        private, _, loader = made()
        twin = copy.deepcopy(private)
        batch = next(iter(loader))
        step(private, batch)
        refused(twin, batch)
        private, loader = copy.deepcopy((private, loader))
        for batch in loader:
            step(private, batch)
        assert private.releases == 1 + STEPS - 1

    def test_a_loader_that_compile_is_told_of(self) -> None:
        options: dict[str, Any] = {
            "loss_fn": F.cross_entropy, "max_grad_norm": 1.0, "noise_multiplier": 1.0,
            "expected_batch_size": 4, "backend": "eager", "accountant": "rdp",
        }  # fmt: skip
        loader = private_loader(DATA, sample_rate=0.2, generator=seeded())
        sampler = PoissonSampler(N, 0.2, 5, seeded())
        own = DataLoader(DATA, batch_sampler=sampler)
        for told_of, batches in ((loader, loader), (sampler, own)):
            private = fxdp.compile(MODEL, **grouped({"sample_rate": told_of} | options))
            private.__dict__["_stepper"] = made()[0]._stepper
            kept = list(batches)
            for batch in kept:
                step(private, batch)
            refused(private, kept[0])
        private = fxdp.compile(MODEL, **grouped({"sample_rate": sampler.sampling} | options))
        private.__dict__["_stepper"] = made()[0]._stepper
        for batch in own:
            step(private, batch)
        assert private.releases == 5


class TestTurns:
    """Where the data take turns, every batch is released, in order."""

    def test_ordinary_epochs(self) -> None:
        private, _, loader = turns()
        for _ in range(2):
            for batch in loader:
                step(private, batch)
        assert private.releases == 2 * STEPS

    @pytest.mark.parametrize("known", [True, False])
    def test_one_that_is_left_out(self, known: bool) -> None:
        private, _, loader = turns()
        for i, batch in enumerate(loader):
            if i == 2:
                continue
            if i > 2:
                refused(private, batch if known else [x.clone() for x in batch], "in order")
                break
            step(private, batch)
        assert private.releases == 2

    def test_a_list_in_order_and_not(self) -> None:
        private, _, loader = turns()
        batches = list(loader)
        step(private, batches[0])
        refused(private, batches[2], "in order")
        step(private, batches[1])
        refused(private, batches[0], "released before")

    def test_nothing_is_saved_in_the_middle_of_a_turn(self, tmp_path: Path) -> None:
        private, optimizer, loader = turns()
        for batch in itertools.islice(loader, 2):
            step(private, batch)
        fxdp.save_checkpoint(tmp_path / "run.pt", private, optimizer, loader=loader)
        batch = next(iter(loader))
        with pytest.raises(fxdp.StepError, match="save after its step"):
            fxdp.save_checkpoint(tmp_path / "run.pt", private, optimizer, loader=loader)
        step(private, batch)
        fxdp.save_checkpoint(tmp_path / "run.pt", private, optimizer, loader=loader)


@pytest.mark.parametrize("kind", [made, turns])
@pytest.mark.parametrize("peeked", [0, 2])
def test_a_resumed_run_releases_each_batch_once(tmp_path: Path, kind: Any, peeked: int) -> None:
    whole, _, loader = kind()
    wanted = []
    for _ in range(2):
        for batch in loader:
            step(whole, batch)
            wanted.append(batch[0])
    private, optimizer, loader = kind()
    for batch in itertools.islice(loader, 4):
        step(private, batch)
    fxdp.save_checkpoint(tmp_path / "run.pt", private, optimizer, loader=loader)
    private, optimizer, loader = kind()
    looked = list(itertools.islice(loader, peeked))
    fxdp.load_checkpoint(tmp_path / "run.pt", private, optimizer, loader=loader)
    for batch in looked:
        refused(private, batch)
    got = []
    for _ in range(2):
        for batch in loader:
            step(private, batch)
            got.append(batch[0])
            refused(private, [x.clone() for x in batch])
    assert private.releases == whole.releases == 2 * STEPS
    assert all(torch.equal(a, b) for a, b in zip(got, wanted[4:], strict=True))
