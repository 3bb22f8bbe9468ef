"""What a private step promises, held against what it releases.

The proof speaks of a graph, and the account of a mechanism on paper; this runs the compiled step,
hundreds of times, and looks at the numbers that come out. Three tests, one file each: `neighbours`
takes samples away, `canary` guesses from a release whether a sample was there, `noise` measures
the noise. `releases` runs steps that leave no trace, and `report` says what was found.
"""

from fxdp.auditing.audit import audit
from fxdp.auditing.report import Audit, Finding, Unjudged

__all__ = ["Audit", "Finding", "Unjudged", "audit"]
