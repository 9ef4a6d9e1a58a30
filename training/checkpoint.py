"""The state of a run on disk: whole or absent, with a checksum, and the one before it.

A checkpoint is what torch.save writes, of tensors and plain values alone, so torch.load(weights_only=True)
reads it. Its checksum stands where a zip file has its comment, at the very end.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from training.files import write_atomically

MARK = b"sha256:"
SEAL = len(MARK) + 64
END_OF_ZIP = b"PK\5\6"  # begins the last record, of 22 bytes while there is no comment
PREVIOUS = ".previous"  # before the suffix of the one that was the last before


class CheckpointError(ValueError):
    """There are checkpoints, and none can be used; the message says what to do."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace `path` by `state`; what it held before stays beside it as NAME.previous.pt.

    Raises CheckpointError for a number that is not finite, before anything is touched, and DiskFullError.
    """
    strange = next(not_finite(state), None)
    if strange is not None:
        raise CheckpointError(f"{path.name} is not written: {strange} holds a number that is not finite")
    data = _sealed(state)
    if path.exists():
        keep_as(path, previous(path))
    write_atomically(path, data)


def keep_as(path: Path, other: Path) -> None:
    """Let `other` be what `path` is now, at no cost where the disk knows links."""
    aside = other.with_suffix(".partial")
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside)
    except OSError:
        write_atomically(other, path.read_bytes())
        return
    os.replace(aside, other)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last state that is whole, on the CPU; None when none was ever saved.

    A damaged last one is left out with a warning, for the one before. Raises CheckpointError when that one is
    damaged or missing too: a run never starts over silently.
    """
    candidates = [place for place in (path, previous(path)) if place.exists()]
    for place in candidates:
        state = _opened(place.read_bytes())
        if state is not None:
            return state
        warnings.warn(f"{place} is damaged (its checksum does not fit)", stacklevel=2)
    if candidates:
        names = " and ".join(place.name for place in candidates)
        raise CheckpointError(
            f"{names} in {path.parent} cannot be read: bring one back from a copy, or begin with a new --out"
        )
    return None


def mend_checkpoint(path: Path) -> None:
    """Replace a damaged or missing state by the one before it, which the next save would lose otherwise."""
    whole = path.exists() and _opened(path.read_bytes()) is not None
    if not whole and previous(path).exists():
        keep_as(previous(path), path)


def previous(path: Path) -> Path:
    """Where the state before that in `path` lies."""
    return path.with_name(f"{path.stem}{PREVIOUS}{path.suffix}")


def _sealed(state: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    data = stream.getvalue()
    assert data[-22:-18] == END_OF_ZIP, "torch.save ends in another record than it used to"
    return data[:-2] + struct.pack("<H", SEAL) + MARK + hashlib.sha256(data).hexdigest().encode()


def _opened(data: bytes) -> dict[str, Any] | None:
    if data[-22:-18] == END_OF_ZIP and data[-2:] == b"\0\0":  # of an earlier version, without a checksum
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError):
            return None
    whole, seal = data[: -SEAL - 2] + b"\0\0", data[-SEAL:]
    if seal != MARK + hashlib.sha256(whole).hexdigest().encode():
        return None
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def not_finite(value: Any, where: str = "the state") -> Iterator[str]:
    """Places in a nested state whose floating-point numbers are not all finite."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and not value.isfinite().all():
            yield where
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from not_finite(part, str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from not_finite(part, where)
