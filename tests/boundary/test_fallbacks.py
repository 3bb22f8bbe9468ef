"""Whatever torch runs in place of a private step, no plain gradient comes of it (P7)."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fxdp
from tools.soundness.fallbacks import DOORS, FALLBACKS, Door, Fallback, outcome

# Where a release has to come of it, or the test would not see that everything is refused.
RUNS = {"nothing", "eval mode", "two passes, buffers kept"}


@pytest.mark.parametrize("door", DOORS[:2])
@pytest.mark.parametrize("fallback", FALLBACKS, ids=lambda f: f"{f.name}{', later' * f.warm}")
def test_released_or_refused(fallback: Fallback, door: Door) -> None:
    found = outcome(door, fallback)
    assert found == "released" if fallback.name in RUNS else found in ("released", "refused")


@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # of the hooks of a mode
@pytest.mark.parametrize("mode", [
    lambda: FlopCounterMode(display=False),
    lambda: torch._dynamo.config.patch(disable=True),
    torch.autograd.graph.allow_mutation_on_saved_tensors,
])  # fmt: skip
def test_what_torch_did_not_compile_is_compiled_afterwards(mode: Any) -> None:
    """torch remembers it of a function; a refused step begins with another."""
    model, x, y = nn.Linear(5, 3), torch.randn(4, 5), torch.arange(4) % 3
    private = fxdp.compile(
        model, loss_fn=F.cross_entropy, max_grad_norm=1.0, noise_multiplier=1.0,
        expected_batch_size=4.0, backend="eager",
    )  # fmt: skip
    with mode(), pytest.raises(fxdp.StepError, match="as it is"):
        private(x, y)
    assert private.releases == 0
    private(x, y).backward()
    assert private.releases == 1


def test_the_table_sees_plain_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that hands out plain gradients is found: the tests above can fail."""
    plain = "tools.soundness.fallbacks.built"
    monkeypatch.setattr(plain, lambda door, model: (model, lambda: 0))
    assert outcome("fxdp.compile", FALLBACKS[0]).startswith("WRONG")
