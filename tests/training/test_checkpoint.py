"""A run that is killed and goes on is the run that was not; what was spent is not forgotten."""

import multiprocessing
import os
import random
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp
from fxdp.autotune import timings, trials
from fxdp.data import PoissonSampler
from fxdp.graph.study import Choices
from fxdp.training import checkpoint
from fxdp.training.rng_state import check_generator_states, generator_states, set_generator_states
from tests import killed
from tests.keywords import grouped
from tests.killed import FILE, PLACES, Kill, Kind


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """New processes at the price of a fork: they come of one that has imported fxdp, no more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killed"])
    return context


def run(processes: Any, folder: Path, kind: Kind, kill: Kill | float | None, keep: bool = False):
    """Train in a process of its own, until it is done or killed, at a place or after a time."""
    begun = folder / "begun"
    begun.unlink(missing_ok=True)
    told = "from outside" if isinstance(kill, float) else kill
    process = processes.Process(target=killed.train, args=(folder, kind, told, keep))
    process.start()
    if isinstance(kill, float):
        while not begun.exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(kill)
        process.kill()
    process.join(120)
    assert process.exitcode == (0 if kill is None else -signal.SIGKILL)


def loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def same(one: Any, other: Any, where: str = "") -> None:
    """Equal in every bit and every type."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


