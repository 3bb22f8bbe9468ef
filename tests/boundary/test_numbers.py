"""Tiny and huge numbers, settings of torch that round products, and noise that a dtype holds."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.kernels import precision
from fxdp.mechanism import clipping
from fxdp.mechanism.clipping import Flat
from tests.keywords import grouped

HALVES = (torch.float16, torch.bfloat16)


class Scaled(nn.Module):
    """Gradients of any size: a convolution, a table and a head, on positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.table = nn.Conv1d(2, 4, 3, padding=1), nn.Embedding(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, ids: Tensor, size: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x).transpose(1, 2) + self.table(ids))
        return (self.head(h).square().sum((1, 2)) * size).sum()


def batch(dtype: torch.dtype, size: float) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(1, 2, 6, generator=g).to(dtype)
    return x, torch.arange(6).view(1, 6) % 5, torch.full((1,), size, dtype=dtype)


def added(private: fxdp.PrivateModule, *args: Any) -> float:
    """How far one sample moves the sum."""
    private.zero_grad()
    private(*args).backward()
    found = [p.grad.double().flatten() for p in private.parameters() if p.grad is not None]
    return float(torch.cat(found).norm())


class Greedy(Flat):
    """A rule of a user's own that asks for too much."""

    def factor(self, norms: Tensor, bound: Tensor) -> Tensor:
        return torch.full_like(norms, 1e30)


RULES = {
    "flat": "flat", "automatic": clipping.Automatic(1e-30), "normalize": "normalize",
    "groups": clipping.PerGroup({"conv*": 1.0, "*": 2.0}), "per-layer": "per-layer",
    "adaptive": clipping.Adaptive(min_clipbound=1e-30), "greedy": Greedy(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "dtype"),
    [
        *((s, torch.float32) for s in ("ghost", "instantiate", "unfold", "crb", "naive")),
        *((s, d) for s in ("ghost", "instantiate") for d in (torch.float64, torch.bfloat16)),
    ],
)
def test_no_sample_adds_more_than_the_bound(strategy: str, dtype: torch.dtype) -> None:
    private = fxdp.compile(
        Scaled().to(dtype),
        max_grad_norm=1.0,
        noise_multiplier=0.0,
        expected_batch_size=1.0,
        backend="eager",
        clipping="normalize",
        options={"strategy": strategy},
    )
    rounding = 1.01 if dtype in HALVES else 1.0001
    for bound in (1.0, 1e-10, 1e-25):
        private.max_grad_norm = bound
        for size in (1.0, 1e-16, 1e-21, 1e-23, 1e-30, 1e-37, 1e-42, 1e18, 1e30):
            found = added(private, *batch(dtype, size))
            assert found <= bound * rounding, (bound, size)
            assert not 1e-16 < size < 1e16 or found >= bound * 0.98


@pytest.mark.parametrize("rule", RULES)
def test_whatever_the_rule(rule: str) -> None:
    private = fxdp.compile(
        Scaled(), max_grad_norm=1e-25, noise_multiplier=0.0, expected_batch_size=1.0,
        backend="eager", clipping=RULES[rule],
    )  # fmt: skip
    for size in (1.0, 1e-20, 1e-23, 1e-25, 1e-40):
        bound = private.max_grad_norm
        assert added(private, *batch(torch.float32, size)) <= bound * 1.0001, size


def test_float64_far_below() -> None:
    private = fxdp.compile(
        Scaled().double(), max_grad_norm=1e-180, noise_multiplier=0.0, expected_batch_size=1.0,
        backend="eager",
    )  # fmt: skip
    for size in (1e-150, 1e-160, 1e-175, 1e-300):
        assert added(private, *batch(torch.float64, size)) <= 1.0001e-180


