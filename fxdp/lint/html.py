"""`--output-format html`: what a lint run found, as one page that needs nothing else.

The page holds its data as JSON in a script element that is not run, and draws it with a little
plain JavaScript. Names and source lines come from other people's files: they are escaped in the
JSON, and the page only ever sets them as text. A content security policy lets nothing but the
page's own script and style run.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from fxdp.certificate import own_version
from fxdp.lint.html_graph import Names, drawing
from fxdp.lint.html_parts import SOURCE_LIMIT, certificate, finding, modules, shown_path, source
from fxdp.lint.result import Result

SCRIPTS = ("base.js", "graph.js", "modules.js", "source.js", "page.js")
NODE_LIMIT = 40_000  # of all models of a page together; those behind get no picture
ESCAPES = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render(results: Sequence[Result]) -> str:
    """A self-contained page that shows the results."""
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, SCRIPTS)) + "\n})();\n"
    parts = {
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}",
        "title": html.escape(f"fxdp-lint: {', '.join(r.target for r in results)}"),
        "style": style,
        "script": script,
        "data": embedded(data(results)),
        "text": html.escape("\n".join(map(_as_text, results))),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _asset("page.html"))


def data(results: Sequence[Result]) -> dict[str, Any]:
    """What the page is drawn from."""
    files = Names()
    shown: dict[int, str] = {}
    for f in (f for r in results for f in r.findings):
        shown[files(str(Path(f.path).resolve()))] = f.path
    faulty, room, sources = len(shown), SOURCE_LIMIT, list[dict[str, Any]]()
    nodes, models = 0, list[dict[str, Any]]()
    for r in results:
        nodes += len(r.study.joint.graph.nodes) if r.study and r.study.joint else 0
        models.append(_model(r, files, nodes <= NODE_LIMIT))
    for i, file in enumerate(files.texts):
        sources.append(source(file, shown.get(i) or shown_path(file), i < faulty, room))
        room -= sum(map(len, sources[-1]["lines"])) if i >= faulty else 0
    versions = {"fxdp": own_version(), "torch": torch.__version__}
    return {"models": models, "sources": sources, "versions": versions}


def _model(r: Result, files: Names, with_graph: bool) -> dict[str, Any]:
    graph = None
    if with_graph and r.study is not None and r.study.joint is not None:
        graph = drawing(r, r.study, r.study.joint, files)
    used = [graph["texts"][i] for i in dict.fromkeys(graph["module"])] if graph else []
    used += [m for f in r.findings for m in f.modules]
    notes = [str(note) for note in r.study.notes] if r.study else []
    return {
        "target": r.target, "path": r.path, "line": r.line, "status": r.status,
        "trouble": r.trouble, "details": r.details, "seconds": round(r.seconds, 2),
        "findings": [finding(f) | {"file": _number(f, files)} for f in r.findings],
        "modules": modules(r.model, used), "graph": graph, "notes": notes,
        "certificate": certificate(r.certificate), "parameters": len(r.study.gradients)
        if r.study else 0,
    }  # fmt: skip


def _number(f: Any, files: Names) -> int:
    return files(str(Path(f.path).resolve()))


def embedded(value: Any) -> str:
    """JSON that no HTML parser finds a tag in, wherever it stands in a page."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return re.sub("[<>&\u2028\u2029]", lambda m: ESCAPES[m[0]], text)


def _asset(name: str) -> str:
    return (resources.files("fxdp.lint") / "page" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _as_text(r: Result) -> str:
    """A result for readers without scripts."""
    lines = [f"{f.path}:{f.line}:{f.column}: {f.code.code} {f.message}" for f in r.findings]
    return "\n".join([f"{r.target}: {r.status} {r.trouble}".rstrip(), *lines])
