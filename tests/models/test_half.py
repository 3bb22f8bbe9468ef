"""Half precision: parameters in it, and torch.autocast over parameters that are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.auditing.neighbours import ROUNDING
from fxdp.proof.facts import noise_arguments
from tests.oracle import clipped_sum, norms, per_sample

N, D, C = 24, 6, 3


class Small(nn.Sequential):
    """What compiles quickly."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(D, C), nn.LayerNorm(C), nn.Tanh())


class Net(nn.Module):
    """All forms of sums, and a parameter that is widened before it is used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.group = nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4)
        self.norm, self.table = nn.LayerNorm(16), nn.Embedding(5, 16)
        self.head, self.slope = nn.Linear(16, C), nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.group(self.conv(x[:, None])).relu().flatten(1)
        h = self.norm(h) + self.table(x[:, 0].long().clamp(0, 4))
        return self.head((h.float() * self.slope.float()).to(h.dtype)).float()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(N, D, generator=torch.manual_seed(1)) * 2, torch.arange(N) % C


def private_of(model: nn.Module, backend: str = "eager", bound: float = 0.7) -> fxdp.PrivateModule:
    return fxdp.compile(
        model, loss_fn=F.cross_entropy, max_grad_norm=bound, noise_multiplier=0.0,
        expected_batch_size=8.0, backend=backend,
    )  # fmt: skip


def close(got: dict[str, Tensor], want: dict[str, Tensor], share: float) -> None:
    """Each gradient, as a vector, within a share of the length of the wanted one."""
    assert got.keys() == want.keys()
    for name, g in got.items():
        w = want[name].float()
        assert (g.float() - w).norm() <= share * w.norm(), name


@pytest.mark.parametrize(
    ("net", "backend", "dtype"),
    [(Net, "eager", torch.bfloat16), (Net, "eager", torch.float16),
     (Small, "inductor", torch.bfloat16)],
)  # fmt: skip
def test_parameters(dtype: torch.dtype, net: type[nn.Module], backend: str) -> None:
    """Gradients in the parameters' dtype; whatever is summed and measured in float32."""
    model, (x, y) = net().to(dtype), batch()
    private = private_of(model, backend)
    private(x.to(dtype), y).backward()
    each, _ = per_sample(model, F.cross_entropy, (x.to(dtype), y), {}, N)
    each = {k: g.float() for k, g in each.items()}
    want = clipped_sum(each, 0.7, 8.0)
    assert {p.grad.dtype for p in model.parameters()} == {dtype}
    close({k: p.grad for k, p in model.named_parameters()}, want, 4 * ROUNDING[dtype])
    torch.testing.assert_close(private.last_norms, norms(each), rtol=4 * ROUNDING[dtype], atol=0.0)
    # Also where a gradient would be rounded on its way: rounding must not come before noise.
    found = filter(None, map(noise_arguments, private.graph_module.graph.nodes))
    sums = [total for given in found for total in given.get("totals") or [given["total"]]]
    assert len(sums) == len(list(model.parameters()))
    assert {total.meta["val"].dtype for total in sums} == {torch.float32}


@pytest.mark.parametrize(
    ("net", "backend", "backward_inside"),
    [(Net, "eager", True), (Net, "eager", False), (Small, "inductor", False)],
)
def test_autocast(net: type[nn.Module], backend: str, backward_inside: bool) -> None:
    """The same as each sample alone under autocast; the backward pass may be in it, or not."""
    model, (x, y) = net(), batch()
    private = private_of(model, backend)
    with torch.autocast("cpu", torch.bfloat16):
        each, sizes = per_sample(model, F.cross_entropy, (x, y), {}, N)
        loss = private(x, y)
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    assert private._stepper.record.fallbacks == []  # Inductor rounds where the graph does
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert private.last_norms.dtype == torch.float32
    want = clipped_sum(each, 0.7, 8.0)
    share = 4 * ROUNDING[torch.bfloat16]
    close({k: p.grad for k, p in model.named_parameters()}, want, share)
    torch.testing.assert_close(private.last_norms, sizes, rtol=share, atol=0.0)
    values = [n.meta.get("val") for n in private.graph_module.graph.nodes]
    assert torch.bfloat16 in {v.dtype for v in values if isinstance(v, Tensor)}


class Wide(nn.Module):
    """A parameter in bfloat16 that is widened before its use; a sample's gradient is x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(10_000, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.float()


def test_the_sum_is_not_rounded_before_the_noise() -> None:
    """1002 lies between two numbers of bfloat16, 1000 and 1004: noise of 8 around it has that mean.

    10 000 numbers have a mean within 0.4 of it but for one seed in a million.
    """
    model = Wide()
    private = fxdp.compile(
        model, max_grad_norm=1e6, noise_multiplier=8e-6, expected_batch_size=1.0, backend="eager"
    )
    torch.manual_seed(0)
    private(torch.tensor([[500.0], [502.0]]).expand(2, 10_000)).backward()
    assert model.w.grad.dtype == torch.bfloat16
    assert abs(float(model.w.grad.double().mean()) - 1002) < 0.4
    assert abs(float(model.w.grad.double().std()) / 8 - 1) < 0.1


class LowRank(nn.Module):
    """A weight A B: the gradient of A is that of the weight, a sum over samples, times B."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Parameter(torch.randn(C, 2)), nn.Parameter(torch.randn(2, D))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.a @ self.b).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_linear_maps_of_sums(dtype: torch.dtype) -> None:
    """Sums in float32 go through matrices in half precision, of parameters or of autocast."""
    model, (x, y) = LowRank().to(dtype), batch()
    private = private_of(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        each, _ = per_sample(model, F.cross_entropy, (x.to(dtype), y), {}, N)
        private(x.to(dtype), y).backward()
    want = clipped_sum({k: g.float() for k, g in each.items()}, 0.7, 8.0)
    close({k: p.grad for k, p in model.named_parameters()}, want, 4 * ROUNDING[torch.bfloat16])
