"""Reports, from results that are made up."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fxdp.diagnostics.codes import CODES
from fxdp.lint.formats import machine, sarif, text
from fxdp.lint.formats.table import FORMATS
from fxdp.lint.result import Finding, Result


def finding(line: int, name: str = "mixes-samples", path: str = "a b.py") -> Finding:
    source = "        return self.norm(x)"
    return Finding(path, line, 16, 28, CODES[name], "op: 100% of it, mixed", "mend it", ("norm",),
                   ("[N, 8]",), ("a", "b", "output"), f"{path}:Net", source)  # fmt: skip


RESULTS = (
    Result("a b.py:Net", "a b.py", 3, "refused", (finding(9), finding(7, "no-rule"))),
    Result("a b.py:Other", "a b.py", 3, "refused", (finding(9),)),
    Result("c.py", "c.py", 1, "failed", trouble="no such file"),
    Result("d.py:Net", "d.py", 2, "proven"),
)


README = Path(__file__).parents[2] / "fxdp" / "lint" / "README.md"


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_tells_of_each_finding(name: str):
    report = FORMATS[name].render(RESULTS)
    assert {code.code for code in (CODES["mixes-samples"], CODES["no-rule"])} <= set(
        re.findall(r"FXD\d+", report)
    )
    assert FORMATS[name].for_people == (name in ("text", "full"))
    assert f"`{name}`" in README.read_text()


def test_text():
    assert text.as_string(RESULTS, full=False).splitlines() == [
        "a b.py:7:16: FXD401 op: 100% of it, mixed",
        "    help: mend it",
        "a b.py:9:16: FXD101 op: 100% of it, mixed",
        "    help: mend it",
        "Found 2 faults in 2 of 4 models; 1 model could not be linted.",
    ]


def test_full():
    assert text.as_string(RESULTS[1:2], full=True).splitlines() == [
        "FXD101 mixes-samples: op: 100% of it, mixed",
        " --> a b.py:9:16",
        "  |",
        "9 |         return self.norm(x)",
        "  |                ^^^^^^^^^^^^",
        "  |",
        "  = help: mend it",
        "  = in: norm",
        "  = shapes: [N, 8]",
        "  = path: a -> b -> output",
        "",
        "Found 1 fault in 1 of 1 model.",
    ]


def test_json():
    found = json.loads(machine.as_json(RESULTS))
    assert {"fxdp", "torch", "results"} == found.keys()
    assert [r["status"] for r in found["results"]] == ["refused", "refused", "failed", "proven"]
    assert found["results"][0]["findings"][0] == {
        "path": "a b.py", "line": 9, "column": 16, "end_column": 28, "code": "FXD101",
        "name": "mixes-samples", "message": "op: 100% of it, mixed", "help": "mend it",
        "modules": ["norm"], "shapes": ["[N, 8]"], "route": ["a", "b", "output"],
    }  # fmt: skip


def test_github():
    lines = machine.as_github(RESULTS).splitlines()
    assert lines[1] == (
        "::error title=fxdp-lint (FXD101),file=a b.py,line=9,col=16,endLine=9,endColumn=28::"
        "a b.py:9:16: FXD101 op: 100%25 of it, mixed"
    )
    assert lines[2] == "::error title=fxdp-lint,file=c.py,line=1::c.py: no such file"


def test_sarif():
    """The shape that the schema asks for, of what is written here."""
    log = json.loads(sarif.render(RESULTS))
    assert log.keys() == {"$schema", "version", "runs"}
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    assert run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
    assert run["originalUriBaseIds"]["ROOT"]["uri"].startswith("file:///")
    assert run["originalUriBaseIds"]["ROOT"]["uri"].endswith("/")
    rules = run["tool"]["driver"]["rules"]
    assert [r["id"] for r in rules] == [c.code for c in CODES.values()]
    assert all(r[k]["text"] for r in rules for k in ("shortDescription", "fullDescription", "help"))
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
        (where,) = result["locations"]
        place = where["physicalLocation"]
        assert re.fullmatch(r"[^\s\\]+", place["artifactLocation"]["uri"])
        assert place["region"]["endColumn"] > place["region"]["startColumn"] >= 1
        assert place["region"]["startLine"] >= 1
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["message"]["text"] == "c.py: no such file"


def test_sarif_of_a_file_elsewhere(tmp_path: Path):
    result = Result("m:Net", "m.py", 1, "refused", (finding(1, path=str(tmp_path / "m.py")),))
    (found,) = json.loads(sarif.render([result]))["runs"][0]["results"]
    artifact = found["locations"][0]["physicalLocation"]["artifactLocation"]
    assert artifact == {"uri": (tmp_path / "m.py").as_uri()}


@pytest.mark.parametrize("results", [[], RESULTS[3:]])
def test_nothing_found(results: Any):
    assert json.loads(sarif.render(results))["runs"][0]["results"] == []
    assert machine.as_github(results) == ""
