"""Several processes are refused until fxdp trains in them itself, and so is whatever would move
gradients or parameters between them.

Most of it is seen in one process that takes itself for one of two (torch's "fake" backend); that
nothing is delivered between two real ones, in two.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import TensorDataset

import fxdp

N, D = 6, 4
OPTIONS: dict[str, Any] = {
    "max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": N, "backend": "eager",
}  # fmt: skip
X, Y = torch.randn(N, D), torch.arange(N) % 3
APART = {"mesh": None}
CPU = torch.device("cpu")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 3))


def private_of(model: nn.Module, **more: Any) -> fxdp.PrivateModule:
    return fxdp.compile(model, loss_fn=F.cross_entropy, **(OPTIONS | more))


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)


class Holder(nn.Module):
    """Somebody else's module around a private one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Tensor) -> Any:
        return self.inner(*args)


def init(size: int) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)


@pytest.fixture
def leave() -> Iterator[None]:
    """Leaves what processes the test was one of."""
    yield
    torch._dynamo.reset()
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def two(leave: None) -> None:
    init(2)


@pytest.fixture
def one(leave: None) -> None:
    init(1)


def nothing_happened(private: fxdp.PrivateModule) -> bool:
    return private.releases == 0 and all(p.grad is None for p in private.parameters())


# What was said of other processes.


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    "call",
    [
        lambda **mesh: private_of(network(), **mesh),
        lambda **mesh: fxdp.data.private_loader(TensorDataset(X), sample_rate=0.5, **mesh),
        lambda **mesh: make_private(network(), **mesh),
    ],
    ids=["compile", "private_loader", "make_private"],
)
def test_every_door_asks_what_the_other_processes_are(call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"has 2 processes here.* Pass mesh=None if they train"):
        call()
    assert call(**APART) is not None
    for mesh in (2, "dp", dist.device_mesh.init_device_mesh("cpu", (2,))):
        with pytest.raises(NotImplementedError, match="there is mesh=None"):
            call(mesh=mesh)


def make_private(model: nn.Module, **mesh: Any) -> Any:
    return fxdp.make_private(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        TensorDataset(X, Y),
        F.cross_entropy,
        noise_multiplier=1.0,
        delta=1e-2,
        epochs=1,
        max_grad_norm=1.0,
        sample_rate=0.5,
        **mesh,
    )


@pytest.mark.usefixtures("two")
def test_the_door_of_torch_compile_asks_too() -> None:
    model = WithLoss()
    with pytest.raises(ValueError, match="has 2 processes here"):
        torch.compile(model, backend="fxdp", options=OPTIONS)
    assert all(p.grad is None for p in model.parameters())
    torch._dynamo.reset()
    torch.compile(model, backend="fxdp", options=OPTIONS | APART)(X, Y).backward()
    assert all(p.grad is not None for p in model.parameters())


FORKED = """
import os, sys
import torch
import torch.nn.functional as F
from torch import nn
import fxdp

x, y = torch.randn(6, 4), torch.arange(6) % 3
options = dict(max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=6, backend="eager")


def forked(door, shared):
    model = nn.Linear(4, 3)
    if door == "compile":
        step = fxdp.compile(model, loss_fn=F.cross_entropy, **options)
    else:
        step = torch.compile(
            lambda x, y: F.cross_entropy(model(x), y), backend="fxdp", options=options
        )
    if shared:
        model.share_memory()
    if (pid := os.fork()) == 0:  # before this process has threads that a fork would lose
        try:
            step(x, y).backward()
            told = "released"
        except fxdp.StepError as error:
            told = "refused" if "ledger would not count" in str(error) else error
        print(door, "shared" if shared else "apart", told, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)


for door in ("compile", "torch.compile"):
    for shared in (False, True):
        forked(door, shared)
"""


