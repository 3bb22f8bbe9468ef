"""The compiled steps are those of the loops, or are not used."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fxdp.kernels import native_code, recurrent
from fxdp.kernels import recurrent_loops as loops
from fxdp.kernels import recurrent_native as module
from fxdp.kernels.native_code import built, machine
from fxdp.kernels.recurrent_native import LAYERS, SOURCE, TRIED, Native, native, native_for

DTYPES = [torch.float32, torch.float64]
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-13}
pytestmark = pytest.mark.skipif(native(torch.float32) is None, reason="no compiler")


def own(dtype: torch.dtype) -> Native:
    found = native(dtype)
    assert found is not None
    return found


def drawn(name: str, steps: int, n: int, size: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Operands of a layer, some of whose states are not contiguous or shared by all rows."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    def weight(gates: int) -> Tensor:
        return draw(size, gates * size).t() / size**0.5

    g = draw(n, steps, size).transpose(0, 1)
    match name:
        case "lstm":
            return draw(steps, n, 4 * size), draw(size).expand(n, size), draw(n, size), weight(4)
        case "lstm_backward":
            _, _, gates, cells = loops.lstm(*drawn("lstm", steps, n, size, dtype))
            return g, draw(1, 1).expand(n, size), gates, cells, draw(n, size), weight(4)
        case "gru":
            x = draw(steps, 1, 3 * size).expand(steps, n, 3 * size)
            return x, draw(n, size), weight(3), draw(3 * size)
        case "gru_backward":
            states, kept = loops.gru(*drawn("gru", steps, n, size, dtype))
            return g, states, kept, draw(n, size), weight(3)
        case "rnn":
            return draw(n, steps, size).transpose(0, 1), draw(n, size), weight(1), False
        case _:
            states = loops.rnn(*drawn("rnn", steps, n, size, dtype))
            return g, states, weight(1), False


SIZES = [(1, 1, 1), (5, 1, 128), (3, 8, 31), (2, 203, 33), (4, 6, 150), (2, 0, 4)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_the_loops(name: str, dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    operands = drawn(name, *sizes, dtype)
    got, want = getattr(own(dtype), name)(*operands), getattr(loops, name)(*operands)
    tolerance = RELATIVE[dtype]
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_not_finite_stays_so(name: str, odd: float, dtype: torch.dtype) -> None:
    """In its own row, where the loop has it; other rows are, to the bit, what they were."""
    torch.manual_seed(0)
    operands = drawn(name, 3, 9, 20, dtype)
    spoilt = operands[0].clone()
    spoilt[1, 4, 7] = odd
    got = getattr(own(dtype), name)(spoilt, *operands[1:])
    want = getattr(loops, name)(spoilt, *operands[1:])
    before = getattr(own(dtype), name)(*operands)
    several = isinstance(got, tuple)
    for x, y, z in zip(*((r if several else (r,)) for r in (got, want, before)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5, equal_nan=True)
        others = torch.arange(9) != 4
        assert torch.equal(x[..., others, :], z[..., others, :])
    assert not all(bool(x.isfinite().all()) for x in (got if several else (got,))) or (
        odd != torch.nan and not name.endswith("backward")
    )


@pytest.mark.parametrize("name", LAYERS)
def test_small_numbers_keep_their_digits(name: str) -> None:
    """Each against the loop in float64, from states of 0, and not against the largest of a row."""
    torch.manual_seed(0)
    operands = drawn(name, 1, 5, 40, torch.float32)
    x = operands[0] * torch.logspace(-30, 0, 40).repeat(operands[0].shape[-1] // 40)
    rest = [y * (y.dim() != 2) if isinstance(y, Tensor) else y for y in operands[1:]]
    if name == "gru":
        rest[-1] = torch.zeros_like(rest[-1])
    got = getattr(own(torch.float32), name)(x, *rest)
    exact = [y.double() if isinstance(y, Tensor) else y for y in (x, *rest)]
    want = getattr(loops, name)(*exact)
    assert_relative(got, want)


def assert_relative(got: Any, want: Any) -> None:
    several = isinstance(got, tuple)
    for x, y in zip(got if several else (got,), want if several else (want,), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=2e-6, atol=1e-36)


def test_of_any_number_of_threads_and_rows() -> None:
    """To the bit: what a sample gives depends on no other sample and on no machine's load."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    for name in LAYERS:
        operands, found = drawn(name, 3, 205, 24, torch.float32), []
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                found.append(getattr(own(torch.float32), name)(*operands))
        finally:
            torch.set_num_threads(threads)
        torch.testing.assert_close(*found, rtol=0, atol=0)
    x, h, c, w = drawn("lstm", 3, 205, 24, torch.float32)
    whole, part = (own(torch.float32).lstm(x[:, :k], h[:k], c[:k], w)[0] for k in (205, 31))
    assert torch.equal(whole[:, :31], part)


