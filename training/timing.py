"""Clocks and memory of the benchmarks."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

REST = 0.1  # seconds


def peak_memory() -> float:
    """Largest resident memory of this process so far, MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage gives a child the peak of its parent
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def interleaved(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of `runs` calls each, taken in turns after two that do not count: a SEARCH-Net is recorded in
    the second (searchseg/replay.py).

    Every call waits a moment before it: the threads of onnxruntime and of OpenMP spin for more work after the
    call before, and doubled the time of this one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-2, runs):
        for name, call in calls.items():
            time.sleep(REST)
            began = time.perf_counter()
            call()
            if turn >= 0:
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
