"""How the noise of a step goes on from that of the steps before (`fxdp.correlated`).

The step runs with its fresh noise alone. Its noise is made once more from its key, to be the past
of the next steps; what the past adds to this one is added where the gradients are delivered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxdp.account import StepError
from fxdp.correlated import Correlation
from fxdp.graph_pass import Study
from fxdp.keystream import SECURE_TERMS
from fxdp.logical import Gradients, scaled
from fxdp.options import Scales
from fxdp.stepper import Stepper
from fxdp.sums import value


@dataclass(frozen=True)
class Following:
    """The noise of one step, at the scales when it began.

    Guarantees:
        What is delivered has the noise sigma C y_t / L of `fxdp.correlated`, and the steps after
        go on from it. The past is changed before a gradient is delivered, and not by a step that
        is not.

    Attributes:
        noise: that of the steps before; None where noise is independent.
        stepper: which runs the step.
        names: of the trained parameters, in the order of their gradients.
        sigma: the noise multiplier that the step is to run with: of its fresh noise alone.
        unit: sigma C / L, the deviation that a y of 1 stands for.
    """

    noise: Correlation | None
    stepper: Stepper
    names: Sequence[str]
    sigma: float
    unit: float

    @staticmethod
    def of(
        noise: Correlation | None, stepper: Stepper, trained: Mapping[str, Tensor], scales: Scales
    ) -> "Following":
        """For a step at these scales.

        Raises:
            TypeError: a parameter that correlated noise cannot be made for.
        """
        bound, sigma, expected = scales
        if noise is None or noise.strategy.bands == 1 or sigma == 0:
            return Following(None, stepper, tuple(trained), sigma, 0.0)
        check(trained, stepper.settings.secure)
        unit = sigma * bound / expected
        return Following(noise, stepper, tuple(trained), sigma * noise.fresh, unit)

    def ready(self, gradients: Gradients) -> Callable[[Tensor], Gradients]:
        """What delivers the gradients of the step that has just run, when the tangent arrives.

        Raises:
            StepError: it is not known how the step drew its noise; nothing was released.
        """
        add = self._adding()
        return lambda tangent: scaled(add(gradients, 1.0), tangent)

    def added(self, gradients: Gradients, constant: float | None) -> Gradients:
        """The gradients of the step that has just run, which have the tangent `constant` already,
        with what the past adds.

        Raises:
            StepError: as for `ready`.
        """
        return self._adding()(gradients, constant or 0.0)

    def _adding(self) -> Callable[[Gradients, float], Gradients]:
        noise = self.noise
        if noise is None:
            return lambda gradients, _: gradients
        # What has run is the last that was compiled, or numbers its noise as that does.
        study, key = self.stepper.study(), self.stepper.key
        numbers = tuple(c.gradient.parameter for c in study.clipped)
        if noise.numbers not in (None, numbers):
            raise StepError(
                "this step's graph draws its noise for other parameters than those before, so that "
                "it cannot be made again: train the same parameters in every step, or compile "
                "without noise="
            )
        noise.numbers = numbers
        terms = SECURE_TERMS if self.stepper.settings.secure else 1

        def add(gradients: Gradients, constant: float) -> Gradients:
            places = dict(zip(self.names, gradients, strict=True))
            past = noise.follow(made_again(study, key, terms, places))
            scale = self.unit * constant
            return [
                g.add(past[name], alpha=scale) if g is not None and name in past else g
                for name, g in places.items()
            ]

        return add


def made_again(
    study: Study, key: Tensor, terms: int, gradients: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    """The normal numbers that a step drew for each parameter, from its key."""
    found: dict[str, Tensor] = {}
    one = torch.ones((), dtype=torch.float64)
    for draw, clipped in enumerate(study.clipped):
        gradient = gradients[clipped.gradient.parameter]
        if clipped.total is not None and gradient is not None:
            nothing = torch.zeros_like(gradient, dtype=value(clipped.total).dtype)
            rest = (one, one, one, None, key, draw, terms)
            found[clipped.gradient.parameter] = torch.ops.fxdp.released(nothing, *rest)
    return found


def check(trained: Mapping[str, Tensor], secure: bool) -> None:
    """Refuse what correlated noise cannot be made for.

    Raises:
        TypeError: a parameter of less than 32 bits; or, unless `secure`, not on a CPU, where noise
            comes from torch's generators, which cannot be asked again.
    """
    for name, p in trained.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"correlated noise is added in the dtype of the parameter, and {name!r} has "
                f"{p.dtype}: keep parameters in float32, and use torch.autocast"
            )
        if p.device.type != "cpu" and not secure:
            raise TypeError(
                f"correlated noise is made again from a key, and the noise of {name!r} on "
                f"{p.device} comes from torch's generator: pass secure=True"
            )
