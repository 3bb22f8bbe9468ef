"""Banded noise: its matrix, its distribution, its account, its state, and what is refused.

Statistical tests have fixed seeds; each states how often a correct noise would fail it with others.
"""

import copy
import functools
import gc
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from torch import Tensor, nn

import fxdp
from fxdp.data import CyclicPoissonSampler, private_loader
from fxdp.mechanism.correlated import BandMF
from fxdp.module.correlated_noise import check
from fxdp.privacy import BandedRelease, CyclicPoisson, GaussianRelease, Poisson
from tests.keys import same_noise
from tests.keywords import grouped

X = torch.randn(11, 4, generator=torch.manual_seed(0), dtype=torch.float64)
Y = torch.arange(11) % 3
NOBODY = torch.zeros(11, dtype=torch.bool)
SIGMA, BOUND, EXPECTED, DELTA = 1.5, 0.3, 8.0, 1e-5
UNIT = SIGMA * BOUND / EXPECTED
TURNS = CyclicPoisson(0.5, 4)


def net(width: int = 9) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, width).double()


def private_of(
    bands: int | None = 3, model: nn.Module | None = None, **options: object
) -> fxdp.PrivateModule:
    given = {
        "loss_fn": F.cross_entropy, "max_grad_norm": BOUND, "noise_multiplier": SIGMA,
        "expected_batch_size": EXPECTED, "backend": "eager", "accountant": "rdp",
        "sample_rate": TURNS, "noise": None if bands is None else BandMF(bands),
    }  # fmt: skip
    return fxdp.compile(model or net(), **grouped(given | options))


@functools.cache
def kept(bands: int | None) -> fxdp.PrivateModule:
    return private_of(bands)


def anew(bands: int | None = 3, **given: Any) -> fxdp.PrivateModule:
    """As `private_of`, at the beginning of a run; compiled once for all tests.

    Args:
        given: scales, or the size of microbatches.
    """
    private = kept(bands)
    same_noise(private)
    if private._account.noise is not None:
        private._account.noise.past = ()
    start = {"max_grad_norm": BOUND, "noise_multiplier": SIGMA, "expected_batch_size": EXPECTED,
             "microbatch_size": None}  # fmt: skip
    for name, value in (start | given).items():
        setattr(private, name, value)
    private.zero_grad()
    return private


def taken(private: fxdp.PrivateModule) -> Tensor:
    """The gradients as one vector; they are gone then."""
    found = [p.grad.flatten() for p in private.parameters() if p.grad is not None]
    private.zero_grad()
    return torch.cat(found)


def step(private: fxdp.PrivateModule, mask: Tensor | None = None) -> Tensor:
    private(X, Y, sample_mask=mask).backward()
    return taken(private)


def whitened(released: Tensor, bands: int = 3) -> Tensor:
    """z [steps, coordinates] of y: B y, as a matrix product of its own."""
    return torch.tensor(matrix(BandMF(bands), len(released))) @ released


def matrix(strategy: BandMF, steps: int) -> np.ndarray:
    """B [steps, steps], written out."""
    found = np.zeros((steps, steps))
    for j, c in enumerate(strategy.coefficients):
        found += c * np.eye(steps, k=-j)
    return found


