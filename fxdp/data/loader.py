"""A DataLoader that draws as the accountant assumes, and knows what the loop has been given."""

import random
from collections.abc import Iterator, Sized
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
    get_worker_info,
)

from fxdp.arguments import require_rate
from fxdp.data.collate import poisson_collate
from fxdp.data.handed import mark
from fxdp.data.sampler import PrivateSampler
from fxdp.data.samplers import PoissonSampler
from fxdp.distributed.guard import UNSAID, Mesh, trains_apart

# What a DataLoader was made with and its successor keeps.
KEPT = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "pin_memory_device",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)
DECIDED = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "in_order")


class PrivateLoader(DataLoader[Any]):
    """A DataLoader over the batches of a `PrivateSampler`.

    Guarantees:
        Batches reach the loop in the order of their steps, each once, with workers and
        prefetching as without. `batches.position` counts those that the loop was given, so
        a state that is saved in the loop's body resumes with the batch that would have come
        next, exactly. Whoever else iterates the batch sampler (a library that makes a loader of
        its own of it) moves the position too, ahead of the loop. An iteration draws nothing from
        torch's generators by itself. In a worker the generators of torch, Python and numpy begin
        anew with each batch, from a seed that is a function of the sampler's key and the step; so
        random augmentation resumes too.

    | edge case                              | what happens                                    |
    |----------------------------------------|-------------------------------------------------|
    | nobody is drawn                        | a batch whose tensors have no rows              |
    | the loop is left in the middle         | the next one is given the rest                  |
    | a copy, deep or not                    | a deep one draws other batches, another shares  |
    |                                        | the position                                    |
    | the data set has another length        | ValueError, before a batch of it is drawn       |
    | two loops at once, or a state loaded   | RuntimeError in the loop that has fallen behind |
    | in the middle of one                   |                                                 |

    Made by `private_loader`, which checks what it is given.

    Attributes:
        batches: the sampler, with the position.
    """

    def __init__(self, dataset: Dataset[Any], batches: PrivateSampler, **settings: Any) -> None:
        self._ahead = _Ahead(dataset, batches)
        super().__init__(dataset, batch_sampler=self._ahead, **settings)
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        steps = iter(self.batches.remaining())
        given, seed = self.generator, self.batches.seed(self.batches.position)
        # DataLoader draws a seed for its workers, which a run that resumes would draw once more.
        self.generator = torch.Generator().manual_seed(seed)
        self._ahead.moves = False
        try:
            batches = super().__iter__()
        finally:
            self.generator, self._ahead.moves = given, True
        for batch in batches:
            mark(batch, self.batches.advance(next(steps)))
            yield batch

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({type(self.dataset).__name__}, {self.batches!r}, "
            f"num_workers={self.num_workers})"
        )

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state: key and position, in plain types."""
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the loader stood that gave `state`; raises ValueError, as the sampler."""
        self.batches.load_state_dict(state)


def private_loader(
    source: Dataset[Any] | DataLoader[Any],
    batches: PrivateSampler | None = None,
    *,
    sample_rate: float | None = None,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    secure: bool = False,
    mesh: Mesh = UNSAID,
    **settings: Any,
) -> PrivateLoader:
    """Returns a DataLoader of the same data whose batches are drawn as an accountant assumes.

    Of a loader it keeps workers, collate function, pinned memory, worker_init_fn, generator,
    multiprocessing context, persistent workers and prefetching; what drew its batches is
    replaced, and refused if it was not a plain pass over the data, shuffled or not.

    | edge case                                          | what happens                       |
    |----------------------------------------------------|------------------------------------|
    | a loader with a sampler or batch sampler of its own | ValueError                        |
    | ... with drop_last, in_order=False, no batch size  | ValueError                         |
    | an IterableDataset                                 | TypeError: nobody can be drawn     |
    | a data set without length, or an empty one         | TypeError, ValueError              |
    | a sampler for another number of samples            | ValueError                         |
    | several processes of torch.distributed, no mesh    | ValueError                         |

    Args:
        source: a map-style data set, or a DataLoader over one.
        batches: the sampler; or None, for Poisson sampling by the arguments that follow.
        sample_rate: q in (0, 1]; None takes the loader's batch_size over the data's length,
            which thereby becomes public.
        steps: batches in one iteration; None takes 1 / q, rounded: one pass, on average.
        generator: gives the sampler's key; None takes the loader's own, else torch's.
        secure: draws from a cipher, as for every `PrivateSampler`.
        mesh: None says that the processes of torch.distributed train apart, each on batches of
            its own from all of the data.
        settings: for torch's DataLoader, in place of what the given loader has.

    Raises:
        ValueError, TypeError: as in the table, or an argument is out of its range.
    """
    trains_apart(mesh)
    dataset: Dataset[Any] = source.dataset if isinstance(source, DataLoader) else source
    num_samples = _length(dataset)
    for name in DECIDED:
        if name in settings:
            raise ValueError(f"{name} is decided by the sampler: leave it out")
    if isinstance(source, DataLoader):
        _check_plain(source, num_samples)
        kept = {name: getattr(source, name) for name in KEPT}
        settings = kept | settings
    if batches is None:
        if isinstance(source, DataLoader) and generator is None and not secure:
            generator = source.generator
        rate = _rate(source, sample_rate, num_samples)
        steps = round(1 / rate) if steps is None else steps
        batches = PoissonSampler(num_samples, rate, steps, generator, secure=secure)
    elif (sample_rate, steps, generator, secure) != (None, None, None, False):
        raise ValueError("sample_rate, steps, generator, secure: the sampler has its own")
    if batches.num_samples != num_samples:
        raise ValueError(
            f"the sampler draws from {batches.num_samples} samples, and the data set has "
            f"{num_samples}: make it with num_samples={num_samples}"
        )
    if not batches.fixed_size:
        collate = settings.get("collate_fn") or default_collate
        settings["collate_fn"] = poisson_collate(dataset, collate)
    return PrivateLoader(dataset, batches, **settings)


