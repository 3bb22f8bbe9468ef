"""Squared norms."""

import re

import pytest
import torch
from torch import nn

from fxdp.graph.study import PerSample
from fxdp.mechanism.clipping import PerGroup
from tests.passes.graphs import block, conv, cut, linear, passed, sequence, shape, sum_square


def test_ghost() -> None:
    """One position: the product of two squared norms. Several: that of two Gram matrices."""
    text = cut(linear().texts["measure"], "vector_norm(", ", linalg_vector_norm_2)")
    assert text.startswith(
        block("""
        linalg_vector_norm = linalg_vector_norm(^unsqueeze, 2, [1, 2])
        linalg_vector_norm_2 = linalg_vector_norm(^unsqueeze, 2, [1, 2])
    """)
    )
    assert re.search(r"mul_\d = mul\(linalg_vector_norm, linalg_vector_norm_2\)", text)
    assert cut(sequence(strategy="ghost").texts["measure"], "ghost_outer(") == block("""
        ghost_outer = fxdp.ghost_outer(^reshape, ^reshape)
    """)


def test_instantiate() -> None:
    """The per-sample gradient of a linear layer is one einsum."""
    run = sequence(strategy="instantiate")
    assert cut(run.texts["measure"], "einsum(", "square(") == block("""
        einsum = einsum('nti,nto->nio', [^reshape, ^reshape])
        linalg_vector_norm = linalg_vector_norm(einsum, 2, [2])
        linalg_vector_norm_2 = linalg_vector_norm(linalg_vector_norm, 2, [1])
        square = square(linalg_vector_norm_2)
    """)
    assert shape(run, run.study.of(PerSample).nodes["weight"]) == "[N, 2, 3]"


def test_conv() -> None:
    """N convolutions of G groups are one of N * G groups."""
    run = conv(strategy="instantiate")
    assert shape(run, run.study.of(PerSample).nodes["weight"]) == "[N, 4, 1, 2]"
    *before, call = cut(run.texts["measure"], "N * 4", "convolution_backward(reshape").splitlines()
    assert "\n".join(before) == block("""
        mul = N * 4
        expand = expand(^new_zeros, [mul, 1, 2])
        reshape = reshape(^unsqueeze, [1, mul, 4])
        mul_2 = N * 2
        reshape_2 = reshape(^unsqueeze, [1, mul_2, 8])
    """)
    assert call.endswith("None, [2], [0], [1], False, [0], mul_2, [False, True, False])")


def test_crb() -> None:
    """One op on a CPU."""
    run = conv(strategy="crb")
    assert shape(run, run.study.of(PerSample).nodes["weight"]) == "[N, 4, 1, 2]"
    assert "crb_conv(" in run.texts["measure"]


def test_crb_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stride and dilation swap places: the outputs' gradients are the kernel."""
    monkeypatch.setattr("fxdp.forms.conv.has_ops", lambda *_: False)
    run = conv.__wrapped__(strategy="crb")  # not the one that was kept
    assert shape(run, run.study.of(PerSample).nodes["weight"]) == "[N, 4, 1, 2]"
    assert cut(run.texts["measure"], "N * 2", "conv2d(") == block("""
        mul = N * 2
        reshape = reshape(^unsqueeze, [1, mul, 1, 8])
        mul_2 = N * 4
        reshape_2 = reshape(^unsqueeze, [mul_2, 1, 1, 4])
        conv2d = conv2d(reshape, reshape_2, None, [1, 1], [0, 0], [1, 2], mul)
    """)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_biases_and_scales_at_once(dtype: torch.dtype) -> None:
    """One op for the norms of all that are there already, and one for their clipped sums."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(dtype)
    x = torch.zeros(4, 5, 3, dtype=dtype)
    run = passed(model, sum_square, x, torch.zeros(4), last="clip", strategy="ghost")
    own = {"0.bias", "1.weight", "1.bias", "2.bias"}
    assert run.study.of(PerSample).at_once == own
    assert run.texts["measure"].count("fxdp.squared_norms(") == 1
    assert run.texts["clip"].count("fxdp.weighed_sums(") == 1
    assert "fxdp.weighed_sum(" not in run.texts["clip"]


def test_groups_have_sums_of_their_own() -> None:
    """Each with its own factor."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    x, how = torch.zeros(4, 5, 3), {"last": "clip", "clipping": PerGroup()}
    run = passed(model, sum_square, x, torch.zeros(4), **how)
    assert run.texts["clip"].count("fxdp.weighed_sums(") == 3
