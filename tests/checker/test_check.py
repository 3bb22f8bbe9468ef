"""The checker accepts what is proven, and finds a wrong rule, another graph, and an edited text."""

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.checker.check import judged
from fxdp.compiler import attempt
from fxdp.module.inspection import Attempt
from fxdp.ops import RULES
from fxdp.placement import Replicate, Shard

N = 6
Y = torch.arange(N) % 3
aten = torch.ops.aten


class Last(nn.Module):
    """The state after the last step of a recurrent layer."""

    def forward(self, x: Any) -> Tensor:
        return x[0][:, -1]


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-2)


class Two(nn.Module):
    """Two inputs, the samples of the second on its last axis, and a tensor that all share."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, z: Tensor, shift: Tensor) -> Tensor:
        return self.c(torch.tanh(self.a(x) + self.b(z.T)) + shift)


class Flipped(nn.Sequential):
    """Each sample gets the output of another."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(0)


class Centred(nn.Sequential):
    """Each sample is compared with the sum of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h - h.detach().sum(0, keepdim=True)


class Watched(nn.Linear):
    """A model whose author looks at a mean over the batch."""

    def forward(self, input: Tensor) -> Tensor:
        self.last = input.mean(0)  # fxdp: allow[FXD303] looked at in a debugger
        return super().forward(input)


def mlp(activation: type[nn.Module] = nn.ReLU, width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), activation(), nn.Linear(width, 3))


def tokens(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), target.flatten())


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A model and the arguments of a step."""

    model: Callable[[], nn.Module]
    args: tuple[Any, ...]
    loss: Callable[..., Tensor] = F.cross_entropy
    dims: Any = 0


X = torch.randn(N, 4)
CASES = {
    "mlp": Case(lambda: nn.Sequential(*mlp(), nn.Dropout(0.1), nn.AlphaDropout(0.1)), (X, Y)),
    "cnn": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64, 3),
        ),
        (torch.randn(N, 3, 8, 8), Y),
    ),
    "transformer": Case(
        lambda: nn.Sequential(
            nn.Embedding(11, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), Pooled(),
            nn.Linear(8, 3),
        ),
        (torch.randint(11, (N, 5)), Y),
    ),
    "lstm": Case(
        lambda: nn.Sequential(nn.LSTM(4, 6, batch_first=True), Last(), nn.Linear(6, 3)),
        (torch.randn(N, 5, 4), Y),
    ),
    "language": Case(
        lambda: nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11)),
        (torch.randint(11, (N, 5)), torch.randint(11, (N, 5))), tokens,
    ),
    "inputs": Case(
        Two, (X, torch.randn(3, N), torch.randn(8), Y),
        dims={"x": 0, "z": 1, "shift": None, "target": 0},
    ),
}  # fmt: skip
PLAIN = Case(mlp, (X, Y))
WATCHED = Case(lambda: Watched(4, 3), (X, Y))


@cache
def captured(case: Case) -> Attempt:
    """A model's capture and proof, for all that is said of it."""
    return attempt(case.model(), *case.args, loss_fn=case.loss, batch_dims=case.dims)


def given(case: Case) -> fxdp.Certificate:
    """A certificate, as it comes out of a file."""
    found = captured(case).certificate
    assert found is not None
    return fxdp.Certificate.from_json(found.to_json())


def verdict_on(certificate: fxdp.Certificate, case: Case = PLAIN) -> fxdp.Verdict:
    return judged(certificate, captured(case))


class TestAccepts:
    @pytest.mark.parametrize("name", CASES)
    def test_what_is_proven(self, name: str) -> None:
        verdict = verdict_on(given(CASES[name]), CASES[name])
        assert verdict, verdict.why
        assert sum(verdict.by_rule.values()) > 5 * sum(verdict.by_trial.values())

    def test_it_captures_by_itself(self) -> None:
        """By its public name, also for a certificate of a step that was compiled."""
        private = fxdp.compile(
            mlp(), loss_fn=F.cross_entropy, max_grad_norm=1.0, noise_multiplier=0.0,
            expected_batch_size=N, backend="eager",
        )  # fmt: skip
        private(X, Y).backward()
        verdict = fxdp.check_certificate(
            private.certificate(), mlp(), X[:4], Y[:4], loss_fn=F.cross_entropy
        )
        assert verdict, verdict.why
        assert str(verdict).startswith("accepted: every value of the captured graph follows")
        assert any("samples were drawn as the accountant" in line for line in verdict.assumed)
        assert any(line.startswith("P3") for line in verdict.assumed)

    def test_an_allowed_line_is_shown(self) -> None:
        verdict = verdict_on(given(WATCHED), WATCHED)
        assert verdict, verdict.why
        assert any("looked at in a debugger" in line for line in verdict.assumed)


