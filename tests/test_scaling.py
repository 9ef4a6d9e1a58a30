"""Proves that the cost model counts what a step does, fits what it should, and that memory has its limit."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from searchseg.cost import macs, parameters
from training import memory, scaling
from training.benchmark import main as benchmark
from training.scaling_points import MEASURED, cost_of, network_of

NET = {"what": "retrain", "widths": (4, 4, 8, 8), "nodes": 2}


def test_what_a_step_does_is_counted_without_doing_it() -> None:
    cost = cost_of(**NET, size=32, pictures=2)
    net = network_of(**NET)
    assert cost["macs"] == 3 * 2 * macs(net, (1, 3, 32, 32)) and cost["weights"] == 4 * parameters(net)
    larger = cost_of(**NET, size=32, pictures=4)
    assert larger["macs"] == 2 * cost["macs"] and larger["calls"] == cost["calls"]
    assert 1.8 < larger["kept"] / cost["kept"] < 2.1 and 1.5 < larger["bytes"] / cost["bytes"] < 2
    search, quarter = (cost_of("search", (4, 4, 8, 8), 1, 32, 2, partial) for partial in (1, 4))
    assert search["kept"] > 3 * cost["kept"] and quarter["kept"] < 0.6 * search["kept"]


def test_the_fit_finds_what_made_the_points_and_nothing_negative() -> None:
    rows = [[1.0, n, n % 3] for n in range(1, 9)]
    wanted = [2 + 3 * n + 5 * (n % 3) for n in range(1, 9)]
    assert scaling.nonnegative(rows, wanted) == pytest.approx([2, 3, 5])
    down = scaling.nonnegative(rows, [5 * n - 0.5 * (n % 3) for n in range(1, 9)])
    assert down[2] == 0 and min(down) >= 0


def test_figures_become_a_table_with_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # counting the preset paper takes half a minute
    small = functools.cache(lambda pictures: cost_of("retrain", (4, 4, 8, 8), 1, 32, pictures))
    monkeypatch.setattr(scaling, "_cost", lambda *shape: small(shape[4]))
    points, shapes = [], ((4, 32, 2), (8, 48, 2), (4, 48, 3), (16, 32, 1), (8, 32, 1), (16, 48, 2))
    for place, (width, size, nodes) in enumerate(shapes):
        widths = width, width, width, 2 * width
        point = {**MEASURED[6], "widths": widths, "size": size, "nodes": nodes, "pictures": 2}
        cost = cost_of(**point)
        seconds = cost["macs"] / 1e10 + cost["bytes"] / 5e9 + cost["calls"] * 1e-5
        peak = 5e8 + 1.5 * cost["kept"] + 4 * cost["weights"]
        points.append({**point, "seconds": seconds, "peak": peak, "range": [seconds, seconds], "cost": cost})
        if place == 0:
            del points[0]["cost"]  # is counted where it is not known
    machine = {"device": "abacus", "threads": 1, "torch": "9"}
    path, text = tmp_path / "points.json", tmp_path / "scaling.md"
    path.write_text(json.dumps({"points": points, "exchange": [], "machine": machine}))
    text.write_text("before\n<!-- scaling -->\nold\n<!-- end of scaling -->\nafter\n")
    assert scaling.main(["--json", str(path), "--into", str(text)]) == 0
    fit = json.loads(path.read_text())["fit"]
    assert fit["seconds_error"]["largest"] < 0.02 and fit["memory_error"]["largest"] < 0.02
    assert fit["seconds"]["macs"] == pytest.approx(1e-10, rel=0.1)
    written = text.read_text()
    assert written.startswith("before") and written.endswith("after\n") and "old" not in written
    rows = json.loads(path.read_text())["predictions"]
    assert [row["gpus"] for row in rows] == [1, 8, 64] * 3 and "| search, partial 4 | 8 | 8 |" in written
    assert rows[0]["memory"] > rows[1]["memory"] and rows[2]["batch"] == 64


def test_a_process_over_the_limit_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "memory",
        "--preset",
        "smoke",
        "--cpu",
        "--partial",
        "4",
        "--accumulate",
        "8",
        "--recompute",
        "yes",
    ]
    path = tmp_path / "memory.json"
    assert benchmark([*words, "--limit", "0.05", "--json", str(path)]) == 0
    assert "over 0.05 GB" in capsys.readouterr().out
    assert json.loads(path.read_text())["steps"][0]["peak_gb"] is None
    assert benchmark([*words, "--json", str(path)]) == 0  # another limit is another figure
    peak = json.loads(path.read_text())["steps"][1]["peak_gb"]
    assert 0.2 < peak < 3
    assert "GB" in memory.table(
        json.loads(path.read_text())["steps"], {"device": "abacus", "threads": 1, "torch": "9"}
    )
