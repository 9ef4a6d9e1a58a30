"""Proves that a killed search and retraining end as undisturbed ones do, and that a difference is seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import faults, retrain
from training.checkpoint import load_checkpoint, save_checkpoint
from training.loop import CHECKPOINT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
ROOT = Path(__file__).resolve().parent.parent


def test_kills_and_signals_change_nothing_and_a_difference_is_seen(tmp_path: Path) -> None:
    words = ["--kills", "1", "--signals", "1", "--epochs", "2", "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "training.faults", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("search", "retrain"):
        for name, count in (("SIGKILL", 1), ("SIGTERM", 1), ("SIGINT", 1)):
            lines = [line for line in done.stdout.splitlines() if line.startswith(f"{what}, {name}")]
            assert f": {count} interruptions" in lines[-1] and ", 0 differ" in lines[-1]

    # stopped between its first two files
    out, began = tmp_path / "retrain-undisturbed", tmp_path / "began"
    began.mkdir()
    shutil.copy(out / "settings.json", began)
    assert retrain.main(["--resume", str(began)]) == 0
    assert faults.equal(faults.result(began), faults.result(out))
    (began / "genotype.json").unlink()
    assert retrain.main(["--resume", str(began)]) == 1

    wanted = faults.result(out)
    assert faults.equal(faults.result(out), wanted) and len(wanted[0]) == 2 and len(wanted[3]) > 100
    assert faults.equal(faults.result(tmp_path / "retrain-9-0"), wanted)
    state = load_checkpoint(out / CHECKPOINT)
    values = state["training"]["optimizer"]["state"][0]["exp_avg"]
    values[0, 0, 0, 0] = torch.nextafter(values[0, 0, 0, 0], torch.tensor(9.0))  # the smallest difference
    save_checkpoint(out / CHECKPOINT, state)
    assert not faults.equal(faults.result(out), wanted)
