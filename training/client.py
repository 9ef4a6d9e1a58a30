"""A client of the page, over HTTP as gradio's own clients speak it, which judges what it is answered."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from training.visits import Pictures, Visit

OUTCOMES = {
    "answered": "a good picture got its result",
    "told": "a bad picture got a sentence",
    "refused": "not accepted, with a sentence",
    "left": "the client went before the answer",
    "lost": "accepted, but never answered",
    "wrong": "anything else: a result that belongs to another picture, an error without a sentence",
}


def is_sentence(text: object) -> bool:
    """Whether a message may be shown to a person: words with a full stop, neither path nor program text."""
    if not isinstance(text, str) or re.search(r"Traceback|Error\b|/\w|\\\w|0x", text):
        return False
    return bool(re.fullmatch(r"[A-Z]\S*( \S+){2,}[.!]", text))


class Refused(Exception):
    """The page did not accept the request; `message` is what it said."""

    def __init__(self, status: int, message: object) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.clean = status in (429, 503) and is_sentence(message)


def accepted(response: httpx.Response) -> Any:
    """The JSON of an accepted request."""
    if response.status_code == 200:
        return response.json()
    try:
        raise Refused(response.status_code, response.json()["detail"])
    except (ValueError, TypeError, KeyError):
        raise Refused(response.status_code, response.text[:200]) from None


@dataclass
class Client:
    """Speaks gradio's protocol for programs (upload, call, stream of events) and its browsers' (join)."""

    http: httpx.AsyncClient  # its base_url is the page's address
    model: str
    pictures: Pictures
    deadline: float = 120.0  # seconds after which an accepted request counts as lost
    expected: dict[int, tuple[Any, bytes]] = field(default_factory=dict)  # by shape: report and mask
    faults: Counter[str] = field(default_factory=Counter)

    async def upload(self, data: bytes) -> dict[str, Any]:
        """The picture as the endpoint's first argument."""
        files = {"files": ("photo.jpg", data)}
        (path,) = accepted(await self.http.post("/gradio_api/upload", files=files))
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    async def call(self, picture: dict[str, Any]) -> str:
        """Id of the accepted event."""
        arguments = {"data": [picture, self.model, 0.5]}
        return accepted(await self.http.post("/gradio_api/call/segment", json=arguments))["event_id"]

    async def answer(self, event: str) -> tuple[str, Any]:
        """("complete", results) or ("error", message); ("", None) when the stream ends without either."""
        async with aclosing(self._stream(f"/gradio_api/call/segment/{event}")) as stream:
            async for kind, data in stream:
                if kind == "complete":
                    return kind, data
                if kind == "error":
                    return kind, data.get("error") if isinstance(data, dict) else data
        return "", None

    async def _stream(self, address: str) -> AsyncGenerator[tuple[str, Any], None]:
        kind = ""
        async with self.http.stream("GET", address, timeout=self.deadline) as response:
            async for line in response.aiter_lines():
                if line.startswith("event:"):
                    kind = line[6:].strip()
                elif line.startswith("data:"):
                    yield kind, json.loads(line[5:])

    async def overhead(self, visit: Visit) -> float:
        """Seconds that a browser waits beyond those inside the endpoint's function."""
        functions = (await self.http.get("/config")).json()["dependencies"]
        (function,) = (f["id"] for f in functions if f["api_name"] == "segment")
        began, session = time.perf_counter(), uuid.uuid4().hex
        picture = await self.upload(self.pictures.of(visit)[1])
        arguments = {"data": [picture, self.model, 0.5], "fn_index": function, "session_hash": session}
        accepted(await self.http.post("/gradio_api/queue/join", json=arguments))
        async with aclosing(self._stream(f"/gradio_api/queue/data?session_hash={session}")) as stream:
            async for _, message in stream:
                if message["msg"] == "process_completed":
                    return time.perf_counter() - began - message["output"]["duration"]
        raise RuntimeError("the page closed the stream without an answer")

    async def visit(self, visit: Visit, service: float = 0.0) -> tuple[str, float]:
        """One of OUTCOMES, and the seconds until it was known."""
        began = time.perf_counter()
        shape, data = self.pictures.of(visit)
        try:
            event = await self.call(await self.upload(data))
        except Refused as refusal:
            return self._outcome("refused" if refusal.clean else "wrong", str(refusal)), 0.0
        except (httpx.HTTPError, ValueError, TypeError, KeyError) as error:
            return self._outcome("wrong", f"before the call was accepted: {error!r}"), 0.0
        patience = self.deadline if visit.patience is None else visit.patience * service
        try:
            kind, answer = await asyncio.wait_for(self.answer(event), patience)
        except asyncio.TimeoutError:
            outcome = "lost" if visit.patience is None else "left"
            return self._outcome(outcome, f"no answer in {patience:.0f} s"), patience
        except (httpx.HTTPError, ValueError) as error:
            return self._outcome("lost", f"the stream broke: {error!r}"), 0.0
        seconds = time.perf_counter() - began
        return await self._judge(visit, shape, kind, answer), seconds

    async def _judge(self, visit: Visit, shape: int, kind: str, answer: Any) -> str:
        if not kind:
            return self._outcome("lost", "the stream ended without an answer")
        if kind == "error":
            fitting = visit.picture == "bad" and is_sentence(answer)
            return self._outcome("told" if fitting else "wrong", f"{visit.picture} picture: {answer!r}")
        if visit.picture == "bad":
            return self._outcome("wrong", "a bad picture got a result")
        try:
            _, _, mask, report = answer
            file = await self.http.get(f"/gradio_api/file={mask['path']}")
        except (httpx.HTTPError, ValueError, TypeError, KeyError) as error:
            return self._outcome("wrong", f"result without a mask: {error!r}")
        result = ({**report, "seconds": 0}, file.content)
        if self.expected.setdefault(shape, result) != result:
            return self._outcome("wrong", f"mask (HTTP {file.status_code}) or report of another picture")
        return "answered"

    def _outcome(self, outcome: str, reason: str) -> str:
        if outcome in ("lost", "wrong"):
            self.faults[reason] += 1
        return outcome
