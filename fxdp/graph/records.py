"""What passes hand on, in small: a mark, a gradient and its sums, a choice, a clipped sum."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import sympy
from torch.fx import Node

from fxdp.autotune.trials import Trial
from fxdp.forms.strategy import Strategy


@dataclass(frozen=True)
class Mark:
    """Where the loss leaves the model, and the inputs that the release depends on.

    Attributes:
        node: the mark itself.
        loss: 0-d or [N].
        bound, sigma, expected: clip bound, noise multiplier and public batch size, 0-d.
        key: int64 [2], which decides the noise.
        mask: [N] bool, False for padding.
        reduction: "mean" or "sum" where the mark is on a model's output, of which the user makes
            a loss; "" where it is on a loss.
    """

    node: Node
    loss: Node
    bound: Node
    sigma: Node
    expected: Node
    key: Node
    mask: Node
    reduction: str = ""

    @property
    def losses(self) -> Node | None:
        """[N], each sample's own loss; None where the user makes it, outside of the graph."""
        return None if self.reduction else self.loss.meta.get("twin", self.loss)


@dataclass(frozen=True)
class Gradient:
    """How the gradient of one parameter is made of sums over samples.

    Attributes:
        parameter: its name.
        node: the gradient, an output of the graph.
        sums: the nodes that sum over samples, in the order of the graph.
        linear: the nodes between those and the gradient, linear in them.
    """

    parameter: str
    node: Node
    sums: tuple[Node, ...]
    linear: tuple[Node, ...]


Kind = Literal["one", "joined", "tied", "general"]


@dataclass(frozen=True)
class Choice:
    """How the per-sample norms of one parameter's gradient are found.

    Attributes:
        gradient: which gradient.
        kind: what the sums are together: one form, several of one kind that are joined, an
            embedding tied to a head, or a general linear image of per-sample gradients.
        strategy: how the norms are found.
        costs: predicted cost of each strategy that is possible, for the report.
        keep: whether per-sample gradients, where there are any, stay until the clipped sum is
            made of them; else they go once they are measured.
        trials: what was found out by trying, where the costs did not decide.
    """

    gradient: Gradient
    kind: Kind
    strategy: Strategy
    costs: Mapping[Strategy, sympy.Expr]
    keep: bool = True
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class Clipped:
    """A gradient with every sample clipped.

    Attributes:
        gradient: which gradient it replaces.
        total: the node with the clipped sum.
        public: the node with the terms that hold no samples; None if there are none.
    """

    gradient: Gradient
    total: Node | None
    public: Node | None
