"""What both doors are given, and whether it makes sense."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_type_hints

from fxdp.arguments import require, require_number, require_one_of, require_whole
from fxdp.backend.settings import Backend, Checkpoint, Settings
from fxdp.distributed.guard import UNSAID, Mesh, trains_apart
from fxdp.forms.strategy import Strategy
from fxdp.mechanism.clipping import Clipping, ClippingName, as_clipping
from fxdp.mechanism.noise import Gaussian, Noise, as_noise
from fxdp.ops import RULES
from fxdp.passes.plan import Plan
from fxdp.rules import Table

Scales = tuple[float, float, float]  # clip bound, noise multiplier, expected batch size
Reduction = Literal["mean", "sum"]
Auto = Literal["auto", Strategy]


class Options(TypedDict, total=False):
    """What changes speed or memory alone, whatever it is: a release is the same up to rounding.

    Attributes:
        strategy: "auto", or how all per-sample norms are found: "instantiate", "unfold", "ghost",
            "stream", "crb", "naive" or "multi".
        plan: how "auto" chooses for each parameter: "measured" times on this machine what
            cannot be predicted, "model" predicts, "fixed" takes what is smaller (2 T^2 or p d).
        memory_budget: bytes that per-sample gradients may take up at a time; a twentieth of what
            the sums over samples are made of if not given. For "measured" plans.
        checkpoint: "always" computes activations a second time in the backward pass, which takes
            time for memory; "except_last" does so in all pieces of a batch but the last, and so
            has that one's memory; the dropout masks are the same.
    """

    strategy: Auto
    plan: Plan
    memory_budget: int | None
    checkpoint: Checkpoint


OPTIONS = tuple(get_type_hints(Options))


def checked_options(
    max_grad_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    *,
    clipping: ClippingName | Clipping = "flat",
    noise: Noise | None = None,
    loss_reduction: Reduction | None = None,
    rules: Table = RULES,
    backend: Backend = "inductor",
    mesh: Mesh = UNSAID,
    options: Options | None = None,
) -> tuple[Scales, Settings]:
    """What both doors are given, checked; numbers as Python's own.

    Raises:
        TypeError, ValueError: an argument is not as `compile` describes it.
        NotImplementedError: a mesh.
    """
    scales = checked_scales(max_grad_norm, noise_multiplier, expected_batch_size)
    require_one_of(Backend, "backend", backend)
    if loss_reduction is not None:
        require_one_of(Reduction, "loss_reduction", loss_reduction)
    as_clipping(clipping).check_bound(scales[0])
    settings = Settings(
        backend=backend, table=rules, reduction=loss_reduction or "",
        clipping=as_clipping(clipping), secure=as_noise(noise or Gaussian()).secure,
        apart=trains_apart(mesh), **speed(options),
    )  # fmt: skip
    return scales, settings


def speed(options: Options | None) -> Any:
    """The fields of `Settings` that change speed or memory alone."""
    if not isinstance(options, Mapping | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"options must be a dict of {', '.join(OPTIONS)}, not {options!r}")
    given: dict[str, Any] = dict(options or {})
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise ValueError(f"options has {unknown}, but there are {', '.join(OPTIONS)}")
    for name, known in (("strategy", Auto), ("plan", Plan), ("checkpoint", Checkpoint)):
        if name in given:
            require_one_of(known, name, given[name])
    if given.get("memory_budget") is not None:
        given["memory_budget"] = require_whole("memory_budget", given["memory_budget"], 0)
    return given


def checked_scale(name: str, value: Any) -> float:
    """One of the numbers that a release depends on.

    Raises:
        TypeError, ValueError: it is no number, or not of its range.
    """
    number = require_number(name, value)
    match name:
        case "max_grad_norm":
            require(number > 0, name, value, "above 0")
        case "noise_multiplier":
            require(0 <= number < math.inf, name, value, "at least 0, and finite")
        case "expected_batch_size":
            require(0 < number < math.inf, name, value, "above 0, and finite")
        case _:
            raise ValueError(f"{name} is none of the numbers that a release depends on")
    return float(number)


def checked_scales(
    max_grad_norm: float, noise_multiplier: float, expected_batch_size: float
) -> Scales:
    """The numbers that a release depends on."""
    bound = checked_scale("max_grad_norm", max_grad_norm)
    sigma = checked_scale("noise_multiplier", noise_multiplier)
    expected = checked_scale("expected_batch_size", expected_batch_size)
    finite = bound < math.inf or sigma == 0
    wanted = "finite where noise_multiplier is above 0"
    require(finite, "max_grad_norm", max_grad_norm, wanted)
    return bound, sigma, expected
