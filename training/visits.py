"""The clients of a load test: when each arrives, which picture it sends and how long it waits."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass

import numpy as np
from PIL import Image

EQUAL, BAD, LEAVING = 0.5, 0.05, 0.1  # shares of the visits
SHAPES = 8  # pictures that differ in height and content, so that an answer to another one is noticed


@dataclass(frozen=True)
class Visit:
    """A client: when it arrives (seconds), what it sends, and how many service times it waits."""

    number: int
    due: float
    picture: str  # "equal", "own" or "bad"
    patience: float | None  # None: until the answer


def plan(requests: int, rate: float, seed: int) -> list[Visit]:
    """Visits at exponentially distributed intervals, `rate` a second; the shares of each kind are exact."""
    chance = np.random.default_rng(seed)
    due = np.cumsum(chance.exponential(1 / rate, requests))
    rank, leaving = chance.permutation(requests), chance.permutation(requests) < LEAVING * requests
    kinds = np.select([rank < EQUAL * requests, rank < (EQUAL + BAD) * requests], ["equal", "bad"], "own")
    patience = chance.random(requests)
    return [
        Visit(n, float(due[n]), str(kinds[n]), float(patience[n]) if leaving[n] else None)
        for n in range(requests)
    ]


class Pictures:
    """JPEG files of a width and about a height; `own` ones are made different by a comment in the file."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        chance = np.random.default_rng(seed)
        self.mark, self.shapes = f"{seed}-{uuid.uuid4().hex}", []
        for shape in range(SHAPES):
            coarse = Image.fromarray(chance.integers(0, 256, (6, 8, 3), np.uint8))
            buffer = io.BytesIO()
            coarse.resize((width, height - shape), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            self.shapes.append(buffer.getvalue())

    def of(self, visit: Visit) -> tuple[int, bytes]:
        """Shape and file of a visit; the equal picture has shape 0, a bad one is cut off."""
        if visit.picture == "equal":
            return 0, self.shapes[0]
        shape = 1 + visit.number % (SHAPES - 1)
        comment = f"{self.mark}-{visit.number}".encode()
        head = b"\xff\xd8\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        data = head + self.shapes[shape][2:]
        return shape, data[: len(data) // 2] if visit.picture == "bad" else data
