"""gradcnn's gradient check: every strategy sees the same per-sample gradients, batch after batch.

A seed fixes weights, data and noise. Before each of five steps the mean over parameters of the
mean per-sample gradient is printed; strategies agree at the second batch and later only if they
clipped the same and added the same noise before. fxdp shows per-sample gradients by one strategy
whatever the step uses, so the norms that the step itself found are compared with them as well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from tests.keys import same_noise
from tools.gradcnn.contenders import How, optimizer, private
from tools.gradcnn.nets import CLASSES, Net
from tools.gradcnn.published import GRADCHECK

STRATEGIES = ("naive", "multi", "crb", "auto")
TOLERANCE = 1e-5
# gradcnn's values are known to so much: its strategies differ in the seventh digit.
KNOWN = 1e-5


@dataclass(frozen=True)
class Course:
    """What one strategy saw.

    Attributes:
        means: the mean gradient at each batch, gradcnn's: of the samples' share in the mean loss.
        worst_norm: the largest relative difference between a norm that the step found, and the
            norm of the per-sample gradient.
    """

    means: tuple[float, ...]
    worst_norm: float


def net() -> nn.Module:
    """The net of run_test, 81,560 parameters."""
    return Net(32, 2, 25, 1.0, 5)


def courses(
    make: Callable[[], nn.Module],
    size: int,
    batch: int,
    batches: int,
    how: How,
) -> dict[str, Course]:
    """What every strategy saw."""
    found: dict[str, Course] = {}
    for name in how.strategies or STRATEGIES:
        torch._dynamo.reset()
        torch.manual_seed(how.seed)
        # An accelerator's shorter numbers differ by more than what is looked for.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            found[name] = course(make(), name, size, batch, batches, how)
    return found


def course(
    model: nn.Module, strategy: str, size: int, batch: int, batches: int, how: How
) -> Course:
    """Train, and look at the gradients before each step."""
    model.to(how.device).train()
    step_of, step = private(model, strategy, how.backend, batch), optimizer(model, how.adam)
    same_noise(step_of, how.seed)
    means: list[float] = []
    gaps: list[float] = []
    for _ in range(batches):
        x = torch.randn(batch, 3, size, size).to(how.device)
        y = torch.randint(CLASSES, (batch,)).to(how.device)
        each = step_of.per_sample_grads(x, y)
        means.append(fmean(g.mean().item() / batch for g in each.values()))
        gaps.append(gap(step_of.per_sample_norms(x, y), each))
        step.zero_grad()
        step_of(x, y).backward()
        step.step()
    return Course(tuple(means), max(gaps))


def gap(norms: Tensor, each: Mapping[str, Tensor]) -> float:
    """The largest relative difference to the norms of gradients [N, *shape]."""
    wanted = torch.stack([g.flatten(1).square().sum(1) for g in each.values()]).sum(0).sqrt()
    return float(((norms - wanted).abs() / wanted).max())


def spread(values: Sequence[float]) -> float:
    """How far numbers lie apart, relative to the largest."""
    return (max(values) - min(values)) / max(map(abs, values))


def agree(found: Mapping[str, Course]) -> bool:
    """Do all strategies see the same, and does each find the norms of what it shows?"""
    each = zip(*(c.means for c in found.values()), strict=True)
    return all(spread(v) <= TOLERANCE for v in each) and all(
        c.worst_norm <= TOLERANCE for c in found.values()
    )


def text(found: Mapping[str, Course]) -> str:
    """What gradcnn prints, for all strategies."""
    out: list[str] = []
    for name, seen in found.items():
        out.append(f"{name}:")
        out += [f"GRADIENT AVG AT BATCH {b}: {m}" for b, m in enumerate(seen.means, 1)]
        out.append(f"norms of the step differ from those by {seen.worst_norm:.1e} at most")
    each = list(zip(*(c.means for c in found.values()), strict=True))
    apart = max(spread(v) for v in each)
    out.append(f"strategies differ by {apart:.1e} at most, relative; {TOLERANCE:.0e} is allowed")
    return "\n".join(out)


def against_gradcnn(found: Mapping[str, Course]) -> str:
    """Are these gradcnn's own values? They are if seed, net and order of random numbers are."""
    first = next(iter(found.values())).means
    known = " ".join(f"{v:.7g}" for v in GRADCHECK)
    gaps = [spread(pair) for pair in zip(first, GRADCHECK, strict=True)]
    verdict = "match" if max(gaps) <= KNOWN else "do not match"
    return f"gradcnn's own values (CPU, torch 2.13, seed 42): {known}: {verdict}, " + (
        f"{max(gaps):.1e} apart at most"
    )
