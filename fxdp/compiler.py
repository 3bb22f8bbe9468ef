"""`fxdp.compile` and `fxdp.prove`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fxdp.backend.options import checked_options, count
from fxdp.capture.fake import is_dataless, on_cpu
from fxdp.capture.inputs import BatchDims
from fxdp.data import PrivateLoader, PrivateSampler
from fxdp.distributed.guard import UNSAID, Mesh, refuse_wrapped
from fxdp.mechanism.clipping import Clipping
from fxdp.mechanism.correlated import BandMF, Correlation
from fxdp.module.account import Account, as_budget
from fxdp.module.inspection import Attempt
from fxdp.module.private_module import PrivateModule
from fxdp.ops import RULES
from fxdp.privacy.accounting import as_sampling
from fxdp.privacy.budget import Budget
from fxdp.privacy.ledger import Ledger
from fxdp.privacy.sampling_rule import Accountant, Neighbours, Sampling
from fxdp.proof.certificate import Certificate
from fxdp.rules import Table


def compile(  # noqa: A001 - torch.compile's name
    model: nn.Module,
    *,
    loss_fn: Callable[..., Tensor] | None = None,
    loss_reduction: str | None = None,
    max_grad_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    clipping: str | Clipping = "flat",
    strategy: str = "auto",
    backend: str = "inductor",
    plan: str = "measured",
    memory_budget: int | None = None,
    batch_dims: BatchDims = 0,
    rules: Table = RULES,
    sample_rate: float | Sampling | PrivateSampler | PrivateLoader | None = None,
    budget: tuple[float, float] | Budget | None = None,
    accountant: Accountant = "pld",
    neighbours: Neighbours = "add-or-remove-one",
    microbatch_size: int | None = None,
    checkpoint: str = "never",
    secure: bool = False,
    noise: BandMF | None = None,
    mesh: Mesh = UNSAID,
) -> PrivateModule:
    """Compile a model into one whose `loss.backward()` leaves private gradients.

    Nothing is captured until the first step. `p.grad` then holds, for each trainable parameter,
    (sum_i min(1, C / |g_i|) g_i + sigma C xi) / L, where g_i is the gradient that sample i would
    give alone, over all trainable parameters, and xi is standard normal (Abadi et al.,
    arXiv:1607.00133, algorithm 1).

    Args:
        model: any module that torch.compile captures whole.
        loss_fn: called as `loss_fn(model(*inputs), target)`; must return a loss that is 0-d or
            [N]. Without it the model returns a loss, alone, first in a tuple, or as `.loss`.
        loss_reduction: "mean" or "sum" for a model that returns an output [N, ...] of which you
            make a loss yourself, outside the graph. That this loss is the mean or the sum of
            one loss for each row is then assumed, and the certificate says so.
        max_grad_norm: the clip bound C, above 0; `math.inf` clips nothing.
        noise_multiplier: sigma, at least 0.
        expected_batch_size: L, the public number that the sum is divided by.
        clipping: "flat", "automatic" (AUTO-S), "normalize", "per-layer" or a value of
            `fxdp.clipping`; C is the sensitivity in all of them.
        strategy: "auto", or how all per-sample norms are found, by a name of
            `fxdp.forms.strategy.STRATEGIES`, such as "instantiate" or "ghost"; equal in result.
        backend: "inductor" or "eager".
        plan: how "auto" chooses for each parameter: "measured" times on this machine what
            cannot be predicted, "model" predicts, "fixed" takes what is smaller (2 T^2 or p d).
        memory_budget: bytes that per-sample gradients may take up at a time; a twentieth of what
            the sums over samples are made of if not given. For "measured" plans.
        batch_dims: the axis of the samples, for all arguments or by argument name (the loss's is
            "target"); None for an argument that all samples share.
        rules: the table of rules; rules that you add are listed as assumptions.
        sample_rate: how batches are drawn, for the account: q of Poisson sampling, or what a
            sampler of `fxdp.data` has as `sampling`; or the sampler, or a loader of its batches,
            and then more releases than it drew batches are a StepError. None amplifies nothing.
        budget: (epsilon, delta); the backward pass that would exceed it raises BudgetExhausted
            and releases nothing.
        accountant, neighbours: as for `fxdp.privacy.epsilon`.
        microbatch_size: samples per piece, forward and backward, at least 1;
            batches of any size are cut into pieces of this one, the last one padded, and what is
            released is the same. Outputs of the model other than its loss are left out then.
        checkpoint: "always" recomputes activations in the backward pass, which trades time for
            memory; "except_last" does so in all pieces of a batch but the last, and so has that
            one's memory; what is released is the same, with the same dropout masks.
        secure: draw the noise from the system's entropy, in float64, and as a sum of four normal
            numbers, against attacks on floating point (`fxdp.mechanism.keystream`). It cannot be
            repeated by a seed, and takes some eight times as long to make.
        noise: `fxdp.correlated.BandMF(bands=...)` for noise of which part cancels out over the
            steps, for batches drawn by `CyclicPoisson`; None for independent noise. It takes
            memory for bands - 1 models, is part of `privacy_state_dict()`, and leaves
            outputs other than the loss out. On other devices than a CPU it needs `secure`.
        mesh: None says that the processes of torch.distributed, if there are several, train
            apart, each a model of its own with an account of its own. Without it they are refused.

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
    scales, settings = checked_options(
        max_grad_norm, noise_multiplier, expected_batch_size, strategy, backend, rules, plan,
        memory_budget, loss_reduction, clipping, secure, checkpoint, mesh,
    )  # fmt: skip
    if loss_reduction is not None and loss_fn is not None:
        raise ValueError("loss_fn puts the loss into the graph: leave loss_reduction out")
    if microbatch_size is not None:
        count("microbatch_size", microbatch_size)
        if loss_reduction is not None:
            raise ValueError("microbatch_size needs a loss_fn, or a model that returns its loss")
    if noise is not None and not isinstance(noise, BandMF):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"noise must be a fxdp.correlated.BandMF or None, not {noise!r}")
    if noise is not None and loss_reduction is not None:
        raise ValueError("noise needs a loss_fn, or a model that returns its loss")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    correlation = Correlation(noise, shapes) if noise is not None else None
    ledger = Ledger(accountant, neighbours)
    drawn_by = sample_rate.batches if isinstance(sample_rate, PrivateLoader) else sample_rate
    handed = drawn_by.handed if isinstance(drawn_by, PrivateSampler) else None
    sampling = drawn_by.sampling if isinstance(drawn_by, PrivateSampler) else drawn_by
    account = Account(ledger, as_sampling(sampling), as_budget(budget), correlation, handed)
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
