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
from fxdp.ops import RULES
from fxdp.placement import Shard

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
    """Each sample is compared with the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h - h.mean(0, keepdim=True)


class Watched(nn.Linear):
    """A model whose author looks at a mean over the batch."""

    def forward(self, input: Tensor) -> Tensor:
        self.last = input.mean(0)  # fxdp: allow[FXD303] looked at in a debugger
        return super().forward(input)


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 3))


def tokens(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), target.flatten())


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and the arguments of a step."""

    model: Callable[[], nn.Module]
    args: tuple[Any, ...]
    loss: Callable[..., Tensor] = F.cross_entropy
    dims: Any = 0

    def prove(self, **options: Any) -> fxdp.Certificate:
        return fxdp.prove(
            self.model(), *self.args, loss_fn=self.loss, batch_dims=self.dims, **options
        )

    def check(self, certificate: fxdp.Certificate, **options: Any) -> fxdp.Verdict:
        return fxdp.check_certificate(
            certificate, self.model(), *self.args, loss_fn=self.loss, batch_dims=self.dims, **options
        )


X = torch.randn(N, 4)
CASES = {
    "mlp": Case(lambda: nn.Sequential(*mlp(), nn.Dropout(0.1)), (X, Y)),
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


@cache
def certificate() -> fxdp.Certificate:
    """Of `PLAIN`, as it comes out of a file."""
    return fxdp.Certificate.from_json(PLAIN.prove().to_json())


class TestAccepts:
    @pytest.mark.parametrize("name", CASES)
    def test_what_is_proven(self, name: str) -> None:
        case = CASES[name]
        verdict = case.check(fxdp.Certificate.from_json(case.prove().to_json()))
        assert verdict, verdict.why
        assert sum(verdict.by_rule.values()) > 5 * sum(verdict.by_trial.values())

    def test_it_says_what_is_left_to_believe(self) -> None:
        verdict = PLAIN.check(certificate())
        assert str(verdict).startswith("accepted: every value of the captured graph follows")
        assert any("samples were drawn as the accountant" in line for line in verdict.assumed)
        assert any(line.startswith("P3") for line in verdict.assumed)

    def test_an_allowed_line_is_shown(self) -> None:
        case = Case(lambda: Watched(4, 3), (X, Y))
        verdict = case.check(case.prove())
        assert verdict, verdict.why
        assert any("looked at in a debugger" in line for line in verdict.assumed)

    def test_a_compiled_step(self) -> None:
        model = mlp()
        private = fxdp.compile(
            model, loss_fn=F.cross_entropy, max_grad_norm=1.0, noise_multiplier=0.0,
            expected_batch_size=N, backend="eager",
        )  # fmt: skip
        private(X, Y).backward()
        verdict = PLAIN.check(private.certificate())
        assert verdict, verdict.why


class TestAChangedRule:
    """fxdp's proof believes its rules; the checker does not read them."""

    @pytest.mark.parametrize(
        ("model", "op", "says"),
        [
            (Flipped, aten.flip.default, "not what it is for that sample alone"),
            (Centred, aten.sum.dim_IntList, "the samples there"),
        ],
    )
    def test_of_the_users(self, model: Any, op: Any, says: str) -> None:
        def place(call: Any, x: Any, *_: Any, **__: Any) -> Any:
            return Shard(0) if call.rank == x.rank else RULES[op].place(call, x, *_, **__)

        case = Case(lambda: model(*mlp()), (X, Y))
        rules = fxdp.RULES | {op: dataclasses.replace(RULES[op], place=place)}
        try:
            given = case.prove(rules=rules)
        except fxdp.ProofError:  # a sum that keeps no axis of N has no slices: the shapes say so
            assert model is Centred
            return
        verdict = case.check(given, rules=rules)
        assert not verdict
        assert "flip (aten.flip.default): claimed Shard 0 1" in verdict.why
        assert says in verdict.why
        assert "test_check.py:" in verdict.why

    def test_of_fxdps_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The table itself is wrong, for the proof and for whoever runs it again."""
        rule = dataclasses.replace(RULES[aten.flip.default], place=lambda call, x, *_: x.placement)
        monkeypatch.setitem(RULES, aten.flip.default, rule)  # type: ignore[arg-type]
        case = Case(lambda: Flipped(*mlp()), (X, Y))
        given = case.prove()
        assert given, "the proof has no fault to find"
        verdict = case.check(given)
        assert "flip (aten.flip.default)" in verdict.why


class TestAnotherGraph:
    def test_a_changed_model(self) -> None:
        verdict = Case(lambda: mlp(nn.Tanh), (X, Y)).check(certificate())
        assert "the graph is another: " in verdict.why
        assert "tanh" in verdict.why

    def test_a_changed_width(self) -> None:
        case = Case(lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)), (X, Y))
        assert "float32[9, 4]" in case.check(certificate()).why

    def test_more_at_the_end(self) -> None:
        """A certificate that stops before the model does."""
        short = dataclasses.replace(certificate(), values=certificate().values[:-1])
        assert "the certificate has" in PLAIN.check(short).why

    def test_a_swapped_certificate(self) -> None:
        other = CASES["cnn"]
        assert "the graph is another" in other.check(certificate()).why

    def test_other_samples(self) -> None:
        """The caller says that an argument is shared, of which the certificate says otherwise."""
        case = Case(Two, (X, torch.randn(3, N), torch.randn(8), Y))
        given = CASES["inputs"].prove()
        shared = Case(
            Two, (X, torch.randn(3, N), torch.randn(N, 8), Y),
            dims={"x": 0, "z": 1, "shift": 0, "target": 0},
        )  # fmt: skip
        assert not shared.check(given)
        assert case.dims == 0


def edited(change: Callable[[Any], None]) -> fxdp.Certificate:
    """The certificate, with something changed in its JSON."""
    data = json.loads(certificate().to_json())
    change(data)
    return fxdp.Certificate.from_json(json.dumps(data))


def where(data: Any, op: str, index: int = 0) -> Any:
    return [v for v in data["values"] if v["op"].endswith(op)][index]


class TestAnEditedText:
    @pytest.mark.parametrize(
        ("op", "claim"),
        [
            ("aten.relu.default", "Replicate"),
            ("aten.relu.default", "Shard 1 1"),
            ("aten.relu.default", "Shard 0 2"),
            ("aten.mm.default", "Partial"),
            ("0.weight", "Shard 0 1"),
            ("0.weight", "Partial"),
            ("fxdp.samples.default", "Replicate"),
            ("fxdp.release.default", "Partial public"),
            ("aten.relu.default", "Shard 0 __import__('os').getpid()"),
            ("aten.relu.default", "Shard 0 1; Shard 0 1"),
            ("aten.relu.default", "whatever"),
        ],
    )
    def test_a_placement(self, op: str, claim: str) -> None:
        def change(data: Any) -> None:
            where(data, op)["placements"] = [claim]

        assert not PLAIN.check(edited(change))

    def test_every_gradient_must_be_a_sum(self) -> None:
        def change(data: Any) -> None:
            for value in data["values"]:
                value["placements"] = ["Replicate" if p == "Partial" else p for p in value["placements"]]

        assert "claimed Replicate" in PLAIN.check(edited(change)).why

    def test_an_obligation_is_missing(self) -> None:
        verdict = PLAIN.check(edited(lambda data: data["obligations"].pop(1)))
        assert verdict.why == "the obligation P2 is missing"

    def test_an_assumption_is_missing(self) -> None:
        verdict = PLAIN.check(edited(lambda data: data["assumptions"].pop(1)))
        assert "an assumption is missing: samples were drawn" in verdict.why

    def test_another_evidence(self) -> None:
        def change(data: Any) -> None:
            data["obligations"][1]["evidence"] = "9 gradients come from 9 sums over samples"

        assert "the obligation P2 is another" in PLAIN.check(edited(change)).why

    def test_another_hash(self) -> None:
        verdict = PLAIN.check(edited(lambda data: data.update(graph="0" * 64)))
        assert "the hash of the graph is" in verdict.why

    def test_what_was_allowed_is_not_said(self) -> None:
        case = Case(lambda: Watched(4, 3), (X, Y))
        given = case.prove()
        hidden = tuple(dataclasses.replace(o, proven=True, by=()) for o in given.obligations)
        assert not case.check(dataclasses.replace(given, obligations=hidden))
