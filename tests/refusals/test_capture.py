"""What cannot be captured is refused by the user's line, in words of ours."""

import functools
import logging
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
import fxdp.passes
from fxdp.capture import step
from fxdp.diagnostics.codes import Code
from fxdp.diagnostics.diagnostic import Diagnostic
from fxdp.diagnostics.location import Location, is_library, locate
from tests.findings import Net, marked, refused

N, T, D = 6, 5, 4


def branch(net, x):
    if x.sum() > 0:  # FXD501
        return net.fc(x)
    return x


def branch_on_item(net, x):
    if x.sum().item() > 0:  # FXD501
        return net.fc(x)
    return x


def loop_over_data(net, x):
    for _ in range(int(x.sum())):  # FXD501
        x = net.fc(x)
    return x


def printing(net, x):
    print("shape", x.shape)  # FXD501
    return net.fc(x)


def listing(net, x):
    x.tolist()  # FXD501
    return net.fc(x)


def raising(net, x):
    raise ValueError("no such thing")  # FXD501


def fixed_view(net, x):
    return net.fc(x).view(6, -1)  # FXD105


def fixed_constant(net, x):
    return net.fc(x) + torch.arange(6.0)[:, None]  # FXD105


def each_by_itself(net, x):
    return torch.stack([net.fc(row) for row in x])  # FXD105


def mapped(net, x):
    return torch.vmap(lambda a, b: net.fc(a) * b)(x, torch.ones(6, 4))  # FXD105


def reduced(net, x):
    return functools.reduce(torch.add, [net.fc(x), torch.ones(6, 1)])  # FXD105


def likelihood(net, x):
    return torch.distributions.Normal(net.fc(x), 1.0).log_prob(torch.zeros(6, 4))  # FXD105


def gaussian(net, x):
    out, ones = net.fc(x), torch.ones(6, 4)
    return F.gaussian_nll_loss(out, ones, ones, reduction="none")  # FXD105


def transposed(net, x):
    return net.layers["wide"](net.fc(x).t())  # FXD105


def view_as_time(net, x):
    return net.fc(x).permute(1, 0, 2).reshape(len(x), -1)  # FXD101


@pytest.mark.parametrize(
    "body",
    [branch, branch_on_item, loop_over_data, printing, listing, raising],
)
def test_not_captured(body: Any):
    refused(fxdp.CaptureError, __file__, marked(body), Net(body), torch.randn(N, D))


@pytest.mark.parametrize(
    "body",
    [fixed_view, fixed_constant, each_by_itself, mapped, reduced, likelihood, gaussian],
)
def test_for_one_batch_size_only(body: Any):
    refused(fxdp.BatchMixingError, __file__, marked(body), Net(body), torch.randn(N, D))


@pytest.mark.parametrize("n", [N, D])
def test_a_layer_along_the_batch_fixes_it(n: int):
    model = Net(transposed, wide=nn.Linear(n, 3))
    (d,) = refused(fxdp.BatchMixingError, __file__, marked(transposed), model, torch.randn(n, D))
    assert d.why == f"the program works for batches of {n} samples only"


@pytest.mark.parametrize("n", [N, T])
def test_a_view_that_takes_time_for_the_batch_mixes(n: int):
    model = Net(view_as_time)
    refused(fxdp.BatchMixingError, __file__, marked(view_as_time), model, torch.randn(n, T, D))


class Indexed(nn.Module):
    """Another program where an index would not fit 32 bits, as kernels of GPUs are chosen."""

    def __init__(self, limit: int = 2**31 - 1) -> None:
        super().__init__()
        self.fc, self.limit = nn.Linear(2, 1), limit

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return (h * 2 if x.shape[0] * 2**20 < self.limit else h).square().sum(1)


def test_a_limit_of_kernels_holds_for_the_batches_below_it() -> None:
    """What is proven is proven up to there: a larger batch is refused, and not counted."""
    model = Indexed()
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=8, backend="eager"
    )
    private(torch.randn(5, 2)).backward()
    private(torch.randn(2047, 2)).backward()
    gradient, released = model.fc.weight.grad, private.releases
    for _ in range(2):
        with pytest.raises(fxdp.BatchMixingError, match="larger than it is proven for: 1048576"):
            private(torch.randn(2048, 2))
    assert private.releases == released
    assert model.fc.weight.grad is gradient
    private(torch.randn(7, 2)).backward()
    assert private.releases == released + 1


