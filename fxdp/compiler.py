"""`fxdp.compile` and `fxdp.prove`."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fxdp.arguments import require_whole
from fxdp.backend.options import Options, Reduction, checked_options
from fxdp.backend.settings import Backend
from fxdp.capture.fake import is_dataless, on_cpu
from fxdp.capture.inputs import BatchDims
from fxdp.capture.naming import parameters
from fxdp.distributed.guard import UNSAID, Mesh, refuse_wrapped
from fxdp.mechanism.clipping import Clipping, ClippingName
from fxdp.mechanism.correlated import BandMF, Correlation
from fxdp.mechanism.noise import Noise
from fxdp.module.accounting import Accounting, as_accounting
from fxdp.module.inspection import Attempt
from fxdp.module.private_module import PrivateModule
from fxdp.ops import RULES
from fxdp.proof.certificate import Certificate
from fxdp.rules import Rule, Table
from fxdp.torch_internals import OpOverload


def compile(  # noqa: A001 - torch.compile's name
    model: nn.Module,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    max_grad_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    clipping: ClippingName | Clipping = "flat",
    noise: Noise | None = None,
    accounting: Accounting | None = None,
    batch_dims: BatchDims = 0,
    loss_reduction: Reduction | None = None,
    rules: Table = RULES,
    backend: Backend = "inductor",
    microbatch_size: int | None = None,
    mesh: Mesh = UNSAID,
    options: Options | None = None,
) -> PrivateModule:
    """Compile a model into one whose `loss.backward()` leaves private gradients.

    Nothing is captured until the first step. `p.grad` then holds, for each trainable parameter,
    (sum_i min(1, C / |g_i|) g_i + sigma C xi) / L, where g_i is the gradient that sample i would
    give alone, over all trainable parameters, and xi is standard normal (Abadi et al.,
    arXiv:1607.00133, algorithm 1). Numbers may be any `numbers.Real`, or 0-d tensors.

    Args:
        model: any module that torch.compile captures whole.
        loss_fn: called as `loss_fn(model(*inputs), target)`; must return a loss that is 0-d or
            [N]. Without it the model returns a loss: alone, as `.loss`, or in a tuple, where the
            only 0-d tensor with a gradient is taken, or else the first.

        What is released:

        max_grad_norm: the clip bound C, above 0; `math.inf` clips nothing.
        noise_multiplier: sigma, at least 0.
        expected_batch_size: L, the public number that the sum is divided by.
        clipping: "flat", "automatic" (AUTO-S), "normalize", "per-layer" or a value of
            `fxdp.clipping`; C is the sensitivity in all of them.
        noise: `fxdp.noise.Gaussian()`, or `Gaussian(secure=True)` from the system's entropy; or
            `fxdp.noise.BandMF(bands=...)` for noise of which part cancels out over the steps, for
            batches drawn by `CyclicPoisson`. That takes memory for bands - 1 models, is part of
            `privacy_state_dict()`, and leaves a model's results other than its loss out; on other
            devices than a CPU it needs `secure=True`.

        How it is counted:

        accounting: `fxdp.Accounting(sample_rate=..., budget=(epsilon, delta))`, with its
            `accountant` and `neighbours`. None amplifies nothing, and refuses nothing. Each module
            has an account of its own, and a budget of its own: ledgers of several add up by `+`.

        What is proven:

        batch_dims: the axis of the samples, for all arguments or by argument name (the loss's is
            "target"); None for an argument that all samples share; `fxdp.Ragged` for one that holds
            rows, of each sample as many as it has: their number is taken as public.
        loss_reduction: "mean" or "sum" for a model that returns an output [N, ...] of which you
            make a loss yourself, outside of the graph. That this loss is the mean or the sum of
            one loss for each row is then assumed, and the certificate says so.
        rules: the table of rules; rules that you add are listed as assumptions.

        How it is run:

        backend: "inductor" or "eager".
        microbatch_size: samples that are worked on at a time, forward and backward, at least 1;
            batches of any size are cut into pieces of this one, the last one padded, and what is
            released is the same. A model's results other than its loss are left out then.
        mesh: None says that the processes of torch.distributed, if there are several, train
            apart, each a model of its own with an account of its own. Without it they are refused.
        options: what changes speed or memory alone: `strategy`, `plan`, `memory_budget` and
            `checkpoint`, as `fxdp.Options` describes them.

    Raises:
        TypeError, ValueError: an argument is not as described; the model is wrapped for training
            in several processes; or there are several, and no mesh.
        NotImplementedError: a mesh is given.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    refuse_wrapped(model, ValueError)
    refuse_private(model)
    check_parameters(model)
    check_functions(loss_fn, rules)
    scales, settings = checked_options(
        max_grad_norm, noise_multiplier, expected_batch_size, clipping=clipping, noise=noise,
        loss_reduction=loss_reduction, rules=rules, backend=backend, mesh=mesh, options=options,
    )  # fmt: skip
    if loss_reduction is not None and loss_fn is not None:
        raise ValueError("loss_fn puts the loss into the graph: leave loss_reduction out")
    if microbatch_size is not None:
        microbatch_size = require_whole("microbatch_size", microbatch_size, 1)
        if loss_reduction is not None:
            raise ValueError("microbatch_size needs a loss_fn, or a model that returns its loss")
    correlation = None
    if isinstance(noise, BandMF):
        if loss_reduction is not None:
            raise ValueError("noise=BandMF needs a loss_fn, or a model that returns its loss")
        correlation = Correlation(noise, {name: p.shape for name, p in model.named_parameters()})
    settings.clipping.groups([n for n, p in parameters(model, loss_fn).items() if p.requires_grad])
    account = as_accounting(accounting).account(correlation)
    return PrivateModule(model, loss_fn, scales, settings, batch_dims, account, microbatch_size)


