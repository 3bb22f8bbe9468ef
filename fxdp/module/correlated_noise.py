"""Correlated noise (`fxdp.noise`): adds the part of a step's noise that earlier steps decide.

The step runs with its fresh noise alone. Its noise is made once more from its key, to be the past
of the next steps; what the past adds to this one is added where the gradients are delivered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxdp.backend.delivery import Gradients
from fxdp.backend.options import Scales
from fxdp.graph.study import ClippedSums
from fxdp.mechanism.chacha import draws_by_key
from fxdp.mechanism.correlated import Correlation
from fxdp.mechanism.gaussian import released
from fxdp.mechanism.keystream import SECURE_TERMS
from fxdp.module.stepper import Stepper


@dataclass(frozen=True)
class Following:
    """The noise of one step, at the scales when it began.

    Guarantees:
        What is delivered has the noise sigma C y_t / L of `fxdp.noise`, and the steps after
        go on from it. The past is changed before a gradient is delivered, and not by a step that
        is not.

    Attributes:
        noise: that of the steps before; None where noise is independent.
        stepper: which runs the step.
        names: of the trained parameters.
        sigma: the noise multiplier that the step is to run with: of its fresh noise alone.
        unit: sigma C / L, the deviation that a y of 1 stands for.
    """

    noise: Correlation | None
    stepper: Stepper
    names: Mapping[Tensor, str]
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
        names = {p: name for name, p in trained.items()}
        if noise is None or noise.strategy.bands == 1 or sigma == 0:
            return Following(None, stepper, names, sigma, 0.0)
        check(trained, stepper.settings.secure)
        unit = sigma * bound / expected
        return Following(noise, stepper, names, sigma * noise.fresh, unit)

    def adding(self) -> Callable[[Gradients, float], Gradients]:
        """What adds the past to the gradients of the step that has just run, times the constant
        that arrives at the loss."""
        noise, key, names = self.noise, self.stepper.key, self.names
        if noise is None:
            return lambda gradients, _: gradients
        number = self.stepper.keys.number
        noisy = self.stepper.study().of(ClippedSums).noisy
        terms = SECURE_TERMS if self.stepper.settings.secure else 1

        def add(gradients: Gradients, constant: float) -> Gradients:
            fresh = {
                names[leaf]: made_again(g, key, number(names[leaf]), terms)
                for leaf, g in gradients.items()
                if names[leaf] in noisy
            }
            past, scale = noise.follow(fresh), self.unit * constant
            return {
                leaf: g.add(past[names[leaf]], alpha=scale) if names[leaf] in past else g
                for leaf, g in gradients.items()
            }

        return add


def made_again(gradient: Tensor, key: Tensor, number: int, terms: int) -> Tensor:
    """The normal numbers that a step drew for a parameter, from its key."""
    one = torch.ones((), dtype=torch.float64)
    nothing = torch.zeros_like(gradient)
    return released(nothing, one, one, one, None, key, number, terms)


def check(trained: Mapping[str, Tensor], secure: bool) -> None:
    """Refuse what correlated noise cannot be made for.

    Raises:
        TypeError: a parameter of less than 32 bits; or, unless `secure`, on a device where noise
            comes from torch's generators, which cannot be asked again.
    """
    for name, p in trained.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"correlated noise is added in the dtype of the parameter, and {name!r} has "
                f"{p.dtype}: keep parameters in float32, and use torch.autocast"
            )
        if not draws_by_key(p.device) and not secure:
            raise TypeError(
                f"correlated noise is made again from a key, and the noise of {name!r} on "
                f"{p.device} comes from torch's generator: pass BandMF(..., secure=True)"
            )
