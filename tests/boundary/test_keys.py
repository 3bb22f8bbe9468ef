"""Noise never repeats: each line of the table of `fxdp.mechanism.run_key.RunKey`."""

import copy
import multiprocessing
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.backend.delivery import Once
from fxdp.diagnostics.errors import StepError
from fxdp.mechanism.run_key import RunKey
from tests.keywords import grouped

X, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def compiled(model: nn.Module | None = None, **options: Any) -> fxdp.PrivateModule:
    given: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "max_grad_norm": 1.0, "noise_multiplier": 100.0,
        "expected_batch_size": 6.0, "backend": "eager", "plan": "fixed",
    }  # fmt: skip
    return fxdp.compile(model or nn.Linear(5, 3), **grouped(given | options))


def noise(private: fxdp.PrivateModule) -> Tensor:
    """A release without samples: noise alone."""
    private.zero_grad()
    private(X[:0], Y[:0]).backward()
    return torch.cat([p.grad.flatten() for p in private.parameters() if p.grad is not None])


def differ(*found: Tensor) -> bool:
    return all(not torch.isin(a, b).any() for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("secure", [False, True])
def test_a_seed_between_steps_changes_nothing(secure: bool) -> None:
    private, found = compiled(secure=secure), []
    state = torch.get_rng_state()
    for restore in (lambda: torch.manual_seed(42), lambda: torch.set_rng_state(state)) * 2:
        restore()
        found.append(noise(private))
    assert differ(*found)


def test_a_copy_and_a_second_module_have_keys_of_their_own() -> None:
    torch.manual_seed(0)
    private = compiled()
    first = noise(private)
    twin = copy.deepcopy(private)
    torch.manual_seed(0)
    assert differ(first, noise(private), noise(twin), noise(compiled()))


def test_a_second_step_of_torch_compile_too() -> None:
    found = []
    for _ in range(2):
        model = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))
        step = torch.compile(
            model, backend="fxdp",
            options={"max_grad_norm": 1.0, "noise_multiplier": 1e8, "expected_batch_size": 1.0,
                     "backend": "eager", "plan": "fixed"},
        )  # fmt: skip
        for _ in range(2):
            torch.manual_seed(1)
            model.zero_grad()
            step(X).backward()
            found.append(model[0].weight.grad.flatten().clone())
    assert differ(*found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_children_of_a_fork() -> None:
    """Whether or not the run had a key before."""
    keys = RunKey()
    keys.next()
    for run in (keys, RunKey()):
        found = [run_in_child(run) for _ in range(2)]
        found.append(tuple(run.next().tolist()))
        assert len(set(found)) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_step_that_ran_before_a_fork_is_not_the_childs() -> None:
    """Its noise is, or two releases would have it; the parent's release is as before."""
    made: list[str] = []
    once = Once(lambda tangent: made.append("released") or {})
    child = os.fork()
    if child == 0:
        try:
            once(torch.ones(()))
        except StepError:
            os._exit(7 if not made else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert once(torch.ones(())) == {}
    assert made == ["released"]


def run_in_child(keys: RunKey) -> tuple[int, ...]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, struct.pack("<qq", *keys.next().tolist()))
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(read, 16)
    os.close(read)
    os.close(write)
    return struct.unpack("<qq", told)


def test_processes_that_start_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """By multiprocessing or by torchrun, with one seed in all of them."""
    found: list[tuple[int, ...]] = []
    for rank, name in (("0", "MainProcess"), ("1", "MainProcess"), ("0", "SpawnProcess-1")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(multiprocessing.current_process(), "_name", name)
        monkeypatch.setattr("fxdp.mechanism.run_key.RUNS", iter([0]))
        torch.manual_seed(0)
        found.append(tuple(RunKey().next().tolist()))
    assert len(set(found)) == 3


def test_one_seed_at_the_start_makes_a_run_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a new process, which has had as many runs before: none."""
    found = []
    for _ in range(2):
        monkeypatch.setattr("fxdp.mechanism.run_key.RUNS", iter([0]))
        torch.manual_seed(3)
        private = compiled(nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)))
        for _ in range(2):
            private(X, Y).backward()
        found.append(torch.cat([p.grad.flatten() for p in private.parameters()]))
    assert torch.equal(*found)


def test_a_seed_draws_the_masks_of_the_plain_model() -> None:
    """The key is made of the generator's state, and takes nothing from it."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    RunKey().next()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_ledger_without_its_key_starts_behind_its_releases() -> None:
    """As checkpoints of one's own do, that put the generators back, too."""
    keys = RunKey(root=bytes(32))
    used = {tuple(keys.next(n).tolist()) for n in range(5)}
    again = RunKey(root=bytes(32))
    assert tuple(again.next(5).tolist()) not in used


def test_a_checkpoint_goes_on_with_key_and_numbers(tmp_path: Path) -> None:
    private = compiled(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)))
    noise(private)
    list(private.children())[0].requires_grad_(False)  # so the graph counts other parameters
    noise(private)
    fxdp.save_checkpoint(tmp_path / "run", private)
    other = compiled(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)))
    fxdp.load_checkpoint(tmp_path / "run", other)
    list(other.children())[0].requires_grad_(False)
    assert torch.equal(noise(private), noise(other))


def test_a_parameter_keeps_its_number() -> None:
    """Frozen parameters before it do not move it, nor does the order of a graph."""
    keys, found = bytes(range(32)), []
    for frozen in (False, True):
        model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
        private = compiled(model)
        model[0].requires_grad_(not frozen)
        private._stepper.keys.root = keys
        noise(private)
        found.append(model[1].weight.grad)
    assert torch.equal(*found)
    assert [*private._stepper.keys.numbers] == [n for n, _ in private.named_parameters()]


@pytest.mark.parametrize(
    "state",
    [
        None,
        {"root": "00", "drawn": 0, "numbers": {}},
        {"root": None, "drawn": -1, "numbers": {}},
        {"root": None, "drawn": 0, "numbers": {"a": 0, "b": 0}},
        {"root": None, "drawn": 0, "numbers": {"a": 1}},
    ],
)
def test_a_malformed_state(state: Any) -> None:
    keys = RunKey(root=bytes(32), drawn=3)
    with pytest.raises(ValueError, match="noise keys"):
        keys.load_state_dict(state)
    assert (keys.root, keys.drawn) == (bytes(32), 3)
