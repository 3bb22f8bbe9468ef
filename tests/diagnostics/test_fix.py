"""Batch norms are replaced on a copy, and a refusal says by what."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp
from fxdp.diagnostics.fix import groups_for


class Own(nn.BatchNorm2d):
    """A batch norm that does something else, too."""

    def forward(self, x):
        return F.relu(super().forward(x))


def net() -> nn.Sequential:
    shared = nn.BatchNorm2d(8)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), shared, nn.Conv2d(8, 8, 1), shared,
        nn.Sequential(nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6, eps=1e-3, affine=False)),
        nn.InstanceNorm2d(6, track_running_stats=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2),
    )  # fmt: skip


X, Y = torch.randn(5, 3, 7, 7), torch.arange(5) % 2


def test_a_mended_model_is_proven_and_trains():
    model = net()
    before = copy.deepcopy(model.state_dict())
    mended, changes, left = fxdp.fix(model)
    assert [c.path for c in changes] == ["1", "3", "4.1", "5", "9"]
    assert not left
    assert fxdp.prove(mended, X, Y, loss_fn=F.cross_entropy)
    assert mended[1] is mended[3]
    assert isinstance(mended[4][1], nn.GroupNorm)
    assert mended[4][1].eps == 1e-3
    assert mended[4][1].weight is None
    # The model itself is as it was, and shares nothing with the copy.
    assert isinstance(model[1], nn.BatchNorm2d)
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in mended.parameters()}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_it_says_what_it_did():
    text = str(fxdp.fix(net()))
    assert "1: nn.BatchNorm2d(8) -> nn.GroupNorm(4, 8)" in text
    assert "5: nn.InstanceNorm2d(6, track_running_stats=True) -> nn.InstanceNorm2d(6)" in text
    assert str(fxdp.fix(nn.Linear(2, 2))) == "nothing to change"
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not function"):
        fxdp.fix(net)  # type: ignore[arg-type]


def test_it_leaves_subclasses_alone_and_says_so():
    fixed = fxdp.fix(nn.Sequential(nn.Conv2d(3, 8, 3), Own(8)))
    assert fixed.left == ("1",)
    assert not fixed.changes
    assert "1: left alone" in str(fixed)


def test_a_model_that_is_a_batch_norm():
    fixed = fxdp.fix(nn.BatchNorm2d(64))
    assert isinstance(fixed.model, nn.GroupNorm)
    assert str(fixed) == "the model: nn.BatchNorm2d(64) -> nn.GroupNorm(32, 64)"


def test_mode_and_frozen_parameters_stay():
    model = net().eval()
    model[1].weight.requires_grad_(False)
    mended = fxdp.fix(model).model
    assert not any(m.training for m in mended.modules())
    assert not mended[1].weight.requires_grad
    assert mended[1].bias.requires_grad


def test_no_group_has_one_value_only():
    """A group of one channel on a flat input would come out as zeros."""
    assert [groups_for(c) for c in (1, 2, 3, 6, 32, 64, 100, 512)] == [1, 1, 1, 3, 16, 32, 25, 32]
    flat = fxdp.fix(nn.BatchNorm1d(32)).model
    assert flat(torch.randn(4, 32)).abs().min() > 0


def test_a_refusal_names_the_replacement():
    with pytest.raises(fxdp.BatchMixingError) as caught:
        fxdp.prove(net(), X, Y, loss_fn=F.cross_entropy)
    (found, *_) = caught.value.diagnostics
    text = "replace nn.BatchNorm2d(8) by nn.GroupNorm(4, 8); fxdp.fix(model) does it"
    assert found.remedy == text
    assert found.modules[0] == "1"
