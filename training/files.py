"""What a run leaves on disk: files that are whole or absent, one history line an epoch, checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step: a reader, or a killed run, sees the old file or the new
    one."""
    data = content.encode() if isinstance(content, str) else content
    replace_whole(path, lambda file: file.write(data))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file, or none when it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a .jsonl file whole, one record a line."""
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save tensors and plain values; atomic, in the same folder."""
    replace_whole(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state that `save_checkpoint` wrote, on the CPU; None when there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def replace_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, rename, and flush the folder: a crash at
    any point loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
