"""How long a user waits: for `import searchseg`, for the page to answer, for its first mask and first paint.

Every turn is a new process, so nothing but the file cache of the system is warm. The first paint is what
Chromium reports as first-contentful-paint, in a new profile, where Playwright and a chromium are there.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
import time

import httpx

from training.client import Client
from training.load import ROOT, started
from training.options import machine
from training.visits import Pictures, Visit

TARGETS = {"import searchseg beyond import torch": 0.5, "app.py until it answers": 8.0,
           "first mask after that": 1.0, "first paint": 2.0}  # fmt: skip
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
PAINT = """() => new Promise(tell => new PerformanceObserver(
    list => list.getEntriesByName('first-contentful-paint').forEach(entry => tell(entry.startTime))
).observe({type: 'paint', buffered: true}))"""
IMPORT = (
    "import torch, time; began = time.perf_counter(); import searchseg; print(time.perf_counter() - began)"
)


def import_seconds() -> float:
    """Seconds of `import searchseg` in a new process that has imported torch."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


async def first_mask(url: str, model: str) -> float:
    """Seconds from sending the first picture to its result."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        client = Client(http, model, Pictures(1024, 768, 0))
        outcome, seconds = await client.visit(Visit(0, 0, "own", None))
    if outcome != "answered":
        raise SystemExit(f"the page does not answer: {', '.join(client.faults) or outcome}")
    return seconds


def first_paint(url: str) -> float | None:
    """Seconds until Chromium shows something of the page; None where there is no browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if not (chromium := shutil.which("chromium")):
        return None
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        page.goto(url, wait_until="commit")
        milliseconds = page.evaluate(PAINT)
        browser.close()
    return milliseconds / 1000


def measure(turns: int, model: str) -> dict[str, list[float]]:
    """Seconds of every turn, by the names of TARGETS."""
    found: dict[str, list[float]] = {name: [] for name in TARGETS}
    for _ in range(turns):
        found["import searchseg beyond import torch"].append(import_seconds())
        began = time.perf_counter()
        with started() as server:
            found["app.py until it answers"].append(time.perf_counter() - began)
            found["first mask after that"].append(asyncio.run(first_mask(server.url, model)))
            paint = first_paint(server.url)
            found["first paint"] += [] if paint is None else [paint]
    return found


def benchmark_start(args: argparse.Namespace) -> int:
    """Print the table; 1 when a median is above its target."""
    found, missed = measure(args.turns, args.model), 0
    print(f"{'what':<38} {'median s':>9} {'range':>15} {'target':>7}")
    for name, seconds in found.items():
        if not seconds:
            print(f"{name:<38} not measured: Playwright and chromium are needed")
            continue
        median = statistics.median(seconds)
        missed += median > TARGETS[name]
        print(f"{name:<38} {median:>9.2f} {min(seconds):>7.2f}-{max(seconds):<7.2f} {TARGETS[name]:>7.1f}")
    print(f"{args.turns} turns, {machine()}")
    return int(missed > 0)
