"""The audit finds a correct step consistent, and each broken one in violation.

Every audit here is at confidence 0.99: of the correct steps, one in a hundred would be called
violated at most, and the seeds are fixed.
"""

import functools
import importlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.auditing.canary import Guesses
from fxdp.auditing.correlation import strongest_pair
from fxdp.auditing.noise import Noise
from fxdp.auditing.report import Audit, Finding, Unjudged
from fxdp.graph.emit import emit
from fxdp.mechanism.clipping import Flat
from fxdp.placement import Shard
from fxdp.privacy.sampling import CyclicPoisson
from tests.keywords import grouped

N = 12
X = torch.randn(N, 4, generator=torch.manual_seed(0)) * 3
Y = torch.arange(N) % 4


class Two(nn.Module):
    """Two layers of one shape, without biases: what compiles fastest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(4, 4) / 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.first).tanh() @ self.second


def net() -> Two:
    torch.manual_seed(0)
    return Two()


def private_of(model: nn.Module | None = None, **options: Any) -> fxdp.PrivateModule:
    given = {
        "loss_fn": F.cross_entropy, "max_grad_norm": 0.5, "noise_multiplier": 1.0,
        "expected_batch_size": 8, "backend": "eager",
    }  # fmt: skip
    return fxdp.compile(model or net(), **grouped(given | options))


@functools.cache
def sound() -> fxdp.PrivateModule:
    """A step as it is; audits leave it as it was."""
    return private_of()


def violated(found: Audit) -> set[str]:
    """What is, in short: the test, or what of the noise."""
    return {f.test if f.test != "noise" else f.subject.split(",")[0] for f in found.violations}


class TestCorrect:
    """Steps as they are."""

    @pytest.mark.parametrize("clipping", ["flat", "automatic", "normalize", "per-layer"])
    def test_every_way_to_clip(self, clipping: str) -> None:
        private = sound() if clipping == "flat" else private_of(clipping=clipping)
        found = fxdp.audit(private, X, Y, releases=100)
        assert found, str(found)
        assert not found.violations
        assert found.releases == 200
        levels = [f.subject for f in found.findings if f.subject.startswith("noise multiplier")]
        assert levels == [f"noise multiplier, {n}" for n in ("all parameters", "first", "second")]

    def test_as_text(self) -> None:
        with torch.no_grad():  # which is not what an audit is about
            text = str(fxdp.audit(sound(), X, Y, releases=50))
        for word in ("neighbours", "canary", "between releases", "consistent", "100 releases"):
            assert word in text
        assert "VIOLATED" not in text

    def test_microbatches(self) -> None:
        """The real call, piece by piece, the last one padded."""
        assert fxdp.audit(private_of(microbatch_size=5), X, Y, releases=50)

    def test_a_bound_that_no_gradient_reaches(self) -> None:
        """The neighbours are tried at a smaller one, too, and the canary there."""
        private = sound()
        private.max_grad_norm = 100.0
        found = fxdp.audit(private, X, Y, releases=50)
        private.max_grad_norm = 0.5
        assert found
        told = [f for f in found.findings if f.test == "neighbours"]
        assert len(told) == 8
        assert told[0].measured < 0.1 * told[0].claim
        assert told[4].measured > 0.99 * told[4].claim
        assert told[4].claim < told[0].claim

    def test_dropout(self) -> None:
        """Each release is compared with one of the same draws, so the noise stands alone."""
        model = nn.Sequential(nn.Dropout(0.5), net())
        found = fxdp.audit(private_of(model), X, Y, releases=50)
        assert found
        assert [u.subject for u in found.unjudged if u.test == "neighbours"] == [
            "1 of 6 samples left out, C = 0.5",
            "1 of 6 samples masked out, not left out, C = 0.5",
        ]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        assert fxdp.audit(private_of(net().to(dtype)), X.to(dtype), Y, releases=50)

    def test_noise_that_a_dtype_cannot_show(self) -> None:
        """Where the sums are a thousand times the noise, bf16 hides it: no violation, no proof."""
        model = net().bfloat16()
        private = private_of(model, noise_multiplier=0.001, max_grad_norm=100.0)
        found = fxdp.audit(private, X[:1].expand(N, -1).bfloat16(), Y * 0, releases=4)
        assert not found.violations
        assert not found
        assert {u.subject.split(",")[0] for u in found.unjudged} >= {"noise multiplier"}

    def test_padding_is_no_sample(self) -> None:
        mask = torch.arange(N) < 3
        found = fxdp.audit(sound(), X, Y, releases=50, sample_mask=mask)
        assert found
        assert "1 of 3 samples" in found.findings[0].subject

    def test_a_parameter_without_samples_needs_no_noise(self) -> None:
        """Its gradient is that of a weight decay."""

        class Decayed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.extra = net(), nn.Parameter(torch.ones(3))

            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return F.cross_entropy(self.body(x), y) + self.extra.square().sum()

        found = fxdp.audit(private_of(Decayed(), loss_fn=None), X, Y, releases=50)
        assert found
        assert "extra" not in str(found)

    def test_no_gradient_no_canary(self) -> None:
        """Samples of zeros, and a model without biases: noise is all there is."""
        model = nn.Linear(4, 4, bias=False)
        found = fxdp.audit(private_of(model), X * 0, Y, releases=50)
        assert not found
        assert not found.violations
        assert [u.why for u in found.unjudged] == ["no sample that was tried moves the release"]

    def test_seeds(self) -> None:
        private = sound()
        first = fxdp.audit(private, X, Y, releases=5)
        assert str(fxdp.audit(private, X, Y, releases=5)) == str(first)
        assert str(fxdp.audit(private, X, Y, releases=5, seed=1)) != str(first)

    def test_too_few_releases_to_find_anything(self) -> None:
        found = fxdp.audit(sound(), X, Y, releases=10)
        assert not found
        assert [u.test for u in found.unjudged] == ["canary", "canary"]
        assert all("it takes more of them" in u.why for u in found.unjudged)


PASS = importlib.import_module("fxdp.passes.noise")
KEPT: dict[str, Tensor] = {}  # noise that is used again
WRONG: dict[str, Any] = {}  # what is wrong with the noise now: `how`, or `factor` and `only`


@torch.library.custom_op(
    "fxdp_test::draw", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def draw(like: Tensor, index: int) -> Tensor:
    """Unit noise that is not as it should be."""
    match WRONG["how"]:
        case "once for all steps":
            return KEPT.setdefault(f"{index}", torch.randn_like(like)).clone()
        case "one number a row":
            return torch.randn(len(like), *[1] * (like.dim() - 1)).expand(like.shape).clone()
        case "one for two layers":
            first = KEPT.get("shared") if like.dim() == 2 else None
            fresh = torch.randn_like(like) if first is None else first
            KEPT.pop("shared", None) if first is not None else None
            if like.dim() == 2 and first is None:
                KEPT["shared"] = fresh
            return fresh.clone()
        case _:
            raise AssertionError(WRONG)


@draw.register_fake
def _(like: Tensor, index: int) -> Tensor:
    return torch.empty_like(like)


@torch.library.custom_op("fxdp_test::scaled", mutates_args=())
def scaled(scale: Tensor, name: str) -> Tensor:
    return scale * (WRONG["factor"] if WRONG["only"] in (None, name) else 1.0)


@scaled.register_fake
def _(scale: Tensor, name: str) -> Tensor:
    return torch.empty_like(scale)


def compiled_with(release: Any) -> fxdp.PrivateModule:
    """A step whose parameters each get their noise by a function of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PASS, "sharing", lambda sums: [[clipped] for clipped in sums])
        patch.setattr(PASS, "release", release)
        private = private_of()
        private(X, Y).backward()
    private.zero_grad()
    return private


