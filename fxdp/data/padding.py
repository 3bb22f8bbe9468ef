"""Sequences of different lengths as one batch, whose length no sample decides.

    loader = private_loader(data, sample_rate=0.01, collate_fn=pad_collate(length=128))

A batch that is padded to its longest sequence tells that length to every sample in it: through a
mean over positions, or a position counted from the end, one sample moves the others' gradients,
which clipping does not bound and the proof cannot see.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from fxdp.arguments import require_whole
from fxdp.data.collate import Collate

Field = int | str
Number = int | float


def pad_collate(
    *,
    length: int | None = None,
    buckets: Sequence[int] | None = None,
    fields: Sequence[Field] | None = None,
    padding_value: Number | Mapping[Field, Number] = 0,
    truncate: bool = False,
    collate: Collate = default_collate,
) -> "Padded":
    """Returns a collate function that pads sequences along their first axis.

    With `length`, all batches have one length: it is public, and has to be chosen without looking
    at the data. With `buckets`, a batch gets the least of them that its longest sequence fits in.
    Which one that is, is a function of the samples: buckets save time, and leak less often than
    padding to the longest, but they leak, and the warning and the row of the certificate that sizes
    differ between steps are for them too.

    | edge case                              | what happens                                     |
    |----------------------------------------|--------------------------------------------------|
    | a sequence above the greatest length   | ValueError; with truncate, its first items       |
    | a number, a string, a tensor 0-d       | left to `collate`                                |
    | a list of numbers, a numpy array       | becomes a tensor                                 |
    | no samples, in a `private_loader`      | the least length, whatever the data              |
    | a tensor that is no sequence (a scan)  | name the sequences in `fields`                   |

    Args:
        length: of all batches, at least 1.
        buckets: lengths to choose from, ascending, in place of one length.
        fields: which items of a sample are sequences: keys of a mapping, positions in a tuple;
            None for all tensors with axes.
        padding_value: what is added behind, one for all or by field (0 for those not named; -100
            for the labels of a cross entropy).
        truncate: cut what is too long, in place of an error.
        collate: of samples that are of one length, with the samples along axis 0.

    Returns:
        A function of a list of samples; it can be pickled if `collate` can.

    Raises:
        ValueError, TypeError: an argument is not as described.
    """
    if (length is None) == (buckets is None):
        raise ValueError("pass length, or buckets: one of them, and not both")
    lengths = (length,) if length is not None else tuple(buckets or ())
    for each in lengths:
        require_whole("buckets" if length is None else "length", each, 1)
    if not lengths or list(lengths) != sorted(set(lengths)):
        raise ValueError(f"buckets must be lengths in ascending order, got {buckets!r}")
    if isinstance(fields, str):
        raise TypeError(f"fields must be a list of fields: [{fields!r}]")
    chosen = None if fields is None else frozenset(fields)
    return Padded(lengths, chosen, padding_value, truncate, collate)


@dataclass(frozen=True)
class Padded:
    """What `pad_collate` returns.

    Attributes:
        lengths: that a batch may have, ascending.
        fields, padding_value, truncate, collate: as there.
    """

    lengths: tuple[int, ...]
    fields: frozenset[Field] | None
    padding_value: Number | Mapping[Field, Number]
    truncate: bool
    collate: Collate

    def __call__(self, samples: list[Any]) -> Any:
        """The batch of some samples."""
        found = [self._opened(sample) for sample in samples]
        longest = max((len(x) for _, fields in found for x in fields.values()), default=0)
        length = next((n for n in self.lengths if n >= longest), self.lengths[-1])
        return self.collate([self._padded(sample, fields, length) for sample, fields in found])

    def of_nobody(self, sample: Any) -> Any:
        """A batch for its shapes alone, of the least length, which no sample decides."""
        return replace(self, lengths=self.lengths[:1], truncate=True)([sample])

    def _opened(self, sample: Any) -> tuple[Any, dict[Any, Tensor]]:
        """A sample, and its sequences by field; by None, if it is one itself."""
        if self.fields is not None and (missing := self.fields - set(names(sample))):
            raise ValueError(
                f"pad_collate: fields has {sorted(map(str, missing))}, and a sample has "
                f"{list(names(sample))}"
            )
        if not names(sample):
            x = sequence(sample)
            return sample, {} if x is None else {None: x}
        values = {name: sample[name] for name in names(sample)}
        found = {
            name: sequence(value, name)
            for name, value in values.items()
            if self.fields is None or name in self.fields
        }
        return sample, {name: x for name, x in found.items() if x is not None}

    def _padded(self, sample: Any, fields: dict[Any, Tensor], length: int) -> Any:
        """A sample with its sequences at one length."""
        own = {name: self._at(length, x, name) for name, x in fields.items()}
        if None in own:
            return own[None]
        if isinstance(sample, Mapping):
            return dict(cast(Mapping[Any, Any], sample)) | own
        if not names(sample):
            return sample
        items = [own.get(i, item) for i, item in enumerate(sample)]
        return type(sample)(*items) if hasattr(sample, "_fields") else tuple(items)

    def _at(self, length: int, x: Tensor, name: Any) -> Tensor:
        if len(x) > length and not self.truncate:
            where = "" if name is None else f" in field {name!r}"
            raise ValueError(
                f"pad_collate: a sequence of {len(x)} items{where}, and the greatest length is "
                f"{length}: pass a greater one, truncate=True, or in fields= what is a sequence"
            )
        value = self.padding_value
        value = value.get(name, 0) if isinstance(value, Mapping) else value
        missing = max(0, length - len(x))
        return torch.cat([x[:length], x.new_full((missing, *x.shape[1:]), value)])


def names(sample: Any) -> Sequence[Any]:
    """The fields of a sample: keys, or positions; none if it is a sequence or a number itself."""
    if isinstance(sample, Mapping):
        return list(cast(Mapping[Any, Any], sample))
    if isinstance(sample, tuple) or (isinstance(sample, list) and not is_numbers(sample)):
        return range(len(cast(Sequence[Any], sample)))
    return ()


def sequence(value: Any, name: Any = None) -> Tensor | None:
    """A value as a tensor with axes; None if it is no sequence."""
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    elif isinstance(value, list) and is_numbers(value):
        if not value:
            where = "" if name is None else f" in field {name!r}"
            raise ValueError(f"pad_collate: an empty list{where} has no dtype: make it a tensor")
        value = torch.as_tensor(value)
    return value if isinstance(value, Tensor) and value.dim() > 0 else None


def is_numbers(value: Any) -> bool:
    """Is this a list of numbers alone?"""
    return all(isinstance(x, int | float) for x in value)
