"""The page: what it holds, that it needs nothing else, and that a browser draws it."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxdp.compiler import attempt
from fxdp.graph.study import GradientSums
from fxdp.lint.formats.html import embedded, render
from fxdp.lint.formats.html_layout import Outline, isotonic, spots
from fxdp.lint.result import Finding, Result

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOSTILE = "a.py:</script><img src=x onerror=alert(1)>"


class Mixing(nn.Module):
    """Centres its features over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.inner(x))
        x = x - x.mean(0)  # </script><script>alert("&amp;")</script>
        return self.head(x)


def result(model: nn.Module, target: str) -> Result:
    """What a lint run would find."""
    found = attempt(model, torch.randn(5, 4), torch.randint(3, (5,)), loss_fn=F.cross_entropy)
    diagnostics = found.error.diagnostics if found.error else ()
    findings: list[Finding] = []
    for d in diagnostics:
        at = d.location
        assert at is not None
        findings.append(
            Finding(
                path=at.file,
                line=at.line,
                column=at.column or 1,
                end_column=at.end_column or 2,
                code=d.code,
                message=f"{d.op}: {d.why}",
                help=d.remedy,
                modules=d.modules,
                shapes=d.shapes,
                route=d.path,
                target=target,
                source=at.source,
            )
        )
    return Result(
        target=target,
        path=__file__,
        line=1,
        status="refused" if findings else "proven",
        findings=tuple(findings),
        diagnostics=diagnostics,
        certificate=found.certificate,
        study=found.study,
        model=model,
        seconds=0.25,
    )


@pytest.fixture(scope="module")
def refused() -> Result:
    return result(Mixing(), HOSTILE)


@pytest.fixture(scope="module")
def proven() -> Result:
    return result(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), "b.py:Net")


@pytest.fixture(scope="module")
def failed() -> Result:
    return Result("c.py:Broken", "c.py", 3, "failed", trouble="TypeError: <width> is missing")