def test_other_shapes_are_refused() -> None:
    """The compiled code looks at no shape."""
    x, h, c, w = drawn("lstm", 2, 3, 4, torch.float32)
    with pytest.raises(RuntimeError, match="expand"):
        own(torch.float32).lstm(x, h, c[:2], w)


def test_who_runs() -> None:
    x = torch.zeros(2, 3)
    assert native_for(x, x) is own(torch.float32)
    assert native_for(x.double()) is own(torch.float64)
    assert native_for(x, x.double()) is None
    assert native_for(x.bfloat16()) is None
    assert native_for(x.to("meta")) is None


def test_the_ops_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in LAYERS:
        run = getattr(Native, name)
        monkeypatch.setattr(Native, name, lambda *a, n=name, r=run: (seen.append(n), r(*a))[1])
        getattr(torch.ops.fxdp, name)(*drawn(name, 2, 3, 4, torch.float32))
    assert seen == list(LAYERS)


def test_settings_of_torch_do_not_spoil_the_check() -> None:
    """The loops would multiply in bfloat16."""
    native.cache_clear()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            assert native(torch.float32) is not None
    finally:
        torch.set_float32_matmul_precision(before)
        native.cache_clear()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a source that may be spoilt."""
    monkeypatch.setattr(native_code, "cache_dir", lambda: str(tmp_path / "cache"))
    source = tmp_path / "recurrent.cpp"
    source.write_text(SOURCE.read_text())
    monkeypatch.setattr(module, "SOURCE", source)
    native.cache_clear()
    yield source
    native.cache_clear()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("power * rest + (power - 1)", "power * rest + power - 1.0001f"),
        ("(x < 0 ? Vec<T>{} : x)", "(x > 0 ? x : Vec<T>{})"),
        ("y < K::LEAST ? splat<T>(K::LEAST) : y", "y > K::LEAST ? y : splat<T>(K::LEAST)"),
        ("a + k, depth, packed, lines, n", "a, depth, packed, lines, n"),
        ("h > 0 ? splat<T>(1)", "h >= 0 ? splat<T>(1)"),
    ],
    ids=["tanh", "NaN in relu", "NaN in sigmoid", "deep products", "slope at 0"],
)
def test_what_is_compiled_wrongly_is_not_used(elsewhere: Path, right: str, wrong: str) -> None:
    text = elsewhere.read_text()
    assert right in text
    elsewhere.write_text(text.replace(right, wrong))
    with pytest.warns(UserWarning, match="compiled recurrent layers differ"):
        assert native(torch.float32) is None
    operands = drawn("lstm", 2, 3, 4, torch.float32)
    torch.testing.assert_close(recurrent.lstm(*operands), loops.lstm(*operands), rtol=0, atol=0)


def test_no_compiler(elsewhere: Path) -> None:
    """Nothing is said: the loops compute the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elsewhere.write_text("#error no compiler\n")
        assert native(torch.float32) is None


def test_half_a_file_in_the_cache_is_compiled_again(elsewhere: Path) -> None:
    path = built(elsewhere, machine(), "NUMBER=float")
    assert path is not None
    path.write_bytes(path.read_bytes()[:100])
    assert native(torch.float32) is None
    native.cache_clear()
    assert native(torch.float32) is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_check_meets_everything(dtype: torch.dtype) -> None:
    """NaN, infinities and numbers of every magnitude, of each layer, and no difference passes."""
    for name, operands in module.layers_of(TRIED[3], dtype):
        want = getattr(loops, name)(*operands)
        found = torch.cat([x.flatten() for x in (want if isinstance(want, tuple) else (want,))])
        assert found.isnan().any(), name
        finite = found[found.isfinite() & (found != 0)].abs()
        assert float(finite.min()) < torch.finfo(dtype).tiny * 2**20 or name == "gru", name
        assert not name.endswith("backward") or float(finite.max()) > 2**90, name
    x = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]])
    assert module.agree(x, x, None)
    for other in (x * (1 + 3e-5), x.nan_to_num(0.0), x.where(~x.isinf(), -torch.inf)):
        assert not module.agree(other, x, None)
