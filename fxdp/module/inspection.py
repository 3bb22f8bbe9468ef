"""Looks into a step without a release: per-sample norms and gradients, and its proof."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdp.backend.options import Scales
from fxdp.backend.partition import Proven, stop
from fxdp.backend.settings import Record, Settings
from fxdp.capture.inputs import Inputs
from fxdp.diagnostics.diagnostic import ProofError, StepFails
from fxdp.graph.nodes import copied
from fxdp.graph.passes import Pass
from fxdp.graph.study import Captured, Study, study
from fxdp.module.public import Public
from fxdp.module.stepper import Compiled, Stepper
from fxdp.ops import RULES
from fxdp.pipeline import PROOF
from fxdp.proof.certificate import Certificate, certify

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Attempt:
    """What came of a proof: a certificate, or an error; and what was found on the way.

    Attributes:
        study: of the captured graph; None where the model could not be captured.
        certificate: where the model was proven.
        error: where it was not.
    """

    study: Study | None
    certificate: Certificate | None
    error: ProofError | None


class Inspector:
    """Looks into the steps of one model. Results are not protected by DP: never publish them."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self._each: Compiled | None = None  # a step that returns per-sample gradients

    def norms(self, args: Arguments, kwargs: dict[str, Any], scales: Scales) -> Tensor:
        """[N] gradient norms, one a sample."""
        self._run(self.stepper.step, args, kwargs, scales)
        return self.stepper.record.extras["norms"][: self.stepper.gathered(args, kwargs).size]

    def gradients(
        self, args: Arguments, kwargs: dict[str, Any], scales: Scales
    ) -> dict[str, Tensor]:
        """{parameter: [N, *shape]} gradients, one a sample."""
        if self._each is None:
            settings = Settings(
                strategy="instantiate", backend="eager", table=self.stepper.settings.table,
                inspect=True,
            )  # fmt: skip
            self._each = self.stepper.another(settings, Record())
        self._run(self._each, args, kwargs, scales)
        size, found = self.stepper.gathered(args, kwargs).size, self._each.record.extras
        return {k: v[:size] for k, v in found.items() if k not in ("norms", "finite")}

    def _run(self, step: Compiled, args: Arguments, kwargs: dict[str, Any], scales: Scales) -> None:
        """Run a step and its backward pass without noise, for its extra results."""
        inputs, mask, _ = self.stepper.prepared(args, kwargs, None)
        if self.stepper.settings.reduction:
            raise TypeError("norms need a loss: compile with loss_fn= in place of loss_reduction=")
        bound, _, expected = scales
        before = self.stepper.state()
        try:
            with torch.random.fork_rng(), torch.enable_grad():
                self.stepper.captured(step, inputs, mask, (bound, 0.0, expected))[1].gradients()
        finally:
            before.put_back()

    def proven(self, args: Arguments, kwargs: dict[str, Any], public: Public) -> Certificate:
        """The certificate of a step on these arguments.

        Raises:
            ProofError: it cannot be proven.
        """
        attempt = self.attempt(args, kwargs, public)
        if attempt.error is not None:
            raise attempt.error
        assert attempt.certificate is not None
        return attempt.certificate

    def attempt(self, args: Arguments, kwargs: dict[str, Any], public: Public) -> Attempt:
        """What the proof makes of these arguments, and what they and the steps take as public."""
        inputs, mask, _ = self.stepper.prepared(args, kwargs, None)
        record = Record()
        try:
            self._prove(inputs, mask, record)
        except StepFails:
            raise  # which says nothing of the model
        except ProofError as error:
            return Attempt(record.study, None, error)
        assert record.study is not None
        assumptions = public.beside(inputs).assumptions()
        fallbacks = self.stepper.record.fallbacks
        return Attempt(record.study, certify(record.study, RULES, fallbacks, assumptions), None)

    def _prove(self, inputs: Inputs, mask: Tensor, record: Record) -> None:
        """Run the proof; the record holds the study also where it fails."""
        passes = (Pass(keep), *PROOF, Pass(stop, ends=True))
        step = self.stepper.another(self.stepper.settings, record, passes)
        with contextlib.suppress(Proven), torch.enable_grad():
            self.stepper.captured(step, inputs, mask, (1.0, 0.0, 1.0))


def keep(gm: GraphModule) -> GraphModule:
    """Keep the captured graph as it is, for those who check what is said of it."""
    study(gm).put(Captured(copied(gm)))
    return gm
