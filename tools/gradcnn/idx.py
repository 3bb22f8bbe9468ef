"""The idx format of MNIST: a magic number, the sizes, and bytes, in that order, perhaps gzipped.

The magic number is 0, 0, the type of the numbers (8 is unsigned bytes) and how many axes there
are; a size is four bytes, the highest first.
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BYTES = 8  # the type code of unsigned bytes
Bytes = NDArray[np.uint8]


class IdxError(Exception):
    """A file is not there, or not as it should be; the message says which and why."""


@dataclass(frozen=True)
class Images:
    """Images [n, rows, columns] of bytes, and their labels [n]."""

    images: Bytes
    labels: Bytes


def read_images(folder: Path, prefix: str) -> Images:
    """One half of MNIST, `train` or `t10k`, from its usual files in a folder.

    Raises:
        IdxError: a file is missing or broken, or the two do not fit together.
    """
    images = read(find(folder, f"{prefix}-images-idx3-ubyte"), axes=3)
    path = find(folder, f"{prefix}-labels-idx1-ubyte")
    labels = read(path, axes=1)
    if len(images) != len(labels):
        raise IdxError(f"{path}: {len(labels)} labels for {len(images)} images")
    return Images(images, labels)


def find(folder: Path, name: str) -> Path:
    """A file, plain or gzipped, in a folder or where torchvision puts it below one."""
    places = [folder, folder / "MNIST" / "raw"]
    for path in (place / n for place in places for n in (name, f"{name}.gz")):
        if path.is_file():
            return path
    raise IdxError(f"{folder}: no {name} and no {name}.gz, here or in MNIST/raw")


def read(path: Path, axes: int) -> Bytes:
    """The array in one file.

    Raises:
        IdxError: the file is broken.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise IdxError(f"{path}: cannot be read: {error}") from error
    head = 4 + 4 * axes
    if len(raw) < head:
        raise IdxError(f"{path}: truncated: {len(raw)} bytes, where the head alone has {head}")
    if raw[:4] != bytes([0, 0, BYTES, axes]):
        raise IdxError(f"{path}: no idx file of bytes with {axes} axes: it begins {raw[:4].hex()}")
    shape = np.frombuffer(raw, ">u4", axes, offset=4).tolist()
    count = math.prod(shape)  # of Python's integers, which broken sizes cannot overflow
    if len(raw) - head != count:
        what = "truncated" if len(raw) - head < count else "too long"
        sizes = "x".join(map(str, shape))
        raise IdxError(
            f"{path}: {what}: {len(raw) - head} bytes of data, where {sizes} has {count}"
        )
    return np.frombuffer(raw, np.uint8, count, head).reshape(shape)
