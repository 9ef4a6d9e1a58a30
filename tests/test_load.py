"""Proves that the load test counts what the page did: on the true page, and on one with every fault."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from test_page import draw_photo, save_model

import app
from searchseg import Segmenter, UNet
from training.benchmark import main
from training.client import Client, is_sentence
from training.load import Server, drive
from training.visits import Pictures, Visit, plan

TOLD = "The picture is damaged or incomplete. Download or export it again and retry."
FULL = "Queue is full. Max size is 16 and size is 16."


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a true page with one tiny network."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    widths = {"widths": [4, 8], "num_classes": 2}
    save_model(folder / "tiny", UNet(**widths), widths, draw_photo(folder / "photo.jpg"), 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        demo = app.build_demo(folder)
        _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True)
        yield url.rstrip("/")
        demo.close()


def visit_all(url: str, visits: list[Visit], service: float = 0, **options) -> tuple[Counter, Client]:
    async def run() -> tuple[Counter, Client]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            client = Client(http, "tiny", Pictures(64, 48, 0), **options)
            counted, _ = await drive(client, visits, service)
            return counted, client

    return asyncio.run(run())


def test_shares_are_exact_and_arrivals_random():
    visits = plan(2000, 10.0, seed=3)
    assert visits == plan(2000, 10.0, seed=3) != plan(2000, 10.0, seed=4)
    assert Counter(visit.picture for visit in visits) == {"equal": 1000, "own": 900, "bad": 100}
    assert sum(visit.patience is not None for visit in visits) == 200
    gaps = np.diff([visit.due for visit in visits])
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(0.1, rel=0.1) and gaps.std() == pytest.approx(0.1, rel=0.1)


def test_own_pictures_are_all_different_files():
    pictures, again = Pictures(64, 48, 0), Pictures(64, 48, 0)
    own = [pictures.of(Visit(n, 0, "own", None)) for n in range(20)]
    assert len({data for _, data in own}) == 20 and {shape for shape, _ in own} == set(range(1, 8))
    assert own[0][1] != again.of(Visit(0, 0, "own", None))[1]  # another run asks anew
    assert pictures.of(Visit(0, 0, "equal", None)) == again.of(Visit(9, 0, "equal", None))


@pytest.mark.parametrize(
    "text", [TOLD, FULL, "Choose a picture first: upload one, take a photo or paste it."]
)
def test_a_sentence_may_be_shown(text: str):
    assert is_sentence(text)


@pytest.mark.parametrize(
    "text",
    [
        None, "", "None", 17, "no capital.", "No full stop", "Failed.", "In /tmp/gradio it went wrong.",
        "ValueError: bad things have happened here.", "<html>Bad gateway came here.</html>",
    ],
)  # fmt: skip
def test_no_sentence(text: object):
    assert not is_sentence(text)


def test_the_true_page_answers_tells_refuses_and_survives_who_leaves(page: str):
    one_by_one = [Visit(n, n * 0.2, kind, None) for n, kind in enumerate(("equal", "own", "bad", "equal"))]
    counted, client = visit_all(page, one_by_one)
    assert counted == {"answered": 3, "told": 1} and not client.faults
    crowd = [Visit(100 + n, 0, "own", 0.0 if n % 10 == 0 else None) for n in range(60)]
    counted, client = visit_all(page, crowd)
    assert not client.faults
    assert set(counted) == {"answered", "refused", "left"} and counted.total() == 60
    assert counted["answered"] + counted["left"] >= 16  # so many wait in the queue
    assert visit_all(page, one_by_one)[0] == {"answered": 3, "told": 1}


def test_the_command_prints_a_table(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("training.load.LOADS", (0.5,))
    options = f"--requests 20 --turns 4 --model tiny --width 64 --height 48 --json {tmp_path / 'figures'}"
    assert main(["page", "--url", page, *options.split()]) == 0
    printed = capsys.readouterr().out
    assert "capacity" in printed and "0.5x" in printed and "beside the function" in printed
    figures = json.loads((tmp_path / "figures").read_text())
    (load,) = figures["loads"]
    assert load["sent"] == 20 and load["lost"] == load["wrong"] == 0 and load["told"] == 1
    assert load["answered"] + load["left"] + load["refused"] == 19
    assert 0 < figures["overhead_seconds"] < 5 and 0 < figures["service_seconds"] < 5
    assert figures["memory_mb"] is None and figures["files_per_1000"] is None  # of a page that is not ours


def test_time_inside_the_function_is_no_overhead(page: str, monkeypatch: pytest.MonkeyPatch):
    segment = Segmenter.__call__
    monkeypatch.setattr(Segmenter, "__call__", lambda *arguments: (time.sleep(1), segment(*arguments))[1])

    async def run() -> tuple[float, float]:
        async with httpx.AsyncClient(base_url=page, timeout=30) as http:
            client = Client(http, "tiny", Pictures(64, 48, 0))
            _, whole = await client.visit(Visit(1, 0, "own", None))
            return await client.overhead(Visit(2, 0, "own", None)), whole

    overhead, whole = asyncio.run(run())
    assert 0 < overhead < 1 < whole


def test_a_server_knows_its_memory_and_its_files(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mask.png").write_bytes(bytes(2**20))
    server = Server("http://127.0.0.1:1", os.getpid(), tmp_path)
    assert server.disk() == (1, 1.0)
    assert 50 < server.memory() < 50_000
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it stays in the table of processes
    assert Server("http://127.0.0.1:1", ended.pid).memory() is None
    ended.wait()


class FaultyPage(BaseHTTPRequestHandler):
    """Answers the picture named N with the fault FAULTS[N]; the picture's comment carries the number."""

    report = {"height": 48, "width": 64, "seconds": 0.1}
    streams: dict[str, bytes] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/upload"):
            number = re.search(rb"-(\d+)\xff\xe0", body)[1].decode()
            return self.reply(200, json.dumps([number]))
        number = json.loads(body)["data"][0]["path"]
        status, answer, stream = FAULTS[int(number)][1:]
        self.streams[number] = stream
        return self.reply(status, answer or json.dumps({"event_id": number}))

    def do_GET(self) -> None:
        if "/file=" in self.path:
            return self.reply(200, self.path.rpartition("=")[2])
        stream = self.streams[self.path.rpartition("/")[2]]
        if stream == b"silence":
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            threading.Event().wait(2)
            return None
        return self.reply(200, stream.decode(), 99 if stream == b"cut" else 0)

    def reply(self, status: int, text: str, missing: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text) + missing))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


