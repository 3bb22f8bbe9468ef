"""`Progress`: one line on a terminal with steps, epsilon, loss and the share of clipped samples.

with fxdp.Progress(private, total_steps=1000, delta=1e-5) as progress:
    for x, y in loader:
        loss = private(x, y)
        loss.backward()
        optimizer.step()
        progress.step(loss)
"""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from fxdp.arguments import require_delta, require_whole
from fxdp.module.private_module import PrivateModule

PAUSE = 0.1  # seconds between two looks at the loss and the norms
ASK_EVERY = 1.0  # seconds between two questions to the accountant
ASK_SHARE = 20  # times as long as a question took, at least, until the next
LINE = (
    "epsilon {task.fields[epsilon]} | unprotected: loss {task.fields[loss]}, "
    "{task.fields[clipped]} clipped"
)


class Progress:
    """Steps, epsilon, loss, and the share of samples that were clipped, on standard error.

    Guarantees:
        It changes nothing: no release, no random number, no gradient. Loss and share are those of
        the last batch as they are, without noise: they are not protected by DP, as the line says:
        never publish them.

    ===================================  ==========================================
    case                                 what happens
    ===================================  ==========================================
    standard error is not a terminal     nothing is written, nothing is computed
    many steps a second                  the line changes 10 times a second, epsilon
                                         once, or less often if it takes long
    an empty batch                       "-" for the share
    more steps than `total_steps`        they are counted on
    ===================================  ==========================================

    Args:
        private: whose steps they are.
        total_steps: how many there will be, at least 1.
        delta: in (0, 1), of the epsilon that is shown.

    Raises:
        ValueError: an argument is not as described.
    """

    def __init__(self, private: PrivateModule, total_steps: int, delta: float) -> None:
        total_steps = require_whole("total_steps", total_steps, 1)
        delta = require_delta(delta)
        self._private, self._total, self._delta = private, total_steps, delta
        self._steps, self._epsilon = 0, "-"
        self._looked, self._ask_at = -PAUSE, 0.0
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            if kind is None:
                self._ask()
                self._bar.update(self._bar.task_ids[0], epsilon=self._epsilon)
            self._bar.stop()
            self._bar = None

    def step(self, loss: Tensor | float) -> None:
        """Count a step, after its backward pass.

        Args:
            loss: 0-d, of the step.
        """
        self._steps += 1
        now = time.monotonic()
        last = self._steps == self._total
        if not sys.stderr.isatty() or (now - self._looked < PAUSE and not last):
            return
        self._looked = now
        if now >= self._ask_at:
            self._ask()
        bar = self._bar or self._started()
        shown: dict[str, Any] = {"loss": f"{number(loss):.4g}", "clipped": self._clipped()}
        bar.update(bar.task_ids[0], completed=self._steps, epsilon=self._epsilon, **shown)
        bar.refresh()

    def _started(self) -> Bar:
        """The line; it appears with the first step, behind what compilation had to say."""
        self._bar = Bar(
            MofNCompleteColumn(), BarColumn(bar_width=16), TimeRemainingColumn(),
            TextColumn(f"at delta {self._delta:g} {LINE}"),
            console=Console(stderr=True), auto_refresh=False, redirect_stdout=False,
            redirect_stderr=False,
        )  # fmt: skip
        fields: dict[str, Any] = {"loss": "-", "clipped": "-", "epsilon": self._epsilon}
        self._bar.add_task("", total=self._total, **fields)
        self._bar.start()
        return self._bar

    def _ask(self) -> None:
        began = time.monotonic()
        self._epsilon = f"{self._private.privacy_spent(self._delta):.3g}"
        ended = time.monotonic()
        self._ask_at = ended + max(ASK_EVERY, ASK_SHARE * (ended - began))

    def _clipped(self) -> str:
        """The share of the last step's samples whose gradient was longer than C."""
        norms = self._private.last_norms
        if not len(norms):
            return "-"
        return f"{(norms > self._private.max_grad_norm).double().mean().item():.0%}"


def number(loss: Tensor | float) -> float:
    """A loss as a number, without autograd's warning."""
    return loss.item() if isinstance(loss, Tensor) else loss
