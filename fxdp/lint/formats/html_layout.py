"""Where the nodes of a joint graph stand on the page.

The forward pass runs down on the left, the backward pass up on the right, and what autograd wrote
for an op stands near the height of that op. On each side a node's rank is the longest way to it
(Sugiyama's layered layout); in a rank, nodes stand near the mean of their neighbours.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

SWEEPS = 6
AISLE = 1.6  # between the two sides, in widths of a node
PULL = 0.15  # towards the middle of a side


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
    y: float


def spots(outline: Outline) -> list[Spot]:
    """A place for each node."""
    before, after = neighbours(outline)
    right, rank = ranked(outline, before, after)
    y = aligned(outline, right, rank)
    x = [0.0] * len(rank)
    for side in (False, True):
        rows: dict[int, list[int]] = defaultdict(list)
        for v, s in enumerate(right):
            if s is side:
                rows[rank[v]].append(v)
        inside = [[u for u in (*before[v], *after[v]) if right[u] is side] for v in range(len(x))]
        spread(rows, inside, x, outline.light)
        wall(rows, x, 1 if side else -1)
    heights = [y[s, r] for s, r in zip(right, rank, strict=True)]
    return [Spot(round(a, 2), round(b, 2)) for a, b in zip(x, heights, strict=True)]


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
    ins = [[u for u in sources if right[u] == right[v]] for v, sources in enumerate(before)]
    outs = [[u for u in users if right[u] == right[v]] for v, users in enumerate(after)]
    rank = [0] * len(right)
    for v, sources in enumerate(ins):
        rank[v] = max((rank[u] + 1 for u in sources), default=0)
    main = main_stream(right, rank, ins)
    for v in reversed(range(len(right))):
        ties = sum(main[u] for u in ins[v])
        if outs[v] and (not main[v] or 0 < ties < len(outs[v]) + (not right[v])):
            rank[v] = min(rank[u] for u in outs[v]) - 1
    return right, rank


def main_stream(right: Sequence[bool], rank: Sequence[int], ins: list[list[int]]) -> list[bool]:
    """Which nodes follow from where the longest way of their side begins: not the parameters,
    not the target, not what autograd computes again from saved values."""
    main = [False] * len(right)
    for side in (False, True):
        v = max((v for v, s in enumerate(right) if s is side), key=lambda v: rank[v], default=None)
        while v is not None:
            main[v] = not ins[v]
            v = max(ins[v], key=lambda u: rank[u], default=None)
    for v, sources in enumerate(ins):
        main[v] = main[v] or any(main[u] for u in sources)
    return main


def aligned(
    outline: Outline, right: Sequence[bool], rank: Sequence[int]
) -> dict[tuple[bool, int], float]:
    """The height of each rank, so that a backward rank stands near the forward values it reads.

    The forward rank that a backward rank would like to stand at falls as one goes on; the nearest
    sequence that does, with a row's distance between its members, is an isotonic regression.
    """
    wish: dict[int, int] = {}
    for a, b in outline.edges:
        if right[b] and not right[a] and not outline.light[a]:
            wish[rank[b]] = max(wish.get(rank[b], 0), rank[a])
    left = max((r for r, side in zip(rank, right, strict=True) if not side), default=0)
    steps = sorted({r for r, side in zip(rank, right, strict=True) if side})
    stretch = max(1.0, len(steps) / (left + 1))
    knots = [(i, stretch * (left - wish[step])) for i, step in enumerate(steps) if step in wish]
    fair = isotonic([h for _, h in knots], [1.0] * len(knots))
    wanted = between([(i, h) for (i, _), h in zip(knots, fair, strict=True)], len(steps))
    apart = isotonic([h - i for i, h in enumerate(wanted)], [1.0] * len(wanted))
    up = {(True, step): apart[i] + i for i, step in enumerate(steps)}
    up |= {(False, r): stretch * (left - r) for r in range(left + 1)}
    top = max(up.values(), default=0.0)
    return {key: top - height for key, height in up.items()}


def between(knots: Sequence[tuple[int, float]], length: int) -> list[float]:
    """A height for each step, straight between those that are known, a row a step beyond them."""
    if not knots:
        return [float(i) for i in range(length)]
    found: list[float] = []
    k = 0
    for i in range(length):
        while k + 1 < len(knots) and knots[k + 1][0] <= i:
            k += 1
        (at, low), (to, high) = knots[k], knots[min(k + 1, len(knots) - 1)]
        slope = (high - low) / (to - at) if to > at and i > at else 1.0
        found.append(low + slope * (i - at))
    return found


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


def spread(
    rows: dict[int, list[int]], near: list[list[int]], x: list[float], light: Sequence[bool]
) -> None:
    """Set x of the nodes of one side, by sweeps down and up."""
    for row in rows.values():
        for i, v in enumerate(row):
            x[v] = i - (len(row) - 1) / 2
    for sweep in range(SWEEPS):
        for r in sorted(rows, reverse=bool(sweep % 2)):
            settle(rows[r], near, x, light)


def settle(row: list[int], near: list[list[int]], x: list[float], light: Sequence[bool]) -> None:
    """Put the nodes of a row near their neighbours and the middle, a width apart at least."""
    wish: dict[int, float] = {}
    for v in row:
        weights = [0.1 if light[u] else 1.0 for u in near[v]]
        around = sum(w * x[u] for w, u in zip(weights, near[v], strict=True))
        wish[v] = around / (sum(weights) * (1 + PULL)) if weights else x[v]
    row.sort(key=lambda v: (wish[v], v))
    weights = [0.1 if light[v] else 1.0 for v in row]
    free = isotonic([wish[v] - i for i, v in enumerate(row)], weights)
    for i, v in enumerate(row):
        x[v] = free[i] + i


def wall(rows: dict[int, list[int]], x: list[float], side: int) -> None:
    """Move one side off the aisle; the few rows that are widest give way outwards."""
    reach = {r: max(-side * x[v] for v in row) for r, row in rows.items()}
    usual = sorted(reach.values())[int(0.75 * (len(reach) - 1))] if reach else 0.0
    for r, row in rows.items():
        for v in row:
            x[v] += side * (AISLE / 2 + max(usual, reach[r]))
