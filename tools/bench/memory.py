"""How much memory a step takes at its peak, above what there was before it.

A process's resident size says little of a small step: it counts pages that the allocator keeps.
torch's profiler reports each allocation and each release of torch's own allocators, which generated
code uses as well; the peak is that of their running sum. The release of what was there before the
step is not counted, as the profiler does not know its size; steps begin without gradients. What
libraries allocate for themselves (oneDNN's scratch memory) is not in it. On CUDA the caching
allocator keeps the count.
"""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def peak(step: Callable[[], object], device: str = "cpu") -> float:
    """MiB at the peak of a step, above the state before it."""
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / MIB
