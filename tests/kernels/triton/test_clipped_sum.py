"""Clipped sums are those of float64, of the operands as they are."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from fxdp.kernels.clipped_sum import weighed_outer
from fxdp.kernels.triton import clipped_sum as kernels
from fxdp.kernels.triton.clipped_sum import by_blocks, clipped_sum, length, parts
from fxdp.kernels.triton.ghost import (
    ghost,
    lengths_kernel,
    norms_kernel,
    tile_kernel,
    tiles_kernel,
)
from fxdp.kernels.triton.launch import describable
from fxdp.kernels.triton.tiles import Tiles

FULL, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
# One position, few, and so many that they make blocks; edges that are ragged and some that are not.
SHAPES = [(1, 1, 1, 1), (37, 1, 20, 70), (9, 5, 33, 3), (3, 16, 64, 16), (3, 67, 130, 10)]


def wanted(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    """[i, o], in float64."""
    return torch.einsum("n,nti,nto->io", factor.double(), a.double(), b.double())


def assert_equal(found: Tensor, true: Tensor) -> None:
    """Up to sums in float32."""
    assert found.dtype == torch.float32
    assert (found - true).abs().max() <= 2e-6 * true.abs().max()


@pytest.mark.parametrize(
    ("of_a", "of_b"), [(FULL, FULL), (BF16, BF16), (HALF, HALF), (FULL, BF16), (BF16, HALF)]
)
@pytest.mark.parametrize(("n", "t", "d", "p"), SHAPES)
def test_sums(
    device: str, of_a: torch.dtype, of_b: torch.dtype, n: int, t: int, d: int, p: int
) -> None:
    """No operand is rounded on the way: the factor, which has 24 bits, would leave it 8."""
    a = torch.randn(n, t, d, device=device).to(of_a)
    b = torch.randn(n, t, p, device=device).to(of_b)
    factor = torch.rand(n, device=device)
    assert_equal(clipped_sum(a, b, factor), wanted(a, b, factor))


@pytest.mark.parametrize(("of_a", "of_b"), [(FULL, FULL), (BF16, BF16), (FULL, BF16)])
def test_the_op(device: str, of_a: torch.dtype, of_b: torch.dtype) -> None:
    """The same, by whichever way it goes on this device, and nothing of a sample that is muted."""
    a = torch.randn(5, 20, 24, device=device).to(of_a)
    b = torch.randn(5, 20, 8, device=device).to(of_b)
    factor = torch.tensor([0.5, 0.0, 1.0, 0.3, 0.25], device=device)
    true = wanted(a, b, factor)
    a[1, 3, 4], b[1, 0, 0] = float("nan"), float("inf")
    assert_equal(weighed_outer(a, b, factor), true)


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize(("n", "t", "d", "p"), [(3, 16, 64, 16), (4, 67, 136, 24), (2, 70, 72, 40)])
def test_blocks_of_a_sample(device: str, n: int, t: int, d: int, p: int, described: bool) -> None:
    """Read in either way, to the end of an axis and no further, and no sample that is muted."""
    tiles = Tiles(64, 32, 32, warps=4, stages=3, described=described)
    a, b = (torch.randn(n, t, k, device=device).bfloat16() for k in (d, p))
    assert describable(a)
    assert describable(b)
    factor = torch.rand(n, device=device)
    assert_equal(by_blocks(a, b, factor, tiles), wanted(a, b, factor))
    factor[1] = 0
    true = wanted(a, b, factor)
    a[1], b[1] = float("nan"), float("inf")
    assert_equal(by_blocks(a, b, factor, tiles), true)


def test_what_a_device_copies() -> None:
    """Rows of 16 bytes, at a multiple of 16 bytes."""
    x = torch.zeros(4, 6, 32, dtype=BF16)
    assert describable(x)
    assert describable(x[:, ::2, 8:])
    assert not describable(x[:, :, 1:])
    assert not describable(x[:, :, :4].contiguous())
    assert not describable(x[:1].expand(4, 6, 32))


@pytest.mark.parametrize("dtype", [FULL, BF16, HALF])
@pytest.mark.parametrize("t", [1, 5, 40])
def test_muted_samples_are_not_read(device: str, dtype: torch.dtype, t: int) -> None:
    """Whatever they hold; and all of them may be."""
    a, b = (torch.randn(5, t, k, device=device).to(dtype) for k in (4, 6))
    factor = torch.tensor([0.5, 0.0, 1.0, 0.0, 0.25], device=device)
    true = wanted(a, b, factor)
    a[1], b[1], a[3, 0, 0], b[3, -1] = float("nan"), float("inf"), float("inf"), float("nan")
    assert_equal(clipped_sum(a, b, factor), true)
    nothing = clipped_sum(a[1:2], b[1:2], torch.zeros(1, device=device))
    assert (nothing == 0).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)])
def test_nothing_to_add(device: str, shape: tuple[int, int, int, int]) -> None:
    n, t, d, p = shape
    a, b = torch.ones(n, t, d, device=device), torch.ones(n, t, p, device=device)
    found = clipped_sum(a, b, torch.ones(n, device=device))
    assert found.shape == (d, p)
    assert not found.any()


@pytest.mark.parametrize("t", [1, 20])
@pytest.mark.parametrize("dtype", [FULL, BF16])
def test_operands_in_any_layout(device: str, t: int, dtype: torch.dtype) -> None:
    """Steps first, features before steps, one position for all samples; factors in float64."""
    a = torch.randn(t, 6, 9, device=device).to(dtype).transpose(0, 1)
    others = [
        torch.randn(6, 7, t, device=device).to(dtype).transpose(1, 2),
        torch.randn(1, t, 7, device=device).to(dtype).expand(6, t, 7),
    ]
    factor = torch.rand(6, device=device, dtype=torch.float64)
    for b in others:
        assert_equal(clipped_sum(a, b, factor), wanted(a, b, factor))


@pytest.mark.parametrize("t", [1, 20])
def test_parts_add_up(device: str, t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many: some have no sample at all; and twice the same is found."""
    a, b = (torch.randn(11, t, k, device=device).bfloat16() for k in (4, 6))
    factor = torch.rand(11, device=device)
    for count in (1, 2, 3, 8):
        monkeypatch.setattr(kernels, "parts", lambda *_, c=count: c)
        found = clipped_sum(a, b, factor)
        assert_equal(found, wanted(a, b, factor))
        assert torch.equal(found, clipped_sum(a, b, factor))


