"""Names of parameters, as `model.named_parameters()` gives them.

A captured graph knows its inputs by the way that capture took to them, which says little: a
submodule may be called `self`, a tied parameter is reached by any of its ways, a recurrent layer
keeps its weights in a list. The tensor itself is at hand when a graph is compiled, and of a tensor
there is one name.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

LOSS = "loss_fn"
# How torch writes the parts of a module, which are no part of a name.
PARTS = {"_modules", "_parameters", "_buffers", "__dict__"}
Names = Mapping[int, str]  # of tensors that are alive, by their id()


def parameters(model: nn.Module, loss_fn: Any = None) -> dict[str, nn.Parameter]:
    """All parameters of a step by name: the model's own, then those of a loss that is a module.

    ============================================  ================================
    case                                          name
    ============================================  ================================
    a parameter of the model                      as in `model.named_parameters()`
    a tied one                                    its first name there
    a parameter of the loss function              `loss_fn.weight`
    the model has a submodule `loss_fn` itself    `_loss_fn.weight`
    a parameter of both                           the model's name
    ============================================  ================================
    """
    named = dict(model.named_parameters())
    taken = {id(p) for p in named.values()}
    prefix = loss_prefix(model)
    loss = module_behind(loss_fn)
    more = () if loss is None else loss.named_parameters(prefix)
    return named | {name: p for name, p in more if id(p) not in taken}


def known_names(model: nn.Module, loss_fn: Any = None) -> dict[int, str]:
    """The names of a step's parameters and buffers."""
    loss = module_behind(loss_fn)
    roots = [("", model)] + ([] if loss is None else [(loss_prefix(model), loss)])
    return names_in(roots)


def names_in(roots: Iterable[tuple[str, nn.Module]]) -> dict[int, str]:
    """The names of all parameters and buffers of modules; of two names, the first one."""
    found: dict[int, str] = {}
    for prefix, module in roots:
        own: list[tuple[str, Tensor]] = [*module.named_parameters(prefix)]
        for name, x in [*own, *module.named_buffers(prefix)]:
            found.setdefault(id(x), name)
    return found


def roots(gm: GraphModule, scope: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
    """The outermost modules whose tensors a captured graph takes, with what their names begin.

    A module that is captured itself comes first and begins with nothing, and so does one that is
    the only one; of several that a captured function uses, each begins with its own name.

    Args:
        scope: what the captured code sees: "L", its local values, and "G", its global ones.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    for node in gm.graph.find_nodes(op="placeholder"):
        for source in way_to(node):
            value = value_at(source, scope)
            if isinstance(value, nn.Module):
                found.setdefault(id(value), (readable(source) or "model", value))
                break
    first = next(iter(scope["L"].values()), None)
    main = id(first) if id(first) in found else next(iter(found)) if len(found) == 1 else None
    ordered = sorted(found, key=lambda i: i != main)
    return [("" if i == main else found[i][0], found[i][1]) for i in ordered]


def way_to(placeholder: Node) -> list[Any]:
    """The sources through which capture came to an input, from the outermost in."""
    source: Any = getattr(placeholder, "_dynamo_source", None)
    way: list[Any] = []
    while source is not None:
        way.append(source)
        source = getattr(source, "base", None)
    return way[::-1]


def value_at(source: Any, scope: Mapping[str, Any]) -> Any:
    """What a source stands for; None where it cannot be asked for from here."""
    try:
        return source.get_value({**scope}, {}, {})
    except (LookupError, NameError, AttributeError, TypeError, NotImplementedError, SyntaxError):
        return None  # torch has helpers of its own for some; only a name is lost


def loss_prefix(model: nn.Module) -> str:
    """What the loss function's parameters begin with, and none of the model's."""
    prefix, own = LOSS, {name for name, _ in model.named_children()}
    while prefix in own:
        prefix = f"_{prefix}"
    return prefix


def module_behind(function: Any) -> nn.Module | None:
    """The module that a function is, or is a method of, or None."""
    while isinstance(function, functools.partial):
        function = function.func
    if not isinstance(function, nn.Module):
        function = getattr(function, "__self__", None)
    return function if isinstance(function, nn.Module) else None


def input_names(
    joint: GraphModule, gm: GraphModule, example_inputs: Sequence[Any], known: Names
) -> dict[str, str]:
    """Names of the joint graph's inputs as the user knows them.

    Args:
        joint: the graph of forward and backward.
        gm: the captured graph, which it was made from.
        example_inputs: what `gm` was captured with: the tensors themselves.
        known: how they are called.
    """
    captured = gm.graph.find_nodes(op="placeholder")
    taken = set(known.values())
    names: dict[str, str] = {}
    for node in joint.graph.find_nodes(op="placeholder"):
        origin: Any = node.meta.get("desc")
        index: int | None = getattr(origin, "idx", None)
        if index is not None and index < len(captured):
            own = known.get(id(example_inputs[index]))
            name = readable_source(captured[index])
            names[node.name] = own or (f"{name} ({node.name})" if name in taken else name)
        elif isinstance(path := getattr(origin, "target", None), str):
            names[node.name] = known.get(id(attribute(gm, path)), path)
    return names


def attribute(gm: GraphModule, path: str) -> Any:
    """What a captured graph keeps to itself, where torch is set to capture modules so."""
    thing: Any = gm
    for part in path.split("."):
        thing = getattr(thing, part, None)
    return thing


def readable_source(placeholder: Node) -> str:
    """The way to an input that has no name: `leaves.0` for an argument, `list.0.weight`."""
    return readable(getattr(placeholder, "_dynamo_source", None)) or placeholder.name


def readable(source: Any) -> str:
    """A source in words; "" for the module itself that is captured."""
    path: list[str] = []
    while source is not None:
        part = getattr(source, "index", None)
        part = getattr(source, "member", part)
        base = getattr(source, "base", None)
        if part is None and base is None:
            part = getattr(source, "local_name", getattr(source, "global_name", None))
            part = None if part == "self" else part
        path += [] if part is None or part in PARTS else [str(part)]
        source = base
    if path and path[-1] == "fxdp_model":
        path.pop()
    return ".".join(reversed(path))
