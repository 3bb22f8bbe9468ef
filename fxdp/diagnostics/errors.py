"""Errors of steps: nothing was released, and nothing was counted."""


class StepError(RuntimeError):
    """Steps that do not follow one another: nothing was released, and nothing was counted."""


class NoLoss(Exception):
    """What should be a loss is not one."""


class NotCompiled(StepError):
    """torch ran a model as it is where fxdp's graph should have run."""

    def __init__(self, why: str = "") -> None:
        super().__init__(
            "torch ran the model as it is, and not the private step that was made of it, so that "
            f"its gradients would be plain{why and ': '}{why}; nothing was released. Let torch "
            "compile: no torch.compiler.set_stance or disable, no TORCH_COMPILE_DISABLE or "
            "TORCHDYNAMO_DISABLE, no torch._dynamo.config.disable or suppress_errors, no torch "
            "mode around the step, and fewer values (numbers, lists) of the model that change "
            "from step to step, and fewer steps of one class of model, than "
            "torch._dynamo.config.recompile_limit. torch remembers what it did not compile: "
            "afterwards, torch.compiler.reset() makes it try again. For the plain model, use "
            "torch.no_grad(), or fxdp.unprotected(...) on public data"
        )
