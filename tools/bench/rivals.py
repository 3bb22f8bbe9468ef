"""Opacus, in each of its modes, wired as its PrivacyEngine does it for batches that are given."""

from opacus.grad_sample.utils import wrap_model
from opacus.optimizers import get_optimizer_class
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from opacus.validators import ModuleValidator
from torch import Tensor

from tools.bench.contender import CLIP, NOISE, Runner, sgd
from tools.bench.task import Loss, Task


class Criterion:
    """A loss as Opacus wants it: ghost mode sets `reduction`, to see each sample's."""

    def __init__(self, loss: Loss) -> None:
        self.loss, self.reduction = loss, "mean"

    def __call__(self, out: Tensor, target: Tensor) -> Tensor:
        kind = self.loss.each if self.reduction == "none" else self.loss.mean
        return kind(out, target)


def opacus(task: Task, mode: str) -> Runner:
    """Opacus with `grad_sample_mode=mode`; layers that it does not take are replaced by its own."""
    model = task.model
    if ModuleValidator.validate(model):
        model = ModuleValidator.fix(model)
    ModuleValidator.validate(model, strict=True)
    options = {"max_grad_norm": CLIP} if mode == "ghost" else {}
    module = wrap_model(model, grad_sample_mode=mode, **options)
    optimizer = get_optimizer_class("flat", distributed=False, grad_sample_mode=mode)(
        sgd(model),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=task.size,
        loss_reduction="mean",
    )
    criterion = Criterion(task.loss)
    if mode == "ghost":
        criterion = DPLossFastGradientClipping(module, optimizer, criterion)

    def step() -> None:
        criterion(module(*task.inputs), task.target).backward()
        optimizer.step()

    def clear() -> None:
        optimizer.zero_grad(set_to_none=True)

    def set_noise(multiplier: float) -> None:
        optimizer.noise_multiplier = multiplier

    return Runner(step, clear, set_noise, dict(model.named_parameters()))
