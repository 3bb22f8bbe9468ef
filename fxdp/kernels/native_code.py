"""Compiles C and C++ to code for this processor, by the compiler that Inductor uses.

Once a machine: shared libraries are kept beside Inductor's code, under the hash of what went into
them.
"""

import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from fxdp.torch_internals import InvalidCxxCompiler, cache_dir, get_cpp_compiler

# By a source's suffix. In C a * b + c is rounded twice, in C++ once where the processor can.
LANGUAGES = {
    ".c": ("-x", "c", "-std=c11"),
    ".cpp": ("-x", "c++", "-std=gnu++17", "-ffp-contract=fast", "-Wno-psabi"),
}
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
LINK = ("-fopenmp", "-shared", "-fPIC")
LONGEST = 120  # seconds that the compiler may take


def machine() -> str:
    """What compiled code for this processor depends on; "" where that is not known."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()} {line}"
    return ""


def built(source: Path, processor: str, *macros: str) -> Path | None:
    """The shared library of a source, from the cache if it is there.

    Args:
        macros: NAME=VALUE, for the compiler.

    Returns:
        None where it cannot be compiled. Where the processor is not known, a file of this process's
        own: code for another one might not run.
    """
    try:
        compiler, text = get_cpp_compiler(), source.read_bytes()
    except (InvalidCxxCompiler, OSError):
        return None
    defined = (f"-D{macro}" for macro in macros)
    flags = (*LANGUAGES[source.suffix], *FLAGS, *LINK, *defined)
    told = "\n".join((compiler, processor, *flags)).encode() + text
    name = f"fxdp-{source.stem}-{sha256(told).hexdigest()[:16]}.so"
    with suppress(OSError):
        folder = Path(cache_dir()) if processor else Path(tempfile.mkdtemp())
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        return path if path.exists() else compiled([compiler, *flags, str(source)], path)
    return None


def compiled(command: Sequence[str], path: Path) -> Path | None:
    """Run a compiler, whose result appears under `path` in one piece or not at all."""
    own = path.with_suffix(f".{os.getpid()}")
    try:
        done = subprocess.run(
            [*command, "-o", str(own)], capture_output=True, timeout=LONGEST, check=False
        )
        if done.returncode:
            return None
        own.replace(path)
    except (OSError, subprocess.SubprocessError):
        return None
    finally:
        own.unlink(missing_ok=True)
    return path