class _Ahead(Sampler[list[int]]):
    """The batches that come next.

    Attributes:
        moves: whether an iteration that begins now moves the position. The loader's own does not,
            as prefetching needs: there it moves with what the loop is given.
    """

    def __init__(self, dataset: Dataset[Any], batches: PrivateSampler) -> None:
        self.dataset = dataset
        self.batches = batches
        self.moves = True

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return self._drawn(self.moves)

    def _drawn(self, moves: bool) -> Iterator[list[int]]:
        for step in self.batches.remaining():
            length = len(cast(Sized, self.dataset))
            if length != self.batches.num_samples:
                raise ValueError(
                    f"the data set has {length} samples now, and had {self.batches.num_samples} "
                    "when its loader was made: make a new loader, and account for the new rate"
                )
            if moves:
                self.batches.advance(step)
            yield _Drawn(self.batches.batch(step), self.batches.seed(step))


class _Drawn(list[int]):
    """The indices of a batch. A worker that is sent them sets its generators to their seed."""

    def __init__(self, indices: list[int], seed: int) -> None:
        super().__init__(indices)
        self.seed = seed

    def __reduce__(self) -> Any:
        return _received, (list(self), self.seed)


def _received(indices: list[int], seed: int) -> list[int]:
    if get_worker_info() is not None:  # no copy elsewhere is to touch the generators
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
    return indices


def _length(dataset: Dataset[Any]) -> int:
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{kind} is an IterableDataset, which decides by itself what comes next, so its "
            "samples cannot be drawn by chance: pass a data set with __getitem__ and __len__"
        )
    if not isinstance(dataset, Sized):
        raise TypeError(f"{kind} has no length: give it __len__, so that its samples can be drawn")
    if len(dataset) == 0:
        raise ValueError(f"{kind} is empty: there is nobody to draw")
    return len(dataset)


def _check_plain(loader: DataLoader[Any], num_samples: int) -> None:
    """Refuses a loader whose way to draw would get lost."""
    if type(loader.batch_sampler) is not BatchSampler:
        met = type(loader.batch_sampler).__name__ if loader.batch_sampler else "no batch size"
        raise ValueError(
            f"the loader makes its batches by {met}, which private_loader would replace: pass "
            "the data set, and the sampler to draw with"
        )
    match loader.sampler:
        case SequentialSampler():
            plain = type(loader.sampler) is SequentialSampler
        case RandomSampler(replacement=False, num_samples=drawn):
            plain = type(loader.sampler) is RandomSampler and drawn == num_samples
        case _:
            plain = False
    if not plain:
        raise ValueError(
            f"the loader draws by {type(loader.sampler).__name__}, which is no plain pass over "
            "the data, and private_loader would replace it: no accountant here knows other ways "
            "to draw than fxdp.data's; pass the data set"
        )
    if loader.drop_last:
        raise ValueError(
            "the loader has drop_last=True, and batches that are drawn by chance have no last "
            "one to drop: make it with drop_last=False"
        )
    if not loader.in_order:
        raise ValueError(
            "the loader has in_order=False, by which batches may overtake each other, so that "
            "its position means nothing: make it with in_order=True"
        )


def _rate(
    source: Dataset[Any] | DataLoader[Any], sample_rate: float | None, num_samples: int
) -> float:
    if sample_rate is not None:
        return require_rate("sample_rate", sample_rate)
    if isinstance(source, DataLoader):
        return min(1.0, (source.batch_size or 0) / num_samples)
    raise ValueError("sample_rate must be given: the probability of each sample in each step")
