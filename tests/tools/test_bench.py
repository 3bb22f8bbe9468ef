"""The benchmark: who is timed and who is not, in which order, and what the numbers are of.

No test looks at how long anything takes.
"""

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.bench.alone import Order, alone
from tools.bench.check import Verdict, check, compare
from tools.bench.contender import Contender, Noise, Runner
from tools.bench.contenders import CONTENDERS, one_by_one, plain
from tools.bench.images import CROSS_ENTROPY
from tools.bench.memory import peak
from tools.bench.race import Limits, race
from tools.bench.reference import reference
from tools.bench.result import Alone, Entry, Heat, Run, this_machine
from tools.bench.table import markdown
from tools.bench.task import Loss, Sequences, Task
from tools.bench.timing import Times, interleaved
from tools.bench.workloads import WORKLOADS

# torch warns of each backward hook whose module's input has no gradient: Opacus's first layer.
hooks_warn = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


def small(n: int = 6) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 60), nn.Tanh(), nn.Linear(60, 4))
    return Task(model, (5 * torch.randn(n, 20),), torch.randint(4, (n,)), CROSS_ENTROPY)


def unclipped(task: Task) -> Runner:
    """A plain step that says it is private."""
    return plain(task)


def silent(task: Task) -> Runner:
    """Clips, but never adds noise."""
    runner = one_by_one(task)
    runner.set_noise(0.0)
    return replace(runner, set_noise=lambda _: None)


def twice_as_loud(task: Task) -> Runner:
    runner = one_by_one(task)
    return replace(runner, set_noise=lambda multiplier: runner.set_noise(2 * multiplier))


def refusing(task: Task) -> Runner:
    raise NotImplementedError("no such layer\nand a long story")


def failing(task: Task) -> Runner:
    def step() -> None:
        raise ValueError("in the backward pass")

    return replace(one_by_one(task), step=step)


def tiring(task: Task) -> Runner:
    """Goes well until its fifth step, which is timed."""
    runner, left = one_by_one(task), [None] * 4

    def step() -> None:
        left.pop()
        runner.step()

    return replace(runner, step=step)


def forgetful(task: Task) -> Runner:
    """Leaves a parameter without a gradient."""
    runner = one_by_one(task)
    last = next(iter(runner.parameters.values()))

    def step() -> None:
        runner.step()
        last.grad = None

    return replace(runner, step=step)


FAULTY = {
    "unclipped": (unclipped, "wrong", "is off by"),
    "silent": (silent, "wrong", "the noise is 0.00 times"),
    "loud": (twice_as_loud, "wrong", "the noise is 2.0"),
    "forgetful": (forgetful, "wrong", "no gradient of 0.weight"),
    "refusing": (refusing, "refuses", "NotImplementedError: no such layer"),
    "tiring": (tiring, "refuses", "while timed: IndexError"),
    "failing": (failing, "refuses", "ValueError: in the backward pass"),
}


def test_only_what_is_right_is_timed() -> None:
    contenders = {name: Contender(make) for name, (make, _, _) in FAULTY.items()}
    contenders = contenders | {name: CONTENDERS[name] for name in ("plain", "loop")}
    heat = race("small", None, small(), contenders, Limits(rounds=3), {})
    found = {e.contender: e for e in heat.entries}
    assert list(found) == list(contenders)
    for name, (_, status, why) in FAULTY.items():
        assert found[name].verdict.status == status
        assert why in found[name].verdict.why
        assert found[name].times is None
    for name in ("plain", "loop"):
        assert found[name].verdict.status == "right"
        assert len(found[name].times.cpu) == len(found[name].times.wall) == 3
    assert heat.clipped == 1
    assert heat.ratio("loop", "plain") is not None
    assert heat.ratio("silent", "plain") is None


@hooks_warn
@pytest.mark.parametrize("name", [n for n in CONTENDERS if n not in ("plain-compiled", "fxdp")])
def test_contenders_are_right(name: str) -> None:
    task = small()
    runner = CONTENDERS[name].make(task.copy())
    verdict = check(CONTENDERS[name], runner, reference(task), task.size)
    assert verdict.status == "right", verdict
    before = {n: p.clone() for n, p in runner.parameters.items()}
    runner.whole_step()
    for n, p in runner.parameters.items():
        assert p.grad is None
        assert torch.equal(p, before[n])


