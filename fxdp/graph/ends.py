"""The ends of a joint graph: which outputs are gradients, and which are written to a buffer."""

from typing import Any

from torch.fx import GraphModule, Node

from fxdp.graph.nodes import outputs
from fxdp.graph.study import study


def places_of(gm: GraphModule, kind: str) -> list[tuple[str, int]]:
    """Name and place of the outputs whose AOTAutograd descriptor is of a kind.

    The name is that of the input which the output is the gradient or the new value of.
    """
    descriptors = gm.graph.output_node().meta["desc"]
    inputs: dict[Any, str] = {
        n.meta["desc"]: n.name for n in gm.graph.find_nodes(op="placeholder") if "desc" in n.meta
    }
    known: dict[str, str] = study(gm).names
    found: list[tuple[str, int]] = []
    taken: set[str] = set()
    for place, (node, desc) in enumerate(zip(outputs(gm), descriptors, strict=True)):
        if isinstance(node, Node) and type(desc).__name__ == kind:
            of = getattr(desc, "grad_of", None) or getattr(desc, "mutated_input", None)
            placeholder: str = inputs.get(of, f"output_{place}")
            name: str = known.get(placeholder, placeholder)
            name = f"{name} ({placeholder})" if name in taken else name
            taken.add(name)
            found.append((name, place))
    return found


def gradient_places(gm: GraphModule) -> list[tuple[str, int]]:
    """Where the gradients are among a joint graph's outputs, with the names of the inputs."""
    return places_of(gm, "GradAOTOutput")


def gradients(gm: GraphModule) -> dict[str, Node]:
    """The gradients among a joint graph's outputs, by the name of the input."""
    return {name: outputs(gm)[place] for name, place in gradient_places(gm)}


def mutations(gm: GraphModule) -> dict[str, Node]:
    """The new values of inputs that the program writes to, by the name of the input."""
    return {name: outputs(gm)[p] for name, p in places_of(gm, "InputMutationAOTOutput")}
