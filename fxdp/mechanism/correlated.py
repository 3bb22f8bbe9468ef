"""Noise that partly cancels out over the steps: banded matrix factorisation (DP-FTRL style).

Step t releases x_t + sigma C y_t, where B y = z: z is standard normal and fresh, B is a banded
lower-triangular Toeplitz matrix with coefficients c_0, c_1, ... below each other, and |c| = 1. So
y_t = (z_t - sum_{j >= 1} c_j y_{t-j}) / c_0 (Choquette-Choo et al. 2023, arXiv 2306.08153,
algorithm 9). A model is made of prefix sums of what is released, and those have less noise than
with independent y. `fxdp.privacy.BandedRelease` says what the mechanism costs.

Of y_t, z_t / c_0 is put into the gradient by the graph of the step, as ever, with a noise
multiplier of sigma / c_0. The rest is made of the steps before, and is added on delivery.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxdp.arguments import plain, require, require_flag, require_one_of, require_whole

Objective = Literal["max-error", "mean-error"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BandMF:
    """A banded Toeplitz matrix B, as a value: which noise is correlated with which, and how much.

    Without `steps` it is the banded square root of the matrix of prefix sums: the coefficients of
    (1 - x)^(-1/2), which are 1, 1/2, 3/8, 5/16, ..., cut off after `bands` and divided by their
    norm (Kalinin and Lampert 2024, arXiv 2405.13763). With `steps` it is the one with the least
    error of prefix sums over so many steps, found by L-BFGS from there.

    | edge case            | what it is                                            |
    |----------------------|-------------------------------------------------------|
    | bands = 1            | independent noise, bit for bit                        |
    | bands > steps        | ValueError: the last ones would never be used         |
    | more steps than said | as private as ever; other coefficients would be better |

    Attributes:
        bands: b >= 1; memory for b - 1 models is needed, and the data in b parts or more.
        steps: for which the error is least; None for the square root.
        objective: with `steps`, which error: of the last prefix sum, which has the largest, or
            the mean over all, of squares.
        secure: as for `fxdp.noise.Gaussian`; the matrix is the same.

    Raises:
        ValueError: an attribute is out of its range.
    """

    bands: int
    steps: int | None = None
    objective: Objective = "mean-error"
    secure: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        plain(self)
        require_whole("bands", self.bands, 1)
        require_one_of(Objective, "objective", self.objective)
        require_flag("secure", self.secure)
        if self.steps is not None:
            require_whole("steps", self.steps, 1)
            require(self.bands <= self.steps, "bands", self.bands, f"at most steps = {self.steps}")

    @cached_property
    def coefficients(self) -> tuple[float, ...]:
        """c_0 .. c_{b-1}, of norm 1."""
        k = np.arange(1, self.bands)
        root = np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])
        if self.steps is not None and self.bands > 1:
            root = optimal(root, weights_of(self.steps, self.objective))
        return tuple((root / math.sqrt(float(root @ root))).tolist())

    def errors(self, steps: int) -> Floats:
        """The variance of the noise in each of the first `steps` prefix sums, in (sigma C)^2.

        That of independent noise is 1, 2, 3, ...; here it is sum_{i <= t} s_i^2, where s are the
        coefficients of A B^-1, the Toeplitz matrix of prefix sums of the noise.
        """
        require_whole("steps", steps, 1)
        return np.cumsum(filtered(self.coefficients, np.ones(steps)) ** 2)


def filtered(coefficients: Sequence[float] | Floats, x: Floats) -> Floats:
    """B^-1 x."""
    from scipy.signal import lfilter  # half a second, that few need

    found: Any = lfilter([1.0], coefficients, x)
    return found


def weights_of(steps: int, objective: Objective) -> Floats:
    """What each s_i^2 counts in an error: 1 in the last one, (n - i) / n in the mean."""
    if objective == "max-error":
        return np.ones(steps)
    return np.arange(steps, 0, -1) / steps


def optimal(start: Floats, weights: Floats) -> Floats:
    """The coefficients c, with c_0 = 1, of least |c|^2 sum_i weights_i s_i^2.

    With s = 1 / ((1 - x) c(x)) as a power series, ds / dc_j = -x^j s / c.
    """
    from scipy.optimize import minimize

    ones = np.ones(len(weights))

    def at(tail: Floats) -> tuple[float, Floats]:
        c = np.concatenate([[1.0], tail])
        s = filtered(c, ones)
        error, size = float(weights @ s**2), float(c @ c)
        pulled, by = weights * s, filtered(c, s)
        slopes = [-2 * float(pulled[j:] @ by[: len(by) - j]) for j in range(1, len(c))]
        return math.log(error) + math.log(size), np.array(slopes) / error + 2 * tail / size

    exact = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
    found: Any = minimize(at, start[1:], jac=True, method="L-BFGS-B", options=exact)
    return np.concatenate([[1.0], found.x])


Values = Mapping[str, Tensor]  # by the name of a parameter


@dataclass
class Correlation:
    """The noise of a run so far: what the next step's noise has to go on from.

    Guarantees:
        `follow` gives each step's noise once, from numbers that are fresh. A step that was made
        and not released leaves nothing here. One that is in here and was never seen, because
        its delivery failed, is harmless: it is a release that nobody was shown.

        ==========================================  =========================================
        case                                        what happens
        ==========================================  =========================================
        a step without noise                        nothing: it gives no privacy in any case
        a parameter that is new, or was left out    its noise begins anew, which costs no more
        a copy of the module                        its noise begins anew
        the last y are published                    the noise of the next steps is half known:
                                                    they are as secret as the data
        ==========================================  =========================================

    Attributes:
        strategy: the matrix.
        shapes: of the parameters, by name.
        past: the last y, newest first, at most bands - 1; never changed in place.
    """

    strategy: BandMF
    shapes: Mapping[str, torch.Size]
    past: tuple[Values, ...] = field(default=(), repr=False)

    @property
    def fresh(self) -> float:
        """1 / c_0: how much of a step's noise is fresh, in units of sigma C."""
        return 1.0 / self.strategy.coefficients[0]

    def follow(self, fresh: Values) -> Values:
        """What is to be added to a step's noise z / c_0, in units of sigma C; the step is in the
        past from then on.

        Args:
            fresh: z, by the names of parameters.
        """
        first, *others = self.strategy.coefficients
        carried = {name: torch.zeros_like(z) for name, z in fresh.items()}
        known = set(fresh)
        for c, y in zip(others, self.past, strict=False):
            known &= y.keys()  # before a gap nothing counts: that would be noise with a row less
            for name in known:
                x = carried[name]
                x.add_(y[name].to(x.device, x.dtype), alpha=-c / first)
        now = {name: z / first + carried[name] for name, z in fresh.items()}
        self.past = (now, *self.past)[: len(others)]
        return carried

    def anew(self) -> "Correlation":
        """The same for a copy: without a past, as two runs must not share one."""
        return Correlation(self.strategy, self.shapes)

    def state_dict(self) -> dict[str, Any]:
        """The coefficients, and the past: secret."""
        return {
            "coefficients": list(self.strategy.coefficients),
            "past": [dict(y) for y in self.past],
        }

    def loaded(self, state: Any) -> "Correlation":
        """The noise of the run that gave `state`.

        Raises:
            ValueError: it is malformed, or of other coefficients or parameters.
        """
        if not isinstance(state, dict) or set(state) != {"coefficients", "past"}:
            raise ValueError("noise state: must have coefficients and a past")
        own = list(self.strategy.coefficients)
        there, past = state["coefficients"], state["past"]
        if there != own:
            raise ValueError(f"noise state: coefficients are {there}, and here {own}")
        if not isinstance(past, list) or len(past) >= len(own):
            raise ValueError(f"noise state: the past must be a list of at most {len(own) - 1}")
        for y in past:
            for name, x in y.items() if isinstance(y, dict) else [("past", None)]:
                if not isinstance(x, Tensor) or self.shapes.get(name) != x.shape:
                    raise ValueError(
                        f"noise state: {name} is not a parameter here, or not as large"
                    )
        return Correlation(self.strategy, self.shapes, tuple(past))
