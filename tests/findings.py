"""Bad models that carry their findings: a comment `# FXD101` marks the line to be named."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxdp

MARKED = re.compile(r"# (FXD\d{3})")
# Faults of a whole program, which start at no op and so have no path.
OF_THE_PROGRAM = {"depends-on-batch-size", "fixed-batch-size"}
Finding = tuple[int, str]


class Net(nn.Module):
    """A linear layer inside of `body(net, *inputs)`, and a loss for each sample."""

    def __init__(self, body: Callable[..., Any], width: int = 4, **layers: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.body = body
        self.layers = nn.ModuleDict(layers)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.body(self, *inputs).flatten(1).square().sum(1)


def marked(*code: Any) -> list[Finding]:
    """The findings that the source of some functions or classes announces."""
    found: list[Finding] = []
    for part in code:
        lines, first = inspect.getsourcelines(part)
        found += [(first + i, m[1]) for i, line in enumerate(lines) for m in MARKED.finditer(line)]
    return sorted(found)


def refused(
    kind: type[fxdp.ProofError], file: str, expected: list[Finding], model: nn.Module,
    *inputs: Any, **keywords: Any,
) -> tuple[fxdp.Diagnostic, ...]:  # fmt: skip
    """Prove a model, hold the refusal against what was announced, and return its diagnostics."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(fxdp.ProofError) as caught:
        fxdp.prove(model, *inputs, **keywords)
    assert type(caught.value) is kind, caught.value
    found = caught.value.diagnostics
    assert [(d.location.line if d.location else 0, d.code.code) for d in found] == expected
    for d in found:
        assert d.location is None or d.location.file == file
        assert d.op
        assert d.why
        assert d.remedy
        if kind is not fxdp.CaptureError and d.code.name not in OF_THE_PROGRAM:
            assert d.path[-1].startswith(("gradient of ", "output", "new value of ", "value kept"))
    text = str(caught.value)
    assert "TORCHDYNAMO" not in text
    assert not re.search(r"\bz?u?[sf]\d+\b", text), text
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    return found
