"""What needs no proof does not wait for torch."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from fxdp.lint.cli import main
for arguments in {runs}:
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    print(status, "torch" in sys.modules)
"""
RUNS = [["--help"], ["--version"], ["--explain", "FXD101"], ["--nonsense"], ["nowhere.py"],
        ["x.py", "--loss"], ["x.py", "--select", "X"], ["x.py", "--kwargs", "3"], []]  # fmt: skip
STATUS = [0, 0, 0, 2, 2, 2, 2, 2, 2]


def test_torch_is_not_imported_for_it(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("raise AssertionError('nobody asked')\n")
    done = subprocess.run([sys.executable, "-c", CODE.format(runs=RUNS)], cwd=tmp_path, text=True,
                          capture_output=True, check=True)  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.endswith((" True", " False"))]
    assert said == [f"{status} False" for status in STATUS], done.stderr
