"""Ghost norms in pieces are those of the whole matrices."""

import pytest
import torch

from fxdp import grams
from fxdp.grams import spans


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("t", [0, 1, 3, 63, 64, 65, 200])
def test_pieces_add_up(n: int, t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "CACHED", 2 * max(t, 1) * grams.ROWS)  # two samples at a time
    a, b = (torch.randn(n, t, k, dtype=torch.double) for k in (4, 7))
    wanted = torch.einsum("nti,nto->nio", a, b).square().sum((1, 2))
    torch.testing.assert_close(torch.ops.fxdp.ghost_outer(a, b), wanted)


def test_one_matrix_for_several_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, each as if it were alone."""
    monkeypatch.setattr(grams, "ROWS", 3)
    a, *others = (torch.randn(4, 7, k, dtype=torch.double) for k in (3, 5, 2, 3))
    found = torch.ops.fxdp.ghost_outers(a, others)
    wanted = torch.stack([torch.ops.fxdp.ghost_outer(b, a) for b in others])
    torch.testing.assert_close(found, wanted)


def test_operands_may_be_views() -> None:
    a, b = torch.randn(9, 4, 5, dtype=torch.double), torch.randn(6, 5, 9, dtype=torch.double)
    a, b = a.permute(1, 0, 2), b.permute(1, 2, 0)[:4]  # no operand is contiguous
    wanted = torch.einsum("nti,nto->nio", a, b).square().sum((1, 2))
    torch.testing.assert_close(torch.ops.fxdp.ghost_outer(a, b), wanted)


@pytest.mark.parametrize(("size", "most"), [(0, 3), (1, 3), (7, 3), (9, 3), (64, 64), (65, 64)])
def test_spans(size: int, most: int) -> None:
    """Equal parts, side by side, none too large."""
    found = spans(size, most)
    assert [k for start, stop in found for k in range(start, stop)] == list(range(size))
    lengths = [stop - start for start, stop in found]
    assert not lengths or (max(lengths) <= most and max(lengths) - min(lengths) <= 1)
