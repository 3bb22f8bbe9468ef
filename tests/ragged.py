"""Samples with as many rows as each has, drawn one by one; batched here, and run one by one by
plain autograd, without any of fxdp's code."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxdp
from tests.oracle import clipped_sum, norms

# A sample: its arguments, as a batch of its own.
Sample = dict[str, Tensor]


def graph(nodes: int, width: int = 3) -> Sample:
    """A graph with some edges, some of them double, and a class."""
    edges = torch.randint(max(nodes, 1), (2, 2 * nodes))
    return {
        "x": torch.randn(nodes, width), "edge_index": edges, "edge_attr": torch.randn(2 * nodes, 1),
        "batch": torch.zeros(nodes, dtype=torch.int64), "y": torch.randint(3, (1,)),
    }  # fmt: skip


def bag(ids: int) -> Sample:
    """Ids, some of them 2, with a weight each; and a class."""
    return {
        "ids": torch.randint(7, (ids,)), "offsets": torch.zeros(1, dtype=torch.int64),
        "weights": torch.rand(ids), "y": torch.randint(3, (1,)),
    }  # fmt: skip


def graphs(samples: Sequence[Sample]) -> Sample:
    """A batch of graphs as torch_geometric has it, its nodes in a random order."""
    counts = torch.tensor([len(s["x"]) for s in samples], dtype=torch.int64)
    first = counts.cumsum(0) - counts
    order = torch.randperm(int(counts.sum()))
    place = order.argsort()
    edges = [s["edge_index"] + k for s, k in zip(samples, first, strict=True)]
    mixed = torch.randperm(sum(e.shape[1] for e in edges))
    return {
        "x": torch.cat([s["x"] for s in samples])[order],
        "edge_index": place[torch.cat(edges, 1)[:, mixed]],
        "edge_attr": torch.cat([s["edge_attr"] for s in samples])[mixed],
        "batch": torch.arange(len(samples)).repeat_interleave(counts)[order],
        "y": torch.cat([s["y"] for s in samples]),
    }


def bags(samples: Sequence[Sample]) -> Sample:
    """A batch of bags, their ids one after the other."""
    counts = torch.tensor([len(s["ids"]) for s in samples], dtype=torch.int64)
    joined = {k: torch.cat([s[k] for s in samples]) for k in samples[0]}
    return joined | {"offsets": counts.cumsum(0) - counts}


def compare_rows(
    model: nn.Module, batches: Sequence[tuple[Sequence[Sample], Sample]], **options: Any
) -> fxdp.PrivateModule:
    """Step a model on batches, and assert that it agrees with a loop over their samples.

    The clip bound lies between the norms of the first batch.

    Args:
        batches: the samples of each, and what they are together.
        options: of `fxdp.compile`.
    """
    torch._dynamo.reset()
    private: fxdp.PrivateModule | None = None
    bound = 0.0
    for samples, batch in batches:
        n = len(samples)
        each: dict[str, list[Tensor]] = {}
        for sample in samples:
            model.zero_grad(set_to_none=True)
            model(**sample).backward()
            for name, p in model.named_parameters():
                assert p.grad is not None
                each.setdefault(name, []).append(p.grad)
        rows = {name: torch.stack(g) for name, g in each.items()}
        if private is None:
            bound = float(norms(rows).mean())
            private = fxdp.compile(
                model, max_grad_norm=bound, noise_multiplier=0.0, expected_batch_size=3.0,
                **({"backend": "eager"} | options),
            )  # fmt: skip
        model.zero_grad(set_to_none=True)
        private(**batch).backward()
        for name, want in clipped_sum(rows, bound, 3.0).items():
            got = model.get_parameter(name).grad
            assert got is not None
            torch.testing.assert_close(
                got, want, rtol=1e-9, atol=1e-9,
                msg=lambda text, name=name, n=n: f"gradient of {name} at {n}: {text}",
            )  # fmt: skip
        torch.testing.assert_close(private.last_norms, norms(rows))
    assert private is not None
    return private
