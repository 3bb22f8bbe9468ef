"""fxdp: private training from any PyTorch model, proven and compiled."""

from fxdp import clipping as clipping
from fxdp import correlated as correlated
from fxdp import data as data
from fxdp import grams as grams
from fxdp import opaque as opaque
from fxdp import operators as operators  # registers the ops that graphs carry
from fxdp import privacy as privacy
from fxdp import recurrent as recurrent
from fxdp import unfolding as unfolding
from fxdp import weighing as weighing
from fxdp.audit import Audit, audit
from fxdp.capture import BatchDims
from fxdp.certificate import Certificate
from fxdp.check import MiscompilationWarning
from fxdp.checkpoint import load_checkpoint, save_checkpoint
from fxdp.compiler import compile, prove  # noqa: A004 - torch.compile's name
from fxdp.diagnostic import BatchMixingError, CaptureError, Diagnostic, ProofError
from fxdp.errors import StepError
from fxdp.fix import fix
from fxdp.make_private import make_private
from fxdp.ops import RULES
from fxdp.pipeline import PASSES
from fxdp.privacy.budget import BudgetExhausted
from fxdp.private_module import PrivateModule
from fxdp.public import PublicSizeWarning
from fxdp.rules import Rule, SumRule, shared
from fxdp.schedule import ScaleScheduler
from fxdp.training import Progress
from fxdp.unprotected import unprotected
from fxdp.verify import Verification, verify

__all__ = [
    "PASSES",
    "RULES",
    "Audit",
    "BatchDims",
    "BatchMixingError",
    "BudgetExhausted",
    "CaptureError",
    "Certificate",
    "Diagnostic",
    "MiscompilationWarning",
    "PrivateModule",
    "Progress",
    "ProofError",
    "PublicSizeWarning",
    "Rule",
    "ScaleScheduler",
    "StepError",
    "SumRule",
    "Verification",
    "audit",
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
