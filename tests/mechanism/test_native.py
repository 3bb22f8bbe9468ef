"""The compiled noise is the noise of the keystream, or is not used."""

import warnings
from pathlib import Path

import pytest
import torch
from scipy import stats

from fxdp.kernels import native_code
from fxdp.kernels.native_code import built, machine
from fxdp.mechanism import native as module
from fxdp.mechanism.keystream import GROUP, noise_of
from fxdp.mechanism.native import SOURCE, Native, native

KEY = torch.tensor([5, -7])
DTYPES = [torch.float32, torch.float64]
pytestmark = pytest.mark.skipif(native() is None, reason="no compiler, or no AES instructions")


def own() -> Native:
    found = native()
    assert found is not None
    return found


@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0, 1, GROUP - 1, 7 * GROUP + 5, 2**33])
def test_any_part_of_a_parameter(dtype: torch.dtype, terms: int, start: int) -> None:
    for length in (0, 1, GROUP, 20 * GROUP + 9):
        flat = torch.linspace(-2, 2, length, dtype=dtype)
        want = (flat + 3.0 * noise_of(KEY, 11, start, length, dtype, terms)) * 0.25
        own().add(flat, KEY, 11, 3.0, 0.25, terms, start)
        torch.testing.assert_close(flat, want.to(dtype), rtol=1e-5, atol=1e-5)


def test_of_any_number_of_threads() -> None:
    """To the bit, so that a run does not depend on them."""
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(torch.zeros(40 * GROUP + 1))
            own().add(found[-1], KEY, 0, 1.0)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_normal_to_the_tails(dtype: torch.dtype) -> None:
    """The key is fixed: moments within 5 deviations, the tails beyond 4 by a binomial test."""
    flat = torch.zeros(1 << 21, dtype=dtype)
    own().add(flat, KEY, 1, 1.0)
    x, n = flat.double(), flat.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - mean) < 5 * (variance / n) ** 0.5
    assert stats.kstest(x[: 1 << 18].numpy(), "norm").pvalue > 1e-6
    for tail in (x > 4, x < -4):
        assert stats.binomtest(int(tail.sum()), n, float(stats.norm.sf(4))).pvalue > 1e-6


def test_parameters_and_releases_have_nothing_in_common() -> None:
    streams = []
    for key, number in ((KEY, 1), (KEY, 2), (KEY + 1, 1), (KEY, 1 + 2**32)):
        streams.append(torch.zeros(50 * GROUP, dtype=torch.float64))
        own().add(streams[-1], key, number, 1.0)
    off = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams), dtype=torch.float64)
    assert float(off.abs().max()) < 5 / (50 * GROUP) ** 0.5


@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_parameters_in_one_call(dtype: torch.dtype, terms: int) -> None:
    """Each has the noise that it has on its own, to the bit."""
    numbers = (4, 0, 2**40, 1)
    flats = [torch.linspace(-2, 2, n, dtype=dtype) for n in (3, 0, 5 * GROUP + 1, GROUP)]
    wanted = [x.clone() for x in flats]
    for x, number in zip(wanted, numbers, strict=True):
        own().add(x, KEY, number, 3.0, 0.25, terms)
    own().add_all(flats, KEY, numbers, 3.0, 0.25, terms)
    assert all(map(torch.equal, flats, wanted))


@pytest.mark.parametrize("numbers", [(1,), (1, 2, 3)])
def test_each_sum_has_a_number(numbers: tuple[int, ...]) -> None:
    flats = [torch.zeros(3), torch.zeros(3)]
    with pytest.raises(AssertionError, match=f"2 sums would get the noise of {len(numbers)}"):
        own().add_all(flats, KEY, numbers, 1.0)
    assert not any(x.any() for x in flats)


def test_there_is_none_without_a_key() -> None:
    none = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(AssertionError, match="no key"):
        own().add(torch.zeros(3), none, 0, 1.0)
    with pytest.raises(AssertionError, match="no key"):
        own().add_all([torch.zeros(3)], none, [0], 1.0)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a source that may be spoilt."""
    monkeypatch.setattr(native_code, "cache_dir", lambda: str(tmp_path / "cache"))
    source = tmp_path / "noise.c"
    source.write_text(SOURCE.read_text())
    monkeypatch.setattr(module, "SOURCE", source)
    native.cache_clear()
    yield source
    native.cache_clear()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ROUND(7, 0x40)", "ROUND(7, 0x41)"),
        ("+ 0.25f) * 0x1p-31f", "+ 0.25f) * 0x1p-30f"),
        ("0x1p-63;", "0x1p-62;"),
        ("q & 2 ? -b : b", "b"),
        ("(float)scale", "1"),
        ("start + n - g * GROUP : GROUP", "GROUP : GROUP"),
        ("ns[k], 0, numbers[k]", "ns[k], 0, numbers[0]"),
    ],
    ids=["cipher", "length", "wide length", "sign", "scale", "end", "whose"],
)
def test_what_is_compiled_wrongly_is_not_used(elsewhere: Path, right: str, wrong: str) -> None:
    text = elsewhere.read_text()
    assert right in text
    if wrong == "GROUP : GROUP":  # what lies behind must be there to be written to
        wrong = "(start + n - g * GROUP > 5 ? start + n - g * GROUP - 1 : 0) : GROUP"
    elsewhere.write_text(text.replace(right, wrong))
    with pytest.warns(UserWarning, match="compiled noise differs"):
        assert native() is None


def test_no_compiler_and_no_instructions(elsewhere: Path) -> None:
    """Nothing is said: the loop that takes its place makes the same noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elsewhere.write_text("#error no instructions for AES\n")
        assert native() is None


def test_half_a_file_in_the_cache_is_compiled_again(elsewhere: Path) -> None:
    path = built(elsewhere, machine())
    assert path is not None
    path.write_bytes(path.read_bytes()[:100])
    assert native() is None
    native.cache_clear()
    assert native() is not None
