"""Whether a contender computes the private gradient. What is wrong is not worth timing.

Its gradient without noise is held against the reference, parameter by parameter. Then the noise is
looked at: its spread has to be C sigma / L.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tools.bench.contender import CLIP, NOISE, Contender, Runner
from tools.bench.reference import Gradients, Reference, Wanted, errors

TOLERANCE = 1e-3  # of a parameter's gradient, relative to its norm
JUMPS = 2.0  # or so many times what rounding may decide about,
LARGEST = 2e-2  # but never more than this
SPREAD = 0.1  # how far the spread of the noise may be off; 1000 numbers vary by 0.02


@dataclass(frozen=True)
class Verdict:
    """What came of a check.

    Attributes:
        error: the largest relative error of a parameter's gradient; None if there is no number.
        why: what is wrong, or the first line of what was raised.
    """

    status: Literal["right", "wrong", "refuses"]
    error: float | None = None
    why: str = ""


def check(contender: Contender, runner: Runner, wanted: Reference, size: int) -> Verdict:
    """Compare a contender's gradient without noise, then look at the noise. Leaves noise on."""
    try:
        runner.set_noise(0.0)
        found = gradients(runner)
        verdict = compare(found, wanted.private if contender.private else wanted.plain)
        runner.set_noise(NOISE)
        if verdict.status == "right" and contender.private:
            return noisy(verdict, found, gradients(runner), size)
        return verdict
    except Exception as error:  # whatever a contender raises, the others go on
        return Verdict("refuses", why=told(error))


def gradients(runner: Runner) -> dict[str, Tensor]:
    """One step's gradients."""
    runner.step()
    found = {n: p.grad.clone() for n, p in runner.parameters.items() if p.grad is not None}
    runner.clear()
    return found


def compare(found: Gradients, wanted: Wanted) -> Verdict:
    """Hold gradients against the reference."""
    for name in wanted.gradients:
        if name not in found:
            return Verdict("wrong", None, f"no gradient of {name}")
    off = errors(found, wanted.gradients)
    largest = max(off.values())
    error = largest if math.isfinite(largest) else None
    for name, value in off.items():
        allowed = max(TOLERANCE, min(JUMPS * wanted.jumps[name], LARGEST))
        if not value <= allowed:  # NaN is not
            why = f"gradient of {name} is off by {value:.1e}, allowed {allowed:.1e}"
            return Verdict("wrong", error, why)
    return Verdict("right", error)


def noisy(
    verdict: Verdict, silent: Mapping[str, Tensor], noised: Mapping[str, Tensor], size: int
) -> Verdict:
    """Is the noise there, and as strong as it has to be?"""
    noise = torch.cat([(noised[name] - g).flatten() for name, g in silent.items()])
    ratio = float(noise.std()) / (NOISE * CLIP / size)
    if noise.numel() < 1000 or abs(ratio - 1) <= SPREAD:
        return verdict
    return Verdict("wrong", verdict.error, f"the noise is {ratio:.2f} times what it has to be")


def told(error: Exception) -> str:
    """The kind of an exception and its first line; the next one too where that ends in a colon."""
    lines = str(error).strip().splitlines() or [""]
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {text[:200]}"
