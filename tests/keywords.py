"""The keywords of `fxdp.compile` by single names, for helpers of tests that pass any of them on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import fxdp
from fxdp.backend.options import OPTIONS

COUNTED = ("sample_rate", "budget", "accountant", "neighbours")


def grouped(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`options=`, `accounting=` and `noise=` made of what belongs there; the rest as it is."""
    found = faster(flat)
    counted = {name: found.pop(name) for name in COUNTED if name in found}
    if counted:
        found["accounting"] = fxdp.Accounting(**counted)
    if "secure" in found:
        noise = found.get("noise") or fxdp.noise.Gaussian()
        found["noise"] = replace(noise, secure=found.pop("secure"))
    return found


def faster(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`options=` made of what changes speed alone, which is what `make_private` passes on."""
    found = dict(flat)
    speed = {name: found.pop(name) for name in OPTIONS if name in found}
    return found | ({"options": found.get("options", {}) | speed} if speed else {})
