"""Inputs to suggest for a model: from its docstrings and annotations, or else its first layers.

They are tried on the model without data, and the first that fit stand in the command that the user
is to type. No proof begins with one: where the batch is, the user says.
"""

import inspect
import itertools
import re
import time
from collections.abc import Iterator
from typing import Any

from torch import nn

from fxdp.lint.models.building import Built
from fxdp.lint.models.inputs import make, parse
from fxdp.lint.models.seen import Seen
from fxdp.lint.trouble import Trouble

STEPS = "T=16"  # of a sequence
SIDES = (32, 64, 28, 224, 16, 299)  # of an image, where the model does not say
MOST, SECONDS = 60, 20.0  # tries for a model
# Arguments that hold one number for each sample.
NUMBER = re.compile(r"^(t|time\w*|steps?|sigma|noise\w*|y|\w*labels?|targets?|\w*lengths?|c|cond)$")
MASK = re.compile(r"mask")
IDS = re.compile(r"^(idx|ids|\w*_ids|tokens?|src|tgt|words?|sentences?|sequences?)$")
BATCHES = {"n", "b", "bs", "bsz", "batch", "batch_size", "nbatch", "minibatch"}
LETTERS = {"t": STEPS, "l": STEPS, "s": STEPS, "seq": STEPS, "seq_len": STEPS, "time": STEPS,
           "length": STEPS, "seqlen": STEPS, "sequence_length": STEPS}  # fmt: skip
SIDE = re.compile(r"^(h|w|height|width|img_size|image_size|img_h|img_w|size)$")
SHAPE = r"[\[(]\s*(\w+(?:\s*[,x*]\s*\w+)+)\s*,?\s*[\])]"


def suggested(built: Built) -> tuple[str, ...]:
    """An `--input` for each argument that a model needs; with dots where nothing fits."""
    taken = needed(built.model)
    choices = [list(dict.fromkeys(candidates(built.model, p))) for p in taken]
    until = time.monotonic() + SECONDS
    order = sorted(itertools.product(*map(enumerate, choices)), key=lambda c: sum(i for i, _ in c))
    for choice in order[:MOST]:
        specs = tuple(text for _, text in choice)
        if fits(built, specs):
            return specs
        if time.monotonic() > until:
            break
    return tuple("f32[N,...]" for _ in taken)


