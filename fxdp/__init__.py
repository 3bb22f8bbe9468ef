"""fxdp: differentially private training for any PyTorch model, proven and compiled.

A name is loaded when it is first used, so that `import fxdp` costs little more than `import torch`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxdp import data as data
    from fxdp import privacy as privacy
    from fxdp.auditing import Audit, audit
    from fxdp.auditing.verify import Verification, verify
    from fxdp.backend.check import MiscompilationWarning
    from fxdp.backend.halves import UncompiledWarning
    from fxdp.backend.options import Options
    from fxdp.capture.inputs import BatchDims
    from fxdp.capture.segments import Ragged
    from fxdp.checker.check import Verdict, check_certificate
    from fxdp.compiler import compile, prove  # noqa: A004 - torch.compile's name
    from fxdp.diagnostics.diagnostic import BatchMixingError, CaptureError, Diagnostic, ProofError
    from fxdp.diagnostics.errors import StepError
    from fxdp.diagnostics.fix import fix
    from fxdp.mechanism import clipping as clipping
    from fxdp.mechanism import noise as noise
    from fxdp.module.accounting import Accounting
    from fxdp.module.private_module import PrivateModule
    from fxdp.module.public import PublicSizeWarning
    from fxdp.ops import RULES
    from fxdp.pipeline import PASSES
    from fxdp.privacy.budget import BudgetExhausted
    from fxdp.proof.certificate import Certificate
    from fxdp.rules import Rule, SumRule, shared
    from fxdp.torch_compile.unprotected import unprotected
    from fxdp.training.checkpoint import load_checkpoint, save_checkpoint
    from fxdp.training.make_private import make_private
    from fxdp.training.progress import Progress
    from fxdp.training.schedule import ScaleScheduler

# What stands above, for those who run it: modules, and where the other names are found.
MODULES = {
    "clipping": "fxdp.mechanism.clipping",
    "data": "fxdp.data",
    "noise": "fxdp.mechanism.noise",
    "privacy": "fxdp.privacy",
}
PLACES = {
    "fxdp.auditing": ("Audit", "audit"),
    "fxdp.capture.inputs": ("BatchDims",),
    "fxdp.capture.segments": ("Ragged",),
    "fxdp.proof.certificate": ("Certificate",),
    "fxdp.backend.check": ("MiscompilationWarning",),
    "fxdp.backend.halves": ("UncompiledWarning",),
    "fxdp.training.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "fxdp.checker.check": ("Verdict", "check_certificate"),
    "fxdp.compiler": ("compile", "prove"),
    "fxdp.diagnostics.diagnostic": ("BatchMixingError", "CaptureError", "Diagnostic", "ProofError"),
    "fxdp.diagnostics.errors": ("StepError",),
    "fxdp.diagnostics.fix": ("fix",),
    "fxdp.training.make_private": ("make_private",),
    "fxdp.ops": ("RULES",),
    "fxdp.pipeline": ("PASSES",),
    "fxdp.privacy.budget": ("BudgetExhausted",),
    "fxdp.backend.options": ("Options",),
    "fxdp.module.accounting": ("Accounting",),
    "fxdp.module.private_module": ("PrivateModule",),
    "fxdp.module.public": ("PublicSizeWarning",),
    "fxdp.rules": ("Rule", "SumRule", "shared"),
    "fxdp.training.schedule": ("ScaleScheduler",),
    "fxdp.training.progress": ("Progress",),
    "fxdp.torch_compile.unprotected": ("unprotected",),
    "fxdp.auditing.verify": ("Verification", "verify"),
}
HOME = {name: module for module, names in PLACES.items() for name in names}

__all__ = [
    "PASSES",
    "RULES",
    "Accounting",
    "Audit",
    "BatchDims",
    "BatchMixingError",
    "BudgetExhausted",
    "CaptureError",
    "Certificate",
    "Diagnostic",
    "MiscompilationWarning",
    "Options",
    "PrivateModule",
    "Progress",
    "ProofError",
    "PublicSizeWarning",
    "Ragged",
    "Rule",
    "ScaleScheduler",
    "StepError",
    "SumRule",
    "UncompiledWarning",
    "Verdict",
    "Verification",
    "audit",
    "check_certificate",
    "compile",
    "fix",
    "load_checkpoint",
    "make_private",
    "prove",
    "save_checkpoint",
    "unprotected",
    "shared",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        found: Any = importlib.import_module(MODULES[name])
    elif name in HOME:
        found = getattr(importlib.import_module(HOME[name]), name)
    else:
        raise AttributeError(f"module 'fxdp' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES, *HOME})
