"""What a run leaves on disk: files that are whole or absent, one history line an epoch."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

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
    temporary = path.with_name(path.name + ".partial")
    try:
        with enough_room(path, size):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    flush_folder(path.parent)


def replace_files(folder: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill an empty folder, then move its files into `folder`, each in one step.

    For files that a library writes itself. Raises DiskFullError when there is no room.
    """
    aside = folder / "files.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with enough_room(folder):
            aside.mkdir(parents=True)
            write(aside)
            for path in sorted(aside.iterdir()):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    flush_folder(folder)


@contextlib.contextmanager
def enough_room(path: Path, size: int | None = None) -> Iterator[None]:
    """DiskFullError for `path`, which needs `size` bytes, instead of what else says that there is no room."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = re.search(r"os error (\d+)", str(error))  # safetensors has it in its words alone
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number not in NO_ROOM or isinstance(error, DiskFullError):
            raise
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        needed = "more room" if size is None else f"{size:,} bytes"
        told = f"cannot write {path}: it needs {needed}, {free:,} bytes are free on the disk"
        raise DiskFullError(number, f"{told}; what was there before is as it was") from error


def flush_folder(path: Path) -> None:
    """Let the disk have the names of the files in a folder, not their contents alone."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
