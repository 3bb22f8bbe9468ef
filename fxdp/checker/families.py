"""The checker's own rules for products, reductions, convolutions, tables, softmax and norms.

As in `fxdp.checker.elements`: a rule says whether the claims of the results follow.
"""

from collections.abc import Callable
from typing import Any

from fxdp.checker.call import Call, Operand
from fxdp.checker.claims import Claims, Partial, Replicate, Shard, equal
from fxdp.checker.elements import lies

# Axes of two operands and of the result: one of both operands alone is summed over.
PRODUCTS = {
    "aten.mm": ("mk", "kn", "mn"),
    "aten.bmm": ("bmk", "bkn", "bmn"),
    "aten.mv": ("mk", "k", "m"),
    "aten.dot": ("k", "k", ""),
}
# A third operand is added, as far as it is not scaled away.
ADDED = {"aten.addmm": ("mk", "kn", "mn"), "aten.baddbmm": ("bmk", "bkn", "bmn")}
# Reductions: of the axes that they name, or of all.
REDUCTIONS = {
    "aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.any", "aten.all", "aten.prod",
    "aten.var", "aten.std", "aten.logsumexp", "aten.argmax", "aten.argmin", "aten.cumsum",
    "aten.max", "aten.min", "aten.sort", "aten.topk", "aten.linalg_vector_norm", "aten.var_mean",
}  # fmt: skip
KEEPS_AXES = {"aten.cumsum", "aten.sort", "aten.topk"}
# Every tensor has the samples in one place, and the axis that is worked along is another.
ALONG = {
    "aten._softmax", "aten._log_softmax", "aten._softmax_backward_data",
    "aten._log_softmax_backward_data", "aten.gather", "aten.scatter", "aten.scatter_add",
    "aten.flip",
}  # fmt: skip
# How many results of fused attention hold samples; sizes and the state of a generator follow.
ATTENTION = {
    "aten._scaled_dot_product_flash_attention_for_cpu": 2,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": 3,
    "aten._scaled_dot_product_flash_attention": 2,
    "aten._scaled_dot_product_flash_attention_backward": 3,
    "aten._scaled_dot_product_efficient_attention": 2,
    "aten._scaled_dot_product_efficient_attention_backward": 4,
    "aten._scaled_dot_product_cudnn_attention": 2,
    "aten._scaled_dot_product_cudnn_attention_backward": 3,
}


def same(x: Operand, at: Shard) -> bool:
    """Has an operand its samples on this axis, in this order?"""
    return isinstance(x.claim, Shard) and same_place(x.claim, at)


def shared(*operands: Any) -> bool:
    """Are operands, where they are given, without samples?"""
    return all(x is None or isinstance(x.claim, Replicate) for x in operands)


def multiplied(call: Call, claims: Claims) -> bool:
    """Products of matrices, maybe with something added."""
    names = PRODUCTS.get(call.name) or ADDED.get(call.name)
    if names is None or call.counts:
        return False
    *added, x, y = call.tensors
    (claim,) = claims
    one, other, result = names
    pairs = ((x, one), (y, other))
    match claim:
        case Partial() if not added:
            sums = [v for v in (x, y) if isinstance(v.claim, Partial)]
            if sums:
                return len(sums) == 1 and sums[0].claim == claim and (shared(x) or shared(y))
            (letter,) = set(one) & set(other) - set(result)
            return claim == Partial() and alike(pairs, letter)
        case Shard(dim, inner):
            letter = result[dim]
            held = [(v, axes) for v, axes in pairs if letter in axes]
            first, letters = held[0]
            fits = alike(tuple(held), letter) and same(first, Shard(letters.index(letter), inner))
            rest = shared(*(v for v, axes in pairs if letter not in axes))
            out = call.shapes[0] or ()
            return fits and rest and all(lies(b, claim, out) for b in added)
        case _:
            return False


def alike(pairs: tuple[tuple[Operand, str], ...], letter: str) -> bool:
    """Have all operands their samples on the axis of a letter, in one order?"""
    places = [same(v, Shard(a.index(letter), pairs[0][0].claim.inner))
              if isinstance(pairs[0][0].claim, Shard) else False for v, a in pairs]  # fmt: skip
    sizes = [v.shape[a.index(letter)] for v, a in pairs]
    return all(places) and all(equal(s, sizes[0]) for s in sizes)


