"""`tools/run` knows every program of its folder, and names them to whoever names none."""

import subprocess
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"


def test_every_program_is_named() -> None:
    programs = sorted(p.parent.name for p in TOOLS.glob("*/__main__.py"))
    said = subprocess.run([TOOLS / "run", "nothing"], capture_output=True, text=True)
    assert said.returncode == 2
    lines = [line.split() for line in said.stderr.splitlines() if line.startswith("    ")]
    assert [words[0] for words in lines if words[0] != "tools/run"] == programs
    assert f"{' | '.join(p for p in programs if p != 'gradcnn')})" in (TOOLS / "run").read_text()
