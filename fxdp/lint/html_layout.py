"""Where the nodes of a joint graph stand on the page.

The forward pass runs down on the left, the backward pass up on the right, and what autograd wrote
for an op stands near the height of that op. On each side a node's rank is the longest way to it
(Sugiyama's layered layout); in a rank, nodes stand near the mean of their neighbours.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

SWEEPS = 6
AISLE = 1.5  # between the two sides, in widths of a node


@dataclass(frozen=True)
class Outline:
    """A graph without its meaning. Nodes are numbers, in topological order.

    Attributes:
        edges: (from, to), with from < to.
        backward: which nodes autograd wrote.
        light: which nodes follow whoever uses them: parameters and what is made of those.
    """

    edges: Sequence[tuple[int, int]]
    backward: Sequence[bool]
    light: Sequence[bool]


@dataclass(frozen=True)
class Spot:
    """Where a node stands, in widths and heights of a node."""

    x: float
    y: int


def spots(outline: Outline) -> list[Spot]:
    """A place for each node."""
    before, after = neighbours(outline)
    right, rank = ranked(outline, before, after)
    rows = aligned(outline, right, rank)
    y = [rows[side, r] for side, r in zip(right, rank, strict=True)]
    x = [0.0] * len(y)
    for side in (False, True):
        group = [v for v, s in enumerate(right) if s is side]
        _spread(group, y, x, outline, before, after)
        edge = max((x[v] for v in group), default=0.0), min((x[v] for v in group), default=0.0)
        for v in group:
            x[v] += AISLE / 2 - edge[1] if side else -AISLE / 2 - edge[0]
    return [Spot(round(a, 2), b) for a, b in zip(x, y, strict=True)]


def neighbours(outline: Outline) -> tuple[list[list[int]], list[list[int]]]:
    """For each node those that it reads, and those that read it."""
    before: list[list[int]] = [[] for _ in outline.backward]
    after: list[list[int]] = [[] for _ in outline.backward]
    for a, b in outline.edges:
        before[b].append(a)
        after[a].append(b)
    return before, after


def ranked(
    outline: Outline, before: list[list[int]], after: list[list[int]]
) -> tuple[list[bool], list[int]]:
    """On which side each node stands, right or not, and its rank there."""
    right = list(outline.backward)
    for v in reversed(range(len(right))):
        if outline.light[v] and after[v] and all(right[u] for u in after[v]):
            right[v] = True
    rank = [0] * len(right)
    for v, sources in enumerate(before):
        rank[v] = max((rank[u] + 1 for u in sources if right[u] == right[v]), default=0)
    for v in reversed(range(len(right))):
        users = [rank[u] for u in after[v] if right[u] == right[v]]
        if outline.light[v] and users:
            rank[v] = min(users) - 1
    return right, rank


def aligned(
    outline: Outline, right: Sequence[bool], rank: Sequence[int]
) -> dict[tuple[bool, int], int]:
    """The row of each rank, so that a backward rank stands near the forward values it reads.

    The forward rank that a backward rank would like to stand at must fall as one goes on; the
    nearest such sequence is an isotonic regression.
    """
    wish: dict[int, int] = {}
    for a, b in outline.edges:
        if right[b] and not right[a] and not outline.light[a]:
            wish[rank[b]] = max(wish.get(rank[b], 0), rank[a])
    left = sorted({r for r, side in zip(rank, right, strict=True) if not side})
    steps = sorted({r for r, side in zip(rank, right, strict=True) if side})
    wanted: list[float] = []
    for step in steps:
        last = wanted[-1] if wanted else -(left[-1] if left else 0)
        wanted.append(float(-wish[step]) if step in wish else last)
    weights = [1.0 if step in wish else 0.01 for step in steps]
    level = dict(zip(steps, (-round(v) for v in isotonic(wanted, weights)), strict=True))
    at: dict[int, list[int]] = defaultdict(list)
    for step in steps:
        at[max(level[step], 0)].append(step)
    height, rows = 0, dict[tuple[bool, int], int]()
    for r in sorted({*left, *at}, reverse=True):
        rows[False, r] = height
        for i, step in enumerate(at[r]):
            rows[True, step] = height + i
        height += max(1, len(at[r]))
    return {key: height - 1 - row for key, row in rows.items()}


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls, by squares: pool adjacent violators."""
    pools: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, w, length = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + mean * w) / (last[1] + w)
            last[1] += w
            last[2] += length
    return [mean for mean, _, length in pools for _ in range(int(length))]


def _spread(
    group: list[int],
    y: Sequence[int],
    x: list[float],
    outline: Outline,
    before: list[list[int]],
    after: list[list[int]],
) -> None:
    """Set x of the nodes of one side, by sweeps down and up."""
    inside = set(group)
    rows: dict[int, list[int]] = defaultdict(list)
    for v in group:
        rows[y[v]].append(v)
    for row in rows.values():
        for i, v in enumerate(row):
            x[v] = i - (len(row) - 1) / 2
    near = {v: [u for u in (*before[v], *after[v]) if u in inside] for v in group}
    for sweep in range(SWEEPS):
        for r in sorted(rows, reverse=bool(sweep % 2)):
            _settle(rows[r], near, x, outline.light)


def _settle(
    row: list[int], near: dict[int, list[int]], x: list[float], light: Sequence[bool]
) -> None:
    """Put the nodes of a row near their neighbours, a width apart at least."""
    wish: dict[int, float] = {}
    for v in row:
        weights = [0.1 if light[u] else 1.0 for u in near[v]]
        total = sum(weights)
        around = sum(w * x[u] for w, u in zip(weights, near[v], strict=True))
        wish[v] = around / total if total else x[v]
    row.sort(key=lambda v: (wish[v], v))
    free = isotonic([wish[v] - i for i, v in enumerate(row)], [0.2 if light[v] else 1 for v in row])
    for i, v in enumerate(row):
        x[v] = free[i] + i