def reduced(call: Call, claims: Claims) -> bool:
    """Reductions, scans and orders along axes: of other axes than the samples', or their sum."""
    if call.name not in REDUCTIONS or len(call.tensors) != 1 or call.counts:
        return False
    (x,) = call.tensors
    if not isinstance(x.claim, Shard):
        return False
    over = axes(call, x.rank)
    if isinstance(claims[0], Partial):
        return call.name == "aten.sum" and claims[0] == Partial() and x.claim.dim in over
    keep = bool(call.named.get("keepdim", False)) or call.name in KEEPS_AXES
    gone = 0 if keep else sum(d < x.claim.dim for d in over)
    wanted = Shard(x.claim.dim - gone, x.claim.inner)
    return x.claim.dim not in over and all(
        isinstance(c, Shard) and c.dim == wanted.dim and equal(c.inner, wanted.inner)
        for c in claims
    )


def axes(call: Call, rank: int) -> set[int]:
    """The axes that an op names, from the left; all where it names none."""
    dim = call.named.get("dim")
    if dim is None or dim == []:
        return set(range(rank))
    return {d % max(rank, 1) for d in (dim if isinstance(dim, list | tuple) else [dim])}


def along(call: Call, claims: Claims) -> bool:
    """Softmax, its gradients, and picking by index, along an axis of the sample."""
    (at,) = claims if len(claims) == 1 else (None,)
    if call.name not in ALONG or not isinstance(at, Shard) or call.counts:
        return False
    rank = len(call.shapes[0] or ())
    named: Any = call.named.get("dim", call.named.get("dims"))
    over: set[int] = {d % rank for d in (named if isinstance(named, list | tuple) else (named,))}
    sizes = [x.shape[at.dim] for x in call.tensors if x.rank == rank]
    return (
        at.dim not in over
        and len(sizes) == len(call.tensors)
        and all(same(x, at) for x in call.tensors)
        and all(equal(s, sizes[0]) for s in sizes)
    )


def looked_up(call: Call, claims: Claims) -> bool:
    """Rows of a table that all samples share, and the gradient of that table."""
    (claim,) = claims if len(claims) == 1 else (None,)
    if call.name == "aten.embedding":
        ids = call.named["indices"]
        return isinstance(claim, Shard) and same(ids, claim) and shared(call.named["weight"])
    if call.name == "aten.embedding_dense_backward" and not call.named["scale_grad_by_freq"]:
        grad, ids = call.named["grad_output"], call.named["indices"]
        held = isinstance(ids.claim, Shard) and same(grad, ids.claim)
        return claim == Partial() and held
    return False


def convolved(call: Call, claims: Claims) -> bool:
    """Convolutions of samples with kernels that they share, and their gradients."""
    named = call.named
    if call.counts:
        return False
    if call.name == "aten.convolution":
        (claim,) = claims
        x = named["input"]
        first = isinstance(claim, Shard) and claim.dim == 0 and same(x, claim)
        return first and x.rank == named["weight"].rank and shared(named["weight"], named["bias"])
    if call.name != "aten.convolution_backward" or not shared(named["weight"]):
        return False
    x, grad = named["input"], named["grad_output"]
    at = x.claim
    if not isinstance(at, Shard) or at.dim != 0 or not same(grad, at):
        return False
    if x.rank != named["weight"].rank:
        return False
    into, weight, bias = claims
    fits = into is None or isinstance(into, Shard) and same(x, into)
    return fits and weight in (None, Partial()) and bias in (None, Partial())


def normalised(call: Call, claims: Claims) -> bool:
    """Layer norm of the last axes, of which none holds samples."""
    if call.name != "aten.native_layer_norm" or call.counts:
        return False
    x, count = call.named["input"], len(call.named["normalized_shape"])
    at = x.claim
    return (
        isinstance(at, Shard)
        and at.dim < x.rank - count
        and shared(call.named["weight"], call.named["bias"])
        and all(isinstance(c, Shard) and same(x, c) for c in claims)
    )


def attended(call: Call, claims: Claims) -> bool:
    """Fused attention, and its gradients, among the positions of one sample and head."""
    at = next((c for c in claims if isinstance(c, Shard)), None)
    if call.name not in ATTENTION or at is None or at.dim > 1 or call.counts:
        return False
    if call.named.get("return_debug_mask"):
        return False
    sizes = [x.shape[at.dim] for x in call.tensors if isinstance(x.claim, Shard)]
    fits = all(
        same(x, at) or shared(x) and (x.rank <= 2 or x.rank == 4 and x.shape[at.dim] == 1)
        for x in call.tensors
    )
    own, rest = claims[: ATTENTION[call.name]], claims[ATTENTION[call.name] :]
    told = all(c is None or isinstance(c, Shard) and same_place(c, at) for c in own)
    told = told and all(c is None or c == Replicate() for c in rest)
    return fits and told and all(equal(s, sizes[0]) for s in sizes)


def same_place(a: Shard, b: Shard) -> bool:
    return a.dim == b.dim and equal(a.inner, b.inner)


RULES: tuple[Callable[[Call, Claims], bool], ...] = (
    multiplied, reduced, along, looked_up, convolved, normalised, attended,
)  # fmt: skip
