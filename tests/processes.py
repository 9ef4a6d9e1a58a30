"""Real processes that train together over gloo, forked from the test so that nothing is imported again."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


def fork_group(count: int, work: Callable[[int], int], log: Path) -> list[int]:
    """Start `work(rank)` in `count` processes that accelerate takes for one group; returns their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_begin(rank, count, port, work, log) for rank in range(count)]


def _begin(rank: int, count: int, port: int, work: Callable[[int], int], log: Path) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # pytest has put others in their place
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        torch.set_num_threads(1)
        status = work(rank)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def statuses(children: list[int], seconds: float = 120) -> list[int | None]:
    """Exit status of every child (negative: by a signal); None for those that did not end in time."""
    end, found = time.monotonic() + seconds, dict.fromkeys(children)
    while None in found.values() and time.monotonic() < end:
        for child in (c for c, status in found.items() if status is None):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                found[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for child in (c for c, status in found.items() if status is None):
        os.kill(child, 9)
        os.waitpid(child, 0)
    return list(found.values())
