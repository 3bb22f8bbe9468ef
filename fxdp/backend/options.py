"""What both doors are told, and whether it makes sense."""

import math
from typing import Any, get_args

from fxdp.backend.settings import Backend, Checkpoint, Settings
from fxdp.distributed.guard import UNSAID, Mesh, trains_apart
from fxdp.forms.strategy import Strategy
from fxdp.mechanism.clipping import Clipping, as_clipping
from fxdp.ops import RULES
from fxdp.rules import Table

Scales = tuple[float, float, float]  # clip bound, noise multiplier, expected batch size
STRATEGIES = ("auto", *get_args(Strategy))
REDUCTIONS = ("mean", "sum")
PLANS = ("measured", "model", "fixed")


def checked_options(
    max_grad_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    strategy: str = "auto",
    backend: str = "inductor",
    rules: Table = RULES,
    plan: str = "measured",
    memory_budget: int | None = None,
    loss_reduction: str | None = None,
    clipping: str | Clipping = "flat",
    secure: bool = False,
    checkpoint: str = "never",
    mesh: Mesh = UNSAID,
) -> tuple[Scales, Settings]:
    """What both doors are told, checked.

    Raises:
        TypeError, ValueError: an option is not as `compile` describes it.
        NotImplementedError: a mesh.
    """
    scales = (max_grad_norm, noise_multiplier, expected_batch_size)
    check_scales(*scales)
    one_of("strategy", strategy, STRATEGIES)
    one_of("backend", backend, get_args(Backend))
    one_of("plan", plan, PLANS)
    one_of("checkpoint", checkpoint, get_args(Checkpoint))
    if memory_budget is not None:
        number("memory_budget", memory_budget)
    if loss_reduction is not None:
        one_of("loss_reduction", loss_reduction, REDUCTIONS)
    as_clipping(clipping).check_bound(max_grad_norm)
    if not isinstance(secure, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"secure must be True or False, not {secure!r}")
    settings = Settings(
        strategy, backend, rules, plan=plan, memory_budget=memory_budget,  # type: ignore[arg-type]
        reduction=loss_reduction or "", clipping=as_clipping(clipping), secure=secure,
        checkpoint=checkpoint,  # type: ignore[arg-type]
        apart=trains_apart(mesh),
    )  # fmt: skip
    return (float(scales[0]), float(scales[1]), float(scales[2])), settings


def check_scales(max_grad_norm: float, noise_multiplier: float, expected_batch_size: float) -> None:
    """Check the numbers that a release depends on."""
    number("max_grad_norm", max_grad_norm, positive=True)
    number("noise_multiplier", noise_multiplier)
    number("expected_batch_size", expected_batch_size, positive=True)
    if math.isinf(noise_multiplier) or math.isinf(expected_batch_size):
        raise ValueError("noise_multiplier and expected_batch_size must be finite")
    if math.isinf(max_grad_norm) and noise_multiplier > 0:
        raise ValueError("max_grad_norm must be finite where noise_multiplier is above 0")


def number(name: str, value: Any, positive: bool = False) -> None:
    """Check a number: real, no NaN, not negative, and above 0 if `positive`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if math.isnan(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be {'above' if positive else 'at least'} 0, not {value}")


def count(name: str, value: Any) -> None:
    """Check a number of things: whole, and at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Check a word against those that are known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
