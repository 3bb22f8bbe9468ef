"""What private training costs, by dp-accounting.

`sampling` and `release` are values: how a batch was drawn, and what left the step.
`accounting` says what they cost, `planning` answers the questions before a run, `ledger`
counts during one, and `statement` says afterwards what may be claimed.
"""

from fxdp.arguments import DeltaWarning
from fxdp.privacy.accounting import epsilon
from fxdp.privacy.budget import Budget, BudgetExhausted
from fxdp.privacy.ledger import Ledger
from fxdp.privacy.planning import calibrate, steps_within
from fxdp.privacy.release import (
    BandedRelease,
    CountedRelease,
    GaussianRelease,
    Release,
    noise_beside_count,
)
from fxdp.privacy.sampling import CyclicPoisson, FixedSize, Poisson, TruncatedPoisson
from fxdp.privacy.sampling_rule import Accountant, Neighbours, Sampling
from fxdp.privacy.statement import statement

__all__ = [
    "Accountant",
    "BandedRelease",
    "Budget",
    "BudgetExhausted",
    "CountedRelease",
    "CyclicPoisson",
    "DeltaWarning",
    "FixedSize",
    "GaussianRelease",
    "Ledger",
    "Neighbours",
    "Poisson",
    "Release",
    "Sampling",
    "TruncatedPoisson",
    "calibrate",
    "epsilon",
    "noise_beside_count",
    "statement",
    "steps_within",
]