def complete(mask: str = "mask", **changes: object) -> bytes:
    report = {**FaultyPage.report, **changes}
    return f"event: complete\ndata: {json.dumps([{}, {}, {'path': mask}, report])}\n\n".encode()


def error(message: object) -> bytes:
    data = None if message is None else {"error": message}
    return f"event: heartbeat\ndata: null\n\nevent: error\ndata: {json.dumps(data)}\n\n".encode()


def detail(sentence: str) -> str:
    return json.dumps({"detail": sentence})


# picture, status and answer to the call, stream of events -> what must be counted; 7 and 14 have one shape
FAULTS: dict[int, tuple[str, int, str, bytes]] = {
    7: ("answered own", 200, "", complete()),
    14: ("answered own", 200, "", complete(seconds=7)),
    21: ("wrong own", 200, "", complete(height=47)),
    28: ("wrong own", 200, "", complete(mask="other")),
    35: ("wrong own", 200, "", b"event: complete\ndata: [null]\n\n"),
    42: ("wrong own", 200, "", error(TOLD)),
    1: ("told bad", 200, "", error(TOLD)),
    2: ("wrong bad", 200, "", error(None)),
    3: ("wrong bad", 200, "", error("[Errno 2] /tmp/gradio/photo.jpg")),
    4: ("wrong bad", 200, "", complete()),
    5: ("refused own", 503, detail(FULL), b""),
    6: ("wrong own", 500, detail("Something went wrong here."), b""),
    8: ("wrong own", 503, "<html>Bad gateway.</html>", b""),
    9: ("wrong own", 200, "no JSON", b""),
    16: ("wrong own", 200, "{}", b""),
    10: ("lost own", 200, "", b""),
    11: ("lost own", 200, "", b"event: heartbeat\ndata: null\n\n"),
    12: ("lost own", 200, "", b"cut"),
    13: ("lost own", 200, "", b"silence"),
    15: ("left own", 200, "", b"silence"),
}


@pytest.fixture(scope="module")
def faulty_page() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FaultyPage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("number", FAULTS)
def test_every_fault_is_counted_as_what_it_is(faulty_page: str, number: int):
    outcome, picture = FAULTS[number][0].split()
    right = Visit(7, 0, "own", None)  # teaches what the shape's answer is
    visit = Visit(number, 0.1, picture, 1.0 if outcome == "left" else None)
    counted, client = visit_all(faulty_page, [right, visit], service=0.2, deadline=0.5)
    assert counted == Counter(["answered", outcome])
    assert client.faults.total() == (outcome in ("lost", "wrong"))


def test_a_page_that_is_gone_counts_as_wrong():
    counted, _ = visit_all("http://127.0.0.1:9", [Visit(1, 0, "own", None)])
    assert counted == {"wrong": 1}
