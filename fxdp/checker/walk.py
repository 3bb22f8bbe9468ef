"""The walk along the captured graph: does every claim follow from those before it?

Which inputs hold samples is not the certificate's to say: it is what the caller's arguments were
marked as when the model was captured. A value that the certificate does not mention, because a pass
dropped it, is given whatever claims follow by trying out a few.
"""

import itertools
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sympy
from torch.fx import GraphModule, Node

from fxdp.checker import elements, families
from fxdp.checker.call import Call, called, is_torchs, results, shape
from fxdp.checker.claims import Claim, Claims, Partial, Replicate, Shape, Shard, equal, fits, outer
from fxdp.checker.trial import Untried, tried
from fxdp.graph import marks
from fxdp.torch_internals import HigherOrderOperator, OpOverload, pytree

COMBINATIONS = 64  # of what is known of the operands of one node
SIZES = {"aten.sym_size", "aten.sym_numel", "aten.sym_stride", "aten.sym_storage_offset"}
ARITHMETIC = {"_operator", "builtins", "math", "torch"}  # whose functions compute with numbers


@dataclass
class Walk:
    """What is known of the values of a graph so far.

    Attributes:
        graph: the captured graph.
        n: the symbol of the number of samples.
        hints: the sizes that the model was captured with.
        known: for each node, the claims that follow; several where samples may lie in any order.
        failed: why a claim does not follow, or that none does.
        by_rule, by_trial: how often each op was settled by a rule of the checker's, and by trial.
    """

    graph: GraphModule
    n: sympy.Symbol
    hints: dict[Any, int]
    known: dict[Node, list[Claims]] = field(default_factory=lambda: {})
    failed: dict[Node, str] = field(default_factory=lambda: {})
    by_rule: Counter[str] = field(default_factory=lambda: Counter[str]())
    by_trial: Counter[str] = field(default_factory=lambda: Counter[str]())
    tries: bool = True  # what no rule settles
    _tried: dict[Any, str | None] = field(default_factory=lambda: {})

    def visit(self, node: Node, claimed: list[Claims]) -> None:
        """Check what is claimed of a node, or find what may be said of one that nothing is."""
        if (why := self.number(node)) is not None:
            if why:
                self.failed[node] = why
            return
        lost = [i for i in node.all_input_nodes if i in self.failed]
        if lost:
            self.failed[node] = f"it is made of {lost[0].name}, which does not follow"
            return
        shapes = results(node)
        if claimed:
            whys = [self.follows(node, claims, shapes) for claims in claimed]
            if (why := next((why for why in whys if why is not None), None)) is not None:
                self.failed[node] = why
            self.known[node] = [c for c, why in zip(claimed, whys, strict=True) if why is None]
            return
        may_be = list(candidates(shapes, self.operands(node), self.n))
        for self.tries in (False, True):
            self.known[node] = [c for c in may_be if self.follows(node, c, shapes) is None]
            if self.known[node]:
                break
        else:
            self.failed[node] = "nothing is claimed of it, and nothing is found that follows"
        self.tries = True

    def number(self, node: Node) -> str | None:
        """Why a node that is no tensor cannot stand; "" where it can, None for tensors."""
        if any(s is not None for s in results(node)):
            return None
        if node.op == "placeholder" or node.target is operator.getitem or not node.users:
            return ""
        target: Any = node.target
        name = str(target).rpartition(".")[0] if isinstance(target, OpOverload) else ""
        if name in SIZES:
            return ""
        module = str(getattr(target, "__module__", "")).partition(".")[0]
        if isinstance(target, OpOverload):
            known = is_torchs(target)
        else:
            known = module in ARITHMETIC and not isinstance(target, HigherOrderOperator)
        if not known:
            return "a number of unknown origin"
        for i in node.all_input_nodes:
            held = [c for claims in self.known.get(i, []) for c in claims]
            if i in self.failed or any(not isinstance(c, Replicate) for c in held):
                return "a number is read from samples"
        return ""

    def operands(self, node: Node) -> list[Claim]:
        """All that is known of the tensors that a node is given."""
        known = [
            c for i in node.all_input_nodes for claims in self.known.get(i, []) for c in claims
        ]
        return [c for c in known if c is not None]

    def follows(self, node: Node, claims: Claims, shapes: tuple[Shape | None, ...]) -> str | None:
        """Why claims do not follow, or None if they do."""
        if len(claims) != len(shapes):
            return f"{len(claims)} placements are claimed of {len(shapes)} results"
        for claim, sizes in zip(claims, shapes, strict=True):
            if claim is not None and (sizes is None or not fits(claim, sizes, self.n)):
                return "its shape does not have the samples there"
        taken: list[Any] = [u.args for u in node.users if u.target is operator.getitem]
        used = {place for _, place in taken}
        for place, sizes in enumerate(shapes):
            if sizes is not None and claims[place] is None and (len(shapes) == 1 or place in used):
                return "a result that is used has no placement"
        if node.op == "placeholder":
            return self.an_input(node, claims)
        if node.op == "get_attr":
            return None if isinstance(claims[0], Replicate) and not claims[0].zero else "a constant"
        if node.target is operator.getitem:
            source, place = node.args  # type: ignore[misc]
            found = [c[place] for c in self.known[source]]  # type: ignore[index]
            return None if claims[0] in found else "it is claimed otherwise where it was made"
        if node.target in MARKS:
            return MARKS[node.target](self, node, claims[0])
        return self.an_op(node, claims)

    def an_input(self, node: Node, claims: Claims) -> str | None:
        """Inputs are for all samples alike, unless their use says on which axis they hold them."""
        if claims == (Replicate(),):
            return None
        marked = (marks.samples.default, marks.release.default, marks.seed.default)
        sizes = shape(node.meta["val"]) or ()
        is_marked = all(user.target in marked for user in node.users)
        right = [(Shard(d, sympy.Integer(1)),) for d, s in enumerate(sizes) if s == self.n]
        if is_marked and claims in right:
            return None
        return "an input of which the caller did not say that it holds samples"

    def an_op(self, node: Node, claims: Claims) -> str | None:
        """By the rules, or else by trial, from anything that is known of the operands."""
        tensors = [i for i in node.all_input_nodes if self.known.get(i)]
        choices = itertools.product(*(self.known[i] for i in tensors))
        calls: list[Call] = []
        if str(node.target).rpartition(".")[0] in elements.UNSET:
            return None if all(is_unread(node, u) for u in node.users) else "nobody set it"
        for chosen in itertools.islice(choices, COMBINATIONS):
            call = called(node, dict(zip(tensors, chosen, strict=True)), self.n)
            if isinstance(call, str):
                return f"not checked: {call}"
            calls.append(call)
        if any(by_rule(call, claims) for call in calls):
            self.by_rule[str(node.target)] += 1
            return None
        whys = [self.trial(call, claims) for call in calls] if self.tries else ["no rule"]
        return None if None in whys else whys[0]

    def trial(self, call: Call, claims: Claims) -> str | None:
        """What a trial says of a call; the same is tried once."""
        key = (call.key(), str(claims))
        if key not in self._tried:
            try:
                self._tried[key] = tried(call, claims, self.hints)
                self.by_trial[str(call.target)] += 1
            except Untried as error:
                self._tried[key] = f"not checked: {error}"
        return self._tried[key]