def needed(model: nn.Module) -> list[inspect.Parameter]:
    """The parameters of forward that have no default; of one that takes any, one."""
    found = list(inspect.signature(model.forward).parameters.values())
    named = [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needs = [p for p in named if p.default is p.empty]
    return needs or found[:1]


def fits(built: Built, specs: tuple[str, ...]) -> bool:
    """Does a model run on such inputs?"""
    try:
        made = make([parse(text) for text in specs], built.device)
    except Trouble:
        return False
    return Seen.of(built.model, made.args, made.kwargs) is not None


def candidates(model: nn.Module, p: inspect.Parameter) -> Iterator[str]:
    """What an argument may be, the likeliest first."""
    layers = list(of_layers(model))
    yield from of_annotation(p)
    for shape in of_docstrings(model, p.name):
        yield from spelled(shape, layers, sides(model))
    if MASK.search(p.name):
        yield from ("bool[N,T=16]", "f32[N,T=16]", "bool[T=16,T=16]")
    if NUMBER.match(p.name):
        yield from ("i64[N]", "f32[N]")
    late = [x for x in layers if x.startswith("i64")] if not IDS.match(p.name) else []
    yield from (x for x in layers if x.startswith("i64") and x not in late)
    yield from layers
    if NUMBER.match(p.name) is None:
        yield from ("i64[N]", "f32[N,3,32,32]", "f32[N,64]", "f32[N,T=16,64]")


def of_annotation(p: inspect.Parameter) -> Iterator[str]:
    """The shape in an annotation like `Float[Tensor, "batch 3 32 32"]`."""
    hint = p.annotation
    text = hint if isinstance(hint, str) else ""
    found = re.match(r"(\w+)\[[\w.]+,\s*[\"']([\w ]+)[\"']\]", text)
    kind, dims = (found[1], found[2]) if found else (
        getattr(hint, "__name__", "").partition("[")[0], getattr(hint, "dim_str", ""))  # fmt: skip
    words = dims.split()
    if words and words[0].lower() in BATCHES:
        dtype = {"Int": "i64", "Bool": "bool", "Integer": "i64"}.get(kind, "f32")
        sizes = [LETTERS.get(w, w) if not SIDE.match(w) else "32" for w in words[1:]]
        yield f"{dtype}[{','.join(['N', *sizes])}]"


def of_docstrings(model: nn.Module, name: str) -> Iterator[list[str]]:
    """The shapes that the docstrings and comments of a class give to an argument."""
    try:
        text = inspect.getsource(type(model))
    except (OSError, TypeError):
        return
    text = "\n".join([text, inspect.getdoc(type(model)) or ""])
    before = rf"\b{re.escape(name)}\b[^\n()\[\]]*(?:\([^)\d]*\))?[^\n()\[\]]*?"
    for found in re.finditer(before + SHAPE, text):
        words = [w.lower() for w in re.split(r"[\s,x*]+", found[1]) if w]
        if words[0] in BATCHES or BATCHES & set(words):
            yield words


def spelled(words: list[str], layers: list[str], side: list[int]) -> Iterator[str]:
    """A shape of a docstring in the language of `--input`, for each way to fill it in."""
    widths = [w for x in layers for w in re.findall(r"\b\d+\b", x)[1 if "T=16" in x else 0 :][:1]]
    for wide, high in itertools.product(widths or ["3"], side[:3]):
        sizes = [
            "N" if w in BATCHES else w if w.isdigit() else LETTERS.get(w) or
            (str(high) if SIDE.match(w) else wide)
            for w in words
        ]  # fmt: skip
        kinds = ("i64", "f32") if any(x.startswith("i64") for x in layers) else ("f32", "i64")
        yield from (f"{kind}[{','.join(sizes)}]" for kind in kinds)


def of_layers(model: nn.Module) -> Iterator[str]:
    """What the layers take, in the order in which they are defined."""
    seen = 0
    late = any(getattr(m, "batch_first", True) is False for m in model.modules())
    for layer in model.modules():
        if seen > 8:
            return
        for shape in of_layer(layer, late, sides(model)):
            seen += 1
            yield shape


def of_layer(layer: nn.Module, late: bool, side: list[int]) -> Iterator[str]:
    """What one layer takes; `late` where the batch stands behind the time."""
    rows = "T=16,N" if late else "N,T=16"
    match layer:
        case nn.Embedding():
            yield from (f"i64[{rows}]", "i64[N]")
        case nn.EmbeddingBag():
            yield "i64[N,T=16]"
        case nn.Conv2d(in_channels=c):
            yield from (f"f32[N,{c},{s},{s}]" for s in side)
        case nn.ConvTranspose2d(in_channels=c):
            yield from (f"f32[N,{c},{s},{s}]" for s in (1, *side[:2]))
            yield f"f32[N,{c}]"
        case nn.Conv1d(in_channels=c):
            yield from (f"f32[N,{c},64]", f"f32[N,64,{c}]")
        case nn.Conv3d(in_channels=c):
            yield f"f32[N,{c},16,16,16]"
        case nn.RNNBase(input_size=i, batch_first=first):
            yield f"f32[N,T=16,{i}]" if first else f"f32[T=16,N,{i}]"
        case nn.MultiheadAttention(embed_dim=i):
            yield f"f32[{rows},{i}]"
        case nn.LayerNorm(normalized_shape=shape):
            yield from (f"f32[{rows},{shape[-1]}]", f"f32[N,{','.join(map(str, shape))}]")
        case nn.Linear(in_features=i):
            yield from (f"f32[N,{i}]", f"f32[{rows},{i}]")
            yield from (f"f32[N,{c},{s},{s}]" for c in (1, 3) for s in (28, 32) if c * s * s == i)
        case nn.BatchNorm2d(num_features=c):
            yield f"f32[N,{c},32,32]"
        case _:
            return


def sides(model: nn.Module) -> list[int]:
    """The sides of images, those that the model has among its attributes first."""
    held = {**vars(model), **vars_of(getattr(model, "config", None))}
    own = [v[0] if isinstance(v, tuple | list) and v else v for k, v in held.items()
           if re.search(r"im(age|g)_?(size|res)|resolution|input_size", k)]  # fmt: skip
    return list(dict.fromkeys([*(v for v in own if type(v) is int and v > 0), *SIDES]))


def vars_of(thing: Any) -> dict[str, Any]:
    """The attributes of an object that has any."""
    return vars(thing) if hasattr(thing, "__dict__") else {}
