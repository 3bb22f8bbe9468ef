"""What torch's compiler cannot compile runs as its graph, with one warning that says why."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp
from fxdp.backend import halves, partition
from tests.oracle import clipped_sum, per_sample

pytestmark = pytest.mark.usefixtures("double")
N = 5


def stepped(**options: Any) -> tuple[fxdp.PrivateModule, list[str]]:
    """A step on Inductor, compared with the loop, and what was warned of."""
    torch._dynamo.reset()
    model, x, y = nn.Linear(4, 3), torch.randn(N, 4), torch.randint(3, (N,))
    each, norms = per_sample(model, F.cross_entropy, (x, y), {}, N)
    bound = float(norms.mean())
    private = fxdp.compile(
        model, loss_fn=F.cross_entropy, max_grad_norm=bound, noise_multiplier=0.0,
        expected_batch_size=N, **options,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", fxdp.UncompiledWarning)
        private(x, y).backward()
        private(x[:2], y[:2]).backward()
    model.zero_grad()
    private(x, y).backward()
    for name, want in clipped_sum(each, bound, N).items():
        torch.testing.assert_close(model.get_parameter(name).grad, want)
    said = [str(w.message) for w in caught if w.category is fxdp.UncompiledWarning]
    return private, said


@pytest.mark.parametrize("half", ["forward", "backward"])
def test_a_half_that_inductor_fails_on(monkeypatch: pytest.MonkeyPatch, half: str) -> None:
    compile_fx_inner = halves.compile_fx_inner

    def failing(graph: Any, args: Any, *, is_backward: bool) -> Any:
        if is_backward == (half == "backward"):
            raise NotImplementedError("no code for this\nand a long story")
        return compile_fx_inner(graph, args, is_backward=is_backward)

    monkeypatch.setattr(halves, "compile_fx_inner", failing)
    _, said = stepped()
    (text,) = said
    assert f"its {half} graph, which runs eagerly instead" in text
    assert "NotImplementedError: no code for this)" in text


def test_a_step_that_aotautograd_fails_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it did with the strides of linalg.solve: an IndexError after both halves were cut."""
    split = partition.finish

    def failing(graph: Any, args: Any, backend: str, *rest: Any, **how: Any) -> Any:
        if backend == "inductor":
            raise IndexError("tuple index out of range")
        return split(graph, args, backend, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(partition, "finish", failing)
    private, said = stepped()
    (text,) = said
    assert "could not compile a step" in text
    assert "IndexError" in text
    assert private.certificate(torch.randn(2, 4), torch.zeros(2, dtype=torch.long)).fallbacks


def test_a_fault_of_ones_own_is_none_of_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that fails is a bug of fxdp's, and not to be passed over."""

    def failing(*args: Any, **how: Any) -> Any:
        raise AssertionError("a pass failed")

    monkeypatch.setattr(partition, "run", failing)
    with pytest.raises(Exception, match="a pass failed"):
        stepped()