@pytest.mark.parametrize(("limit", "n"), [(2**31 - 1, 2048), (2**30, 5)])
def test_other_limits_are_refused(limit: int, n: int) -> None:
    """One that a first batch is above of, and one that is none of kernels'."""
    with pytest.raises(fxdp.BatchMixingError, match="depends on whether 1048576"):
        fxdp.prove(Indexed(limit), torch.randn(n, 2))


def test_what_the_model_raises_is_quoted():
    with pytest.raises(fxdp.CaptureError) as caught:
        fxdp.prove(Net(raising), torch.randn(N, D))
    assert "ValueError: no such thing" in str(caught.value)


class Returns(nn.Module):
    def __init__(self, make: Any):
        super().__init__()
        self.fc, self.make = nn.Linear(D, 3), make

    def forward(self, x):
        return self.make(self.fc(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda out: None,
        lambda out: 3.0,
        lambda out: "loss",
        lambda out: (),
        lambda out: {"logits": out},
        lambda out: {"loss": None, "logits": out},
        lambda out: out.sum().detach(),
        lambda out: out.sum().long(),
    ],
)
def test_a_model_without_a_loss(make: Any):
    (d,) = refused(fxdp.CaptureError, __file__, [(0, "FXD202")], Returns(make), torch.randn(N, D))
    assert d.why.startswith("the model returned")


def test_a_loss_function_without_a_loss():
    def named(out, y):
        return {"loss": F.cross_entropy(out, y)}

    y = torch.zeros(N, dtype=torch.long)
    (d,) = refused(
        fxdp.CaptureError, __file__, [(0, "FXD202")], Returns(lambda o: o), torch.randn(N, D), y,
        loss_fn=named,
    )  # fmt: skip
    assert d.why == "loss_fn returned a dict where a loss is needed"


def no_rule(net, x):
    return net.fc(x) + torch.histc(x, 4)  # FXD401


def constant_mask(net, x):
    return net.fc(x)[:, torch.tensor([True, False, True, True])]  # FXD401


@pytest.mark.parametrize("body", [no_rule, constant_mask])
def test_no_rule(body: Any):
    refused(fxdp.ProofError, __file__, marked(body), Net(body), torch.randn(N, D))


def plain(net, x):
    return net.fc(x)  # FXD402


LOCK = threading.Lock()


def takes_a_lock(net, x):
    with LOCK:
        return net.fc(x)


@pytest.mark.parametrize(
    ("forward", "help"), [(takes_a_lock, "once before the first step"), (branch, "torch.where")]
)
def test_a_graph_break_comes_with_what_helps(forward, help):
    with pytest.raises(fxdp.CaptureError) as caught:
        fxdp.prove(Net(forward), torch.randn(N, D), loss_fn=None)
    assert help in str(caught.value)


def test_no_form():
    """A rule of the user's that sums over samples, and does not say how."""
    mm = torch.ops.aten.mm.default
    rules = fxdp.RULES | {mm: fxdp.Rule(fxdp.RULES[mm].place)}
    refused(fxdp.ProofError, __file__, marked(plain), Net(plain), torch.randn(N, D), rules=rules)


def test_an_error_reads_well():
    where = Location(__file__, marked(branch)[0][0], "branch")
    d = Diagnostic(Code("FXD999", "bad-thing", ""), where, "op", "it is bad", "be good", ("a", "b"))
    error = fxdp.ProofError(d)
    assert str(error).splitlines() == [
        "the model cannot be made private, 1 fault found",
        f"{__file__}:{where.line}: FXD999 bad-thing: op: it is bad",
        "    if x.sum() > 0:  # FXD501",
        "  help: be good",
        "  path: a -> b",
    ]
    bare = fxdp.ProofError(Diagnostic(Code("FXD999", "bad-thing", ""), None, "op", "it is bad", ""))
    assert str(bare).splitlines()[1:] == ["FXD999 bad-thing: op: it is bad"]


def test_lines_of_libraries_are_not_the_users():
    assert is_library(torch.nn.functional.__file__)
    assert is_library(step.__file__)
    assert is_library(fxdp.passes.__file__)
    assert is_library(logging.__file__)
    assert is_library("<string>")
    assert not is_library(__file__)
    assert not is_library(fxdp.__file__.replace("__init__.py", "")[:-1] + "_models/net.py")
    assert not is_library(torch.__file__.replace("torch/__init__.py", "torchvision/models.py"))
    trace = f'File "{__file__}", line 3, in a\nFile "{torch.__file__}", line 4, in b\n'
    assert locate(trace) == Location(__file__, 3, "a", 1, None)
    assert locate(f'File "{torch.__file__}", line 4, in b\n') is None
    assert locate(None) is None
