"""Everything that is tried on a GPU, part by part, each in processes and with a limit of its own.

tools/gpu --help
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tools.cuda.workloads import LARGE, PRECISIONS, SMALL

SHARES = {"kernels": 0.15, "right": 0.3, "speed": 0.55}  # of the time
PYTEST = ("-p", "no:cacheprovider", "-p", "no:benchmark", "-q", "-rf", "--tb=short")


def environment(processes: int) -> dict[str, str]:
    """Of a process that shares the machine with others: few threads, and its own share of cores."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    return os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": threads}


def run(commands: list[list[str]], seconds: float, folder: Path, part: str) -> list[str]:
    """Commands side by side, until they are done or the time is over. What each said."""
    files = [folder / f"{part}-{i}.log" for i in range(len(commands))]
    started = [
        subprocess.Popen(
            [sys.executable, *command], stdout=file.open("w"), stderr=subprocess.STDOUT,
            env=environment(len(commands)),
        )
        for command, file in zip(commands, files, strict=True)
    ]  # fmt: skip
    end = time.monotonic() + seconds
    for process in started:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    return [file.read_text() for file in files]


def kernels(options: argparse.Namespace, seconds: float) -> None:
    """The tests of Triton's kernels, and all that are marked `cuda`."""
    commands = [
        ["-m", "pytest", *PYTEST, "tests/kernels/triton"],
        ["-m", "pytest", *PYTEST, "-m", "cuda", "tests/ops", "tests/mechanism", "tests/models"],
    ]
    for said in run(commands, seconds, options.folder, "kernels"):
        lines = said.strip().splitlines()
        print("\n".join(line for line in lines if line.startswith("FAILED")))
        print(lines[-1] if lines else "nothing was said")


def right(options: argparse.Namespace, seconds: float) -> None:
    """Steps against the loop, a few workloads a process."""
    names = [n for n in options.workload or SMALL if n in SMALL]
    wanted = [x for p in options.precision or PRECISIONS for x in ("--precision", p)]
    commands = [
        ["-m", "tools.cuda.right", "--device", options.device, "--workload", name, *wanted]
        for name in names
    ]
    for name, said in zip(names, run(commands, seconds, options.folder, "right"), strict=True):
        own = [line for line in said.splitlines() if line.startswith(name)]
        print("\n".join(own) or f"{name:12s} said nothing in time")


def speed(options: argparse.Namespace, seconds: float) -> None:
    """The benchmark, alone on the machine, as far as the time reaches."""
    file = options.folder / "speed.json"
    file.unlink(missing_ok=True)
    command = ["-m", "tools.cuda.speed", "--device", options.device, "--json", str(file)]
    for option in ("workload", "precision", "contender"):
        command += [x for v in getattr(options, option) or () for x in (f"--{option}", v)]
    run([command], seconds, options.folder, "speed")
    lines = file.read_text().splitlines() if file.exists() else []
    print(table([json.loads(line) for line in lines]))


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown: ms of the plain step, and the others as multiples of it; MiB and first steps."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        found.setdefault((row["workload"], row["precision"]), {})[row["contender"]] = row
    others = list(dict.fromkeys(r["contender"] for r in rows if r["contender"] != "plain"))
    head = ["workload", "precision", "plain, ms", *others, "MiB", "first step, s"]
    lines = [head, ["---"] * len(head)]
    for (name, precision), own in found.items():
        plain = own.get("plain", {}).get("ms")
        known = {k: r for k, r in own.items() if "ms" in r}
        cells = [name, precision, f"{plain:.2f}" if plain else "-"]
        for key in others:
            row = known.get(key)
            share = f" ({row['ms'] / plain:.2f})" if row and plain else ""
            cells.append(f"{row['ms']:.2f}{share}" if row else "refuses" if key in own else "-")
        for what, form in (("mib", "{:.0f}"), ("first", "{:.0f}")):
            each = (form.format(known[k][what]) if k in known else "-" for k in ("plain", *others))
            cells.append(" / ".join(each))
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PARTS = {"kernels": kernels, "right": right, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--workload", choices={**LARGE, **SMALL}, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--contender", action="append", help="of tools/bench")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=520, help="of all parts together")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-logs"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    chosen = options.part or list(PARTS)
    if options.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("there is no GPU here; --device cpu tries the command on small shapes")
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} cores")
    end = time.monotonic() + options.seconds
    left = sum(SHARES[part] for part in chosen)
    for part in chosen:
        print(f"\n== {part}: {PARTS[part].__doc__}", flush=True)
        PARTS[part](options, max(1.0, end - time.monotonic()) * SHARES[part] / left)
        left -= SHARES[part]


if __name__ == "__main__":
    main()
