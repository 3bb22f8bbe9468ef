"""`make_private`: from an ordinary training loop to a private one, in one call."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from fxdp.arguments import require_delta, require_flag, require_whole
from fxdp.compiler import compile  # noqa: A004
from fxdp.data import PrivateLoader, PrivateSampler, private_loader
from fxdp.distributed.guard import UNSAID, Mesh
from fxdp.mechanism.noise import Gaussian, as_noise
from fxdp.module.accounting import Accounting
from fxdp.module.private_module import PrivateModule
from fxdp.privacy.planning import calibrate
from fxdp.privacy.sampling_rule import Accountant, Neighbours


def make_private(
    model: nn.Module,
    optimizer: Optimizer,
    data_loader: DataLoader[Any] | Dataset[Any],
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    delta: float,
    epochs: int,
    max_grad_norm: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    expected_batch_size: float | None = None,
    sampler: PrivateSampler | None = None,
    sample_rate: float | None = None,
    generator: torch.Generator | None = None,
    secure: bool = False,
    accountant: Accountant = "pld",
    neighbours: Neighbours = "add-or-remove-one",
    mesh: Mesh = UNSAID,
    **keywords: Any,
) -> tuple[PrivateModule, Optimizer, PrivateLoader]:
    """Make model, optimizer and data loader private, for an ordinary training loop.

        private, optimizer, loader = fxdp.make_private(
            model, optimizer, loader, F.cross_entropy,
            epsilon=3.0, delta=1e-5, epochs=10, max_grad_norm=1.0,
        )
        for _ in range(10):
            for x, y in loader:
                optimizer.zero_grad()
                private(x, y).backward()
                optimizer.step()

    Guarantees:
        Batches are drawn as the account says, each is released at most once, the clipped sums are
        divided by a number that no batch decides, and all steps of `epochs` passes together spend
        at most epsilon at delta; one step more raises BudgetExhausted and releases nothing. What
        is derived from the number of samples is said in the certificate and in the statement.

    =======================================  ==========================================
    case                                     what happens
    =======================================  ==========================================
    epsilon                                  the least noise that keeps all steps within
    noise_multiplier                         that noise; no step is refused
    both, or none                            ValueError
    a trained parameter that the optimizer   ValueError: its gradient would count in the
    does not have                            norms, for nothing
    a parameter of another model             ValueError
    a loader that draws in its own way       ValueError, as for `fxdp.data.private_loader`
    more steps than batches were drawn       StepError: one would be released twice
    no expected_batch_size                   the sampler's, which tells the number of
                                             samples: that is then taken as public
    neither sampler nor sample_rate          batch_size over the number of samples, likewise
    =======================================  ==========================================

    Args:
        model, loss_fn: as for `fxdp.compile`.
        optimizer: over the model's parameters; returned as it is.
        data_loader: whose batches are drawn anew, by chance; or a data set, with a `sample_rate`.
        delta: in (0, 1); below one over the number of samples.
        epochs: passes over the loader that the noise is to last for, at least 1.
        max_grad_norm: the clip bound C.
        epsilon: the budget, in nats, above 0.
        noise_multiplier: in place of a budget, at least 0.
        expected_batch_size: L, chosen without looking at the data, above 0; None takes the
            sampler's, the mean size of a batch. It scales the gradient, and costs no privacy.
        sampler, sample_rate, generator: as for `fxdp.data.private_loader`.
        secure: batches, as there, and noise, as for `fxdp.compile`, from the system's entropy.
        accountant, neighbours: as for `fxdp.privacy.epsilon`.
        mesh: as for `fxdp.compile`.
        keywords: more of `fxdp.compile`'s.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    if "accounting" in keywords:
        raise ValueError("accounting is made of epsilon, delta and sample_rate: pass those")
    if (epsilon is None) == (noise_multiplier is None):
        raise ValueError("pass epsilon, or noise_multiplier: one of them, and not both")
    epochs = require_whole("epochs", epochs, 1)
    require_flag("secure", secure)
    if not isinstance(sampler, PrivateSampler | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"sampler must be a sampler of fxdp.data, not {sampler!r}")
    check_optimizer(model, optimizer)
    loader = private_loader(
        data_loader, sampler, sample_rate=sample_rate, generator=generator, secure=secure, mesh=mesh
    )
    batches = loader.batches
    delta = require_delta(delta, batches.num_samples)
    if epsilon is not None:
        noise_multiplier = calibrate(
            epsilon, delta, batches.sampling, epochs * len(loader), accountant, neighbours
        )
    assert noise_multiplier is not None
    budget = None if epsilon in (None, math.inf) else (epsilon, delta)
    noise = keywords.pop("noise", None) or Gaussian()
    private = compile(
        model,
        loss_fn=loss_fn,
        max_grad_norm=max_grad_norm,
        noise_multiplier=noise_multiplier,
        expected_batch_size=(
            batches.expected_batch_size if expected_batch_size is None else expected_batch_size
        ),
        accounting=Accounting(batches, budget, accountant, neighbours),
        noise=replace(as_noise(noise), secure=True) if secure else noise,
        mesh=mesh,
        **keywords,
    )
    own_size = expected_batch_size is not None or batches.fixed_size
    own_rate = sampler is not None or sample_rate is not None
    known = {"expected_batch_size": own_size, "sample_rate": own_rate}
    private._account.public.derived = tuple(name for name, own in known.items() if not own)
    return private, optimizer, loader


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """An optimizer must have the model's trained parameters, and no others."""
    if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"optimizer must be one torch.optim.Optimizer, not {type(optimizer).__name__}: one "
            "with several groups of parameters takes the place of a list"
        )
    own = {id(p): name for name, p in model.named_parameters()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held - own.keys():
        raise ValueError(
            "the optimizer has parameters that are not the model's: make it with "
            "model.parameters(), after the model is on its device"
        )
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    if missing := sorted(own[i] for i in trained - held):
        raise ValueError(
            f"the optimizer lacks {', '.join(missing)}: give it all trained parameters, or freeze "
            "those by requires_grad_(False)"
        )