class TestAChangedRule:
    """fxdp's proof believes its rules; the checker does not read them."""

    def test_of_the_users(self) -> None:
        def place(call: Any, x: Any, *_: Any) -> Any:
            return Shard(0)

        rules = fxdp.RULES | {aten.flip.default: fxdp.Rule(place)}
        model = Flipped(*mlp())
        found = attempt(model, X, Y, loss_fn=F.cross_entropy, rules=rules)
        assert found.certificate is not None, "the proof believes it"
        verdict = judged(found.certificate, found)
        assert "flip (aten.flip.default): claimed Shard 0 1" in verdict.why
        assert "not what it is for that sample alone" in verdict.why
        assert "test_check.py:" in verdict.why

    @pytest.mark.parametrize("reach", [1, 10])
    @pytest.mark.parametrize("turned", [False, True], ids=["conv1d", "conv_transpose1d"])
    def test_of_windows_that_reach_farther_than_a_trial(self, reach: int, turned: bool) -> None:
        """Of few samples a window with holes sees padding alone."""

        class Windows(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                conv = F.conv_transpose1d if turned else F.conv1d
                own = torch.ones(1, 1, 3, dtype=x.dtype)
                h = conv(x.T[:, None], own, padding=reach, dilation=reach)
                return super().forward(h[:, 0].T)

        rules = fxdp.RULES | {aten.convolution.default: fxdp.Rule(lambda *_, **__: Shard(2))}
        found = attempt(Windows(*mlp()), X, Y, loss_fn=F.cross_entropy, rules=rules)
        assert found.certificate is not None, "the proof believes it"
        verdict = judged(found.certificate, found)
        assert "convolution (aten.convolution.default): claimed Shard 2 1" in verdict.why

    @pytest.mark.parametrize(
        ("model", "op", "claim", "why"),
        [
            (Flipped, aten.flip.default, Shard(0), "for that sample alone"),
            (Centred, aten.sum.dim_IntList, Replicate(), "made of samples"),
        ],
    )
    def test_of_fxdps_own(
        self, model: Any, op: Any, claim: Any, why: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The table itself is wrong, for the proof and for whoever runs it again: a sum over the
        batch is taken for one that no sample is in."""
        own = RULES[op]

        def is_gradient(call: Any) -> bool:
            """Is this the sum that is the gradient of a bias?"""
            return call.backward and op is aten.sum.dim_IntList

        def place(call: Any, x: Any, *rest: Any, **named: Any) -> Any:
            if isinstance(x.placement, Shard) and call.rank > 1 and not is_gradient(call):
                return claim
            return own.place(call, x, *rest, **named)

        monkeypatch.setitem(RULES, op, dataclasses.replace(own, place=place))  # type: ignore[arg-type]
        found = attempt(model(*mlp()), X, Y, loss_fn=F.cross_entropy)
        assert found.certificate, "the proof finds no fault"
        verdict = judged(found.certificate, found)
        assert f"({op}): claimed " in verdict.why
        assert why in verdict.why


class TestAnotherGraph:
    @pytest.mark.parametrize(
        ("case", "why"),
        [
            (Case(lambda: mlp(nn.Tanh), (X, Y)), "aten.tanh.default"),
            (Case(lambda: mlp(width=9), (X, Y)), "float32[9, 4]"),
            (Case(lambda: nn.Sequential(*mlp(), nn.ReLU()), (X, Y)), "the graph is another"),
            (CASES["cnn"], "the graph is another"),
        ],
        ids=["activation", "width", "longer", "swapped"],
    )
    def test_a_changed_model(self, case: Case, why: str) -> None:
        assert why in verdict_on(given(PLAIN), case).why

    def test_values_are_missing(self) -> None:
        short = dataclasses.replace(given(PLAIN), values=given(PLAIN).values[:-1])
        assert "the certificate has" in verdict_on(short).why

    def test_who_holds_samples_is_the_callers_to_say(self) -> None:
        """An argument that is shared in the certificate, and holds samples here."""
        x, z, _, y = CASES["inputs"].args
        dims = {"x": 0, "z": 1, "shift": 0, "target": 0}
        here = Case(Two, (x, z, torch.randn(N, 8), y), dims=dims)
        assert "the graph is another" in verdict_on(given(CASES["inputs"]), here).why


def edited(change: Callable[[Any], None]) -> fxdp.Certificate:
    """The certificate, with something changed in its JSON."""
    data = json.loads(given(PLAIN).to_json())
    change(data)
    return fxdp.Certificate.from_json(json.dumps(data))


class TestAnEditedText:
    @pytest.mark.parametrize(
        ("op", "claim"),
        [
            ("aten.relu.default", "Replicate"),
            ("aten.relu.default", "Partial"),
            ("aten.relu.default", "Shard 1 1"),
            ("aten.relu.default", "Shard 0 2"),
            ("aten.relu.default", "Iota 0 1 1"),
            ("aten.relu.default", "Shard 0 1; Shard 0 1"),
            ("aten.relu.default", "Shard 0 print(1)"),
            ("aten.relu.default", "whatever"),
            ("aten.mm.default", "Partial"),
            ("0.weight", "Shard 0 1"),
            ("0.weight", "Partial"),
            ("0.weight", "Replicate zero"),
            ("fxdp.samples.default", "Replicate"),
            ("fxdp.release.default", "Partial public"),
        ],
    )
    def test_a_placement(self, op: str, claim: str) -> None:
        def change(data: Any) -> None:
            value = next(v for v in data["values"] if v["op"].endswith(op))
            value["placements"] = [claim]

        assert not verdict_on(edited(change))

    def test_every_gradient_must_be_a_sum(self) -> None:
        def change(data: Any) -> None:
            for v in data["values"]:
                v["placements"] = [p.replace("Partial", "Replicate") for p in v["placements"]]

        assert "claimed Replicate, and it is made of samples" in verdict_on(edited(change)).why

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda data: data["obligations"].pop(1), "the obligation P2 is missing"),
            (lambda data: data["obligations"][1].update(evidence="9 gradients"), "P2 is another"),
            (lambda data: data["assumptions"].pop(1), "an assumption is missing: samples were"),
            (lambda data: data.update(graph="0" * 64), "the hash of the graph is"),
        ],
    )
    def test_words(self, change: Callable[[Any], None], why: str) -> None:
        assert why in verdict_on(edited(change)).why

    def test_what_was_allowed_is_not_said(self) -> None:
        own = given(WATCHED)
        hidden = tuple(dataclasses.replace(o, proven=True, by=()) for o in own.obligations)
        verdict = verdict_on(dataclasses.replace(own, obligations=hidden), WATCHED)
        assert "div (aten.div.Tensor): claimed Replicate" in verdict.why
