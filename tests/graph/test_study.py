"""What is known of a graph, stage by stage."""

import pytest

from fxdp.graph.study import GradientSums, PerSample, Squares, Study
from fxdp.ops import RULES
from tests.passes.graphs import linear


def test_what_a_stage_finds_is_there_once_it_has_run() -> None:
    study = Study(RULES, 1, {}, history=["tidy"])
    assert study.found(GradientSums) is None
    with pytest.raises(AssertionError, match="GradientSums: not known, or not any more, after ti"):
        study.of(GradientSums)
    study.put(GradientSums(()))
    assert study.of(GradientSums) == study.found(GradientSums) == GradientSums(())


def test_what_is_taken_is_gone() -> None:
    study = Study(RULES, 1, {})
    study.put(PerSample({}))
    assert study.take(PerSample) == PerSample({})
    assert study.found(PerSample) is None
    with pytest.raises(AssertionError, match="PerSample: not known"):
        study.take(PerSample)


def test_squared_norms_are_there_between_measure_and_weigh_alone() -> None:
    """`share` erases nodes that they are."""
    assert list(linear("measure").study.of(Squares).nodes) == ["weight", "bias"]
    assert linear("weigh").study.found(Squares) is None
