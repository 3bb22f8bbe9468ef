"""The contenders that need no other library than torch, fxdp, and the table of them all."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import fxdp
from tools.bench import rivals
from tools.bench.contender import CLIP, NOISE, Contender, Noise, Runner, sgd
from tools.bench.task import Task


def plain(task: Task, compiler: Callable[..., Any] | None = None) -> Runner:
    """Without privacy. If there is a compiler, it is given the model and the loss together."""
    optimizer, model, loss_fn = sgd(task.model), task.model, task.loss.mean

    def loss(inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return loss_fn(model(*inputs), target)

    run = loss if compiler is None else compiler(loss)

    def step() -> None:
        run(task.inputs, task.target).backward()
        optimizer.step()

    parameters = dict(model.named_parameters())
    return Runner(step, optimizer.zero_grad, lambda _: None, parameters)


def compiled_by_fxdp(task: Task, backend: str) -> Runner:
    """fxdp, as its README shows it."""
    optimizer = sgd(task.model)
    private = fxdp.compile(
        task.model,
        loss_fn=task.loss.mean,
        max_grad_norm=CLIP,
        noise_multiplier=NOISE,
        expected_batch_size=task.size,
        backend=backend,
    )

    def step() -> None:
        private(*task.inputs, task.target).backward()
        optimizer.step()

    def set_noise(multiplier: float) -> None:
        private.noise_multiplier = multiplier

    parameters = dict(task.model.named_parameters())
    return Runner(step, optimizer.zero_grad, set_noise, parameters)


def per_sample_by_vmap(task: Task) -> Runner:
    """The recipe of torch.func's tutorial on per-sample gradients."""
    optimizer, noise = sgd(task.model), Noise()
    parameters = dict(task.model.named_parameters())

    def loss(weights: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        one = tuple(x.unsqueeze(0) for x in inputs)
        return task.loss.mean(functional_call(task.model, weights, one), target.unsqueeze(0))

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))

    def step() -> None:
        weights = {name: p.detach() for name, p in parameters.items()}
        grads = per_sample(weights, task.inputs, task.target)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
        factors = (CLIP / norms).clamp(max=1.0)
        for name, p in parameters.items():
            p.grad = noise.added(torch.einsum("n,n...->...", factors, grads[name]), task.size)
        optimizer.step()

    return Runner(step, optimizer.zero_grad, noise.set, parameters)


def one_by_one(task: Task) -> Runner:
    """A loop over the samples, each a batch of its own."""
    optimizer, noise = sgd(task.model), Noise()
    parameters = dict(task.model.named_parameters())
    leaves = list(parameters.values())

    def step() -> None:
        totals = [torch.zeros_like(p) for p in leaves]
        for i in range(task.size):
            out = task.model(*(x[i : i + 1] for x in task.inputs))
            grads = torch.autograd.grad(task.loss.mean(out, task.target[i : i + 1]), leaves)
            norm = torch.stack([g.norm() for g in grads]).norm()
            factor = (CLIP / norm).clamp(max=1.0)
            for total, g in zip(totals, grads, strict=True):
                total += factor * g
        for p, total in zip(leaves, totals, strict=True):
            p.grad = noise.added(total, task.size)
        optimizer.step()

    return Runner(step, optimizer.zero_grad, noise.set, parameters)


CONTENDERS: dict[str, Contender] = {
    "plain": Contender(plain, private=False),
    "plain-compiled": Contender(
        partial(plain, compiler=torch.compile), private=False, compiles=True
    ),
    "fxdp-eager": Contender(partial(compiled_by_fxdp, backend="eager"), compiles=True),
    "fxdp": Contender(partial(compiled_by_fxdp, backend="inductor"), compiles=True),
    **{
        f"opacus-{mode}": Contender(partial(rivals.opacus, mode=mode))
        for mode in ("hooks", "functorch", "ew", "ghost")
    },
    "vmap": Contender(per_sample_by_vmap),
    "loop": Contender(one_by_one),
}