class Product(nn.Linear):
    """A sample's gradient is a sum over positions of x c^T."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return (super().forward(x) * c).sum((1, 2)).sum()


def product(strategy: str, t: int, backend: str = "eager") -> fxdp.PrivateModule:
    torch.manual_seed(0)
    return fxdp.compile(
        Product(96, 64, bias=False),
        max_grad_norm=1e-3,
        noise_multiplier=0.0,
        expected_batch_size=1.0,
        backend=backend,
        options={"strategy": strategy},
    )


@pytest.mark.parametrize("t", [1, 5])
def test_one_operand_is_tiny_and_the_other_is_not(t: int) -> None:
    """Its squares underflow, and the norm does not."""
    private = product("ghost", t)
    x, c = torch.randn(1, t, 96), torch.randn(1, t, 64)
    for one, other in ((1e-25, 1e10), (1e10, 1e-25), (1e-22, 1e17), (1e-20, 1e18)):
        assert added(private, x * one, c * other) <= 1.001e-3


def test_a_gradient_whose_squares_overflow_is_counted() -> None:
    private = product("instantiate", 5)
    assert added(private, torch.randn(1, 5, 96) * 1e15, torch.randn(1, 5, 64) * 1e15) == 0.0
    assert private.last_nonfinite == 1


# Settings that make torch round the operands of products.
BACKENDS = torch.backends
SETTINGS: dict[str, Callable[[], Any]] = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "all": lambda: setattr(BACKENDS, "fp32_precision", "bf16"),
    "all tf32": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "matmul": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    "matmul tf32": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "tf32"),
    "conv": lambda: setattr(BACKENDS.mkldnn.conv, "fp32_precision", "bf16"),
    "rnn": lambda: setattr(BACKENDS.mkldnn.rnn, "fp32_precision", "bf16"),
    "cuda": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "old cuda": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "mixed": lambda: [SETTINGS[name]() for name in ("medium", "all", "matmul", "cuda")],
}
KEYS = (precision.ROOT, *precision.KEYS["mkldnn"], *precision.KEYS["cuda"])


def settings() -> list[str]:
    return [precision.read(key) for key in KEYS]


@contextlib.contextmanager
def under(name: str) -> Iterator[list[str]]:
    """A setting, and afterwards all as it was when torch was imported."""
    try:
        SETTINGS[name]()
        yield settings()
    finally:
        torch.set_float32_matmul_precision("highest")
        for key in KEYS[:-2]:
            precision.write(key, "none")
        for key in KEYS[-2:]:
            precision.write(key, "tf32")


def cancelling(n: int = 2, t: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Positions that cancel but for a rest, and the true norms."""
    torch.manual_seed(3)
    x, c = torch.randn(n, 1, 96).expand(n, t, 96).contiguous(), torch.randn(n, 1, 64)
    sign = torch.ones(t)
    sign[t // 2 :] = -1
    c = (sign.view(1, t, 1) * c).contiguous()
    c[:, 0] *= 1.3
    return x, c, torch.einsum("nti,nto->nio", x.double(), c.double()).flatten(1).norm(dim=1)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("strategy", ["ghost", "instantiate", "naive"])
def test_norms_and_sums_are_exact_whatever_torch_is_told(strategy: str, before: bool) -> None:
    """Set before compilation and after it; nothing is left behind."""
    x, c, true = cancelling()
    private = product(strategy, 64)
    all_of_them = before and strategy == "ghost"
    if not before:
        private.per_sample_norms(x, c)
    for name in SETTINGS if all_of_them else ("mixed",) if before else ("medium", "all", "mixed"):
        if before:
            torch._dynamo.reset()
            private = product(strategy, 64)
        with under(name) as wanted:
            norms = private.per_sample_norms(x, c)
            one = [added(private, x[k : k + 1], c[k : k + 1]) for k in range(2)]
            assert settings() == wanted
        assert ((norms / true - 1).abs() < 0.05).all(), name
        # What is released is what was measured: no more than the bound.
        assert all(0.95e-3 < found < 1.001e-3 for found in one), name


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("name", ["medium", "mixed"])
def test_generated_code_too(name: str) -> None:
    x, c, true = cancelling()
    torch._dynamo.reset()
    with under(name) as wanted:
        norms = product("ghost", 64, backend="inductor").per_sample_norms(x, c)
        assert settings() == wanted
    assert ((norms / true - 1).abs() < 0.05).all()


def test_settings_are_put_back_after_an_error_and_by_the_last() -> None:
    with under("all") as wanted:
        with pytest.raises(ZeroDivisionError), precision.full_precision():  # noqa: PT012
            assert not precision.is_lowered()
            with precision.full_precision():
                pass
            assert not precision.is_lowered()
            raise ZeroDivisionError
        assert settings() == wanted
        BACKENDS.fp32_precision = "ieee"  # what was left to the root still is
        assert settings()[:5] == ["ieee"] * 5


def test_a_backward_pass_in_autocast() -> None:
    x, c, true = cancelling(1)
    private = product("instantiate", 64)
    loss = private(x, c)
    with torch.autocast("cpu", torch.bfloat16):
        loss.backward()
    assert float(private.last_norms / true) == pytest.approx(1, abs=0.05)


class Tiny(nn.Linear):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(4, 2, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square().sum(1).float()


def noisy(dtype: torch.dtype, bound: float, sigma: float, **options: Any) -> fxdp.PrivateModule:
    return fxdp.compile(
        Tiny(dtype),
        max_grad_norm=bound,
        noise_multiplier=sigma,
        expected_batch_size=2.0,
        backend="eager",
        **grouped(options),
    )


def refused(private: fxdp.PrivateModule, x: Tensor, scale: float = 1.0) -> None:
    with pytest.raises(ValueError, match=r"noise_multiplier \* max_grad_norm"):
        (private(x) * scale).backward()
    assert private.releases == 0
    assert all(p.grad is None for p in private.parameters())


@pytest.mark.parametrize(
    ("dtype", "bound", "sigma"),
    [
        (torch.float16, 1e4, 2.0), (torch.float16, 1.0, 1e5), (torch.bfloat16, 1e30, 1e8),
        (torch.float32, 1e30, 1e9), (torch.float64, 1e300, 1e9),
        # Noise that float32 does not hold is no noise.
        (torch.float32, 1e-40, 1e-6), (torch.float32, 1e-25, 1e-15), (torch.bfloat16, 1e-30, 1e-9),
    ],
)  # fmt: skip
def test_noise_that_no_number_holds_is_an_error(
    dtype: torch.dtype, bound: float, sigma: float
) -> None:
    refused(noisy(dtype, bound, sigma), torch.randn(3, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_loss_that_was_scaled_up(dtype: torch.dtype) -> None:
    scale = 1e5 if dtype == torch.float16 else 1e38
    refused(noisy(dtype, 1.0, 1.0), torch.randn(3, 4, dtype=dtype), scale)


def test_noise_that_half_precision_rounds_is_there() -> None:
    """Small beside what float16 tells apart: what is rounded has its noise already."""
    private = noisy(torch.float16, 1e-3, 1.0)
    private(torch.randn(3, 4, dtype=torch.float16)).backward()
    assert private.releases == 1
    assert all(bool(torch.isfinite(p.grad).all()) for p in private.parameters())


@pytest.mark.parametrize("dtype", HALVES)
def test_pieces_are_not_added_up_in_half_precision(dtype: torch.dtype) -> None:
    """A sum would be rounded before it has its noise."""
    private, x = noisy(dtype, 1.0, 1.0, microbatch_size=2), torch.randn(6, 4, dtype=dtype)
    with pytest.raises(TypeError, match="keep parameters in float32"):
        private(x)
    with pytest.raises(TypeError, match="keep parameters"), private.accumulate():  # noqa: PT012
        private(x[:2]).backward()
        private(x[2:4]).backward()
    assert private.releases == 0
    assert all(p.grad is None for p in private.parameters())


def test_no_bound_and_no_noise_is_plain() -> None:
    private = noisy(torch.float32, math.inf, 0.0)
    x = torch.randn(3, 4)
    private(x).backward()
    want = torch.autograd.grad(Tiny.forward(private._model, x).sum() / 2, private.weight)[0]
    torch.testing.assert_close(private.weight.grad, want)


def test_the_case_that_was_met() -> None:
    """A sample that is fitted well: its gradient added 69.7 times the bound."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 2, 20000, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.unsqueeze(1)).mean(-1)

    model, x = Wide(), torch.ones(1, 20000)
    x[0, 0] = 2.0
    model.conv.weight.data.zero_()[0] = 52.0 / float(x.sum())
    private = fxdp.compile(
        model, loss_fn=F.cross_entropy, max_grad_norm=1.0, noise_multiplier=0.0,
        expected_batch_size=1, backend="eager", clipping="normalize",
    )  # fmt: skip
    assert added(private, x, torch.zeros(1, dtype=torch.long)) <= 1.0001
