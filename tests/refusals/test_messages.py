"""What a user reads who made an ordinary mistake: one line, its cause, and what to do."""

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.capture.pairs import pair_axis

G: dict[str, Any] = {
    "max_grad_norm": 1.0, "noise_multiplier": 0.0, "expected_batch_size": 4.0, "backend": "eager",
}  # fmt: skip
X, Y = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3


class Net(nn.Linear):
    """A layer whose output goes through a function of the test's."""

    def __init__(self, then: Any = None) -> None:
        super().__init__(5, 3)
        self.then = then

    def forward(self, x: Tensor, *more: Any) -> Any:
        out = super().forward(x)
        return out if self.then is None else self.then(out, *more)


def refused(*args: Any, loss_fn: Any = F.cross_entropy, then: Any = None) -> fxdp.ProofError:
    model = Net(then)
    private = fxdp.compile(model, loss_fn, **G)
    with pytest.raises(fxdp.ProofError) as found:
        private(*args).backward()
    assert private.releases == 0
    assert all(p.grad is None for p in model.parameters())
    return found.value


# In the words of each torch.
NO_DICT = "must be Tensor, not dict" if torch.__version__ >= (2, 12) else "to Tensor"


class TestOwnErrors:
    """What the model, its loss or the arguments do wrong is said in torch's own words."""

    @pytest.mark.parametrize(
        ("args", "then", "words"),
        [
            ((X, Y), lambda out: {"logits": out}, NO_DICT),
            ((X, Y.float()), None, "int64"),
            ((X[:, :4], Y), None, "reduction dim"),
            ((X, Y), lambda out: out.nothing, "nothing"),
            ((X, Y), lambda out: out.sum(2), "Dimension out of range"),
        ],
        ids=["dict", "target's dtype", "width", "attribute", "axis"],
    )
    def test_reason(self, args: Any, then: Any, words: str) -> None:
        found = refused(*args, then=then)
        assert found.diagnostics[0].code.code == "FXD501"
        assert words in str(found)
        assert "side effects" not in str(found)

    def test_of_gradients_alone(self) -> None:
        scale = nn.Parameter(torch.ones(3))
        found = refused(X, Y, loss_fn=lambda out, y: F.cross_entropy(out, y, scale.exp()))
        assert "RuntimeError: The function 'nll_loss_forward' is not differentiable" in str(found)

    def test_after_a_good_step(self) -> None:
        private = fxdp.compile(Net(), F.cross_entropy, **G)
        private(X, Y).backward()
        with pytest.raises(fxdp.CaptureError, match="reduction dim"):
            private(X[:, :4], Y)
        private(X, Y).backward()
        assert private.releases == 2

    def test_a_loss_that_is_none(self) -> None:
        found = refused(X, Y, loss_fn=lambda out, y: float(len(y)))
        assert "loss_fn returned a float" in str(found)
        assert "pass loss_fn" not in str(found)


class Leaving(nn.Module):
    """Writes to all that a refusal must leave as it is, and then does what is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.kept, self.box = nn.Linear(5, 3), torch.zeros(3), {}
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor, adjacent: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.net.bias.add_(self.net(x).mean(0))
            self.seen.add_(1.0)
            self.kept += 1.0
            self.net.weight.grad = x.mean() * torch.ones(3, 5)
        with torch.enable_grad():
            h = self.net(x)
            self.box["h"] = h
        return F.cross_entropy(adjacent @ h, y)


def test_nothing_is_left_of_a_refusal() -> None:
    """Not even of what is run to find out whether samples are paired."""
    model = Leaving()
    private = fxdp.compile(model, **G)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(fxdp.ProofError):
        private(X, torch.rand(4, 4, generator=torch.Generator().manual_seed(0)), Y)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.box
    assert torch.equal(model.kept, torch.zeros(3))
    axis = pair_axis(model, None, private._stepper.gathered((X, torch.rand(4, 4), Y), {}), "")
    assert axis == "axis 1 of 'adjacent'"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.box
    assert torch.equal(model.kept, torch.zeros(3))


def test_torch_logs_nothing_of_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while the model is captured, nor while it is asked whether samples are paired."""
    logger, handler = logging.getLogger("torch._subclasses.fake_tensor"), logging.Handler()
    records: list[logging.LogRecord] = []
    monkeypatch.setattr(handler, "emit", records.append)
    logger.addHandler(handler)
    try:
        found = refused(X, Y, then=lambda out: out * torch.ones(4, 1))
    finally:
        logger.removeHandler(handler)
    assert found.diagnostics[0].code.code == "FXD105"
    assert not records


