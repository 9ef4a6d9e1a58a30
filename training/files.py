"""What a run leaves on disk: files that are whole or absent, one history line an epoch."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

# no space left, quota used up, and a file beyond the limit of the process
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step: a reader, or a killed run, sees the old file or the new
    one."""
    data = content.encode() if isinstance(content, str) else content
    replace_whole(path, lambda file: file.write(data), len(data))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file, or none when it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a .jsonl file whole, one record a line."""
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


class DiskFullError(OSError):
    """A file does not fit; what was there before is as it was. The message has the path and the space."""


def replace_whole(path: Path, write: Callable[[IO[bytes]], Any], size: int | None = None) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, rename it, and flush the folder.

    A crash at any point loses nothing. Raises DiskFullError when there is no room; `size` in bytes, where it
    is known.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno not in NO_ROOM:
            raise
        free = shutil.disk_usage(path.parent).free
        needed = "more room" if size is None else f"{size:,} bytes"
        told = f"cannot write {path}: it needs {needed}, {free:,} bytes are free on the disk"
        raise DiskFullError(error.errno, f"{told}; what was there before is as it was") from error
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
