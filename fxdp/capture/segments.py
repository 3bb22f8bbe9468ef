"""Ragged arguments of a step: rows of all samples on one axis, and what says whose each is.

Before a step, whose the rows are is looked at: every row belongs to one of the samples, and what
points to rows points to those of one sample. The proof takes it from there (`fxdp.proof.ragged`).

Letters: N samples, R rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

SPARE = 2  # rows that padding adds: torch.compile gives sizes 0 and 1 graphs of their own
Kind = Literal["rows", "owner", "pointer", "starts"]


@dataclass(frozen=True)
class Ragged:
    """Says in `batch_dims` that an argument holds rows of samples, as many of each as it has.

    Exactly one of the first four says whose they are:

    ==========================  ================================================================
    Ragged(index="batch")       row r belongs to sample batch[r]; `batch` is int64 [R], in any
                                order. So torch_geometric has it
    Ragged(offsets="offsets")   the rows of sample n are offsets[n] to offsets[n + 1]; `offsets` is
                                int64 [N] and begins with 0. So nn.EmbeddingBag has it
    Ragged(points_to="x")       the argument holds numbers of rows of `x`, all along another axis of
                                one sample's: edges [2, E] with dim=1
    Ragged(like="edge_index")   row r belongs to the sample that row r of `edge_index` belongs to
    ==========================  ================================================================

    `batch` and `offsets` are arguments of the model, and need no entry of their own. How many
    samples there are says another argument, or `offsets`.

    Args:
        dim: the axis of the rows.

    Raises:
        TypeError: not exactly one of the four is given, or one is not the name of an argument.
    """

    index: str | None = None
    offsets: str | None = None
    points_to: str | None = None
    like: str | None = None
    dim: int = 0

    def __post_init__(self) -> None:
        given = [v for v in (self.index, self.offsets, self.points_to, self.like) if v is not None]
        if len(given) != 1 or not isinstance(given[0], str) or type(self.dim) is not int:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                "fxdp.Ragged takes exactly one of index, offsets, points_to and like, the name of "
                f"an argument; and dim, an integer: not {self}"
            )


@dataclass(frozen=True)
class Role:
    """What an argument has to do with rows.

    Attributes:
        kind: as `fxdp.graph.marks.ragged` has it.
        axis: the number of its ragged axis.
        dim: the axis of the tensor that it is.
        to: the number of the ragged axis that it points to; `axis`, where it points to none.
    """

    kind: Kind
    axis: int
    dim: int
    to: int

    @property
    def parts(self) -> tuple[str, int, int, int]:
        """In plain types."""
        return self.kind, self.axis, self.dim, self.to


@dataclass(frozen=True)
class Rows:
    """The ragged arguments of a step.

    Attributes:
        roles: by argument name.
        owners: of each ragged axis, int64 [R]: the sample of each row.
    """

    roles: dict[str, Role]
    owners: tuple[Tensor, ...]


def named_by(declared: Mapping[str, Ragged]) -> dict[str, str]:
    """The arguments that declared ones name for their index or offsets, and which of the two."""
    found = {d.index: "index" for d in declared.values() if d.index is not None}
    return found | {d.offsets: "offsets" for d in declared.values() if d.offsets is not None}


def looked_at(declared: Mapping[str, Ragged], tensors: Mapping[str, Tensor], size: int) -> Rows:
    """Whose the rows are, from the tensors that say so.

    Args:
        declared: by argument name.
        tensors: the arguments that are one tensor, by name.
        size: the number of samples.

    Raises:
        TypeError: what says whose rows are whose is not int64.
        ValueError: a row belongs to no sample, or points to rows of several, or to none; sizes do
            not fit; a name is not that of such an argument.
    """
    roles: dict[str, Role] = {}
    owners: list[Tensor] = []
    left = dict(declared)
    while left:
        waits = {k: d.points_to or d.like for k, d in left.items()}
        ready = [name for name, other in waits.items() if other not in left]
        if not ready:
            raise ValueError(f"batch_dims: {sorted(left)} say of each other whose their rows are")
        for name in ready:
            place(name, left.pop(name), tensors, size, roles, owners)
    return Rows(roles, tuple(owners))


def place(
    name: str, declared: Ragged, tensors: Mapping[str, Tensor], size: int, roles: dict[str, Role],
    owners: list[Tensor],
) -> None:  # fmt: skip
    """Add one ragged argument's role, and its axis, if it is the first on that."""
    x, by = tensors[name], declared.index or declared.offsets or declared.points_to or declared.like
    assert by is not None
    if by not in tensors:
        raise ValueError(
            f"batch_dims: {by!r}, which {name!r} goes by, is no argument of one tensor"
        )
    if not -x.dim() <= declared.dim < x.dim():
        raise ValueError(f"argument {name!r} of shape {tuple(x.shape)} has no axis {declared.dim}")
    dim = declared.dim % x.dim()
    count = x.shape[dim]
    goes_by = declared.like is not None or declared.points_to is not None
    if goes_by and (by not in roles or roles[by].kind == "starts"):
        raise ValueError(f"batch_dims: {by!r}, which {name!r} goes by, is not ragged")
    if declared.points_to is not None:
        to = roles[by].axis
        owners.append(pointed(name, x, dim, owners[to], by))
        roles[name] = Role("pointer", len(owners) - 1, dim, to)
        return
    if by not in roles:
        kind: Kind = "owner" if declared.index is not None else "starts"
        found = indexed if kind == "owner" else cut
        owners.append(found(by, tensors[by], size, count))
        roles[by] = Role(kind, len(owners) - 1, 0, len(owners) - 1)
    axis = roles[by].axis
    if len(owners[axis]) != count:
        raise ValueError(
            f"argument {name!r} has {count} rows on axis {dim}, and by {by!r} there are "
            f"{len(owners[axis])}"
        )
    roles[name] = Role("rows", axis, dim, axis)


def require_numbers(name: str, x: Tensor) -> None:
    """What says whose rows are whose must be int64.

    Raises:
        TypeError: it is not.
    """
    if x.dtype != torch.int64:
        raise TypeError(f"argument {name!r} says whose rows are whose: int64, not {x.dtype}")


def indexed(name: str, x: Tensor, size: int, count: int) -> Tensor:
    """[R]: the sample of each row, which an index says."""
    require_numbers(name, x)
    if x.dim() != 1:
        raise ValueError(
            f"argument {name!r} must be [R], a sample for each row, not {list(x.shape)}"
        )
    if len(x) and (int(x.min()) < 0 or int(x.max()) >= size):
        raise ValueError(
            f"argument {name!r} must hold numbers of samples, 0 to {size - 1}, and holds "
            f"{int(x.min())} to {int(x.max())}"
        )
    return x


def cut(name: str, x: Tensor, size: int, count: int) -> Tensor:
    """[R]: the sample of each row, where offsets say at which row each sample begins."""
    require_numbers(name, x)
    if tuple(x.shape) != (size,):
        raise ValueError(
            f"argument {name!r} must be [N], the first row of each, not {list(x.shape)}"
        )
    ends = torch.cat([x, x.new_full((1,), count)])
    if int(ends[0]) != 0 or bool((ends.diff() < 0).any()):
        raise ValueError(
            f"argument {name!r} must begin with 0 and never fall, up to {count}, the number of rows"
        )
    return torch.repeat_interleave(torch.arange(size, device=x.device), ends.diff())


def pointed(name: str, x: Tensor, dim: int, owner: Tensor, to: str) -> Tensor:
    """[E]: the sample of each row that points to rows."""
    require_numbers(name, x)
    if x.numel() and (int(x.min()) < 0 or int(x.max()) >= len(owner)):
        raise ValueError(
            f"argument {name!r} must hold numbers of rows of {to!r}, 0 to {len(owner) - 1}, and "
            f"holds {int(x.min())} to {int(x.max())}"
        )
    flat = x.movedim(dim, -1).unsqueeze(0).flatten(0, -2)
    if not len(flat):
        raise ValueError(f"argument {name!r} of shape {tuple(x.shape)} points to nothing")
    found = owner[flat]
    if bool((found != found[0]).any()):
        raise ValueError(
            f"argument {name!r} joins rows of {to!r} that belong to different samples: no sample "
            "has a gradient of its own then"
        )
    return found[0]


def picked(
    leaves: Sequence[Any], dims: Sequence[Any], owners: Sequence[Tensor], samples: Sequence[int]
) -> tuple[list[Any], tuple[Tensor, ...]]:
    """The ragged leaves with the rows of some samples alone, one after the other; other leaves as
    they are.

    Args:
        dims: a `Role` for each leaf that is ragged.
        samples: their numbers; one may come twice.
    """
    own = [[(o == k).nonzero().flatten() for k in samples] for o in owners]
    taken = [torch.cat([*k, k[0][:0]]) if k else o[:0] for k, o in zip(own, owners, strict=True)]
    counts = [torch.tensor([len(k) for k in ks], dtype=torch.int64) for ks in own]
    fresh = tuple(
        torch.arange(len(samples)).repeat_interleave(c).to(o.device)
        for c, o in zip(counts, owners, strict=True)
    )
    found: list[Any] = []
    for x, role in zip(leaves, dims, strict=True):
        if not isinstance(role, Role):
            found.append(x)
            continue
        rows, begins = taken[role.axis], counts[role.axis].cumsum(0) - counts[role.axis]
        match role.kind:
            case "rows":
                found.append(x.index_select(role.dim, rows))
            case "owner":
                found.append(fresh[role.axis])
            case "starts":
                found.append(begins.to(x.device))
            case "pointer":
                parts: list[Tensor] = []
                first = 0
                for mine, theirs in zip(own[role.axis], own[role.to], strict=True):
                    place = torch.zeros_like(owners[role.to])
                    place[theirs] = torch.arange(first, first + len(theirs), device=place.device)
                    parts.append(place[x.index_select(role.dim, mine)])
                    first += len(theirs)
                found.append(torch.cat(parts, role.dim) if parts else x.narrow(role.dim, 0, 0))
    return found, fresh


def with_spare(
    leaves: Sequence[Any], dims: Sequence[Any], owners: Sequence[Tensor], size: int, samples: int
) -> tuple[list[Any], tuple[Tensor, ...]]:
    """The ragged leaves with rows of zeros for the last of `samples` samples, of which `size` are
    there; other leaves as they are."""
    more = tuple(torch.cat([o, o.new_full((SPARE,), samples - 1)]) for o in owners)
    found: list[Any] = []
    for x, role in zip(leaves, dims, strict=True):
        if not isinstance(role, Role):
            found.append(x)
            continue
        shape = [*x.shape]
        shape[role.dim] = SPARE
        match role.kind:
            case "rows":
                found.append(torch.cat([x, x.new_zeros(shape)], role.dim))
            case "owner":
                found.append(more[role.axis])
            case "starts":
                found.append(torch.cat([x, x.new_full((samples - size,), len(owners[role.axis]))]))
            case "pointer":
                spare = x.new_full(shape, len(owners[role.to]))
                found.append(torch.cat([x, spare], role.dim))
    return found, more