@hooks_warn
def test_opacus_has_its_own_lstm() -> None:
    """And the parameters keep their names."""
    task = WORKLOADS["lstm"].task(2, 3)
    contender = CONTENDERS["opacus-hooks"]
    runner = contender.make(task.copy())
    assert set(runner.parameters) == set(dict(task.model.named_parameters()))
    assert check(contender, runner, reference(task), 2).status == "right"


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads(name: str) -> None:
    workload = WORKLOADS[name]
    task = workload.task(2, 6 if isinstance(workload, Sequences) else None)
    again = workload.task(2, 6 if isinstance(workload, Sequences) else None)
    assert task.size == 2
    assert all(map(torch.equal, task.model.parameters(), again.model.parameters()))
    runner = plain(task)
    runner.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in runner.parameters.values())
    out = task.model(*task.inputs)
    each, mean = task.loss.each(out, task.target), task.loss.mean(out, task.target)
    assert each.shape == (2,)
    torch.testing.assert_close(each.mean(), mean)


def logging(log: list[str], name: str) -> Callable[[], None]:
    return lambda: log.append(name if gc.isenabled() else name.upper())


def test_contenders_take_turns() -> None:
    """In another order each round; without the garbage collector, warm-up aside."""
    log: list[str] = []
    times = interleaved({n: logging(log, n) for n in "abc"}, rounds=3, warmup=2)
    assert "".join(log) == "abcabc" + "ABC" + "BCA" + "CAB"
    assert gc.isenabled()
    assert all(len(t.cpu) == len(t.wall) == 3 and t.clock == "cpu" for t in times.values())


def test_a_budget_leaves_one_round() -> None:
    times = interleaved({"a": lambda: None, "b": lambda: None}, rounds=9, seconds=0)
    assert [len(t.cpu) for t in times.values()] == [1, 1]


def test_the_device_is_waited_for() -> None:
    log: list[str] = []
    times = interleaved(
        {"a": lambda: log.append("a")}, 1, warmup=0, synchronize=lambda: log.append("wait")
    )
    assert log == ["wait", "a", "wait"]
    assert times["a"].clock == "wall"


def test_times() -> None:
    times = Times((3.0, 2.0, 4.0), (9.0, 8.0, 7.0))
    assert (times.best, times.median, times.spread) == (2.0, 3.0, 0.5)
    assert replace(times, clock="wall").best == 7.0


def test_memory() -> None:
    """A known allocation is seen, and what is free before the next one is not added."""
    assert peak(lambda: torch.empty(2 * 2**20)) == pytest.approx(8, abs=0.01)

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(2**20).add(1)

    assert peak(one_after_the_other) == pytest.approx(8, abs=0.01)
    assert peak(lambda: None) == 0


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order("gradcnn-10", "plain", 2, None, "cpu")
    found = alone(order)
    assert found is not None
    weight = 25 * 16 * 16 * 10 * 4 / 2**20  # of the head, whose gradient is there at the end
    assert weight < found.memory_mib < 20
    monkeypatch.setattr("tools.bench.alone.LIMIT", 0.01)
    assert alone(order) is None


def test_what_rounding_decides_is_allowed() -> None:
    """Where a relu's input is 0 but for rounding, the gradient is a matter of luck."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
    x = torch.tensor([[3.0, 1.0], [0.005, 0.005], [5.0, 2.0]])
    loss = Loss(F.mse_loss, lambda out, y: (out - y).square().mean(1))
    wanted = reference(Task(model, (x,), torch.ones(3, 1) * 4, loss)).plain
    assert wanted.jumps["0.weight"] > 1e-3
    other = {"0.weight": wanted.gradients["0.weight"] * (1 + wanted.jumps["0.weight"])}
    assert compare(other, wanted).status == "right"
    assert compare({"0.weight": other["0.weight"] * 1.05}, wanted).status == "wrong"
    assert compare({"0.weight": other["0.weight"] * torch.nan}, wanted).status == "wrong"
    calm = reference(small()).private
    assert max(calm.jumps.values()) < 1e-3


def test_noise() -> None:
    noise, total = Noise(), Tensor([8.0, 4.0])
    assert not torch.equal(noise.added(total, 4), total / 4)
    noise.set(0.0)
    assert torch.equal(noise.added(total, 4), total / 4)


def test_a_run_survives_json() -> None:
    entries = (
        Entry("plain", Verdict("right", 1e-6), Times((1.0, 2.0), (3.0, 4.0)), Alone(4.0, 0.3, 0.2)),
        Entry("fxdp", Verdict("right", 1e-7), Times((3.0,), (3.0,), "wall"), None, ("a note",)),
        Entry("opacus-ew", Verdict("refuses", None, "NotImplementedError: no")),
    )
    run = Run(this_machine("cpu"), (Heat("gpt", 4, 16, 99, 0.5, entries),))
    assert Run.from_json(run.to_json()) == run
    assert run.machine.torch == torch.__version__
    table = markdown(run)
    assert "| workload | plain, ms | fxdp | opacus-ew |" in table
    assert "| gpt (N=4, T=16) | 1000.0 | 3.00 | refuses |" in table
    assert "| gpt (N=4, T=16) | 4.0 | right | refuses |" in table
    assert "| gpt (N=4, T=16) | 0.3 / 0.2 | right | refuses |" in table