@functools.cache
def redrawn() -> fxdp.PrivateModule:
    """A step that draws its noise in another way, which each call decides."""

    def release(group: Any, tangent: Any, mark: Any, scale: Any, numbers: Any, _: int) -> Any:
        (clipped,) = group

        def private(total: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor) -> Any:
            noise = torch.ops.fxdp_test.draw(total, numbers[clipped.gradient.parameter])
            return [(total + scale.to(total.dtype) * noise) / expected.to(total.dtype) * tangent]

        return private, (clipped.total, scale, mark.expected, tangent)

    return compiled_with(release)


@functools.cache
def rescaled() -> fxdp.PrivateModule:
    """A step with another amount of noise, which each call decides."""
    true = PASS.release

    def release(group: Any, tangent: Any, mark: Any, scale: Any, *rest: Any) -> Any:
        private, args = true(group, tangent, mark, scale, *rest)
        name = group[0].gradient.parameter

        def other(total: Tensor, scale: Tensor, *rest: Any) -> Any:
            return private(total, torch.ops.fxdp_test.scaled(scale, name), *rest)

        return other, args

    return compiled_with(release)


def other_noise(how: str) -> fxdp.PrivateModule:
    """Release every parameter with noise that is drawn in another way."""
    WRONG["how"] = how
    private = redrawn()
    KEPT.clear()
    return private


