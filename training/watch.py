"""Processes that train together watch one another: when one is gone, the others stop and say so.

A process that waits for a gradient of one that is dead would wait for hours, as a slow one must be waited
for. So a thread of each process counts up a number in the store that they have met in, every few seconds,
and looks whether the numbers of the others go on. It is the same on every backend and over several machines;
launchers watch the processes of their own machine alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

BEAT = 3.0  # seconds between signs of life
MISSED = 10  # of them in a row, and the process is gone
STATUS = 1
ROUND = itertools.count()  # a process may train several times


@contextlib.contextmanager
def watched(advice: str, beat: float = BEAT) -> Iterator[None]:
    """End this process with status 1 and a message that closes with `advice` when another one is gone.

    A process that leaves with an error counts as gone; one that leaves otherwise says goodbye.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        yield
        return
    own, count = dist.get_rank(), dist.get_world_size()
    store = dist.distributed_c10d._get_default_store().clone()  # a connection of its own, as others may wait
    store = dist.PrefixStore(f"watch/{next(ROUND)}", store)
    store.set_timeout(timedelta(seconds=beat * MISSED))
    left = threading.Event()
    thread = threading.Thread(target=_watch, args=(store, own, count, beat, left, advice), daemon=True)
    thread.start()
    try:
        yield
        store.set(f"left/{own}", "1")
    finally:
        left.set()


def tell(message: str) -> None:
    """Print what went wrong, once for all processes that say the same, whichever of them it is."""
    if dist.is_available() and dist.is_initialized():
        digest = hashlib.sha256(message.encode()).hexdigest()
        with contextlib.suppress(RuntimeError, dist.DistError):  # the store may be gone
            if dist.distributed_c10d._get_default_store().add(f"watch/told/{digest}", 1) > 1:
                return
    print(message, file=sys.stderr, flush=True)


def _watch(store: Any, own: int, count: int, beat: float, left: threading.Event, advice: str) -> None:
    seen, missed = dict.fromkeys(range(count), 0), dict.fromkeys(range(count), 0)
    while not left.wait(beat):  # not clocks: a machine that sleeps stops all counts at once
        try:
            store.add(str(own), 1)
            gone = _missing(store, own, seen, missed)
        except (RuntimeError, dist.DistError):  # the process that keeps the store
            gone = [0]
        if gone and not left.is_set():
            _end(own, gone, advice)


def _missing(store: Any, own: int, seen: dict[int, int], missed: dict[int, int]) -> list[int]:
    for other in seen:
        now = store.add(str(other), 0)
        missed[other] = 0 if now != seen[other] or other == own else missed[other] + 1
        seen[other] = now
    late = [other for other, times in missed.items() if times >= MISSED]
    return [other for other in late if not store.check([f"left/{other}"])]


def _end(own: int, gone: list[int], advice: str) -> None:
    names = ", ".join(map(str, gone))
    print(f"error: process {own} stops, as process {names} is gone; {advice}", file=sys.stderr, flush=True)
    os._exit(STATUS)
