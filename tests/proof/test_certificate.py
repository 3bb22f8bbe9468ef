"""The certificate says what was proven, by whom the rest is assumed, and says it stably."""

import functools
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.placement import Shard

N, D = 6, 4
X, Y = torch.randn(N, D), torch.arange(N) % 3


def net(width: int = D) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, width), nn.ReLU(), nn.Linear(width, 3))


def proven(model: nn.Module | None = None, n: int = N, **options: object) -> fxdp.Certificate:
    return fxdp.prove(model or net(), X[:n], Y[:n], loss_fn=F.cross_entropy, **options)  # type: ignore[arg-type]


@functools.cache
def plain() -> fxdp.Certificate:
    """That of `net()`."""
    return proven()


@functools.cache
def watched() -> fxdp.Certificate:
    return proven(Watched())


class Watched(nn.Module):
    """A model whose author looks at its activations."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach().abs()  # fxdp: allow[FXD303] looked at in a debugger
        return self.fc(x)


class WatchedMean(Watched):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x.mean(0)  # fxdp: allow[FXD303] looked at in a debugger
        return self.fc(x)


class Lost(Watched):
    def forward(self, x: Tensor) -> Tensor:
        self.last = (x @ x.T).exp()  # fxdp: allow[FXD303] looked at in a debugger
        return self.fc(x)


class WatchedAndWritten(Watched):
    """The value that is only looked at is also saved with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        self.last = middle = x.mean(0)  # fxdp: allow[FXD303] looked at in a debugger
        self.mean.copy_(middle)
        return self.fc(x)


class Centred(torch.autograd.Function):
    """Nothing in forward; gradients of samples meet in backward."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g - g.mean(0)


class WatchedAndMixing(Watched):
    """The value that is only looked at comes of a line whose backward pass mixes samples."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = h = Centred.apply(self.fc(x))  # fxdp: allow[FXD303] looked at in a debugger
        return h


