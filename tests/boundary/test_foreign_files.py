"""What a linted file says of itself is a stranger's word: it gets no line of another file into a
report, no character that a terminal or a log obeys, and nothing of the command's."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fxdp
from fxdp.diagnostics import sources
from fxdp.diagnostics.codes import CODES
from fxdp.diagnostics.diagnostic import Diagnostic
from fxdp.diagnostics.location import Location
from fxdp.diagnostics.printed import is_unprinted
from fxdp.lint import cli, proving
from fxdp.lint.config import Config
from fxdp.lint.formats.table import FORMATS
from fxdp.lint.linting import lint
from fxdp.lint.options import parser, wanted
from fxdp.lint.result import Finding, Result

SECRET = "TOP-SECRET"


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.fc(x)
        return h - h.mean(0)


@pytest.fixture(scope="module")
def program(tmp_path_factory: Any) -> Path:
    """A saved program that is refused."""
    file = tmp_path_factory.mktemp("programs") / "ok.pt2"
    shapes = ({0: torch.export.Dim("N", min=2)},)
    torch.export.save(
        torch.export.export(Mixes(), (torch.randn(4, 5),), dynamic_shapes=shapes), file
    )
    return file


def claiming(program: Path, to: Path, file: str, line: str = "2") -> Path:
    """The program with stack traces that name another file."""
    place = f'File \\"{json.dumps(file)[1:-1]}\\", line {line}'
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            data = old.read(name).decode("latin1")
            if name.endswith("model.json"):
                data = re.sub(r'File \\"[^"]*?\\", line \d+', lambda _: place, data)
            new.writestr(name, data.encode("latin1"))
    return to


def linted(target: str, *arguments: str) -> list[Result]:
    """As the command does it."""
    options = parser().parse_args([target, "--isolated", "--quiet", *arguments])
    plan = wanted(options, Config(), target)
    return [r for r in lint(target, plan, False, options.quiet) if isinstance(r, Result)]


def reports(results: list[Result]) -> dict[str, str]:
    """The report in every format; those for programs are valid."""
    found = {style: how.render(results) for style, how in FORMATS.items()}
    json.loads(found["json"])
    json.loads(found["sarif"])
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the command runs."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def secret(file: Path) -> Path:
    file.write_text(f"{SECRET} = 1\n    {SECRET} = 2  # fxdp: allow[FXD303] x\n")
    return file


def test_a_program_shows_no_line_of_any_file(program: Path, here: Path) -> None:
    """Not even of one below the folder."""
    secret(here / "model.py")
    results = linted(str(claiming(program, here / "evil.pt2", str(here / "model.py"))))
    (finding,) = results[0].findings
    assert (finding.path, finding.line, finding.source) == ("model.py", 2, "")
    for style, text in reports(results).items():
        assert SECRET not in text, style


PAYLOAD = "/x/\x1b]0;PWNED\x07\x9b2J\u202e\x7f</script><script>alert(1)</script>\n::error::x\r"


def test_a_program_cannot_say_what_a_terminal_obeys(program: Path, here: Path) -> None:
    """The path of a trace holds what it likes; the line is a number of any size."""
    file = claiming(program, here / "ansi.pt2", PAYLOAD.replace("\n", ""), "9" * 30)
    check_printed(linted(str(file)))


def check_printed(results: list[Result]) -> None:
    for style, text in reports(results).items():
        bad = {c for c in text if is_unprinted(c) and c != "\n"}
        if style in ("text", "full", "json", "sarif", "github"):
            assert not bad, (style, bad)
        assert "<script>alert" not in text or style != "html"
        commands = [line for line in text.splitlines() if line.lstrip().startswith("::")]
        assert style == "html" or all(c.startswith("::error title=fxdp-lint") for c in commands)
        assert style in ("github", "html") or not commands, style


def test_whatever_a_finding_is_made_of() -> None:
    """It is clean when it is made, so no format has to see to it."""
    text = f"::error::x{PAYLOAD}\u2028\u2066\ud800\x85"
    finding = Finding(
        path=text, line=0, column=-3, end_column=-9, code=CODES["mixes-samples"], message=text,
        help=text, modules=(text,), shapes=(text,), route=(text,), target=text, source=text,
    )  # fmt: skip
    failed = Result(text, text, 1, "failed", trouble=text, details=f"{text}\n{text}")
    refused = Result(text, text, 1, "refused", (finding,), assumed=(text,))
    check_printed([failed, refused])
    assert (finding.line, finding.column, finding.end_column) == (1, 1, 2)
    assert len(finding.source) == len(text)  # columns stay
    assert "\\x1b]0;PWNED" in finding.message
    html = FORMATS["html"].render([failed, refused])
    assert not {c for c in html if is_unprinted(c) and c != "\n"}


def test_diagnostics_print_what_can_be_printed() -> None:
    d = Diagnostic(CODES["mixes-samples"], None, "op", PAYLOAD, PAYLOAD, (PAYLOAD,), (PAYLOAD,))
    assert not {c for c in str(d) if is_unprinted(c) and c != "\n"}
    assert len(str(d).splitlines()) == 3


def outside(here: Path) -> str:
    return str(secret(here.parent / "other.py"))


def by_dots(here: Path) -> str:
    secret(here.parent / "other.py")
    return str(here / ".." / "other.py")


def by_link(here: Path) -> str:
    (here / "link.py").symlink_to(secret(here.parent / "other.py"))
    return str(here / "link.py")


def by_linked_folder(here: Path) -> str:
    (here.parent / "away").mkdir()
    secret(here.parent / "away" / "other.py")
    (here / "sub").symlink_to(here.parent / "away")
    return "sub/other.py"


def beside(here: Path) -> str:
    """A folder whose name begins as that of the current one does."""
    (here.parent / "here2").mkdir()
    return str(secret(here.parent / "here2" / "other.py"))


def no_python(here: Path) -> str:
    return str(secret(here / "secret.key"))


def device(here: Path) -> str:
    (here / "zero.py").symlink_to("/dev/zero")
    return str(here / "zero.py")


def pipe(here: Path) -> str:
    os.mkfifo(here / "pipe.py")
    return str(here / "pipe.py")


def large(here: Path) -> str:
    with open(here / "large.py", "w") as file:
        file.write(f"{SECRET}\n{SECRET}\n")
        file.truncate(sources.LARGEST + 1)
    return str(here / "large.py")


def process(here: Path) -> str:
    secret(here.parent / "other.py")
    return "/proc/self/cwd/../other.py"


PLACES = [outside, by_dots, by_link, by_linked_folder, beside, no_python, device, pipe, large,
          process, lambda _: "%2e%2e/other.py", lambda _: "file:///etc/passwd", lambda _: "a\0b.py",
          lambda _: "<string>", lambda _: "", lambda _: "."]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_lines_are_from_below_the_current_folder(place: Callable[[Path], str], here: Path) -> None:
    """Wherever a diagnostic points, a report shows no others."""
    location = Location(place(here), 2, "f")
    assert sources.shown_lines(location.file) == ()
    d = Diagnostic(CODES["keeps-samples"], location, "op", "why", "help")
    built: Any = SimpleNamespace(target="Mixes")
    assert proving.finding(d, built).source == ""


def test_who_ran_a_model_sees_its_line(here: Path) -> None:
    """An installed model, say; but no line of what is no source, or what a saved program names."""
    assert SECRET in Location(outside(here), 2, "f").source
    assert Location(sources.FOREIGN + outside(here), 2, "f").source == ""
    for place in (no_python, device, pipe, large):
        assert Location(place(here), 2, "f").source == ""


def test_lines_from_here_are_shown(here: Path) -> None:
    """And those of a notebook's cell, which is no file."""
    (here / "sub").mkdir()
    secret(here / "sub" / "model.py")
    assert SECRET in Location("sub/model.py", 2, "f").source
    (here / "again.py").symlink_to(here / "sub" / "model.py")
    assert SECRET in Location(str(here / "again.py"), 1, "f").source
    assert Location("sub/model.py", 9, "f").source == Location("sub/model.py", 0, "f").source == ""


