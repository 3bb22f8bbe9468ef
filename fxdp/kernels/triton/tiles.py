"""Which tiles a kernel takes, in one table.

A choice depends on sizes that stay what they are from step to step, and so not on the number of
samples: what is compiled once serves batches of every size.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tiles:
    """What a program computes at a time.

    Attributes:
        rows, columns: of the tile of the result.
        step: how many products make its sum at a time.
        warps, stages: of Triton's.
        described: whether operands are read by the device's own copies of tiles, where there are
            such, or by a thread for each 16 bytes.
        together: how many programs a processor runs at a time.
    """

    rows: int
    columns: int
    step: int
    warps: int
    stages: int
    described: bool = False
    together: int = 1

    def warps_of(self, rows: int, columns: int) -> int:
        """Warps for a tile that is smaller, because an axis is."""
        return self.warps if rows * columns > 64 * 64 else min(self.warps, 4)


# All of these were the fastest of six to twelve on an H100, at the sizes of transformers' layers.
# Clipped sums: one sample's positions at a time. The sum of one sample, and that of all: both have
# to fit the registers.
BLOCKS = Tiles(128, 256, 64, warps=8, stages=3, described=True)
NARROW = Tiles(64, 128, 64, warps=4, stages=3, described=True, together=2)
FEW_BLOCKS = 100  # of the larger tiles: fewer leave processors idle,
LONG = 512  # except where each has so many positions that its samples can be shared out
# Clipped sums: few positions of several samples, whose three pieces take registers.
ROWS = Tiles(128, 128, 64, warps=8, stages=3)
SMALL_ROWS = Tiles(64, 64, 64, warps=4, stages=3)
FEW_ROWS = 100
WIDE_ROWS = Tiles(64, 64, 16, warps=4, stages=3)  # of float32 numbers
# Ghost norms, by the number of positions up to which they are taken.
GRAMS = (
    (32, Tiles(32, 32, 128, warps=4, stages=4)),
    (64, Tiles(64, 64, 128, warps=4, stages=4)),
    (256, Tiles(64, 64, 128, warps=4, stages=3)),
    (None, Tiles(128, 128, 64, warps=8, stages=3)),
)
WIDE_GRAMS = (
    (64, Tiles(32, 32, 32, warps=4, stages=3)),
    (None, Tiles(64, 64, 32, warps=4, stages=3)),
)

# Ghost norms of one position: how many numbers of a vector are added up at a time.
VECTOR = Tiles(1, 1, 256, warps=4, stages=1)


def of_blocks(t: int, d: int, p: int) -> Tiles:
    """Those of a clipped sum [D, P] of samples with many positions T, in half precision."""
    large = over(d, BLOCKS.rows) * over(p, BLOCKS.columns)
    return BLOCKS if large >= FEW_BLOCKS or t >= LONG else NARROW


def of_rows(dtype: torch.dtype, d: int, p: int) -> Tiles:
    """Those of a clipped sum of samples with few positions, or of float32 numbers."""
    if dtype == torch.float32:
        return WIDE_ROWS
    return ROWS if over(d, ROWS.rows) * over(p, ROWS.columns) >= FEW_ROWS else SMALL_ROWS


def of_grams(t: int, bytes_each: int) -> Tiles:
    """Those of a ghost norm of samples with T positions."""
    table = WIDE_GRAMS if bytes_each == 4 else GRAMS
    return next(tiles for most, tiles in table if most is None or t <= most)


def over(size: int, side: int) -> int:
    """How many tiles cover an axis."""
    return -(-size // side)


def side(size: int, most: int) -> int:
    """The side of a tile along an axis: a power of two that a tensor core takes."""
    return max(16, min(1 << (size - 1).bit_length(), most)) if size else 16