def test_a_forked_process_that_shares_the_parameters() -> None:
    """Its releases would train this process's model, and this ledger would know nothing of it."""
    given = [sys.executable, "-c", FORKED]
    found = subprocess.run(given, capture_output=True, text=True, timeout=300, check=True)
    assert found.stdout.splitlines() == [
        "compile apart released", "compile shared refused",
        "torch.compile apart released", "torch.compile shared refused",
    ], found.stderr[-2000:]  # fmt: skip


@pytest.mark.usefixtures("two")
def test_processes_that_train_apart_do() -> None:
    private = private_of(network(), mesh=None)
    private(X, Y).backward()
    assert private.releases == 1


@pytest.mark.usefixtures("one")
def test_one_process_alone_is_no_other() -> None:
    private = private_of(network())
    private(X, Y).backward()
    assert private.releases == 1


@pytest.mark.usefixtures("leave")
def test_processes_that_come_later_are_met_at_the_next_step() -> None:
    private, model = private_of(network()), WithLoss()
    step = torch.compile(model, backend="fxdp", options=OPTIONS)
    private(X, Y).backward()
    step(X, Y).backward()
    private.zero_grad()
    model.zero_grad()
    init(2)
    for call in (private, step):
        with pytest.raises(fxdp.StepError, match="has 2 processes here"):
            call(X, Y).backward()
    with pytest.raises(fxdp.StepError, match="has 2 processes"), private.accumulate():
        private(X, Y).backward()
    assert private.releases == 1
    assert all(p.grad is None for p in (*private.parameters(), *model.parameters()))
    dist.destroy_process_group()
    private(X, Y).backward()
    assert private.releases == 2


@pytest.mark.usefixtures("two")
def test_what_trains_nothing_asks_nothing() -> None:
    assert fxdp.prove(network(), X, Y, loss_fn=F.cross_entropy)


# Wrappers.


def refused() -> Any:
    return pytest.raises((ValueError, fxdp.StepError), match=r"train in one process")


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DDP": DistributedDataParallel,
    "DataParallel": DataParallel,
    "fully_shard": fully_shard,
    "FSDP": lambda m: FullyShardedDataParallel(m, device_id=CPU),
    "FSDP, original parameters": lambda m: FullyShardedDataParallel(
        m, device_id=CPU, use_orig_params=True
    ),
}
wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@pytest.fixture
def quiet() -> Iterator[None]:
    """torch warns of its first sharding, and of a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("two", "quiet")
@wrapper
@pytest.mark.parametrize("hold", [lambda m: m, Holder], ids=["itself", "inside"])
def test_nothing_is_wrapped_around_a_private_module(wrap: Any, hold: Any) -> None:
    private = private_of(network(), mesh=None)
    with pytest.raises(ValueError, match=r"private.*train in one process; or, with mesh=None"):
        wrap(hold(private))
    assert nothing_happened(private)


@pytest.mark.usefixtures("two", "quiet")
@wrapper
def test_nothing_that_is_wrapped_is_made_private(wrap: Any) -> None:
    for model in (wrap(network()), Holder(wrap(network()))):
        with pytest.raises(ValueError, match=r"(wrapped by|sharded).*train in one process"):
            private_of(model, mesh=None)
    with pytest.raises(ValueError, match="wrapped by"):
        fxdp.prove(wrap(network()), X, Y, loss_fn=F.cross_entropy)


@pytest.mark.usefixtures("two", "quiet")
@wrapper
def test_nothing_is_wrapped_around_the_model_afterwards(wrap: Any) -> None:
    """The private module's parameters are the model's: either construction or the step fails."""
    model = network()
    private = private_of(model, mesh=None)
    with refused():
        wrap(model)
        private(X, Y).backward()
    assert private.releases == 0


@pytest.mark.usefixtures("two", "quiet")
@pytest.mark.parametrize("wrap", [DistributedDataParallel, fully_shard], ids=["DDP", "fully_shard"])
def test_parts_that_are_wrapped_are_met_too(wrap: Any) -> None:
    model = network()
    private = private_of(model, mesh=None)
    with refused():
        wrap(model[0])
        private(X, Y).backward()
    assert private.releases == 0


@pytest.mark.usefixtures("two")
def test_hooks_that_a_wrapper_left_are_met() -> None:
    model = network()
    ddp = DistributedDataParallel(model)
    with pytest.raises(ValueError, match="a DistributedDataParallel holds the model's parameters"):
        private_of(model, mesh=None)
    del ddp
    assert private_of(model, mesh=None) is not None  # nobody holds them any more


@pytest.mark.usefixtures("two")
def test_a_model_that_is_private_no_more_may_be_wrapped() -> None:
    model = network()
    private = private_of(model, mesh=None)
    del private
    assert DistributedDataParallel(model) is not None


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("order", ["inside", "outside", "before", "after"])
def test_the_door_of_torch_compile_refuses_wrappers(order: str) -> None:
    model = WithLoss()

    def run() -> None:
        if order == "inside":
            step: Any = torch.compile(
                DistributedDataParallel(model), backend="fxdp", options=OPTIONS | APART
            )
        else:
            ddp = DistributedDataParallel(model) if order == "before" else None
            step = torch.compile(model, backend="fxdp", options=OPTIONS | APART)
            if order == "outside":
                step = DistributedDataParallel(step)
            elif order == "after":
                step(X, Y)
                ddp = DistributedDataParallel(model)
            assert ddp is None or order == "before"
        step(X, Y).backward()

    why = r"train in one process; or, with mesh=None"
    if order == "inside" and torch.__version__ < "2.12":  # which does not compile such a wrapper
        why = "its result was not made by fxdp's step; nothing was released"
    with pytest.raises(Exception, match=why):
        run()
    assert all(p.grad is None for p in model.parameters())


# Two real processes.

TWO = """
import datetime, os, sys, warnings
import torch, torch.distributed as dist, torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP
import fxdp
from tests.keywords import grouped

