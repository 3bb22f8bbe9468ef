"""Times are kept, and nothing is timed twice."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from fxdp.autotune import timings
from fxdp.autotune.timings import Times, timed
from fxdp.autotune.trials import Trial

CPU = torch.device("cpu")


def one() -> Times:
    return [{"seconds": 0.5}]


def never() -> Times:
    raise AssertionError("timed twice")


def test_times_are_remembered(own_times: Path) -> None:
    assert timed("sum f32[3]", CPU, one) == one()
    assert own_times.exists()
    timings.stored.cache_clear()  # as in another process
    assert timed("sum f32[3]", CPU, never) == one()
    with pytest.raises(AssertionError, match="timed twice"):
        timed("sum f32[4]", CPU, never)


def test_what_another_process_keeps_meanwhile_stays(own_times: Path) -> None:
    timed("sum f32[3]", CPU, one)
    own_times.write_text(json.dumps({"theirs": [{"seconds": 2.0}]}))
    timed("sum f32[4]", CPU, one)
    assert len(json.loads(own_times.read_text())) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"Outer": 3}'])
def test_a_broken_store_is_no_store(text: str, own_times: Path) -> None:
    own_times.write_text(text)
    timings.stored.cache_clear()
    assert timed("sum f32[3]", CPU, one) == one()


def test_a_store_that_cannot_be_written(own_times: Path) -> None:
    own_times.mkdir()
    assert timed("sum f32[3]", CPU, one) == one()


@pytest.mark.usefixtures("own_times")
def test_what_was_asked_for_is_told() -> None:
    """So another process can choose alike."""
    timed("sum f32[3]", CPU, one)
    (asked,) = [timings.asked()]
    assert list(asked.values()) == [one()]
    timings.stored.cache_clear()
    timings.stored()
    timings.know(asked)
    assert timed("sum f32[3]", CPU, never) == one()


@pytest.mark.parametrize(
    "found", [[], {"a": 1}, {"a": [1]}, {"a": [{}]}, {"a": [{"seconds": 1.0}]}]
)
def test_malformed_times(found: Any) -> None:
    with pytest.raises(ValueError, match="times: malformed"):
        timings.check(found)


def test_what_is_kept_can_be_told_to_another_process() -> None:
    """Both kinds of time, as those who take them write them."""
    timings.check({"form": [asdict(Trial("ghost", False, 0.5, 0))]})
    timings.check({"layout": [{"channels_last": True, "seconds": 0.5}]})
    with pytest.raises(ValueError, match="malformed"):
        timings.check({"layout": [{"channels_last": True, "seconds": "0.5"}]})


def test_hopeless_work_runs_once() -> None:
    """If a run takes long enough to matter; a quick one may only have been the first."""
    runs: list[None] = []

    def work(rounds: int) -> None:
        runs.append(None)
        end = time.process_time() + rounds * timings.QUICK
        while time.process_time() < end:
            pass

    timings.seconds(lambda: work(2), best=0.0)
    assert len(runs) == 1
    timings.seconds(lambda: work(0), best=0.0)
    assert len(runs) == 1 + timings.REPEATS
    timings.seconds(lambda: work(2))
    assert len(runs) == 1 + 2 * timings.REPEATS
