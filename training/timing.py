"""Clocks and memory of the benchmarks."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path


def peak_memory() -> float:
    """Largest resident memory of this process so far, MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage gives a child the peak of its parent
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def interleaved(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of `runs` calls each, taken in turns after one call that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(runs + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def between_marks(into: Path, mark: str, text: str) -> None:
    """Replace what stands between the lines `<!-- mark -->` and `<!-- end of mark -->` of a file."""
    from training.files import write_atomically

    first, last = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, found, rest = into.read_text().partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        raise SystemExit(f"{into} has no lines {first} and {last}: write them where the table belongs")
    write_atomically(into, f"{before}{first}\n\n{text}\n{last}{after}")