class WatchedAndMixed(Watched):
    """The line that keeps a value also mixes samples in forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.last, h = self.fc(x), self.fc(x.softmax(0))  # fxdp: allow[FXD303] in a debugger
        return h


class Unreasoned(Watched):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach().abs()  # fxdp: allow[FXD303]
        return self.fc(x)


class Mixing(Watched):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.softmax(0))  # fxdp: allow[FXD101, FXD102] we know better


IN_A_FRESH_PROCESS = """
import torch, torch.nn.functional as F
from torch import nn
import fxdp
# Something else first, that moves torch's counters for names and symbols.
fxdp.prove(nn.Linear(2, 2), torch.randn(3, 2), torch.arange(3) % 2, loss_fn=F.cross_entropy)
model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
x, y = torch.randn(7, 4), torch.arange(7) % 3
print(fxdp.prove(model, x, y, loss_fn=F.cross_entropy).to_json())
"""


class TestGuarantees:
    def test_proven_obligations(self):
        certificate = plain()
        assert [o.name for o in certificate.obligations] == ["P1", "P2", "P3", "P4", "P5", "P6"]
        assert all(o.proven and not o.by for o in certificate.obligations)
        assert certificate
        assert "4 gradients come from 4 sums" in certificate.obligations[1].evidence
        assert certificate.versions["torch"] == torch.__version__

    def test_for_every_batch_size(self):
        assert proven(n=2) == plain()
        assert proven(n=1) == plain()
        assert proven(n=0) == plain()

    def test_a_rule_of_the_users_is_an_assumption(self):
        def place(call, x, *_):
            return Shard(0)

        class Flips(nn.Sequential):
            def forward(self, x):
                return super().forward(x).flip(0)

        rules = fxdp.RULES | {torch.ops.aten.flip.default: fxdp.Rule(place)}
        certificate = proven(Flips(*net()), rules=rules)
        assert not certificate
        assert [o.name for o in certificate.obligations if not o.proven] == ["P1", "P2"]
        assert certificate.obligations[0].by == ("the rule of aten.flip.default in rules=",)
        assert proven(net(), rules=rules)  # where the op does not occur, its rule is not needed

    @pytest.mark.parametrize("model", [Watched, WatchedMean])
    def test_an_allowed_line_is_an_assumption(self, model: type[nn.Module]):
        certificate = proven(model())
        assert [o.name for o in certificate.obligations if not o.proven] == ["P5"]
        (by,) = certificate.obligations[4].by
        assert by.startswith("the comment on the line: the model keeps a value made of samples")
        assert "test_certificate.py:" in by
        assert "looked at in a debugger" in by

    @pytest.mark.parametrize(
        ("model", "said"),
        [(Unreasoned, "allow[] needs a reason"), (Mixing, "no comment can allow this")],
    )
    def test_what_no_comment_allows(self, model: type[nn.Module], said: str):
        with pytest.raises(fxdp.BatchMixingError, match="FXD") as caught:
            proven(model())
        assert said in caught.value.diagnostics[0].remedy

    def test_what_is_lost_cannot_be_allowed(self):
        with pytest.raises(fxdp.BatchMixingError, match="FXD303"):
            proven(Lost())

    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
    @pytest.mark.parametrize(
        ("model", "code"),
        [
            (WatchedAndWritten, "FXD301"), (WatchedAndMixing, "FXD102"),
            (WatchedAndMixed, "FXD101"),
        ],
    )  # fmt: skip
    def test_an_allowed_line_hides_no_other_fault(self, model: type[nn.Module], code: str):
        with pytest.raises(fxdp.BatchMixingError) as caught:
            proven(model())
        assert code in [d.code.code for d in caught.value.diagnostics]

    def test_an_allowed_line_trains(self):
        model = WatchedMean()
        private = fxdp.compile(
            model, loss_fn=F.cross_entropy, max_grad_norm=1.0, noise_multiplier=0.0,
            expected_batch_size=N, backend="eager",
        )  # fmt: skip
        private(X, Y).backward()
        torch.testing.assert_close(model.last, X.mean(0))
        assert not private.certificate()

    def test_it_is_the_same_in_any_process(self):
        fresh = subprocess.run(
            [sys.executable, "-c", IN_A_FRESH_PROCESS], capture_output=True, text=True, check=True
        )
        assert fresh.stdout.strip() == plain().to_json()

    def test_another_graph_has_another_hash(self):
        hashes = {
            plain().graph, proven(net(5)).graph, proven(net().double().float()).graph,
            proven(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, 3))).graph,
        }  # fmt: skip
        assert len(hashes) == 3

    def test_values_are_those_of_the_captured_graph(self):
        """In their order, before any pass; with placements where the proof kept them."""
        values = {v.op: v for v in plain().values}
        assert values["call_function aten.relu.default"].placements == ("Shard 0 1",)
        assert values["placeholder 0.weight"].placements == ("Replicate",)
        assert values["placeholder 0.weight"].results == "float32[4, 4]"
        assert values["call_function aten.alias.default"].placements == ()  # dropped
        layer = values["call_function aten.mm.default"]
        assert layer.placements == ("Partial",)  # the last one, of a gradient

    def test_it_survives_json(self):
        for certificate in (plain(), watched()):
            assert fxdp.Certificate.from_json(certificate.to_json()) == certificate
            assert json.loads(certificate.to_json())["fxdp_certificate"] == 2

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{}", '{"fxdp_certificate": 1}', "null", "[" * 100_000, '{"a":' * 100_000],
        ids=range(7),
    )
    def test_what_is_no_certificate(self, text: str):
        with pytest.raises(ValueError, match="certificate"):
            fxdp.Certificate.from_json(text)

    @pytest.mark.parametrize(
        ("part", "field"),
        [("obligations", "name"), ("assumptions", "what"), ("values", "placements")],
    )
    @pytest.mark.parametrize("wrong", [1, ["x"], [1], {}])
    def test_words_must_be_words(self, part: str, field: str, wrong: object):
        data = json.loads(plain().to_json())
        data[part][0][field] = wrong
        if (field, wrong) in (("placements", ["x"]), ("placements", {})):
            return  # no placement that there is, which the checker finds
        with pytest.raises(ValueError, match="no certificate|not a certificate"):
            fxdp.Certificate.from_json(json.dumps(data))


class TestWhatItDoesNotSay:
    def test_assumptions_name_who_answers(self):
        said = {a.what: a.by for a in plain().assumptions}
        assert said["samples were drawn as the accountant was given"] == "whoever trains"
        assert said["floating point stands for real numbers"] == "fxdp"

    def test_it_reads_as_a_table(self):
        text = str(watched())
        assert "rows are independent" in text
        assert "assumed by the comment on the line" in text