class TestMatrix:
    def test_the_root(self) -> None:
        root = np.array([1, 1 / 2, 3 / 8, 5 / 16])
        assert_allclose(BandMF(4).coefficients, root / np.linalg.norm(root), rtol=1e-15)
        assert BandMF(1).coefficients == (1.0,)

    def test_all_bands_of_the_root_are_the_prefix_sums(self) -> None:
        """B B is the matrix of prefix sums, but for the norm (Fichtenberger et al. 2022)."""
        b = matrix(BandMF(50), 50)
        assert_allclose(b @ b / b[0, 0] ** 2, np.tri(50), atol=1e-12)

    @pytest.mark.parametrize("strategy", [BandMF(1), BandMF(5), BandMF(5, 40), BandMF(40)])
    def test_errors_are_those_of_the_matrices(self, strategy: BandMF) -> None:
        noising = np.tri(40) @ np.linalg.inv(matrix(strategy, 40))
        assert_allclose(strategy.errors(40), (noising**2).sum(1), rtol=1e-9)

    def test_known_errors(self) -> None:
        """Independent: t, and (n + 1) / 2 on average. All bands: (sum_k r_k^2)^2, the least there
        is for the last sum (arXiv 2202.11205; optimal, arXiv 2404.16706)."""
        assert_allclose(BandMF(1).errors(100), np.arange(1, 101))
        assert BandMF(1).errors(100).mean() == pytest.approx(50.5)
        k = np.arange(1, 100)
        root = np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])
        best = (root @ root) ** 2
        assert BandMF(100).errors(100)[-1] == pytest.approx(best, rel=1e-12)
        found = BandMF(100, 100, "max-error").errors(100)[-1]
        assert found == pytest.approx(best, rel=1e-9)
        for bands in (2, 7, 30, 99):
            assert BandMF(bands, 100, "max-error").errors(100)[-1] > best

    @pytest.mark.parametrize("strategy", [BandMF(4), BandMF(3, 60), BandMF(4, 60, "max-error")])
    def test_turns_are_apart(self, strategy: BandMF) -> None:
        """What one sample adds at its turns moves B x by at most sqrt(turns), whatever its
        gradients are; without turns it may move it by more, which is why those are refused."""
        b, rng = matrix(strategy, 40), np.random.default_rng(0)
        for part in range(4):
            x = np.zeros((40, 6))
            turns = rng.standard_normal((10, 6))
            x[part::4] = turns / np.linalg.norm(turns, axis=1, keepdims=True)
            moved = np.linalg.norm(b @ x)
            assert moved <= math.sqrt(10) * (1 + 1e-12)
            assert part or moved == pytest.approx(math.sqrt(10))  # no column is cut off
        assert np.linalg.norm(b @ np.ones(40)) > 1.4 * math.sqrt(40)

    def test_more_bands_have_less_error(self) -> None:
        for kind in ({}, {"steps": 400}):
            means = [BandMF(b, **kind).errors(400).mean() for b in (1, 2, 4, 8, 16, 32)]
            assert means == sorted(means, reverse=True)
            assert means[-1] < means[0] / 10

    @pytest.mark.parametrize("objective", ["max-error", "mean-error"])
    @pytest.mark.parametrize(("bands", "steps"), [(2, 2), (2, 300), (6, 300), (20, 60)])
    def test_the_optimum_is_one(self, bands: int, steps: int, objective: str) -> None:
        strategy = BandMF(bands, steps, objective)

        def error(c: np.ndarray) -> float:
            s = np.tri(steps) @ np.linalg.inv(
                sum(c[j] * np.eye(steps, k=-j) for j in range(bands)) / np.linalg.norm(c)
            )
            rows = (s**2).sum(1)
            return float(rows[-1] if objective == "max-error" else rows.mean())

        c = np.array(strategy.coefficients)
        assert np.linalg.norm(c) == pytest.approx(1, abs=1e-12)
        least = error(c)
        assert least <= error(np.array(BandMF(bands).coefficients)) * (1 + 1e-12)
        for j in range(bands):
            for by in (-1e-3, 1e-3):
                assert error(c + by * np.eye(bands)[j]) >= least * (1 - 1e-9)

    @pytest.mark.parametrize("strategy", [BandMF(64), BandMF(16, 2000), BandMF(3, 9, "max-error")])
    def test_the_noise_does_not_grow(self, strategy: BandMF) -> None:
        """All roots of the polynomial are outside of the unit circle."""
        assert abs(np.roots(strategy.coefficients[::-1])).min() > 1

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ((0,), "bands must be"),
            ((1.5,), "bands must be"),
            ((math.nan,), "bands must be"),
            ((2, 0), "steps must be"),
            ((9, 8), "at most steps = 8"),
            ((2, 8, "least"), "objective must be"),
        ],
    )
    def test_bad_numbers(self, given: tuple, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            BandMF(*given)


class TestNoise:
    """Of empty batches, which release nothing else."""

    @pytest.mark.parametrize(
        "options", [{}, {"microbatch_size": 4}, {"secure": True}, {"backend": "inductor"}]
    )
    def test_covariance_over_steps(self, options: dict[str, object]) -> None:
        """(B^T B)^-1, from 2400 coordinates: 36 cells at a z of 5, a false alarm in 5e4 seeds."""
        private = private_of(3, net(482), **options)
        torch.manual_seed(7)
        with torch.random.fork_rng():
            y = torch.stack([step(private, NOBODY) for _ in range(8)])[:, :2400] / UNIT
        inverse = np.linalg.inv(matrix(BandMF(3), 8))
        wanted = torch.tensor(inverse @ inverse.T)
        found = y @ y.T / y.shape[1]
        spread = (torch.outer(wanted.diag(), wanted.diag()) + wanted**2) / y.shape[1]
        assert ((found - wanted) / spread.sqrt()).abs().max() < 5
        if "secure" not in options:
            z = whitened(y)
            assert z.abs().max() < 6.8  # and each step's numbers are its own:
            assert len(z.unique()) == z.numel()

    def test_prefix_sums_have_less_error(self) -> None:
        """And as much as the formula says: 2400 coordinates, within 15 % (5 standard errors)."""
        errors: list[float] = []
        for bands in (1, 4):
            private = private_of(bands, net(482))
            torch.manual_seed(8)
            y = torch.stack([step(private, NOBODY) for _ in range(16)])[:, :2400] / UNIT
            errors.append(float(y.sum(0).square().mean()))
            assert errors[-1] == pytest.approx(BandMF(bands).errors(16)[-1], rel=0.15)
        assert errors[1] < errors[0] / 2

    @pytest.mark.parametrize("options", [{}, {"microbatch_size": 4}])
    def test_one_band_is_independent_noise(self, options: dict[str, object]) -> None:
        """Bit for bit."""
        both = anew(1, **options), anew(None)
        found: list[list[Tensor]] = []
        for private in both:
            same_noise(private, 3)
            # Sums in pieces are added in another order: there, of the noise alone.
            found.append([step(private, NOBODY if options else None) for _ in range(3)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_it_is_added_to_the_clipped_sum(self) -> None:
        clean = step(anew(None, noise_multiplier=0.0))
        found = []
        for mask in (None, NOBODY):
            private = anew(3)
            same_noise(private, 4)
            found.append(torch.stack([step(private, mask) for _ in range(4)]))
        torch.testing.assert_close(found[0] - found[1], clean.expand(4, -1), rtol=0, atol=1e-12)

    def test_in_pieces_and_in_calls(self) -> None:
        runs = []
        for options, cuts in (({}, None), ({"microbatch_size": 4}, None), ({}, (5, 6))):
            private = anew(3, **options)
            same_noise(private, 5)
            found = []
            for _ in range(4):
                if cuts is None:
                    (private(X, Y) * 2).backward()
                else:
                    with private.accumulate():
                        for x, y in zip(X.split(cuts), Y.split(cuts), strict=True):
                            (private(x, y) * 2).backward()
                found.append(taken(private))
            runs.append(torch.stack(found))
        torch.testing.assert_close(runs[1], runs[0], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(runs[2], runs[0], rtol=1e-11, atol=1e-12)

    def test_scales_may_change_between_steps(self) -> None:
        """The correlation is of the noise in units of sigma C / L."""
        private, y = anew(3), []
        same_noise(private, 6)
        for sigma, bound, expected in ((1.5, 0.3, 8), (0.5, 2.0, 3), (4.0, 0.1, 8), (1.5, 1.0, 1)):
            private.noise_multiplier, private.max_grad_norm = sigma, bound
            private.expected_batch_size = expected
            y.append(step(private, NOBODY) / (sigma * bound / expected))
        plain = anew(None, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=1.0)
        same_noise(plain, 6)
        z = torch.stack([step(plain, NOBODY) for _ in range(4)])
        torch.testing.assert_close(whitened(torch.stack(y)), z, rtol=1e-10, atol=1e-12)


class TestPast:
    """What goes into the noise of the next steps, and what does not."""

    def past(self, private: fxdp.PrivateModule) -> int:
        noise = private._account.noise
        assert noise is not None
        return len(noise.past)

    def test_it_is_as_long_as_needed(self) -> None:
        private = anew(3)
        lengths = []
        for _ in range(4):
            step(private)
            lengths.append(self.past(private))
        assert lengths == [1, 2, 2, 2]

    def test_a_step_that_is_not_released_leaves_nothing(self) -> None:
        private = private_of(3, budget=(50.0, DELTA))
        y = [step(private, NOBODY)]
        loss = private(X, Y)
        del loss
        gc.collect()
        loss = private(X, Y)
        loss.register_hook(self.fail)
        with pytest.raises(MemoryError):
            loss.backward()
        del loss
        private.noise_multiplier = 1e-3
        with pytest.raises(fxdp.BudgetExhausted):
            private(X, Y).backward()
        private.noise_multiplier = SIGMA
        with pytest.raises(fxdp.StepError), private.accumulate():
            pass
        gc.collect()
        private.per_sample_norms(X, Y)
        assert (self.past(private), private.releases) == (1, 1)
        y.append(step(private, NOBODY))
        z = whitened(torch.stack(y) / UNIT)[1]  # B y is one draw: 45 numbers, of level 1
        assert 0.6 < z.std() < 1.5  # 4.5 standard errors
        assert private._account.noise is not None
        last = private._account.noise.past[0]
        torch.testing.assert_close(torch.cat([x.flatten() for x in last.values()]), y[1] / UNIT)

    def fail(self, *_: object) -> Tensor:
        raise MemoryError

    def test_a_step_without_noise(self) -> None:
        private = anew(3)
        y = [step(private, NOBODY)]
        private.noise_multiplier = 0.0
        assert not step(private, NOBODY).any()
        assert self.past(private) == 1
        assert private.privacy_spent(DELTA) == math.inf
        private.noise_multiplier = SIGMA
        y.append(step(private, NOBODY))
        assert private._account.noise is not None
        second = private._account.noise.past[1]
        torch.testing.assert_close(torch.cat([x.flatten() for x in second.values()]), y[0] / UNIT)

    def test_a_copy_begins_anew(self) -> None:
        private = private_of(3)
        step(private)
        twin = copy.deepcopy(private)
        assert (self.past(private), self.past(twin)) == (1, 0)
        assert twin.releases == 1
        step(twin)
        assert (self.past(private), twin.releases) == (1, 2)

    def test_other_parameters_keep_the_numbers_of_their_noise(self) -> None:
        """What is frozen has no noise, and that of the others goes on."""
        private, y = private_of(3), []
        last = list(private.parameters())[-1]
        for frozen in (False, True, True):
            next(iter(private.parameters())).requires_grad_(not frozen)
            private.zero_grad()
            private(X, Y, sample_mask=NOBODY).backward()
            y.append(last.grad.clone())
        assert (private.releases, self.past(private)) == (3, 2)
        noise = private._account.noise
        assert noise is not None
        assert [len(past) for past in noise.past] == [1, 1]
        name = list(dict(private.named_parameters()))[-1]
        torch.testing.assert_close(noise.past[0][name], y[2] / UNIT)

    def test_a_parameter_that_is_new_begins_anew(self) -> None:
        """`Correlation`'s table: without a past, nothing is carried."""
        noise = private_of(3)._account.noise
        assert noise is not None
        noise.follow({"a": torch.ones(2)})
        carried = noise.follow({"a": torch.ones(2), "b": torch.ones(2)})
        first, second, _ = BandMF(3).coefficients
        torch.testing.assert_close(carried["a"], torch.full((2,), -second / first**2))
        assert not carried["b"].any()
        assert set(noise.past[0]) == {"a", "b"}
        noise.follow({"b": torch.ones(2)})
        carried = noise.follow({"a": torch.ones(2), "b": torch.ones(2)})
        assert not carried["a"].any()  # left out once: what was before the gap does not count
        assert carried["b"].all()


class TestAccount:
    def test_a_run(self) -> None:
        private = anew(3)
        for _ in range(9):
            step(private)
        (run,) = private.ledger.runs
        assert run.release == BandedRelease(SIGMA, 3, TURNS, BOUND)
        assert (run.count, private.releases) == (9, 9)
        assert private.privacy_spent(DELTA) == fxdp.privacy.epsilon(SIGMA, 0.5, 3, DELTA, "rdp")
        text = private.privacy_statement(DELTA)
        for words in ("matrix of 3 bands", "4 parts", "0.5", "no turn was left out", "2306.08153"):
            assert words in text

    def test_independent_noise_in_turns(self) -> None:
        private = anew(None)
        step(private)
        (run,) = private.ledger.runs
        assert run.release == BandedRelease(SIGMA, 1, TURNS, BOUND)
        assert "bands" not in private.privacy_statement(DELTA)

    def test_one_band_needs_no_turns(self) -> None:
        private = private_of(1, sample_rate=0.5)
        step(private)
        (run,) = private.ledger.runs
        assert run.release == GaussianRelease(SIGMA, Poisson(0.5), BOUND)

    def test_a_budget_is_kept(self) -> None:
        """Two turns fit, which are eight steps."""
        two = fxdp.privacy.epsilon(SIGMA, TURNS, 8, DELTA, "rdp")
        private = private_of(3, budget=(two, DELTA))
        for _ in range(8):
            step(private)
        with pytest.raises(fxdp.BudgetExhausted):
            step(private)
        assert private.releases == 8

    def test_one_call(self) -> None:
        model = net()
        data = torch.utils.data.TensorDataset(X, Y)
        sampler = CyclicPoissonSampler(11, 0.8, 3, steps=6, generator=torch.manual_seed(0))
        private, optimizer, loader = fxdp.make_private(
            model, torch.optim.SGD(model.parameters(), 0.1), data, F.cross_entropy,
            epsilon=2.0, delta=DELTA, epochs=2, max_grad_norm=1.0, accountant="rdp",
            sampler=sampler, noise=BandMF(3), backend="eager",
        )  # fmt: skip
        for _ in range(2):
            for x, y in loader:
                optimizer.zero_grad()
                private(x, y).backward()
                optimizer.step()
        assert private.releases == 12
        assert 1.99 < private.privacy_spent(DELTA) <= 2.0
        assert private.expected_batch_size == pytest.approx(11 * 0.8 / 3)


class TestState:
    def run(self, path: Path, stop: int | None) -> tuple[dict, dict]:
        """Six steps; with a stop, saved after that one and gone on with by new objects."""

        def made() -> tuple:
            model = net()
            optimizer = torch.optim.Adam(model.parameters(), 0.01)
            sampler = CyclicPoissonSampler(
                11, 0.9, 4, steps=6, generator=torch.Generator().manual_seed(2)
            )
            data = torch.utils.data.TensorDataset(X, Y)
            return (
                private_of(4, model, sample_rate=sampler.sampling),
                optimizer,
                (private_loader(data, sampler)),
            )

        private, optimizer, loader = made()
        same_noise(private, 9)
        for part in range(2):
            if part == 1:
                if stop is None:
                    break
                torch.manual_seed(1000)
                private, optimizer, loader = made()
                fxdp.load_checkpoint(path, private, optimizer, loader=loader)
            for x, y in loader:
                optimizer.zero_grad()
                private(x, y).backward()
                optimizer.step()
                if part == 0 and private.releases == stop:
                    fxdp.save_checkpoint(path, private, optimizer, loader=loader)
                    break
        return private.state_dict(), private.privacy_state_dict()

    @staticmethod
    @functools.cache
    def whole() -> tuple[dict, dict]:
        return TestState().run(Path(), None)

    @pytest.mark.parametrize("stop", [1, 2, 5])
    def test_resumed_is_uninterrupted(self, tmp_path: Path, stop: int) -> None:
        """Bit for bit: the model, the ledger, and the noise of before."""
        (model, privacy), (resumed, later) = self.whole(), self.run(tmp_path / "run.pt", stop)
        assert privacy["ledger"] == later["ledger"]
        assert all(torch.equal(model[k], resumed[k]) for k in model)
        pasts = zip(privacy["noise"]["past"], later["noise"]["past"], strict=True)
        assert all(torch.equal(one[k], other[k]) for one, other in pasts for k in one)
        assert len(privacy["noise"]["past"]) == 3

    def test_it_loads_with_weights_only(self, tmp_path: Path) -> None:
        private = anew(3)
        step(private)
        torch.save(private.privacy_state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        resumed = private_of(3)
        resumed.load_privacy_state_dict(state)
        found = []
        for each in (private, resumed):
            each._stepper.keys.root = bytes(32)
            found.append(step(each))
        assert torch.equal(*found)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"noise": None}, "noise is independent, as for noise=: pass none"),
            ({"noise": {}}, "coefficients and a past"),
            ({"noise": {"coefficients": [1.0], "past": []}}, "coefficients are"),
            ({"noise": {"past": 3}}, "past must be a list"),
            ({"noise": {"past": [{}, {}, {}]}}, "at most 2"),
            ({"noise": {"past": [3]}}, "past is not a parameter"),
            ({"noise": {"past": [{"a": torch.ones(1)}]}}, "a is not a parameter"),
            (
                {"noise": {"past": [{"bias": torch.ones(1)}]}},
                "or not as large",
            ),
            ({"version": 1}, "version 2"),
        ],
    )
    def test_malformed_state(self, change: dict, words: str) -> None:
        private = private_of(3)
        state = private.privacy_state_dict()
        if isinstance(change.get("noise"), dict) and change["noise"]:
            change = {"noise": state["noise"] | change["noise"]}
        with pytest.raises(ValueError, match=words):
            private.load_privacy_state_dict(state | change)
        assert private._account.noise is not None
        assert private._account.noise.past == ()

    def test_state_of_other_turns(self) -> None:
        private = anew(3)
        step(private)
        other = private_of(3, sample_rate=CyclicPoisson(0.5, 8))
        with pytest.raises(ValueError, match="the parts would not be the same"):
            other.load_privacy_state_dict(private.privacy_state_dict())
        assert other.releases == 0

    def test_state_of_other_noise(self) -> None:
        for saved, here, words in ((2, 3, "coefficients"), (3, None, "pass it"), (None, 3, "none")):
            state = private_of(saved).privacy_state_dict()
            with pytest.raises(ValueError, match=words):
                private_of(here).load_privacy_state_dict(state)


class TestRefused:
    @pytest.mark.parametrize("way", [None, 0.5, Poisson(0.5), CyclicPoisson(0.5, 2)])
    def test_ways_to_draw_without_a_bound(self, way: object) -> None:
        with pytest.raises(ValueError, match="noise of 3 bands is accounted for where"):
            private_of(3, sample_rate=way)

    def test_other_values(self) -> None:
        with pytest.raises(TypeError, match="noise must be fxdp.noise"):
            private_of(3, noise=3)
        with pytest.raises(ValueError, match="noise=BandMF needs a loss_fn"):
            private_of(3, loss_fn=None, loss_reduction="mean")

    def test_parameters_that_are_too_coarse(self) -> None:
        private = private_of(3, net().to(torch.bfloat16))
        with pytest.raises(TypeError, match="keep parameters in float32"):
            private(X.bfloat16(), Y)
        assert private.releases == 0

    def test_noise_that_cannot_be_made_again(self) -> None:
        elsewhere = {"weight": torch.empty(1, device="meta")}
        with pytest.raises(TypeError, match="on meta comes from torch's generator: pass BandMF"):
            check(elsewhere, secure=False)
        check(elsewhere, secure=True)