def data_of(page: str) -> dict[str, Any]:
    """The data in a page, by the rules of HTML: a script ends where "</script" first stands."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.S)
    assert found
    return json.loads(found[1])


def test_names_and_lines_cannot_break_out(refused: Result) -> None:
    page = render([refused])
    assert page.count("<script") == page.count("</script") == 2
    assert "<img" not in page
    assert "alert(1)>" not in page
    (model,) = data_of(page)["models"]
    assert model["target"] == HOSTILE
    lines = data_of(page)["sources"][model["findings"][0]["file"]]["lines"]
    assert "</script>" in lines[model["findings"][0]["line"] - 1]


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "&lt;", "\u2028\u2029", '"\\'])
def test_embedded_data_is_the_data(text: str) -> None:
    written = embedded({text: [text]})
    assert not re.search("[<>&\u2028\u2029]", written)
    assert json.loads(written) == {text: [text]}


def test_a_page_loads_nothing(proven: Result, refused: Result) -> None:
    page = render([proven, replace(refused, target="a.py:Net")])
    own = page.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    own = own.replace(re.search(r'id="data">(.*?)</script', own, re.S)[1], "")  # type: ignore[index]
    assert not re.search(r"https?://|@import|url\(|\bsrc=|<link|fetch\(|import\(", own)
    assert "default-src 'none'" in html.unescape(page)


def test_verdicts(proven: Result, refused: Result, failed: Result) -> None:
    models = data_of(render([proven, refused, failed]))["models"]
    assert [m["status"] for m in models] == ["proven", "refused", "failed"]
    assert [bool(m["graph"]) for m in models] == [True, True, False]
    names = [o["name"] for o in models[0]["certificate"]["obligations"]]
    assert names == ["P1", "P2", "P3", "P4", "P5", "P6"]
    assert all(set(a) == {"what", "by"} for a in models[0]["certificate"]["assumptions"])
    assert models[2]["trouble"] == "TypeError: <width> is missing"


def test_modules_and_placements(proven: Result) -> None:
    (model,) = data_of(render([proven]))["models"]
    assert [m["path"] for m in model["modules"]] == ["", "0", "1", "2"]
    assert [m["class"] for m in model["modules"]] == ["Sequential", "Linear", "Tanh", "Linear"]
    graph = model["graph"]
    assert proven.study is not None
    sums = {s.name: g.parameter for g in proven.study.of(GradientSums).all for s in g.sums}
    drawn = {graph["name"][int(i)]: p for i, p in graph["sum"].items()}
    assert drawn == sums
    at = graph["name"].index("tanh")
    assert graph["kind"][at] == "shard"
    assert graph["texts"][graph["shape"][at]] == "f32[N, 8]"
    assert graph["texts"][graph["module"][at]] == "1"
    weight = graph["label"].index("0.weight")
    assert graph["kind"][weight] == "replicate"
    assert {"gradient of 0.weight", "gradient of 2.bias"} <= set(graph["name"])


def test_a_route_is_a_way_in_the_graph(refused: Result) -> None:
    (model,) = data_of(render([refused]))["models"]
    graph = model["graph"]
    edges = set(zip(graph["edges"][::2], graph["edges"][1::2], strict=True))
    for finding, route in zip(model["findings"], graph["routes"], strict=True):
        assert [graph["name"][i] for i in route] == finding["route"]
        assert set(zip(route, route[1:], strict=False)) <= edges
        assert graph["kind"][route[0]] == "refused"
        assert graph["kind"][route[-1]] == "end"


def test_layers_point_one_way() -> None:
    edges = [(0, 2), (1, 2), (2, 3), (3, 4), (4, 5), (2, 5), (5, 6), (3, 6), (0, 6)]
    backward = [False] * 4 + [True] * 3
    places = spots(Outline(edges, backward, [i == 1 for i in range(7)]))
    for a, b in edges:
        if backward[a] == backward[b]:
            assert (places[a].y > places[b].y) == backward[a]
    assert all((place.x > 0) == back for place, back in zip(places, backward, strict=True))
    assert len({(p.x, p.y) for p in places}) == 7


def test_isotonic_pools_what_falls() -> None:
    assert isotonic([1, 3, 2, 4], [1, 1, 1, 1]) == [1, 2.5, 2.5, 4]
    assert isotonic([2, 0], [3, 1]) == [1.5, 1.5]


def opened(page: str, folder: Path) -> dict[str, str]:
    """What a browser made of a page: what the page's script left on its first element."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/chrome"]
    window = ["--window-size=1400,1000", "--virtual-time-budget=3000", "--dump-dom"]
    run = subprocess.run(
        [browser, *flags, *window, file.as_uri()], capture_output=True, text=True, timeout=60
    )
    element = re.search(r"<html([^>]*)>", run.stdout)
    assert element, run.stderr[-2000:]
    found = dict(re.findall(r'data-([\w-]+)="([^"]*)"', element[1]))
    return {k: html.unescape(v) for k, v in found.items()} | {"dom": run.stdout}


def test_a_browser_draws_the_path(refused: Result, tmp_path: Path) -> None:
    page = opened(render([refused]), tmp_path)
    assert page.get("errors", "") == ""
    assert page["model"] == HOSTILE
    assert int(page["drawn"]) > 10
    assert page["path"].split(" > ") == list(refused.findings[0].route)
    assert page["dom"].count('class="row faulty"') == len({f.line for f in refused.findings})
    assert 'aria-pressed="true" data-finding="0"' in page["dom"]


def test_a_browser_draws_several_models(
    proven: Result, failed: Result, refused: Result, tmp_path: Path
) -> None:
    gone = tuple(replace(f, path="gone.py") for f in refused.findings)
    lost = replace(refused, findings=gone, study=None, model=None)
    page = opened(render([proven, failed, lost]), tmp_path)
    assert page.get("errors", "") == ""
    assert page["nodes"] == "0"
    assert "There is no graph" in page["dom"]
    assert 'id="fault-0"' in page["dom"]
    page = opened(render([failed, proven]), tmp_path)
    assert page.get("errors", "") == ""


def test_a_browser_draws_a_proof(proven: Result, tmp_path: Path) -> None:
    page = opened(render([proven]), tmp_path)
    assert page.get("errors", "") == ""
    assert page["path"] == ""
    assert int(page["drawn"]) > 10
    assert page["dom"].count('role="treeitem"') == 4
    assert page["dom"].count("\u2713 proven") == 6