def other_scale(factor: float, only: str | None = None) -> fxdp.PrivateModule:
    """Multiply the noise of all parameters, or of one."""
    WRONG.update(factor=factor, only=only)
    return rescaled()


LEVEL = "noise multiplier"


class TestBrokenNoise:
    """Passes of the pipeline replaced."""

    @pytest.mark.parametrize("factor", [0.5, 1 / 1.3, 1.3])
    def test_too_little_and_too_much(self, factor: float) -> None:
        found = fxdp.audit(other_scale(factor), X, Y, releases=100)
        assert not found
        assert violated(found) == {LEVEL}
        seen = {f.subject: f.measured for f in found.violations}
        assert seen["noise multiplier, all parameters"] == pytest.approx(factor, rel=0.05)
        assert len(seen) == 3

    def test_with_more_releases_the_canary_shows_it_too(self) -> None:
        found = fxdp.audit(other_scale(0.5), X, Y, releases=500)
        assert violated(found) == {LEVEL, "canary"}

    def test_none_for_one_parameter(self) -> None:
        found = fxdp.audit(other_scale(0.0, only="second"), X, Y, releases=50)
        assert not found
        assert {f.subject for f in found.violations} >= {"noise multiplier, second"}
        assert "noise multiplier, first" not in {f.subject for f in found.violations}

    @pytest.mark.parametrize(
        ("how", "where"),
        [
            ("one for two layers", "between parameters (first, second)"),
            ("once for all steps", "between releases"),
            ("one number a row", "within a parameter"),
        ],
    )
    def test_noise_that_is_used_again(self, how: str, where: str) -> None:
        found = fxdp.audit(other_noise(how), X, Y, releases=50)
        assert not found
        assert any(where in f.subject for f in found.violations), str(found)
        if how == "one for two layers":  # all else is as it should be
            assert len(found.violations) == 1

    def test_noise_in_every_piece(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Three microbatches with noise each have sqrt(3) of it: more than stated."""
        module = importlib.import_module("fxdp.module.private_module")
        true = module.summed

        def summed(step: Any, inputs: Any, mask: Any, size: int, sigma: float) -> Any:
            noisy = replace(step, run=lambda x, mask, _, last: step.run(x, mask, sigma, last))
            return true(noisy, inputs, mask, size, sigma)

        monkeypatch.setattr(module, "summed", summed)
        found = fxdp.audit(private_of(microbatch_size=5), X, Y, releases=50)
        assert violated(found) == {LEVEL}
        assert found.violations[0].measured == pytest.approx(3**0.5, rel=0.05)

    def test_a_release_that_is_not_finite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        true = PASS.release

        def release(group: Any, tangent: Any, mark: Any, scale: Any, *rest: Any) -> Any:
            private, args = true(group, tangent, mark, scale, *rest)

            def endless(totals: Any, scale: Any, *rest: Any) -> list[Tensor]:
                more = torch.where(scale > 0.1 * rest[-1], math.inf, 0.0)
                return [x + more.to(x.dtype) for x in private(totals, scale, *rest[:-1])]

            return endless, (*args, mark.bound)

        monkeypatch.setattr(PASS, "release", release)
        found = fxdp.audit(private_of(), X, Y, releases=50)
        assert not found
        assert {"canary", LEVEL} <= violated(found)


class TestBrokenClipping:
    """A sample that adds more than it may."""

    @staticmethod
    def expect_neighbours(private: fxdp.PrivateModule) -> None:
        found = fxdp.audit(private, X, Y, releases=40)
        assert not found
        assert "neighbours" in violated(found)
        assert LEVEL not in violated(found)

    def test_clipping_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Found also where the bound is above every norm."""
        monkeypatch.setattr(Flat, "factor", lambda self, norms, bound: torch.ones_like(norms))
        private = private_of()
        for bound in (0.5, 100.0):
            private.max_grad_norm = bound
            self.expect_neighbours(private)

    @pytest.mark.parametrize("clipping", ["flat", "per-layer"])
    def test_one_layer_is_not_clipped(self, monkeypatch: pytest.MonkeyPatch, clipping: str) -> None:
        step = importlib.import_module("fxdp.passes.clip")
        true = step.clipped_sums

        def clipped_sums(gm: Any, choice: Any) -> Any:
            factors = step.study(gm).of(step.Factors).nodes
            name = choice.gradient.parameter
            if name == "first":
                end = gm.graph.output_node()
                factors[name] = emit(end, torch.ones_like, factors[name], placement=Shard(0))
            return true(gm, choice)

        monkeypatch.setattr(step, "clipped_sums", clipped_sums)
        self.expect_neighbours(private_of(clipping=clipping))

    @pytest.mark.parametrize(
        ("wrong", "clipping"), [("half", "flat"), ("one parameter less", "automatic")]
    )
    def test_a_norm_too_small(
        self, monkeypatch: pytest.MonkeyPatch, wrong: str, clipping: str
    ) -> None:
        step = importlib.import_module("fxdp.passes.weigh")
        norm, total = step.safe_norm, step.total
        if wrong == "half":
            monkeypatch.setattr(step, "safe_norm", lambda *a: norm(*a) / 2)
        else:
            less: Any = lambda squares, mask: total(squares[len(squares) > 1 :], mask)  # noqa: E731
            monkeypatch.setattr(step, "total", less)
        self.expect_neighbours(private_of(clipping=clipping))

    def test_padding_that_is_a_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        step = importlib.import_module("fxdp.passes.weigh")
        true = step.clip_factor

        def clip_factor(*args: Any) -> Tensor:
            return true(*args[:-1], torch.ones_like(args[-1]))

        monkeypatch.setattr(step, "clip_factor", clip_factor)
        found = fxdp.audit(private_of(), X, Y, releases=4)
        assert [f.subject for f in found.violations] == [
            "1 of 6 samples masked out, not left out, C = 0.5"
        ]


class Kept(nn.Module):
    """A model that has it all: a buffer that each step writes, dropout, and a fault at will."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.body(x))


class Stop(Exception):
    """Raised in the middle of an audit."""


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_changed(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    private = private_of(Kept(), budget=(100.0, 1e-5))
    private(X, Y).backward()
    grads = [p.grad for p in private.parameters()]
    before = [None if g is None else g.clone() for g in grads]
    state = {k: v.clone() for k, v in private.state_dict().items()}
    account = private._account
    ledger, rng = private.privacy_state_dict(), torch.get_rng_state()
    waiting = private(X, Y)  # a step that has begun goes on afterwards
    extras = private._stepper.record.extras
    state = {k: v.clone() for k, v in private.state_dict().items()}
    rng = torch.get_rng_state()
    if fails:

        def add(*_: Any) -> None:
            raise Stop

        monkeypatch.setattr(Noise, "add", add)
        with pytest.raises(Stop):
            fxdp.audit(private, X, Y, releases=2)
    else:
        fxdp.audit(private, X, Y, releases=2)
    assert torch.equal(torch.get_rng_state(), rng)
    assert private.privacy_state_dict() == ledger
    assert private._account is account
    assert private._stepper.record.extras is extras
    assert (private.max_grad_norm, private.noise_multiplier) == (0.5, 1.0)
    assert private.training
    for name, was in state.items():
        assert torch.equal(private.state_dict()[name], was), name
    for p, grad, was in zip(private.parameters(), grads, before, strict=True):
        assert p.grad is grad
        assert (grad is None) == (was is None)
        assert grad is None or torch.equal(grad, was)
    waiting.backward()
    assert private.releases == 2


class TestBadInput:
    """Each is refused before a step runs."""

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"releases": 0}, ValueError, "releases must be a whole number >= 2"),
            ({"releases": 1}, ValueError, "releases must be a whole number >= 2"),
            ({"releases": 2.5}, ValueError, "whole number"),
            ({"confidence": 1.0}, ValueError, "confidence must be in"),
            ({"confidence": math.nan}, ValueError, "confidence must be in"),
            ({"delta": 0.0}, ValueError, "delta must be in"),
            ({"sample_mask": torch.ones(3)}, ValueError, "sample_mask must be bool"),
            ({"sample_mask": torch.arange(N) < 1}, ValueError, "at least 2 samples .* got 1"),
        ],
    )
    def test_options(self, options: dict[str, Any], error: type, words: str) -> None:
        private = private_of()
        with pytest.raises(error, match=words):
            fxdp.audit(private, X, Y, **options)
        assert private._stepper.record.compilations == 0

    @pytest.mark.parametrize("rows", [0, 1])
    def test_batches_too_small(self, rows: int) -> None:
        with pytest.raises(ValueError, match=f"at least 2 samples to compare, and got {rows}"):
            fxdp.audit(sound(), X[:rows], Y[:rows])

    def test_what_is_audited(self) -> None:
        with pytest.raises(TypeError, match="what fxdp.compile returns, not Two"):
            fxdp.audit(net(), X, Y)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="noise_multiplier above 0"):
            fxdp.audit(private_of(noise_multiplier=0.0), X, Y)
        with pytest.raises(TypeError, match="loss_fn= in place of loss_reduction="):
            fxdp.audit(private_of(loss_fn=None, loss_reduction="mean"), X)
        private = private_of()
        banded = {"noise": fxdp.noise.BandMF(2), "sample_rate": CyclicPoisson(0.5, 2)}
        with pytest.raises(ValueError, match="correlated noise"):
            fxdp.audit(private_of(**banded), X, Y)
        with pytest.raises(fxdp.StepError, match="outside"), private.accumulate():
            fxdp.audit(private, X, Y)

    def test_a_model_that_mixes_samples(self) -> None:
        private = private_of(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
        with pytest.raises(fxdp.BatchMixingError):
            fxdp.audit(private, X, Y)
        assert private.max_grad_norm == 0.5


class TestStatistics:
    """Rates over many audits of numbers that are what they should be."""

    def test_a_canary_is_called_violated_as_rarely_as_stated(self) -> None:
        """At mistake 0.2, in 200 audits of 60 releases: more than 40 + 3 * 5.7 has chance 1e-3."""
        source = np.random.default_rng(0)
        found: list[Finding | Unjudged] = []
        for _ in range(200):
            present, absent = source.normal(1.0, size=60), source.normal(0.0, size=60)
            found += Guesses(present, absent, "", 1e-5, 4.377, 0.2).findings()[:1]
        judged = [f for f in found if isinstance(f, Finding)]
        assert len(judged) == 200
        assert sum(not f.consistent for f in judged) <= 57
        assert sum(f.low > 0 for f in judged) >= 100  # bounds that say something

    def test_more_releases_show_more(self) -> None:
        source = np.random.default_rng(0)
        lows = []
        for count in (100, 1000, 20000):
            present, absent = source.normal(1.0, size=count), source.normal(0.0, size=count)
            (best, _) = Guesses(present, absent, "", 1e-5, 4.377, 0.01).findings()
            assert isinstance(best, Finding)
            lows.append(best.low)
        assert lows == sorted(lows)
        assert 3.9 < lows[-1] <= 4.377

    def test_scores_that_are_told_apart(self) -> None:
        """No noise at all: both bounds find it, from releases that are all alike."""
        one, zero = np.ones(2000), np.zeros(2000)
        for found in Guesses(one, zero, "", 1e-5, 4.377, 0.01).findings():
            assert isinstance(found, Finding)
            assert not found.consistent
        for found in Guesses(zero, zero, "", 1e-5, 4.377, 0.01).findings():
            assert isinstance(found, Finding)
            assert (found.consistent, found.low) == (True, 0.0)

    def test_noise_is_called_wrong_as_rarely_as_stated(self) -> None:
        """At mistake 0.05 for each of 4 questions, in 200 audits: more than 40 + 3 * 5.7 wrong has
        chance 1e-3. And none of the four questions is never answered wrongly: their intervals are
        not wider than they need be."""
        source = torch.Generator().manual_seed(0)
        base = {"a": torch.randn(3, 2, generator=source), "b": torch.ones(1), "c": torch.ones(40)}
        wrong: list[str] = []
        audits = 0
        for _ in range(200):
            noise = Noise(list(base), 0.5, 2.0, 12)
            for _ in range(12):
                drawn = {k: torch.randn(x.shape, generator=source) for k, x in base.items()}
                noise.add({k: x + 0.5 * drawn[k] for k, x in base.items()}, base)
            found = [f for f in noise.findings(0.05) if isinstance(f, Finding)]
            assert len(found) == 7
            bad = [f.subject for f in found if not f.consistent]
            audits += bool(bad)
            wrong += bad
        assert audits <= 57
        for question in ("noise multiplier", "releases", "within", "between parameters"):
            assert sum(question in w for w in wrong) >= 2

    def test_the_strongest_pair(self) -> None:
        """A part of one parameter's noise in another's, of another size."""
        source = np.random.default_rng(0)
        kept = {"a": source.normal(size=(50, 8)), "b": source.normal(size=(50, 20))}
        blur = dict.fromkeys("abc", 0.0)
        assert abs(strongest_pair(kept, 0.01, blur).excess) < 1
        kept["c"] = 0.5 * kept["a"][:, :5] + source.normal(size=(50, 5))
        worst = strongest_pair(kept, 0.01, blur)
        assert (worst.name, worst.excess > 1) == ("a, c", True)
        assert worst.measured == pytest.approx(0.5 / 1.25**0.5, abs=0.1)


def test_a_report_is_true_only_where_every_test_judged() -> None:
    good = [Finding(t, "x", 1.0, True, 1.0, 0.9, 1.1) for t in ("neighbours", "canary", "noise")]
    assert Audit(tuple(good), (), 2, 0.9)
    assert not Audit(tuple(good[:2]), (Unjudged("noise", "x", "y"),), 2, 0.9)
    above = Finding("noise", "x", 1.0, False, 0.5, 0.4, 0.6)
    assert not Audit((*good, above), (), 2, 0.9)
    assert not Finding("canary", "x", 1.0, True, math.nan, math.nan, math.nan).consistent


def test_adaptive_clipping() -> None:
    """The sum has 1 / sqrt(1 - (2 * 0.8)^-2) = 1.28 times the noise of sum and count together."""
    private = private_of(clipping=fxdp.clipping.Adaptive(unclipped_num_std=0.8))
    bound = private.max_grad_norm
    found = fxdp.audit(private, X, Y, releases=60)
    assert not found.violations, found
    (level,) = [f for f in found.findings if f.subject == "noise multiplier, all parameters"]
    assert level.claim == pytest.approx(1.281 * private.noise_multiplier, rel=1e-3)
    assert private.max_grad_norm == bound
    assert private.last_norms.shape == (0,)  # as before: nothing was released