def refuse_private(model: nn.Module) -> None:
    """A model with a private one in it would train that one's parameters past its account."""
    for name, module in model.named_modules():
        if isinstance(module, PrivateModule):
            raise ValueError(
                f"model{name and f'.{name}'} is private already: compile the model that it was "
                "made of, or the whole around that"
            )


def check_parameters(model: nn.Module) -> None:
    """A model must have something to train, and nothing that cannot be."""
    for name, p in model.named_parameters():
        if p.is_complex():
            raise TypeError(
                f"model's parameter {name!r} is complex; keep it as a real one of twice the size, "
                "and use torch.view_as_complex in forward"
            )
        if not p.is_floating_point():
            raise TypeError(f"model's parameter {name!r} has dtype {p.dtype}; make it a buffer")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no trainable parameter: set requires_grad on at least one")


def check_functions(loss_fn: Any, rules: Any) -> None:
    """A loss must be something to call, and rules a table of them."""
    if isinstance(loss_fn, type) or not (loss_fn is None or callable(loss_fn)):
        raise TypeError(
            f"loss_fn must be a function of output and target, or an instance of a module, not "
            f"{loss_fn!r}"
        )
    if not isinstance(rules, Mapping) or not all(
        isinstance(op, OpOverload) and isinstance(rule, Rule) for op, rule in rules.items()
    ):
        raise TypeError("rules must be a table such as fxdp.RULES | {my_op: fxdp.Rule(place)}")


def prove(
    model: nn.Module,
    *args: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    batch_dims: BatchDims = 0,
    rules: Table = RULES,
    **kwargs: Any,
) -> Certificate:
    """Prove a model without compiling or running it, on real, fake or meta tensors.

    Args:
        model, loss_fn, batch_dims, rules: as for `fxdp.compile`.
        *args, **kwargs: the arguments of a step, for their shapes and dtypes.

    Raises:
        ProofError: the model cannot be proven; its diagnostics say why.
        TypeError, ValueError: the arguments do not fit together.
    """
    found = attempt(model, *args, loss_fn=loss_fn, batch_dims=batch_dims, rules=rules, **kwargs)
    if found.error is not None:
        raise found.error
    assert found.certificate is not None
    return found.certificate


def attempt(
    model: nn.Module,
    *args: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    batch_dims: BatchDims = 0,
    rules: Table = RULES,
    **kwargs: Any,
) -> Attempt:
    """`prove`, for callers that want to know what was found on the way to a refusal.

    Raises:
        TypeError, ValueError: the arguments do not fit together.
    """
    if is_dataless(model, (args, kwargs)):
        model, (args, kwargs) = on_cpu(model, (args, kwargs))
    private = compile(
        model, loss_fn=loss_fn, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=1.0,
        backend="eager", batch_dims=batch_dims, rules=rules, mesh=None,
    )  # fmt: skip
    return private.attempt(*args, **kwargs)