FORGED = """
from pathlib import Path
import torch
from torch import nn
text = Path(__file__).read_text().rpartition("CODE = ")[2].strip().strip('"')
exec(compile(text, str(Path(__file__).parent.parent / "other.py"), "exec"))
raise_it = globals()["raise_it"]
CODE = \"\"\"
def raise_it():
    raise ValueError('boom\\n::error title=x::injected\\x1b[31m')
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("a\\x1b[31mb</script>", nn.Linear(5, 3))
    def forward(self, x):
        h = self._modules["a\\x1b[31mb</script>"](x)
        return h - h.mean(0)
class Raises(nn.Module):
    def __init__(self):
        raise_it()
\"\"\"
"""


def test_code_under_the_name_of_another_file(here: Path) -> None:
    """A file may compile code under any name; the report has no line of that file."""
    secret(here.parent / "other.py").write_text(f"{SECRET}\n" * 20)
    (here / "forged.py").write_text(FORGED)
    results = [
        *linted("forged.py:M", "--input", "f32[N,5]"),
        *linted("forged.py:Raises", "--input", "f32[N,5]"),
    ]
    assert [r.status for r in results] == ["refused", "failed"]
    assert SECRET not in results[1].details
    for style, text in reports(results).items():
        assert SECRET not in text, style
    check_printed(results)


