"""A small share of what `tools/run soundness` does; and proof that it would notice a wrong rule."""

import copy
import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from fxdp.forms import Outer
from fxdp.ops import RULES
from fxdp.placement import Placement, Replicate, Shard
from fxdp.rules import Call
from tools.soundness import op_db, random_graphs
from tools.soundness.__main__ import options, run_ops
from tools.soundness.apart import Died, apart

aten = torch.ops.aten
GRAPHS = 20
# One of each family of rules.
OPERATORS = (
    "add", "where", "sum", "amax", "softmax", "cumsum", "sort", "permute", "reshape", "cat",
    "split", "roll", "select", "index_select", "gather", "scatter_add", "bmm", "einsum",
    "nn.functional.linear", "nn.functional.conv1d", "nn.functional.layer_norm",
    "nn.functional.group_norm", "nn.functional.batch_norm", "nn.functional.embedding",
    "nn.functional.cross_entropy", "nn.functional.max_pool1d", "nn.functional.pad",
    "linalg.cholesky",
)  # fmt: skip


@pytest.fixture(scope="module")
def operators() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for op in op_db.database():
        found.setdefault(op.name, op)
    return found


def test_operators(operators: dict[str, Any]) -> None:
    checked = 0
    for name in OPERATORS:
        tally = op_db.tried(operators[name], count=1, placements=2)
        assert not tally.false, "\n".join(tally.false)
        checked += tally.checked
    assert checked > 100


def test_what_dies_takes_nothing_else_with_it() -> None:
    seen: list[int] = []

    def work(item: int) -> list[int]:
        seen.append(item)
        if item == 1:
            os.write(2, b"free(): invalid pointer\n")  # as the C library does
            os.abort()
        return seen

    found = list(apart(work, [0, 1, 2]))
    assert found == [[0], Died("SIGABRT: free(): invalid pointer"), [2]]
    assert list(apart(lambda _: 1 / 0, [0])) == [
        Died("exit code 1: ZeroDivisionError: division by zero")
    ]


def test_an_operator_that_dies_is_no_success(
    operators: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dying, well = copy.copy(operators["add"]), operators["lu_unpack"]
    monkeypatch.setattr(dying, "op", lambda *_, **__: os.abort())
    monkeypatch.setattr(op_db, "database", lambda: [dying, well])
    assert not run_ops(options().parse_args(["ops"]))
    printed = capsys.readouterr().out
    assert "CRASHED --op add: SIGABRT" in printed
    assert (
        "1  torch's own kernel writes outside of its memory, without fxdp too: lu_unpack" in printed
    )
    assert "0 FALSE, 1 CRASHED" in printed
    monkeypatch.setattr(op_db, "database", lambda: [well])
    assert run_ops(options().parse_args(["ops"]))


def test_random_graphs() -> None:
    tally = random_graphs.Tally()
    for seed in range(GRAPHS):
        random_graphs.check(seed, tally)
    assert not tally.false, tally.false[0]
    assert tally.accepted >= GRAPHS / 4, tally.summary()
    assert tally.mixing >= GRAPHS / 4, tally.summary()


def stays(call: Call, x: Any, *_: Any, **__: Any) -> Placement:
    """A wrong rule: nothing happens to the samples."""
    return x.placement


def sharded(call: Call, *_: Any, **__: Any) -> Placement:
    """A wrong rule: every sum over samples is the same for all."""
    return Shard(0) if call.out[0] and call.out[0][0].has(call.n) else Replicate()


@pytest.mark.parametrize(
    ("name", "op", "wrong"),
    [
        ("softmax", aten._softmax.default, stays),
        ("cumsum", aten.cumsum.default, stays),
        ("sum", aten.sum.dim_IntList, sharded),
    ],
)
def test_wrong_rules_are_found(operators: dict[str, Any], name: str, op: Any, wrong: Any) -> None:
    table = {**RULES, op: replace(RULES[op], place=wrong)}
    assert op_db.tried(operators[name], count=3, placements=3, table=table).false


def doubled(a: Any, b: Any) -> Outer:
    """A wrong form: every sample's gradient twice."""
    return Outer(2 * a.positions(), b.positions())


def test_wrong_forms_are_found_in_random_graphs() -> None:
    products = {op: replace(RULES[op], form=doubled) for op in (aten.mm.default, aten.bmm.default)}
    tally = random_graphs.Tally()
    for seed in range(GRAPHS):
        random_graphs.check(seed, tally, {**RULES, **products})
        if tally.false:
            return
    raise AssertionError(f"no false accept was found: {tally.summary()}")