warnings.simplefilter("ignore")
rank = 0 if os.fork() else 1  # what is imported is imported once
torch.manual_seed(0)
dist.init_process_group(
    "gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=60),
)
x, y = torch.randn(6, 4), torch.arange(6) % 3
options = dict(max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=6, backend="eager")


def refused(name, run):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    try:
        run(model)
    except (ValueError, fxdp.StepError) as error:
        assert "train" in str(error), error
        assert all(p.grad is None for p in model.parameters()), name
        print(name)
        return
    raise AssertionError(name + " was not refused")


def print(*words):
    with open(f"{sys.argv[1]}.{rank}", "a") as told:
        told.write(" ".join(words) + "\\n")


def private(model, **more):
    return fxdp.compile(model, loss_fn=F.cross_entropy, **options, **more)


refused("no mesh", private)
refused("around", lambda m: DDP(private(m, mesh=None))(x, y).backward())
refused("inside", lambda m: private(DDP(m), mesh=None)(x, y).backward())
refused("sharded", lambda m: private(fully_shard(m), mesh=None)(x, y).backward())
refused("sharded after", lambda m: fully_shard(private(m, mesh=None))(x, y).backward())
apart = private(nn.Linear(4, 3), mesh=None)
if rank == 0:  # the other one has nothing to do with it
    apart(x, y).backward()
    assert apart.releases == 1
    print("apart")
dist.barrier()
dist.destroy_process_group()
if rank == 1:
    os._exit(0)  # which is 1 after an error
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


def test_between_two_processes_nothing_is_delivered(tmp_path: Path) -> None:
    file = tmp_path / "store"
    loopback = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", TWO, str(file)], env=loopback, timeout=240, check=True)
    wanted = ["no mesh", "around", "inside", "sharded", "sharded after"]
    told = [(tmp_path / f"store.{rank}").read_text().splitlines() for rank in range(2)]
    assert told == [[*wanted, "apart"], wanted]
