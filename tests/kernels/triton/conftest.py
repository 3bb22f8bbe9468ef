"""Where Triton's kernels run: on a device, or without one in Triton's interpreter.

    TRITON_INTERPRET=1 pytest tests/kernels/triton

The variable is read where triton is imported, which other tests may have done.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def numbers() -> Iterator[None]:
    """The interpreter's numbers overflow in silence, as a device's do."""
    before = np.seterr(all="ignore")
    yield
    np.seterr(**before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, numbers: None) -> str:
    """The interpreter's, or that of CUDA."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    interpreted = triton.knobs.runtime.interpret
    if request.param == "cpu":
        if not interpreted:
            pytest.skip("Triton's interpreter is off: TRITON_INTERPRET=1 turns it on")
        indexed(monkeypatch)
    elif interpreted or not torch.cuda.is_available():
        pytest.skip("no CUDA device, or TRITON_INTERPRET is set")
    return request.param


def indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let numbers of the interpreter be bounds of a loop: numpy 2.4 no longer takes an array of one
    number for a number."""
    from triton.runtime import interpreter

    before = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