def test_a_view_by_memory_is_told_what_to_be_instead() -> None:
    found = refused(X, then=strided, loss_fn=None)
    assert "unfold" in found.diagnostics[0].remedy


def strided(out: Tensor) -> Tensor:
    return out.as_strided((2, 2), (1, 1)).sum()


class TestAnOpacusLoop:
    """`private(x)`, and a loss of the user's own."""

    def test_with_loss_fn(self) -> None:
        private = fxdp.compile(Net(), F.cross_entropy, **G)
        with pytest.raises(TypeError, match=r"private\(x, y\).*loss_reduction='mean'"):
            private(X)
        with pytest.raises(TypeError, match="the target is missing"):
            private(x=X)

    def test_without_loss_fn(self) -> None:
        assert "loss_reduction='mean'" in str(refused(X, loss_fn=None))


class TestSeveralResults:
    """The only 0-d tensor with a gradient is the loss, wherever it stands."""

    @pytest.mark.parametrize("n", [1, 2, 4])
    def test_logits_first(self, n: int) -> None:
        x, y = X[:n], Y[:n]
        model = Net(lambda out, y: (out, F.cross_entropy(out, y)))
        private = fxdp.compile(model, **G | {"max_grad_norm": 1e9})
        logits, loss = private(x, y)
        assert not logits.requires_grad
        torch.testing.assert_close(logits, model(x, y)[0].detach())
        loss.backward()
        want = torch.func.grad(lambda w: F.cross_entropy(x @ w.T + model.bias, y))(model.weight)
        torch.testing.assert_close(model.weight.grad, want * n / 4)

    def test_a_number_for_each_sample_next_to_it_is_none(self) -> None:
        private = fxdp.compile(Net(lambda out, y: (out[:, 0], F.cross_entropy(out, y), y)), **G)
        each, loss, target = private(X, Y)
        assert loss.requires_grad
        assert not each.requires_grad
        assert torch.equal(target, Y)

    def test_verify_takes_the_same(self) -> None:
        assert fxdp.verify(Net(lambda out, y: (out, F.cross_entropy(out, y))), X, Y)


class TestPairs:
    """A second axis of samples mixes them; a number that happens to be N does not."""

    def test_a_graph_of_the_samples(self) -> None:
        found = refused(X, torch.rand(4, 4), Y, then=lambda out, adjacent: adjacent @ out)
        assert found.diagnostics[0].code.code == "FXD101"
        assert "axis 1 of 'args[1]' is another axis of the samples" in str(found)

    def test_a_fixed_batch(self) -> None:
        found = refused(X[:, [0, 1, 2, 3, 4]], Y, then=lambda out: out.reshape(4, 3))
        assert found.diagnostics[0].code.code == "FXD105"


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda out: print("hello") or out, "leave print out"),
        (
            lambda out: (
                nn.utils.rnn.pack_padded_sequence(out[:, None], torch.ones(len(out)), True).data
            ),
            "pad_packed_sequence alone",
        ),
    ],
    ids=["print", "packed"],
)
def test_a_graph_break_says_what_helps(then: Any, words: str) -> None:
    assert words in refused(X, Y, then=then).diagnostics[0].remedy


def test_hooks_on_backward_say_what_helps() -> None:
    model = Net()
    model.register_full_backward_hook(lambda *_: None)
    with pytest.raises(fxdp.CaptureError, match="remove the hooks"):
        fxdp.compile(model, F.cross_entropy, **G)(X, Y)


@pytest.mark.parametrize("wrong", [None, [], torch.optim.SGD])
def test_an_optimizer_that_is_none(wrong: Any) -> None:
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 2)
    with pytest.raises(TypeError, match="optimizer must be one"):
        fxdp.make_private(
            Net(), wrong, data, F.cross_entropy, noise_multiplier=1.0, delta=1e-3, epochs=1,
            max_grad_norm=1.0,
        )  # fmt: skip