@pytest.mark.parametrize(
    ("kind", "kills", "seed"),
    [
        (Kind("adam"), 8, 0),
        (Kind("sgd", workers=2, steps=16), 4, 1),
        (Kind("adam", backend="inductor", steps=8), 1, 7),
    ],
    ids=["plain", "workers", "inductor"],
)
def test_killed_at_random_it_is_the_run_without_a_break(
    processes: Any, tmp_path: Path, kind: Kind, kills: int, seed: int
) -> None:
    """Parameters, optimizer, schedule, ledger, epsilon, losses, generators, at each checkpoint."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    run(processes, whole, kind, None, keep=True)
    chance = random.Random(seed)
    steps = sorted(chance.randrange(kind.steps) for _ in range(kills))
    met = 0
    for i, step in enumerate(steps):
        # Every fourth at a time, which may be in the middle of a capture; the others at a place.
        by_time = i % 4 == 3
        place = PLACES[(i - i // 4) % len(PLACES)]
        step |= place in ("half", "written")  # those are in a step that saves
        run(processes, broken, kind, chance.uniform(0, 1.0) if by_time else Kill(step, place))
        if (broken / FILE).exists():
            at = loaded(broken / FILE)
            same(at, loaded(whole / f"{len(at['extra']['losses'])}.pt"))
            met += 1
    assert met >= kills / 2
    run(processes, broken, kind, None)
    at = loaded(broken / FILE)
    same(at, loaded(whole / FILE))
    assert len(at["extra"]["losses"]) == kind.steps
    assert [p.name for p in broken.iterdir() if p.suffix == ".tmp"] == []


X, Y = torch.randn(12, 4, generator=torch.manual_seed(0)), torch.arange(12) % 3
SIGMA, RATE = 1.5, 0.25


class Run:
    """A training run in this process."""

    def __init__(self, width: int = 5, rate: float = RATE, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.2), nn.Linear(width, 3))
        given = {"noise_multiplier": SIGMA, "expected_batch_size": 3.0, "backend": "eager"}
        self.private = fxdp.compile(
            self.model,
            loss_fn=F.cross_entropy,
            max_grad_norm=0.5,
            **grouped({"sample_rate": rate, "accountant": "rdp"} | given | options),
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.loader = PoissonSampler(12, rate, 4, torch.Generator().manual_seed(1))

    def step(self) -> None:
        drawn = next(iter(self.loader))
        self.optimizer.zero_grad()
        self.private(X[drawn], Y[drawn]).backward()
        self.optimizer.step()
        self.scheduler.step()

    def save(self, path: Path, **options: Any) -> None:
        parts = {"loader": self.loader, "scheduler": self.scheduler} | options
        fxdp.save_checkpoint(path, self.private, parts.pop("optimizer", self.optimizer), **parts)

    def load(self, path: Path, **options: Any) -> Any:
        parts = {"loader": self.loader, "scheduler": self.scheduler} | options
        optimizer = parts.pop("optimizer", self.optimizer)
        return fxdp.load_checkpoint(path, self.private, optimizer, **parts)

    def state(self) -> Any:
        return [
            {name: value.clone() for name, value in self.private.state_dict().items()},
            self.optimizer.state_dict(), self.scheduler.state_dict(), self.loader.state_dict(),
            self.private.privacy_state_dict(), generator_states(),
            [getattr(self.private, name) for name in checkpoint.SCALES],
        ]  # fmt: skip


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "run.pt"
    run = Run()
    run.step()
    run.save(path)
    return path


@pytest.fixture
def saved(one_step: Path, tmp_path: Path) -> Path:
    """The checkpoint of a run after its first step."""
    return Path(shutil.copy(one_step, tmp_path))


GONE = "no such part"


def changed(path: Path, **parts: Any) -> None:
    """Rewrite parts of a checkpoint, or remove them."""
    state = loaded(path) | parts
    torch.save({name: part for name, part in state.items() if part is not GONE}, path)


class TestSaving:
    """Each line of the table in `fxdp.save_checkpoint`."""

    def test_the_model_is_the_plain_model(self, saved: Path) -> None:
        plain = Run().model
        plain.load_state_dict(loaded(saved)["model"])
        assert list(loaded(saved)["model"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]

    @pytest.mark.parametrize("name", ["save", "fsync", "replace"])
    def test_a_write_that_fails(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        before = saved.read_bytes()
        run = Run()
        run.step()

        def full(*args: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch if name == "save" else os, name, full)
        with pytest.raises(OSError, match="No space left"):
            run.save(saved)
        monkeypatch.undo()
        assert saved.read_bytes() == before
        assert os.listdir(saved.parent) == ["run.pt"]

    def test_the_file_and_then_its_folder_are_on_disk(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        fsync, replace = os.fsync, os.replace

        def synced(number: int) -> None:
            done.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
            fsync(number)

        def replaced(one: Any, other: Any) -> None:
            done.append("replace")
            replace(one, other)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", replaced)
        Run().save(saved)
        assert done == ["file", "replace", "folder"]

    def test_what_a_killed_writer_left_is_cleared_away(self, saved: Path) -> None:
        (saved.parent / ".run.pt.abc.tmp").write_bytes(b"half")
        (saved.parent / ".other.pt.abc.tmp").write_bytes(b"not ours")
        Run().load(saved)
        assert sorted(os.listdir(saved.parent)) == [".other.pt.abc.tmp", "run.pt"]

    @pytest.mark.parametrize("extra", [lambda: 0, np.float64(1.0), {"a": [Path("x")]}])
    def test_what_cannot_be_loaded_is_not_saved(self, saved: Path, extra: Any) -> None:
        before = saved.read_bytes()
        if callable(extra):
            extra = torch.nn.Linear(1, 1)
        with pytest.raises(TypeError, match="extra holds what torch"):
            Run().save(saved, extra=extra)
        assert saved.read_bytes() == before
        assert os.listdir(saved.parent) == ["run.pt"]

    def test_between_steps_alone(self, tmp_path: Path) -> None:
        run = Run()
        loss = run.private(X, Y)
        with pytest.raises(fxdp.StepError, match="backward"):
            run.save(tmp_path / "run.pt")
        loss.backward()
        with run.private.accumulate():
            run.private(X, Y).backward()
            with pytest.raises(fxdp.StepError, match="logical batch"):
                run.save(tmp_path / "run.pt")
        assert os.listdir(tmp_path) == []
        run.save(tmp_path / "run.pt")

    def test_only_the_owner_reads_it(self, one_step: Path) -> None:
        assert stat.S_IMODE(one_step.stat().st_mode) == 0o600


class TestLoading:
    """Each line of the table in `fxdp.load_checkpoint`."""

    def test_all_of_it(self, tmp_path: Path) -> None:
        run, other = Run(), Run()
        for _ in range(3):
            run.step()
        run.private.noise_multiplier = 2.0
        run.save(tmp_path / "run.pt", extra={"epoch": 7})
        wanted = run.state()
        random.random(), np.random.rand(), torch.rand(1)
        assert other.load(tmp_path / "run.pt") == {"epoch": 7}
        same(other.state(), wanted)
        other.step()
        set_generator_states(wanted[5])
        run.step()
        same(other.state(), run.state())
        assert other.private.privacy_spent(1e-5) == run.private.privacy_spent(1e-5)

    def test_without_a_ledger(self, saved: Path) -> None:
        torch.save(loaded(saved)["model"], saved)
        run = Run()
        before = run.state()
        alone: Any = {"optimizer": None, "loader": None, "scheduler": None}
        with pytest.raises(ValueError, match="has no ledger.*forget_ledger=True"):
            run.load(saved, **alone)
        same(run.state(), before)
        with pytest.warns(UserWarning, match="is forgotten"):
            run.load(saved, **alone, forget_ledger=True)
        same(run.state()[0], dict(loaded(saved)))
        assert run.private.releases == 0

    def test_a_ledger_that_is_not_wanted(self, saved: Path) -> None:
        run = Run()
        with pytest.warns(UserWarning, match="is forgotten"):
            run.load(saved, forget_ledger=True)
        assert run.private.releases == 0
        same(run.state()[0], dict(loaded(saved)["model"]))

    def test_after_a_release(self, saved: Path) -> None:
        run = Run()
        run.step()
        run.step()
        before = run.state()
        with pytest.raises(fxdp.StepError, match="would forget"):
            run.load(saved)
        same(run.state(), before)

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ({"privacy": GONE}, "has no ledger"),
            ({"model": GONE}, "has no ledger"),
            ({"version": 1}, "version 1"),
            ({"version": GONE}, "version None"),
            ({"rng": GONE}, "must have version 2"),
            ({"privacy": {"version": 2}}, "privacy state"),
            ({"privacy": {"version": 2, "ledger": {}, "noise": None}}, "ledger: must"),
            ({"optimizer": GONE}, "has no optimizer: pass none"),
            ({"loader": GONE}, "has no loader: pass none"),
            ({"scheduler": GONE}, "has no scheduler: pass none"),
            ({"model": {"0.weight": torch.ones(5, 4)}}, r"model: lacks \['0.bias'"),
            ({"model": torch.ones(1)}, "model: must be a mapping"),
            ({"optimizer": {"state": {}}}, "optimizer: lacks"),
            ({"optimizer": {"state": {}, "param_groups": []}}, "optimizer: has groups"),
            ({"scheduler": {"step_size": 1}}, "scheduler: lacks"),
            ({"loader": {}}, "sampler state"),
            ({"scales": {"max_grad_norm": 1.0}}, "scales: must be"),
            ({"scales": dict.fromkeys(checkpoint.SCALES, -1.0)}, "max_grad_norm must be"),
            ({"rng": {}}, "rng: must be"),
            ({"rng": generator_states() | {"torch": torch.zeros(3)}}, "rng: no states"),
            ({"rng": generator_states() | {"python": [1, 2]}}, "rng: no states"),
            ({"rng": generator_states() | {"numpy": {}}}, "rng: no states"),
            ({"code": {"rows": 8, "times": {"a": [1]}}}, "times: malformed"),
            ({"code": {"rows": "8", "times": {}}}, "code: rows"),
            ({"code": [8]}, "malformed"),
            ({"optimizer": {"state": {}, "param_groups": [1]}}, "malformed"),
            ({"devices": [3]}, "devices must be"),
        ],
    )
    def test_what_does_not_fit_changes_nothing(self, saved: Path, parts: Any, words: str) -> None:
        changed(saved, **parts)
        run = Run()
        before = run.state()
        with pytest.raises(ValueError, match=words):
            run.load(saved)
        same(run.state(), before)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"width": 6}, r"model: 0.weight is float32\[5, 4\], and here float32\[6, 4\]"),
            ({"rate": 0.5}, "sampler state: sampling"),
        ],
    )
    def test_made_otherwise(self, saved: Path, options: Any, words: str) -> None:
        run = Run(**options)
        before = run.state()
        with pytest.raises(ValueError, match=words):
            run.load(saved)
        same(run.state(), before)

    def test_other_dtypes_and_optimizers(self, saved: Path) -> None:
        run = Run()
        run.model.double()
        with pytest.raises(ValueError, match=r"float32\[5, 4\], and here float64"):
            run.load(saved)
        run = Run()
        with pytest.raises(ValueError, match=r"optimizer: group 0: lacks \['dampening'"):
            run.load(saved, optimizer=torch.optim.SGD(run.model.parameters(), lr=0.1))

    @pytest.mark.parametrize("name", ["optimizer", "loader", "scheduler"])
    def test_what_was_saved_must_be_passed(self, saved: Path, name: str) -> None:
        with pytest.raises(ValueError, match=f"has the {name}: pass it"):
            Run().load(saved, **{name: None})

    def test_the_scales_are_those_of_the_file(self, saved: Path) -> None:
        run = Run(noise_multiplier=9.0)
        run.load(saved)
        assert run.private.noise_multiplier == SIGMA

    def test_on_another_device_a_run_differs(self, saved: Path) -> None:
        """By its generators' seeds; it goes on with its key, and repeats no number of a release."""
        changed(saved, devices=["cuda:1"])
        run = Run()
        with pytest.warns(UserWarning, match="was on cuda:1 and is on cpu: its noise and random"):
            run.load(saved)
        assert not torch.equal(torch.get_rng_state(), loaded(saved)["rng"]["torch"])
        assert run.private._stepper.keys.state_dict() == loaded(saved)["noise"]

    @pytest.mark.parametrize("content", [b"", b"PK half a file", b"no zip file at all"])
    def test_no_checkpoint(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "run.pt").write_bytes(content)
        with pytest.raises(ValueError, match="cannot read it"):
            Run().load(tmp_path / "run.pt")

    def test_no_code_of_a_file_runs(self, tmp_path: Path) -> None:
        torch.save({"model": nn.Linear(1, 1)}, tmp_path / "run.pt")
        with pytest.raises(ValueError, match="cannot read it"):
            Run().load(tmp_path / "run.pt", forget_ledger=True)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Run().load(tmp_path / "run.pt")