def test_how_many_parts() -> None:
    """None where the tiles are many, or the steps few; as many as the device takes at a time."""
    assert parts(tiles=132, steps=10**6, programs=132) == 1
    assert parts(tiles=60, steps=20, programs=132) == 1
    assert parts(tiles=1, steps=3, programs=132) == 1
    assert parts(tiles=64, steps=1000, programs=132) == 2
    assert 100 < parts(tiles=1, steps=10**6, programs=132) <= 132


@pytest.mark.parametrize("t", [1, 20, 300])
def test_one_kernel_for_any_number_of_samples(device: str, t: int) -> None:
    """Nothing is compiled again where N changes."""
    if device == "cpu":
        pytest.skip("the interpreter compiles nothing")
    compiled: list[int] = []
    for n in (2, 1, 3, 16, 17, 64):
        a, b = (torch.randn(n, t, k, device=device).bfloat16() for k in (32, 48))
        clipped_sum(a, b, torch.ones(n, device=device))
        ghost(a, [b])
        norms = tile_kernel, tiles_kernel, norms_kernel, lengths_kernel
        kernels_used = (kernels.rows_kernel, kernels.blocks_kernel, *norms)
        caches = (cache for k in kernels_used for cache in k.device_caches.values())
        compiled.append(sum(len(cache[0]) for cache in caches))
    assert len(set(compiled)) == 1


@pytest.mark.parametrize(("t", "side"), [(16, 16), (17, 32), (65, 32), (64, 64), (1024, 64)])
def test_blocks(t: int, side: int) -> None:
    assert length(t, 64) == side