def test_a_traceback_begins_no_line(here: Path, capsys: Any) -> None:
    """With -v it is on stderr, where a log's commands are looked for, too."""
    (here / "raises.py").write_text(FORGED)
    secret(here.parent / "other.py").write_text(f"{SECRET}\n" * 20)
    assert cli.main(["raises.py:Raises", "--input", "f32[N,5]", "-v", "--isolated"]) == 2
    out, err = capsys.readouterr()
    assert "ValueError" in err
    assert SECRET not in out + err
    assert not any(line.lstrip().startswith("::") for line in (out + err).splitlines())
    assert "\x1b[31m" not in out + err


RUDE = """
import argparse, os, sys
assert sys.argv == ["rude.py"], sys.argv
argparse.ArgumentParser().parse_args()
sys.argv += ["--output-format", "html"]
os.write(1, b"RUDE written\\n")
sys.stdout.write("RUDE printed\\n")
sys.stdout.reconfigure(line_buffering=True)
sys.stdout.buffer.write(b"RUDE bytes\\n")
sys.__stdout__.write("RUDE printed too\\n")
os.chdir("/")
sys.stdout.close()
sys.stderr.close()
sys.stdout = sys.stderr = None
"""


CLOSES = """
import atexit, os, sys
atexit.register(os.write, 1, b"RUDE late")
sys.__stdout__.close()
os.closerange(1, 3)
"""


def test_a_file_that_takes_the_process_for_its_own(here: Path) -> None:
    """It sees no arguments of ours, and what it changes is put back: the report is all there is
    on stdout, which is open again."""
    (here / "rude.py").write_text(RUDE)
    (here / "closes.py").write_text(CLOSES)
    command = "import sys; from fxdp.lint.cli import main; sys.exit(main())"
    arguments = ["rude.py", "closes.py", "--output-format", "json"]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments, "--isolated"], capture_output=True, check=False
    )
    assert b"RUDE" not in done.stdout
    found = {r["target"]: r["trouble"] for r in json.loads(done.stdout)["results"]}
    assert list(found) == ["rude.py", "closes.py"]
    assert all(t.startswith("it defines no nn.Module") for t in found.values()), found
    assert b"RUDE written" in done.stderr
    assert b"RUDE printed" in done.stderr
    assert b"RUDE late" in done.stderr
    assert done.returncode == 2


def test_arguments_and_folder_are_put_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import os, sys\nsys.argv.append('x')\nos.chdir('/')\nraise ValueError(sys.argv)\n"
    (here / "moves.py").write_text(text)
    argv = ["fxdp-lint", "secret"]
    monkeypatch.setattr(sys, "argv", argv)
    (result,) = linted("moves.py")
    assert "ValueError: ['moves.py', 'x'] at moves.py:4" in result.trouble
    assert sys.argv is argv
    assert argv == ["fxdp-lint", "secret"]
    assert Path.cwd() == here


def test_a_module_that_exits(here: Path) -> None:
    (here / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (result,) = linted("leaves:Net")
    assert "exits when it is imported (code 3)" in result.trouble


def test_own_lines_are_in_an_error(tmp_path: Path) -> None:
    """An exception of fxdp's own still shows the line at fault."""
    with pytest.raises(fxdp.BatchMixingError, match=r"return h - h.mean\(0\)"):
        fxdp.prove(Mixes(), torch.randn(4, 5), torch.arange(4) % 3, loss_fn=nn.CrossEntropyLoss())