def test_generators_come_back() -> None:
    states = generator_states()
    check_generator_states(states)
    first = (random.gauss(0, 1), np.random.randn(), torch.rand(1).item())
    set_generator_states(states)
    assert (random.gauss(0, 1), np.random.randn(), torch.rand(1).item()) == first


def test_code_is_made_for_the_batch_size_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a resumed run chooses as the other one did, by the same times, whatever comes first."""
    monkeypatch.setattr(timings, "stored", lambda found={}: found)  # nothing from the disk
    monkeypatch.setattr(
        timings, "remember", lambda key, found: timings.stored().update({key: found})
    )
    monkeypatch.setattr(timings, "used", lambda found=set(): found)
    run, other = Run(), Run()
    run.private(X[:7], Y[:7]).backward()
    run.loader.advance(0)
    run.save(tmp_path / "run.pt")
    found = loaded(tmp_path / "run.pt")["code"]
    assert found["rows"] == 7
    assert found["times"]
    for trial in found["times"].values():
        trial[0]["seconds"] = 0.0
    changed(tmp_path / "run.pt", code=found)
    other.load(tmp_path / "run.pt")
    monkeypatch.setattr(trials, "run", None)  # whoever tries anything fails
    other.private(X[:3], Y[:3]).backward()
    tried = [c.trials for c in other.private._stepper.study().of(Choices).all if c.trials]
    assert tried
    assert all(ways[0].seconds == 0.0 for ways in tried)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_step_that_compiles_draws_what_any_other_does(backend: str) -> None:
    states = []
    for steps in (1, 2):
        run = Run(backend=backend)
        for i in range(steps):
            if i == steps - 1:
                torch.manual_seed(5)
                random.seed(5)
                np.random.seed(5)
            run.private(X, Y).backward()
        states.append(generator_states())
    same(*states)
