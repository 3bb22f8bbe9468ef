"""One spelling of each op.

Rules see an op's arguments in their order, with defaults filled in and axes counted from the
left, so that no rule has to think of `dim=-1`. What only passes a tensor on is gone.
"""

from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxdp.graph.nodes import arguments
from fxdp.graph.study import study
from fxdp.proof.program import number
from fxdp.shapes import shape_of
from fxdp.torch_internals import OpOverload, pytree

with_effects: Any = torch.ops.higher_order.with_effects

# Names of schema arguments that are axes of the larger of operand and result.
AXES = {"dim", "dims", "dim0", "dim1", "dim2"}
# ... and of the operand, though the result has more axes.
OWN_AXES = {"dimension"}


def tidy(gm: GraphModule) -> GraphModule:
    """Drop dead code and identities; complete and normalise the arguments of every op."""
    table = study(gm).table
    number(gm)
    gm.graph.eliminate_dead_code()
    for node in list(gm.graph.nodes):
        if is_assertion(gm, node):
            drop_assertion(gm, node)
        if not isinstance(node.target, OpOverload) or node._erased:
            continue
        rule = table.get(node.target)
        if rule is not None and rule.identity:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        elif rule is not None and rule.repeats:
            let_broadcast(gm, node)
            spell(node)
        else:
            spell(node)
    gm.graph.eliminate_dead_code()
    return gm


def is_assertion(gm: GraphModule, node: Node) -> bool:
    """Is this an op with a rule and no result, kept in its place in the program by a token?"""
    if node.target is not with_effects:
        return False
    op: Any = arguments(node)[1]
    return isinstance(op, OpOverload) and op in study(gm).table and not op._schema.returns


def drop_assertion(gm: GraphModule, node: Node) -> None:
    """Take an assertion out: a sample that fails it gets a gradient of NaN, and so no part."""
    token = arguments(node)[0]
    for user in list(node.users):
        user.replace_all_uses_with(token)
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def let_broadcast(gm: GraphModule, node: Node) -> None:
    """Repeat a 0-d value as late as possible, and not at all next to another operand.

    A number that is repeated along an axis of N samples and T positions says nothing of how
    those are laid out. So what is computed from it alone is computed before it is repeated.
    """
    table, source = study(gm).table, arguments(node)[0]
    if source.meta["val"].dim() > 0:
        return
    for user in list(node.users):
        rule = table.get(user.target)  # type: ignore[arg-type]
        if rule is None:
            continue
        if rule.pointwise and is_redundant(node, user) and not (rule.adds and is_static(node)):
            user.replace_input_with(node, source)
        elif rule.pointwise and all(i is node or is_number(i) for i in user.all_input_nodes):
            later(gm, node, user, swapped(user, node, source), arguments(node)[1])
        elif rule.reshapes and unfolds(node, user):
            later(gm, node, user, source, arguments(user)[1])


def is_static(node: Node) -> bool:
    """Has a value no symbolic size, so that no samples are in it? Added to a sum over samples, what
    is repeated there needs the sum's shape, as the two part later."""
    return all(size.is_Integer for size in shape_of(node.meta["val"].shape))


def unfolds(node: Node, user: Node) -> bool:
    """Does a view give the repeated value more axes, and so perhaps the samples their own?"""
    grown = user.meta["val"].dim() > node.meta["val"].dim()
    return grown and -1 not in arguments(user)[1]


def is_number(node: Node) -> bool:
    """Is this node a number, or a 0-d tensor?"""
    value = node.meta["val"]
    return not isinstance(value, torch.Tensor) or value.dim() == 0


def swapped(user: Node, node: Node, source: Node) -> Node:
    """`user` once more, of the 0-d value `source` instead of `node`."""
    with user.graph.inserting_before(user):
        copy = user.graph.node_copy(user, lambda a: source if a is node else a)
    target: Any = copy.target
    args, kwargs = pytree.tree_map_only(Node, lambda a: a.meta["val"], (copy.args, copy.kwargs))
    with torch.no_grad():
        copy.meta["val"] = target(*args, **kwargs)
    return copy


def later(gm: GraphModule, node: Node, user: Node, source: Node, sizes: Any) -> None:
    """Replace `user` by `source`, repeated to its shape."""
    target: Any = node.target
    with gm.graph.inserting_before(user):
        repeated = gm.graph.call_function(target, (source, sizes))
    repeated.meta = dict(user.meta)
    user.replace_all_uses_with(repeated)
    gm.graph.erase_node(user)
    let_broadcast(gm, repeated)
    spell(repeated)


def is_redundant(node: Node, user: Node) -> bool:
    """Has a user of `node` the same shape and dtype by its other operands alone?"""
    result, own = user.meta["val"], node.meta["val"]
    others = [i.meta["val"] for i in user.all_input_nodes if i is not node]
    tensors = [v for v in others if isinstance(v, torch.Tensor)]
    # Next to masks and integers even a 0-d float sets the dtype, next to other floats it does not.
    same = all(v.dtype == own.dtype or is_exact(v.dtype) for v in tensors)
    return (
        own.dtype == result.dtype
        and same
        and any(
            shape_of(v.shape) == shape_of(result.shape)
            and (v.dtype == own.dtype or not is_exact(own.dtype))
            for v in tensors
        )
    )


def is_exact(dtype: torch.dtype) -> bool:
    """Is this a dtype of masks or integers?"""
    return not (dtype.is_floating_point or dtype.is_complex)


def spell(node: Node) -> None:
    """Write all positional arguments out, keep keyword-only ones, count axes from 0."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    own, largest = ranks(node)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for position, argument in enumerate(arguments):
        if position < len(node.args):
            value: Any = node.args[position]
        elif argument.name in node.kwargs:
            value = node.kwargs[argument.name]
        else:
            value = argument.default_value
        if argument.name in AXES | OWN_AXES:
            rank = own if argument.name in OWN_AXES else largest
            value = pytree.tree_map_only(int, lambda d, r=rank: d % max(r, 1), value)
        if not argument.kwarg_only:
            args.append(value)
        elif argument.name in node.kwargs:
            kwargs[argument.name] = value
    node.args, node.kwargs = tuple(args), kwargs


def ranks(node: Node) -> tuple[int, int]:
    """The rank of the first tensor operand, and the largest of that and the results'."""
    operands = [a.meta.get("val") for a in pytree.tree_leaves(node.args) if isinstance(a, Node)]
    tensors = [v for v in operands if isinstance(v, torch.Tensor)]
    own = tensors[0].dim() if tensors else 0
    results = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)]
    return own, max([own, *(r.dim() for r in results)])
