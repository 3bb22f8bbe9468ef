"""Releases as values: the count of adaptive clipping, and the numbers that are refused."""

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fxdp.privacy import CountedRelease, GaussianRelease, Poisson, noise_beside_count
from fxdp.privacy.release import Mechanism, together

POISSON = Poisson(0.1)


def test_a_sum_and_a_count_are_one_mechanism() -> None:
    # z^-2 + (2 s)^-2 with z = 2, s = 5: 0.25 + 0.01.
    assert CountedRelease(2.0, 5.0, POISSON, 1.0).mechanism == Mechanism(0.26**-0.5, POISSON)


def test_a_count_with_much_noise_costs_nearly_nothing() -> None:
    assert together(1.1, 1e6) == pytest.approx(1.1, rel=1e-9)


@settings(derandomize=True)
@example(sigma=5e-324, excess=1.0001)
@example(sigma=100.0, excess=1.0001)
@given(sigma=st.floats(0, 100), excess=st.floats(1.0001, 1e6))
def test_noise_beside_a_count_is_the_inverse_and_never_too_little(
    sigma: float, excess: float
) -> None:
    count_noise = max(sigma, 1e-3) / 2 * excess
    pair = together(noise_beside_count(sigma, count_noise), count_noise)
    assert sigma <= pair <= sigma * (1 + 1e-9)


@pytest.mark.parametrize("count_noise", [0.5, 0.1, 0.0, math.nan, math.inf])
def test_a_count_that_costs_more_than_the_pair_may(count_noise: float) -> None:
    with pytest.raises(ValueError, match="^count_noise must be above noise_multiplier / 2 = 0.5"):
        noise_beside_count(1.0, count_noise)


class TestEdgesOfGaussianRelease:
    def test_no_noise(self) -> None:
        assert GaussianRelease(0.0, POISSON, 1.0).mechanism.noise_multiplier == 0

    def test_not_clipped(self) -> None:
        GaussianRelease(0.0, None, math.inf)
        with pytest.raises(ValueError, match="^max_grad_norm must be finite"):
            GaussianRelease(1.0, None, math.inf)

    def test_the_bound_cancels_out(self) -> None:
        one, other = (GaussianRelease(1.0, POISSON, bound) for bound in (0.1, math.hypot(3, 4)))
        assert one.mechanism == other.mechanism


class TestEdgesOfCountedRelease:
    @pytest.mark.parametrize(("sigma", "count_noise"), [(0.0, 5.0), (2.0, 0.0)])
    def test_no_noise(self, sigma: float, count_noise: float) -> None:
        assert CountedRelease(sigma, count_noise, None, 1.0).mechanism.noise_multiplier == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.inf),
        ("noise_multiplier", math.nan),
        ("count_noise", -1.0),
        ("count_noise", math.nan),
        ("max_grad_norm", 0.0),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", math.nan),
    ],
)
def test_a_number_out_of_range_is_named(name: str, value: float) -> None:
    good: dict[str, Any] = {
        "noise_multiplier": 1.0, "count_noise": 5.0, "sampling": POISSON, "max_grad_norm": 1.0
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"^{name} must be"):
        CountedRelease(**(good | {name: value}))
    if name in (one := {k: good[k] for k in good if k != "count_noise"}):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            GaussianRelease(**(one | {name: value}))
