"""Drive a started page over HTTP as its clients do, and count what becomes of every request.

First requests one after the other give the service time, a few clients that never pause the capacity; then
come open loops: the clients arrive at random (Poisson), whether or not the page keeps up. Half of the
pictures are equal, 5 % are bad, 10 % of the clients leave before the answer. Latency counts from the moment a
client arrives.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from training.client import OUTCOMES, Client
from training.options import machine
from training.visits import SHAPES, Pictures, Visit, plan

ROOT = Path(__file__).resolve().parent.parent
LOADS = (0.5, 0.9, 2.0)  # of the capacity
CLIENTS = 4  # that find out the capacity


@dataclass
class Load:
    """What came of the visits of one load."""

    times_capacity: float
    rate: float  # arrivals a second
    outcomes: Counter[str]
    seconds: list[float]  # latency of each answered request
    growth: float | None  # MB of resident memory per 1,000 requests

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.seconds, share)) if self.seconds else float("nan")

    def as_json(self, service: float) -> dict[str, Any]:
        latency = {f"p{share}": self.percentile(share) for share in (50, 95, 99)}
        counts = {"sent": self.outcomes.total()} | {name: self.outcomes[name] for name in OUTCOMES}
        return {
            "times_capacity": self.times_capacity, "rate": self.rate, **counts, **latency,
            "p95_per_service_time": latency["p95"] / service, "memory_mb_per_1000": self.growth,
        }  # fmt: skip


async def alone(client: Client, turns: int) -> list[float]:
    """Latencies of requests one after the other; the first ones, which teach the results, do not count."""
    seconds = []
    for number in range(-SHAPES, turns):
        kind = "equal" if number == -SHAPES else "own"
        outcome, latency = await client.visit(Visit(number, 0, kind, None))
        if outcome != "answered":
            raise SystemExit(f"the page does not answer: {', '.join(client.faults) or outcome}")
        seconds += [latency] if number >= 0 else []
    return seconds


async def saturated(client: Client, clients: int, requests: int) -> float:
    """Requests a second of which the page is capable: `clients` send one after the other, without a pause."""
    numbers = iter(range(10_000, 10_000 + requests))
    began = time.perf_counter()

    async def send() -> None:
        for number in numbers:
            outcome, _ = await client.visit(Visit(number, 0, "own", None))
            if outcome != "answered":
                raise SystemExit(f"the page does not answer: {', '.join(client.faults) or outcome}")

    await asyncio.gather(*(send() for _ in range(clients)))
    return requests / (time.perf_counter() - began)


async def drive(client: Client, visits: Sequence[Visit], service: float) -> tuple[Counter[str], list[float]]:
    """Open loop: each visit begins when it is due. Outcomes, and latencies of the answered requests."""
    began = time.perf_counter()

    async def arrive(visit: Visit) -> tuple[str, float]:
        await asyncio.sleep(began + visit.due - time.perf_counter())
        late = time.perf_counter() - began - visit.due  # of this program, when the machine is busy
        outcome, seconds = await client.visit(visit, service)
        return outcome, seconds + late

    results = await asyncio.gather(*map(arrive, visits))
    return Counter(outcome for outcome, _ in results), [s for outcome, s in results if outcome == "answered"]


@dataclass(frozen=True)
class Server:
    """A page that runs in a process; where it was started by somebody else, only its address is known."""

    url: str
    pid: int | None = None
    uploads: Path | None = None
    log: Path | None = None

    def memory(self) -> float | None:
        """Resident memory, MB, where the system tells."""
        status = Path(f"/proc/{self.pid}/status")
        if self.pid is None or not status.exists():
            return None
        resident = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())  # none of a process that has ended
        return int(resident[1]) / 1024 if resident else None

    def disk(self) -> tuple[int, float] | None:
        """Number and MB of the files that the page keeps of uploads and results."""
        if self.uploads is None:
            return None
        sizes = [path.stat().st_size for path in self.uploads.rglob("*") if path.is_file()]
        return len(sizes), sum(sizes) / 2**20


@contextmanager
def started(command: Sequence[str] = (sys.executable, "app.py"), wait: float = 120) -> Iterator[Server]:
    """The page as a child process on a free port; its uploads and its log are deleted at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        uploads, log = Path(folder, "uploads"), Path(folder, "log")
        address = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
        environment = os.environ | address | {"GRADIO_TEMP_DIR": str(uploads)}
        with log.open("wb") as output:
            child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            _wait_until_ready(child, url, log, time.monotonic() + wait)
            yield Server(url, child.pid, uploads, log)
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait_until_ready(child: subprocess.Popen, url: str, log: Path, end: float) -> None:
    while time.monotonic() < end and child.poll() is None:
        try:
            if httpx.get(f"{url}/config", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit(f"the page did not start:\n{log.read_text(errors='replace')[-2000:]}")


async def measure(server: Server, args: Any) -> dict[str, Any]:
    """Everything that the table shows, as plain values."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with httpx.AsyncClient(base_url=server.url, timeout=args.deadline, limits=limits) as http:
        client = Client(http, args.model, Pictures(args.width, args.height, args.seed), args.deadline)
        seconds = await alone(client, args.turns)
        service = float(np.median(seconds))
        overheads = [await client.overhead(Visit(-99 - n, 0, "own", None)) for n in range(args.turns)]
        capacity = await saturated(client, CLIENTS, CLIENTS * args.turns)
        loads, disk = [], server.disk()
        for number, times in enumerate(LOADS):
            requests, rate = args.requests // len(LOADS), times * capacity
            client.pictures = Pictures(args.width, args.height, args.seed)  # the same, with another mark
            before = server.memory()
            outcomes, latencies = await drive(client, plan(requests, rate, args.seed + number), service)
            after = server.memory()
            growth = None if before is None or after is None else (after - before) / requests * 1000
            loads.append(Load(times, rate, outcomes, latencies, growth).as_json(service))
            print(f"{times} times capacity: {requests} requests sent", file=sys.stderr)
    left, sent = server.disk(), sum(load["sent"] for load in loads)
    log = server.log.read_text(errors="replace") if server.log else ""
    return {
        "picture": [args.width, args.height], "model": args.model, "seed": args.seed,
        "machine": machine(), "service_seconds": service, "service_range": [min(seconds), max(seconds)],
        "capacity": capacity,
        "overhead_seconds": float(np.median(overheads)), "overhead_range": [min(overheads), max(overheads)],
        "loads": loads, "memory_mb": server.memory(),
        "files_per_1000": left and disk and (left[0] - disk[0]) / sent * 1000,
        "files_mb_per_1000": left and disk and (left[1] - disk[1]) / sent * 1000,
        "tracebacks": log.count("Traceback (most recent call last)"), "faults": dict(client.faults),
    }  # fmt: skip


def print_loads(result: dict[str, Any]) -> None:
    """The table, the figures of the whole run, and the reasons of what was lost or wrong."""
    low, high = result["service_range"]
    service, overhead = result["service_seconds"], result["overhead_seconds"]
    width, height = result["picture"]
    print(f"{result['model']}, pictures of {width}x{height}, seed {result['seed']}")
    print(f"service time {service:.3f} s ({low:.3f}-{high:.3f})")
    print(f"capacity {result['capacity']:.1f} requests/s, by {CLIENTS} clients that never pause")
    low, high = result["overhead_range"]
    print(f"beside the function: {overhead * 1000:.0f} ms a request ({low * 1000:.0f}-{high * 1000:.0f})")
    heads = ("load", "per s", "sent", *OUTCOMES, "p50 s", "p95 s", "p99 s", "p95/service", "MB/1,000")
    print(" ".join(f"{head:>{max(8, len(head))}}" for head in heads))
    for load in result["loads"]:
        growth = load["memory_mb_per_1000"]
        cells = [f"{load['times_capacity']}x", f"{load['rate']:.1f}", load["sent"]]
        cells += [load[name] for name in OUTCOMES] + [f"{load[f'p{share}']:.3f}" for share in (50, 95, 99)]
        cells += [f"{load['p95_per_service_time']:.2f}", "?" if growth is None else f"{growth:.0f}"]
        print(" ".join(f"{cell:>{max(8, len(head))}}" for head, cell in zip(heads, cells, strict=True)))
    if result["memory_mb"] is not None:
        print(f"resident memory at the end {result['memory_mb']:.0f} MB, tracebacks {result['tracebacks']}")
    if result["files_per_1000"] is not None:
        files, size = result["files_per_1000"], result["files_mb_per_1000"]
        print(f"on disk per 1,000 requests: {files:.0f} files, {size:.0f} MB")
    print(result["machine"])
    for reason, count in result["faults"].items():
        print(f"{count} times: {reason}")


def benchmark_page(args: Any) -> int:
    """Load on a page; 1 when a request was lost or answered wrongly."""
    if args.url:
        result = asyncio.run(measure(Server(args.url, args.pid), args))
    else:
        with started() as server:
            result = asyncio.run(measure(server, args))
    print_loads(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(load["lost"] + load["wrong"] for load in result["loads"]))
