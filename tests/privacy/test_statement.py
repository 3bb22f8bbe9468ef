"""The statement: a whole one as text, each kind of sentence, and its edge cases."""

import math
import re
from importlib.metadata import version

import dp_accounting
import pytest

from fxdp.privacy import (
    CountedRelease,
    DeltaWarning,
    FixedSize,
    GaussianRelease,
    Ledger,
    Poisson,
    TruncatedPoisson,
    statement,
)


def test_a_whole_statement() -> None:
    ledger = Ledger()
    ledger.record(GaussianRelease(3.0, Poisson(0.1), 0.5), 512)
    assert statement(ledger, 1e-6) == (
        "Training released 512 sums of gradients, one a step. In each sum the gradient of every "
        "sample was first scaled down to an L2 norm of at most C, and Gaussian noise of standard "
        "deviation sigma C was added to every coordinate. Here sigma = 3 and C = 0.5. Each sample "
        "was in each batch with probability 0.1, independently of all others (Poisson sampling)."
        "\n\n"
        "The sequence of these releases, and with it every model computed from them, is (epsilon, "
        "delta)-differentially private with epsilon = 3.770 and delta = 1e-06, for data sets of "
        "which one is the other with one sample added or removed.\n\n"
        "Without amplification by sampling, that is against an adversary who knows which samples "
        "were in which batch, epsilon = 63.524 at the same delta.\n\n"
        "Both are upper bounds. The first was computed by composing privacy loss distributions "
        f"with the PLD accountant of dp-accounting {version('dp-accounting')}, the second from the "
        "closed form for the Gaussian mechanism (Balle and Wang 2018).\n\n"
        "Assumed are: batches were drawn as described and afresh in each step, and kept secret; "
        "noise was fresh, and as good as real-valued Gaussian noise in spite of floating point; "
        "one person's data is one sample; nothing else that was made of the data was published, "
        "such as losses without noise, or hyper-parameters that were chosen by looking at it."
    )


def test_both_epsilons_are_rounded_up() -> None:
    ledger = Ledger()
    ledger.record(GaussianRelease(3.0, Poisson(0.1), 0.5), 512)
    told = [float(number) for number in re.findall(r"epsilon = ([\d.]+)", statement(ledger, 1e-6))]
    exact = [ledger.spent(1e-6), dp_accounting.get_epsilon_gaussian(3 / 512**0.5, 1e-6)]
    assert all(0 <= text - number < 1e-3 for text, number in zip(told, exact, strict=True))


def test_each_way_to_draw_and_each_relation() -> None:
    fixed = Ledger("rdp", "replace-one")
    fixed.record(GaussianRelease(9.0, FixedSize(1000, 10), 1.0))
    text = statement(fixed, 1e-6)
    assert "a random subset of 10 of the 1,000 samples, drawn without replacement" in text
    assert "data sets of equal size that differ in one sample" in text
    assert "Renyi divergences with the RDP accountant" in text
    truncated = Ledger()
    truncated.record(GaussianRelease(9.0, TruncatedPoisson(0.01, 1000, 500), 1.0))
    assert "of a batch above 500 samples, a random 500 were kept" in statement(truncated, 1e-6)
    full = Ledger()
    full.record(GaussianRelease(9.0, None, 1.0))
    text = statement(full, 1e-6)
    assert "Nothing is assumed about how the batches were drawn." in text
    assert "kept secret" not in text


def test_several_kinds_of_release() -> None:
    ledger = Ledger("rdp")
    ledger.record(GaussianRelease(9.0, Poisson(0.01), 1.0), 2000)
    ledger.record(CountedRelease(9.0, 20.0, Poisson(0.01), 2.0), 5)
    text = statement(ledger, 1e-6)
    assert "In 2,000 of the steps, sigma = 9 and C = 1." in text
    assert "In 5 of the steps, sigma = 9 and C = 2." in text
    assert "noise of standard deviation 20; sum and count are one" in text
    assert "noise multiplier 8.78049" in text
    for bound in (3.0, 4.0, 5.0):
        ledger.record(GaussianRelease(8.0, Poisson(0.01), bound))
    text = statement(ledger, 1e-6)
    assert "sigma lay between 8 and 9, C between 1 and 5." in text
    assert "a noisy count of the samples below the bound" in text


class TestEdges:
    def test_nothing_released(self) -> None:
        assert statement(Ledger(), 1e-5) == (
            "Nothing was released from the data, which costs no privacy."
        )

    def test_no_noise(self) -> None:
        ledger = Ledger()
        ledger.record(GaussianRelease(0.0, None, math.inf))
        assert "nothing is promised" in statement(ledger, 1e-5)
        assert "(epsilon = inf)" in statement(ledger, 1e-5)

    def test_a_large_delta(self) -> None:
        ledger = Ledger("rdp")
        ledger.record(GaussianRelease(9.0, Poisson(0.01), 1.0))
        with pytest.warns(DeltaWarning):
            statement(ledger, 1e-2, num_samples=100)

    def test_delta_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="^delta must be"):
            statement(Ledger(), 0.0)