def is_unread(node: Node, user: Node) -> bool:
    """Does a user not look at the values of a node?"""
    name, args = str(user.target).rpartition(".")[0], user.args
    places = [place for place, a in enumerate(args) if a is node]
    leaves = pytree.tree_leaves((args, user.kwargs))
    alone = len(places) == sum(a is node for a in leaves)
    return alone and all(elements.reads_shape_alone(name, args, place) for place in places)


def by_rule(call: Call, claims: Claims) -> bool:
    """Do claims follow by the checker's own rules?"""
    if call.is_shared and all(c in (None, Replicate()) for c in claims):
        return True
    if any(rule(call, claims) for rule in families.RULES):
        return True
    told = [c for c in claims if c is not None]
    return all(any(rule(call, c) for rule in elements.RULES) for c in told)


def candidates(
    shapes: tuple[Shape | None, ...], operands: list[Claim], n: sympy.Symbol
) -> Iterator[Claims]:
    """What may be said of a value of which a certificate says nothing."""
    for sizes in shapes:
        if sizes is None or len(shapes) > 1:
            continue
        held = [d for d, s in enumerate(sizes) if s.has(n)]
        if not held:
            yield from ((c,) for c in dict.fromkeys(operands) if isinstance(c, Replicate | Partial))
            yield from ((c,) for c in (Replicate(), Partial()) if c not in operands)
        for dim in held:
            one: sympy.Expr = sympy.Integer(1)
            inners = [*(c.inner for c in operands if isinstance(c, Shard)), one]
            inners += [whole] if (whole := outer(sizes[dim], one, n)) is not None else []
            for inner in dict.fromkeys(inners):
                yield (Shard(dim, inner),)


def samples(walk: Walk, node: Node, claim: Claim | None) -> str | None:
    """The mark on an argument says which axis holds the samples."""
    operands: tuple[Any, ...] = node.args
    x, dim = operands
    right = claim == Shard(dim, sympy.Integer(1)) and (claim,) in walk.known[x]
    return None if right else f"the caller said that axis {dim} holds the samples"


def release(walk: Walk, node: Node, claim: Claim | None) -> str | None:
    """What is released is a loss for each sample, a total of losses, or a row for each sample."""
    operands: tuple[Any, ...] = node.args
    loss, *scales = operands[:5]
    reduction = operands[6] if len(operands) > 6 else ""
    if any((Replicate(),) not in walk.known[s] for s in scales):
        return "bound, noise, size or key of the release is not one for all samples"
    sizes = shape(loss.meta["val"]) or ()
    rows = (Shard(0, sympy.Integer(1)),)
    for held in walk.known[loss]:
        row = held == rows and len(sizes) > 0 and equal(sizes[0], walk.n)
        if row and (reduction or len(sizes) == 1) or held == (Partial(),) and not sizes:
            return None if claim in (Replicate(), held[0]) else "the loss is claimed otherwise"
    return "the loss is not one number for each sample, nor their sum or mean"


def seed(walk: Walk, node: Node, claim: Claim | None) -> str | None:
    """Ones: one for each sample's loss, or one for the loss of each sample alone."""
    held = walk.known[node.args[1]]  # type: ignore[index]
    if isinstance(claim, Shard):
        return None if (claim,) in held else "the gradient of a loss lies where the loss does"
    right = claim == Replicate() and (Partial(),) in held
    return None if right else "the gradient of a loss lies where the loss does"


def shown(walk: Walk, node: Node, claim: Claim | None) -> str | None:
    """What the caller gets to see is what it was made of."""
    return None if (claim,) in walk.known[node.args[0]] else "it is what it was made of"  # type: ignore[index]


MARKS: dict[Any, Any] = {
    marks.samples.default: samples,
    marks.release.default: release,
    marks.seed.default: seed,
    marks.shown.default: shown,
}
