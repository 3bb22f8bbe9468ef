"""README's example of a rule of one's own: an op that fxdp has never heard of."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.ops.pointwise import pointwise
from tests.oracle import clipped_sum, per_sample

N, D = 6, 4


@torch.library.custom_op("mine::squash", mutates_args=())
def squash(x: Tensor) -> Tensor:
    """x / (1 + |x|), by a kernel of one's own."""
    return x / (1 + x.abs())


@squash.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


squash.register_autograd(
    lambda ctx, g: g / (1 + ctx.saved_tensors[0].abs()) ** 2,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)

RULES = fxdp.RULES | {torch.ops.mine.squash.default: fxdp.Rule(pointwise)}


class Squashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mine.squash(self.fc(x))


X, Y = torch.randn(N, D, dtype=torch.double), torch.arange(N) % 3


def test_without_the_rule_it_is_refused():
    with pytest.raises(fxdp.ProofError, match="FXD401 no-rule: squash"):
        fxdp.prove(Squashed().double(), X, Y, loss_fn=F.cross_entropy)


def test_with_the_rule_it_is_exact_and_the_rule_is_an_assumption():
    model = Squashed().double()
    private = fxdp.compile(
        model, loss_fn=F.cross_entropy, max_grad_norm=0.1, noise_multiplier=0.0,
        expected_batch_size=N, backend="eager", rules=RULES,
    )  # fmt: skip
    private(X, Y).backward()
    each, _ = per_sample(model, F.cross_entropy, (X, Y), {}, N)
    for name, want in clipped_sum(each, 0.1, N).items():
        torch.testing.assert_close(model.get_parameter(name).grad, want, rtol=1e-9, atol=1e-9)
    (first, *_) = private.certificate().obligations
    assert first.by == ("the rule of mine.squash.default in rules=",)
    assert fxdp.verify(model, X, Y, loss_fn=F.cross_entropy, rules=RULES)
