"""Values to put into a suggested command, by the name and annotation of a parameter.

Nothing is proven with a guess: it stands in a command, and the user types or changes it.
"""

import inspect
import re
import typing
from typing import Any

from torch import nn

from fxdp.lint.models import configs
from fxdp.lint.models.wanted import Name

# The first row that fits a name. Widths are multiples of heads and groups, sides of patches.
VALUES: tuple[tuple[str, Any], ...] = (
    (r"vocab|n_?tokens?$|num_(tokens|words|embeddings|items|users)", 100),
    (r"class|label|tagset|n_?tags|^tags$|out_features|output|n_?out$|out_dim|num_actions", 10),
    (r"(image|img).*(size|res|dim|side|height|width)|resolution|^(height|width|side)$", 32),
    (r"patch", 4),
    (r"heads?$|n_?head", 4),
    (r"(num|n)_?(\w+_)?(layers?|blocks?)$|depth|^layers?$|_layers$", 2),
    (r"(in|image|img|input)_?(channels?|chans?|planes|ch|c)$|^n_?(channels|c)$|^channels_in$", 3),
    (r"^(channels?|input_channels?|chans)$", 3),
    (r"seq|context|block_size|max_|ctx|n_positions|length", 64),
    (r"kernel", 3), (r"stride|dilation", 1), (r"padding", 1),
    (r"drop|^p$|rate$|prob", 0.1), (r"eps", 1e-5),
    (r"^(bias|is_|use_|with_|bidirectional|causal|qkv_bias)", True),
    (r"latent|z_dim|^nz$|state", 16), (r"expand|mult|ratio|factor", 2), (r"d_conv", 4),
    (r"act", "relu"),
    (r"^(ch|nf|c|base_\w+|n[gd]f)$|^d_", 64),
    (r"dim|width|hidden|emb|size|features|channels|planes|filters|units", 64),
)  # fmt: skip
KINDS: dict[Any, Any] = {bool: True, int: 16, float: 0.1, str: None, list: [64, 64]}
LISTS = ((r"mult", [1, 2]), (r"layer|block|depth|num", [2, 2, 2, 2]), (r"res|attn", []))
BLOCK = re.compile(r"block|bottleneck|layer", re.I)


def value(thing: Any, name: str, p: inspect.Parameter) -> Any:
    """A value for a parameter of a constructor; None where nothing can be guessed."""
    hint = configs.annotation(thing, p)
    if BLOCK.search(name) and not re.search(r"s$|num|n_|size", name):
        found = [k for k, v in configs.namespace(thing).items()
                 if inspect.isclass(v) and issubclass(v, nn.Module) and BLOCK.search(k)
                 and k[0].isupper() and v.__module__ == thing.__module__]  # fmt: skip
        if found and hint in (None, type, nn.Module):
            return Name(found[0])
    if is_list(p.annotation) or (hint is None and is_iterated(thing, name)):
        return next((v for pattern, v in LISTS if re.search(pattern, name)), [64, 64])
    known = next((v for pattern, v in VALUES if re.search(pattern, name.lower())), None)
    if hint in KINDS and type(known) is not hint:
        return KINDS[hint]
    return known if known is not None or hint is not None else 16


def is_iterated(thing: Any, name: str) -> bool:
    """Does a constructor take a parameter for several values?"""
    try:
        text = inspect.getsource(thing)
    except (OSError, TypeError):
        return False
    taken = rf"(\bin |\b(enumerate|len|zip|list|tuple|reversed)\(){name}\b|\b{name}\["
    return re.search(taken, text) is not None


def is_list(hint: Any) -> bool:
    """Is this the annotation of a list or tuple?"""
    text = hint if isinstance(hint, str) else str(typing.get_origin(hint) or "")
    return re.search(r"(list|tuple|sequence)", text.lower()) is not None
