"""An upper bound on memory, so that a contender that wants too much is refused and not killed."""

import resource
from pathlib import Path

SHARE = 0.7  # of what is free now


def limit_memory() -> None:
    """Let allocations fail that the machine has no memory for; on Linux alone."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return
    free = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    bound = int(SHARE * 1024 * int(free.split()[1]))
    resource.setrlimit(resource.RLIMIT_DATA, (bound, resource.getrlimit(resource.RLIMIT_DATA)[1]))
