"""Audits: what a private step promises, compared with what it releases.

The proof is about a graph, and the account about a mechanism on paper; an audit runs the compiled
step, hundreds of times, and examines its outputs. Three tests, one file each: `neighbours` removes
samples, `canary` guesses from a release whether a sample was there, `noise` measures the noise.
`releases` runs steps that leave no trace, and `report` says what was found.
"""

from fxdp.auditing.audit import audit
from fxdp.auditing.report import Audit, Finding, Unjudged

__all__ = ["Audit", "Finding", "Unjudged", "audit"]
