"""What the page shows next to the graph: submodules, findings, source files, the certificate."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from fxdp.diagnostics import sources
from fxdp.diagnostics.printed import plain, plain_lines, plain_source
from fxdp.lint.paths import shortened
from fxdp.lint.result import Finding
from fxdp.proof.certificate import Certificate


def modules(model: nn.Module | None, used: Sequence[str]) -> list[dict[str, Any]]:
    """The submodules in the order of the model, each behind the one that holds it.

    Args:
        model: None where only the paths of the graph are known.
        used: paths that the graph speaks of.
    """
    known: dict[str, nn.Module | None] = dict.fromkeys(with_parents(used))
    if model is not None:
        known = dict(model.named_modules(remove_duplicate=False)) | {
            p: None for p in known if model_at(model, p) is None
        }
    return [
        {
            "path": path,
            "class": type(m).__name__ if m is not None else "",
            "parameters": sum(p.numel() for p in m.parameters()) if m is not None else 0,
        }
        for path, m in known.items()
    ]


def model_at(model: nn.Module, path: str) -> nn.Module | None:
    """A submodule; None where there is none of that path."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def with_parents(paths: Sequence[str]) -> list[str]:
    """Paths and all that lead to them, parents first."""
    found = {""}
    for path in paths:
        steps = path.split(".") if path else []
        found |= {".".join(steps[:i]) for i in range(1, len(steps) + 1)}
    return sorted(found, key=lambda p: [(len(s), s) for s in p.split(".")] if p else [])


def finding(f: Finding) -> dict[str, Any]:
    """A finding, with what its code says of the kind."""
    return {
        "path": f.path, "line": f.line, "column": f.column, "end": f.end_column,
        "code": f.code.code, "name": f.code.name, "what": f.code.what, "why": f.code.why,
        "bad": f.code.bad, "good": f.code.good, "message": f.message, "help": f.help,
        "modules": list(f.modules), "shapes": list(f.shapes), "route": list(f.route),
        "source": f.source,
    }  # fmt: skip


def certificate(c: Certificate | None) -> dict[str, Any] | None:
    """A certificate in plain texts."""
    if c is None:
        return None
    return {
        "obligations": [
            {
                "name": o.name,
                "promise": o.promise,
                "proven": bool(o.proven),
                "evidence": str(o.evidence),
            }
            for o in c.obligations
        ],
        "assumptions": [assumption(a) for a in c.assumptions],
        "fallbacks": [str(f) for f in c.fallbacks],
        "graph": c.graph,
        "versions": dict(c.versions),
    }


def assumption(a: Any) -> dict[str, str]:
    """What is assumed, and by whom where that is said."""
    return {"what": str(getattr(a, "what", a)), "by": str(getattr(a, "by", ""))}


def identity(file: str) -> str:
    """One spelling for each file; what is no file, like a notebook's cell, keeps its name, and so
    does what a saved program names."""
    if file.startswith(sources.FOREIGN):
        return sources.FOREIGN + plain(shortened(file.removeprefix(sources.FOREIGN)))
    return real(file)


@cache
def real(file: str) -> str:
    """The file with links resolved, if there is one."""
    return os.path.realpath(file) if os.path.exists(file) else file


def source(file: str, shown: str, faulty: bool, room: int) -> dict[str, Any]:
    """A source file as the page shows it: with its lines, or without where they are too many, or
    the file is not below the current folder."""
    lines = [plain_source(line.rstrip("\r\n")) for line in sources.shown_lines(file)]
    fits = faulty or sum(map(len, lines)) <= room
    return {"path": shown, "lines": lines if fits else []}


def shown_path(file: str) -> str:
    """A file as a person would name it: from here, or from where packages are installed."""
    path = Path(file.removeprefix(sources.FOREIGN))
    for part in ("site-packages", "dist-packages"):
        if part in path.parts:
            return Path(*path.parts[path.parts.index(part) + 1 :]).as_posix()
    near = os.path.relpath(path)
    return path.name if near.startswith("..") else Path(near).as_posix()


def file_of(f: Finding) -> str:
    """The file of a finding, as `identity` spells it."""
    is_saved = ".pt2:" in f"{f.target}:"
    return identity(sources.FOREIGN + f.path if is_saved else f.path)


def printed(value: Any) -> Any:
    """Data of which every text is printed characters, in lines."""
    match value:
        case str():
            return plain_lines(value)
        case list() | tuple():
            return [printed(v) for v in value]
        case dict():
            return {printed(k): printed(v) for k, v in value.items()}
        case _:
            return value
