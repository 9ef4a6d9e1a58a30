"""A search with retraining as a child process that outlives a reload of the page and a restart of the server.

Everything about a run lies in its folder, so any server that looks there knows how it stands. One lock for
all runs, held by the child itself and freed by the system when it ends, says whether one is running.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page.uploads import without_paths
from searchseg import Genotype

try:
    import fcntl
except ImportError:  # not on Windows, where the page has no tab for training
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
RECORD, LOG, LOCK = "page.json", "log.txt", "lock"
TAIL_BYTES, TAIL_LINES = 8000, 15
# a server started with nohup, or by a script in the background, ignores SIGINT, and so would its child
STOPPABLE = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('training.run', run_name='__main__', alter_sys=True)"
)
_RECORDS, _LOCKING = threading.Lock(), threading.Lock()
_SECRET = re.compile("token|secret|password|key|credential", re.IGNORECASE)  # what a child need not know
BUSY = "Another run is going on: one at a time, stop it or wait for its end."
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)  # the first press of Stop, the second, ...


class RunError(ValueError):
    """What was asked of a run cannot be done; the message says why."""


@dataclass(frozen=True)
class Progress:
    """How a run stands. stage: "search", "retrain" or another of training.run; rows: histories of both."""

    state: str
    stage: str
    epoch: int
    epochs: int
    seconds_left: float | None
    search: list[dict[str, Any]]
    retrain: list[dict[str, Any]]
    log: str


@dataclass(frozen=True)
class TrainingRun:
    """One run in `runs` / `name`; raises RunError for a name that is not made of a-z, 0-9 and "-"."""

    runs: Path
    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name or ""):
            raise RunError("A name of up to 40 letters a-z, digits and - is wanted.")

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @classmethod
    def all(cls, runs: Path) -> list[TrainingRun]:
        """Every run in the folder, the newest first."""
        found = [p.parent for p in runs.glob(f"*/{RECORD}") if NAME.fullmatch(p.parent.name)]
        found.sort(key=lambda path: (path / RECORD).stat().st_mtime, reverse=True)
        return [cls(runs, path.name) for path in found]

    @classmethod
    def create(cls, runs: Path, name: str, options: list[str]) -> TrainingRun:
        """A new run of `training.run` with `options`; `start` begins it."""
        run = cls(runs, name)
        if (run.folder / RECORD).exists():
            raise RunError("There is a run of this name already: choose another.")
        run.folder.mkdir(parents=True, exist_ok=True)
        run._note(options=options, wanted=False)
        return run

    def start(self) -> None:
        """Begin, or continue after the last whole epoch. Raises RunError while another run is going on."""
        with _LOCKING:  # who only looks holds it for a moment, too
            lock = _lock(self.runs)
        if lock is None:
            raise RunError(BUSY)
        try:
            self._note(wanted=True, exit=None, presses=0, started=time.time())
            os.truncate(lock, 0)
            os.write(lock, self.name.encode())
            command = [sys.executable, "-c", STOPPABLE, *self._record()["options"]]
            environment = {k: v for k, v in os.environ.items() if not _SECRET.search(k)}
            # the run's own folder: a Hub id must not turn into a folder of this server
            environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
            with open(self.folder / LOG, "ab") as log:
                child = subprocess.Popen(
                    [*command, "--out", str(self.folder)], cwd=self.folder, env=environment, stdout=log,
                    stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                    pass_fds=(lock,),
                )  # fmt: skip
        except (OSError, ValueError) as error:  # too long for a command line, or a character it cannot hold
            self._note(exit=1, wanted=False)
            raise RunError(f"This run cannot be started: {error.__class__.__name__}.") from error
        finally:
            os.close(lock)  # the child has it too, and holds it to its end
        self._note(pid=child.pid)
        threading.Thread(target=self._wait, args=(child,), daemon=True, name=f"run {self.name}").start()

    def stop(self) -> None:
        """Ask the child to end, each time more firmly; what was done until its last whole epoch stays."""
        presses = self._record().get("presses", 0)
        self._note(wanted=False, presses=presses + 1)
        pid = self._record().get("pid")
        if self.running and isinstance(pid, int):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, STOP_SIGNALS[min(presses, len(STOP_SIGNALS) - 1)])

    @property
    def running(self) -> bool:
        """Whether this run's child lives, whoever started it."""
        if not busy(self.runs):
            return False
        with contextlib.suppress(OSError):
            return (self.runs / LOCK).read_text() == self.name
        return False

    @property
    def state(self) -> str:
        """One of running, stopping, finished, stopped, failed, and interrupted (by a reboot)."""
        record, running = self._record(), self.running
        if running:
            return "running" if record.get("wanted") else "stopping"
        if (self.model / "README.md").is_file():
            return "finished"
        if not record.get("wanted"):
            return "stopped"
        return "interrupted" if record.get("exit") is None else "failed"

    def progress(self) -> Progress:
        """How it stands, from what it has written so far."""
        rows = {stage: _lines(self.folder / folder / "history.jsonl") for stage, folder in STAGES.items()}
        epochs = {stage: _epochs(self.folder / folder) for stage, folder in STAGES.items()}
        plan = _json(self.folder / "plan.json")
        left = 0.0
        for stage, done in rows.items():
            planned = epochs[stage] or plan.get(f"{stage}_epochs") or 0
            spent = [row["seconds"] for row in done[-5:] if isinstance(row.get("seconds"), int | float)]
            pace = sum(spent) / len(spent) if spent else plan.get(f"{stage}_epoch_seconds")
            left = left + (planned - len(done)) * pace if planned and pace else float("nan")
        stage = "retrain" if rows["retrain"] or epochs["retrain"] else "search"
        known = left == left and self.running  # not a number where a stage's pace is unknown
        return Progress(
            self.state, stage, len(rows[stage]), epochs[stage] or 0, max(0.0, left) if known else None,
            rows["search"], rows["retrain"], self._tail(),
        )  # fmt: skip

    def genotype(self) -> Genotype | None:
        """The genotype of the last epoch, None before the first."""
        try:
            return Genotype.from_json((self.folder / "search" / "genotype.json").read_bytes())
        except (OSError, ValueError):
            return None

    def alpha(self) -> dict[str, Any] | None:
        """Alphas of the last epoch, None where the method has none."""
        rows = _lines(self.folder / "search" / "search" / "alpha.jsonl")
        return rows[-1].get("alpha") if rows else None

    def shape(self) -> dict[str, Any]:
        """Widths and stem stride of the network that is searched; empty before the search has begun."""
        settings = _json(self.folder / "search" / "settings.json").get("settings", {})
        return {key: settings[key] for key in ("widths", "stem_stride") if key in settings}

    def _wait(self, child: subprocess.Popen[bytes]) -> None:
        status = child.wait()  # before the record is read: it changes meanwhile
        self._note(exit=status)

    def _record(self) -> dict[str, Any]:
        return _json(self.folder / RECORD)

    def _note(self, **facts: Any) -> None:
        """Change the record; the old one or the new one is there at any moment."""
        with _RECORDS:
            path = self.folder / f".{RECORD}"
            path.write_text(json.dumps({**self._record(), **facts}))
            os.replace(path, self.folder / RECORD)

    def _tail(self) -> str:
        """The last lines of the log, progress bars as they stand now, without this server's folders."""
        with contextlib.suppress(OSError), open(self.folder / LOG, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = log.read().decode(errors="replace")
            lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").splitlines()]
            shown = "\n".join([line for line in lines if line.strip()][-TAIL_LINES:])
            return without_paths(shown.replace(str(self.folder), self.name).replace(f"{ROOT}/", ""))
        return ""


STAGES = {"search": "search", "retrain": "net"}


def resume(runs: Path) -> TrainingRun | None:
    """Continue the run that a restart of the machine has interrupted, if there is one; returns it."""
    for run in TrainingRun.all(runs) if fcntl else []:
        if run.state == "interrupted":
            with contextlib.suppress(RunError):
                run.start()
                return run
    return None


def busy(runs: Path) -> bool:
    """Whether a child holds the lock of all runs."""
    with _LOCKING:
        lock = _lock(runs)
        if lock is not None:
            os.close(lock)
    return lock is None


def _lock(runs: Path) -> int | None:
    """An open file that holds the lock of all runs; None when a child has it."""
    runs.mkdir(parents=True, exist_ok=True)
    file = os.open(runs / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _epochs(folder: Path) -> int | None:
    epochs = _json(folder / "settings.json").get("settings", {}).get("epochs")
    return epochs if isinstance(epochs, int) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that another process may be writing."""
    rows = []
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows
