"""The comparison with Opacus: both train on equal terms, and the table says what was found.

No test looks at how long anything takes, or who is better.
"""

import math
from typing import Any

import pytest
import torch

from fxdp.privacy import Poisson
from tools.accuracy.result import Row, Run, markdown, spread
from tools.accuracy.training import BATCH, CLIP, DELTA, both, row, take_turns
from tools.bench.result import Machine
from tools.examples.demo import N_TRAIN, Digits, load_digits

# What is warned of wherever Opacus is used so: that its noise is of torch's own generator, that
# its accountant would like other orders, and each hook whose module's input has no gradient.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
    pytest.mark.filterwarnings("ignore:Optimal order is the:UserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]


@pytest.fixture(scope="module")
def digits() -> Digits:
    pytest.importorskip("sklearn")
    return load_digits()


def test_a_budget_is_kept_by_both_in_a_few_steps(digits: Digits) -> None:
    said: list[str] = []
    found = row(digits, 8.0, seeds=1, epochs=2, backend="eager", say=said.append)
    assert said == ["epsilon 8, seed 0"]
    # The same noise for both; RDP, which is not tight, would have asked for more.
    assert 0 < found.sigma < found.by_rdp
    assert 7.99 < found.spent["fxdp"] <= 8.0 < found.spent["Opacus"]
    for name in ("fxdp", "Opacus"):
        assert 0.3 < found.accuracy[name][0] <= 1  # ten digits: 0.1 without having learnt
        assert found.seconds[name][0] > 0


def test_both_have_the_same_terms(digits: Digits) -> None:
    learners: dict[str, Any] = both(digits, 3, 1.5, 1, "eager")
    ours, theirs = learners["fxdp"], learners["Opacus"]
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one is not other
    assert ours.loader.batches.sampling == Poisson(BATCH / N_TRAIN)
    assert theirs.loader.sample_rate == BATCH / N_TRAIN
    assert len(ours.loader) == len(theirs.loader) == N_TRAIN // BATCH
    engine = theirs.optimizer
    assert engine.expected_batch_size == ours.model.expected_batch_size == BATCH
    assert engine.noise_multiplier == ours.model.noise_multiplier == 1.5
    assert engine.max_grad_norm == ours.model.max_grad_norm == CLIP
    mine, his = (one.optimizer.param_groups[0] for one in (ours, theirs))
    for name in ("lr", "betas", "eps", "weight_decay"):
        assert mine[name] == his[name]
    seconds = take_turns(learners, 1)
    assert {name: len(times) for name, times in seconds.items()} == {"fxdp": 6, "Opacus": 6}
    assert ours.model.releases == len(theirs.loader) == 6
    assert math.isfinite(ours.model.privacy_spent(DELTA))


def test_the_table() -> None:
    found = Row(
        2.0, 5.28, 5.703, {"fxdp": 2.0, "Opacus": 2.1},
        {"fxdp": [0.9, 0.92], "Opacus": [0.91, 0.91]},
        {"fxdp": [0.01, 0.02, 0.03], "Opacus": [0.04, 0.04, 0.04]},
    )  # fmt: skip
    machine = Machine("a processor", "cpu", 1, "3.11", "2.13", "1.6.0", "tools/run accuracy")
    run = Run(machine, 2, 240, (found,))
    assert Run.from_json(run.to_json()) == run
    text = markdown(run)
    assert text.startswith("`tools/run accuracy` on a processor, 1 thread, torch 2.13")
    assert text.endswith(
        "| 2 | 5.280 | 5.703 | 91.0 +- 1.4 % | 91.0 +- 0.0 % | 20.0 ms | 40.0 ms |"
    )
    assert spread([0.5]) == "50.0 %"
