"""Write the report of a search: what was searched, what was kept, and the pictures of how it went.

Everything is read from the run folder; what is not on record there is left out. A stopped search has a report
of the epochs it finished.

example:
  python -m training.report runs/pet

what it leaves in the run folder:
  report.md              opens on its own: on GitHub, on the Hub, in any Markdown reader
  search/                loss.png, miou.png, entropy.png, skips.png, expected_cost.png, eigenvalue.png,
                         alpha.svg, film.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from searchseg.drawing import draw_alpha, draw_film
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES, Genotype
from training.files import DiskFullError, read_lines, write_atomically
from training.options import Manual
from training.pictures import draw_curves

Record = dict[str, Any]
Read = TypeVar("Read")

MANY_SKIPS = 2  # more in one cell are a sign that the search collapses (DARTS+, arXiv 1909.06035)
FILM_SECONDS = 30  # at most: a long search has shorter frames
HALVES = {"weight": "weights' half", "alpha": "alpha's half (held out)"}


CURVES: tuple[tuple[str, str, dict[str, str], str], ...] = (
    # file in search/, axis, lines (history key -> label), caption
    ("loss.png", "loss", {f"{half}_loss": label for half, label in HALVES.items()},
     "Loss on the two halves of the training rows."),
    ("miou.png", "mIoU", {f"{half}_miou": label for half, label in HALVES.items()},
     "mIoU on the two halves of the training rows."),
    ("entropy.png", "entropy of the operations", {"entropy": "entropy"},
     "Entropy of the operations, mean of all edges: 1 undecided, 0 decided."),
    ("skips.png", "skips", {"skips": "in all eight cells", "most_skips": "in the cell with most"},
     "Skips of each epoch's genotype."),
    ("expected_cost.png", "expected MACs, million", {"million_macs": "million MACs"},
     "Expected MACs of one picture, in million: those of the operations, weighted by softmax(alpha)."),
    ("eigenvalue.png", "largest eigenvalue", {"eigenvalue": "eigenvalue"},
     "Largest eigenvalue of the second derivative of the held-out loss in alpha."),
)  # fmt: skip


class ReportError(ValueError):
    """A folder that gives no report; the message says which file, and why."""


@dataclass(frozen=True)
class Finding:
    """What a search left in its run folder; `genotypes` (epoch, genotype) and `alphas` may be empty."""

    settings: Record
    history: list[Record]
    genotype: Genotype
    genotypes: list[tuple[int, Genotype]]
    alphas: list[Record]

    @property
    def epoch_kept(self) -> int | None:
        """The epoch whose genotype was kept: as genotype.json says, else the last that had it."""
        had = [record["epoch"] for record in self.history if record.get("genotype") == self.genotype.id]
        return self.genotype.search.get("epoch_kept") or max(had, default=None)

    @property
    def kept_earlier(self) -> bool:
        """Whether the epoch that was kept is known, and not the last."""
        return self.epoch_kept not in (None, self.last["epoch"])

    @property
    def last(self) -> Record:
        return self.history[-1]

    @property
    def kept(self) -> Record:
        """The history of the epoch that was kept; of the last one where that is not known."""
        return next((record for record in self.history if record["epoch"] == self.epoch_kept), self.last)


def write_report(run: Path) -> Path:
    """Write report.md and its pictures into the folder of a search; returns the path of report.md.

    Raises ReportError for a folder without settings, genotype or finished epoch, or with a broken file.
    """
    finding = read_finding(run)
    try:
        film, alpha = _draw_film(finding, run), _draw_alpha(finding, run)
        pictures = [*_draw_curves(finding, run), *alpha]
        write_atomically(run / "report.md", _report(finding, film, pictures))
    except DiskFullError:
        raise
    except (OSError, ValueError) as error:
        raise ReportError(f"{run}: {error}") from error
    return run / "report.md"


def read_finding(run: Path) -> Finding:
    """Read the folder of a search; raises ReportError for the first file that is missing or broken."""
    for name in ("settings.json", "history.jsonl", "genotype.json"):
        if not (run / name).is_file():
            raise ReportError(f"{run} has no {name}: give the folder of a search that finished an epoch")
    return Finding(
        _read(run / "settings.json", _settings),
        _read(run / "history.jsonl", _history),
        _read(run / "genotype.json", lambda path: Genotype.from_json(path.read_text())),
        _read(run / "search/genotype.jsonl", _genotypes),
        _read(run / "search/alpha.jsonl", _epochs),
    )


def _read(path: Path, reader: Callable[[Path], Read]) -> Read:
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from error


def _settings(path: Path) -> Record:
    settings = json.loads(path.read_text())
    search = settings.get("settings") if isinstance(settings, dict) else None
    if not isinstance(search, dict) or not isinstance(search.get("widths"), list):
        raise ValueError("it is not that of a search: it has no list of widths")
    return settings


def _epochs(path: Path) -> list[Record]:
    records = read_lines(path)
    if not all(isinstance(record, dict) and isinstance(record.get("epoch"), int) for record in records):
        raise ValueError("every line needs an object with its epoch")
    return records


def _history(path: Path) -> list[Record]:
    if not (records := _epochs(path)):
        raise ValueError("it has no epoch: let the search finish one")
    return records


def _genotypes(path: Path) -> list[tuple[int, Genotype]]:
    return [(record.pop("epoch"), Genotype.from_json(json.dumps(record))) for record in _epochs(path)]


def _draw_curves(finding: Finding, run: Path) -> list[str]:
    """Draw the curves that the history has points for; returns the pictures as Markdown."""
    history = _with_derived(finding)
    pictures = []
    for file, axis, lines, caption in CURVES:
        ends = [words for key, label in lines.items() if (words := _ends(history, key, label))]
        if ends:
            draw_curves(history, lines, axis, run / "search" / file, _marks(finding))
            pictures.append(_picture(file, " ".join([caption, *ends]), caption))
    return pictures


def _with_derived(finding: Finding) -> list[Record]:
    """The history with the expected MACs in million, and the skips of the cell that has most."""
    most = {epoch: max(_skips(genotype).values()) for epoch, genotype in finding.genotypes}
    return [
        {**r, "million_macs": r["expected_macs"] / 1e6 if r.get("expected_macs") else None,
         "most_skips": most.get(r["epoch"])}
        for r in finding.history
    ]  # fmt: skip


def _ends(history: list[Record], key: str, label: str) -> str:
    """The first and the last point of a curve in words; nothing for a curve without points."""
    points = [(record["epoch"], record[key]) for record in history if record.get(key) is not None]
    if not points:
        return ""
    ends = (f"{value:.4g} in epoch {epoch}" for epoch, value in dict.fromkeys((points[0], points[-1])))
    return f"{label[0].upper()}{label[1:]}: {', '.join(ends)}."


def _marks(finding: Finding) -> dict[str, int]:
    warmup = [record["epoch"] for record in finding.history if record.get("phase") == "warmup"]
    marks = {"end of the warm-up": warmup[-1]} if warmup else {}
    return {**marks, "kept": finding.epoch_kept} if finding.kept_earlier else marks


def _draw_alpha(finding: Finding, run: Path) -> list[str]:
    if not finding.alphas:
        return []
    last = finding.alphas[-1]
    write_atomically(run / "search/alpha.svg", draw_alpha(last.get("alpha", {})))
    words = f"Weights of the operations on every edge after epoch {last['epoch']}, the strongest framed."
    return [_picture("alpha.svg", words, words)]


def _draw_film(finding: Finding, run: Path) -> list[str]:
    """The film of all epochs; it ends with the genotype that was kept."""
    if not finding.genotypes:
        return []
    frames, settings = list(finding.genotypes), finding.settings["settings"]
    back = frames[-1][1] != finding.genotype  # an earlier epoch was kept, or another rule derived it
    if back:
        frames.append((finding.kept["epoch"], finding.genotype))
    film = draw_film(
        frames,
        settings["widths"],
        image_size=(settings["size"],) * 2 if "size" in settings else None,
        stem_stride=settings.get("stem_stride", 1),
        seconds=min(0.6, FILM_SECONDS / len(frames)),
    )
    write_atomically(run / "search/film.svg", film)
    words = f"The genotype of every epoch, {frames[0][0]} to {finding.last['epoch']}"
    words += ", and at the end the one that was kept." if back else "."
    return [_picture("film.svg", f"Film of the U of eight cells. {words}", words)]


def _picture(file: str, alt: str, caption: str) -> str:
    return f"![{alt}](search/{file})\n\n{caption}"


def _report(finding: Finding, film: list[str], pictures: list[str]) -> str:
    task = finding.genotype.search.get("task")
    sections = [
        f"# Search of SEARCH-Net `{finding.genotype.id}`" + (f" on {_plain(task)}" if task else ""),
        *film,
        "## What was searched",
        _searched(finding),
        "## What was kept",
        _kept(finding),
        _operations(finding.genotype),
        _cost(finding),
        "## How it went",
        _changes(finding),
        *pictures,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _searched(finding: Finding) -> str:
    origin, run = finding.genotype.search, finding.settings
    settings, machine = run["settings"], run.get("machine", {})
    seconds = [record["seconds"] for record in finding.history if "seconds" in record]
    facts = {
        "task": origin.get("task"),
        "dataset": _join(origin.get("dataset"), ("revision", origin.get("revision"))),
        "split": origin.get("split"),
        "rows": run.get("rows"),
        "preset": origin.get("preset"),
        "method": origin.get("method"),
        "seed": origin.get("seed"),
        "epochs": _epochs_in_words(finding),
        "network": _join(
            ("nodes", settings.get("nodes")),
            ("widths", "-".join(map(str, settings["widths"]))),
            ("stem stride", settings.get("stem_stride")),
        ),
        "pictures": _join(("side", settings.get("size")), ("batch", settings.get("batch_size"))),
        "machine": _join(
            machine.get("device"), ("processes", run.get("processes")), ("torch", machine.get("torch"))
        ),
        "minutes": f"{sum(seconds) / 60:.1f}" if seconds else None,
        "SearchSeg": origin.get("version"),
        "finished": origin.get("created"),
    }
    rows = [f"| {name} | {_plain(fact)} |" for name, fact in facts.items() if fact not in (None, "")]
    table = "\n".join(["| what | value |", "|---|---|", *rows])
    return table + (f"\n\n    {run['command']}" if "command" in run else "")


def _epochs_in_words(finding: Finding) -> str:
    done, planned = finding.last["epoch"], finding.settings["settings"].get("epochs")
    warmup = sum(record.get("phase") == "warmup" for record in finding.history)
    ended = "ended by its rule" if "epoch_kept" in finding.genotype.search else "stopped"
    count = f"{done} of {planned}, {ended}" if planned and done < planned else str(done)
    return count + (f", {warmup} of them warm-up of the weights alone" if warmup else "")


def _join(*facts: Any) -> str:
    """Facts, bare or with their name before them, in one line; what is None is left out."""
    named = (fact if isinstance(fact, tuple) else ("", fact) for fact in facts)
    return ", ".join(f"{name} {value}".strip() for name, value in named if value is not None)


def _plain(value: Any) -> str:
    """A value that stays in its cell of a Markdown table."""
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())


def _kept(finding: Finding) -> str:
    epoch, rule = finding.epoch_kept, finding.genotype.search.get("rule")
    words = f"Genotype `{finding.genotype.id}`"
    if epoch is not None:
        place = f" of {finding.last['epoch']}" if finding.kept_earlier else ", the last"
        words += f", that of epoch {epoch}{place}"
        if (own := finding.kept.get("genotype", finding.genotype.id)) != finding.genotype.id:
            words = f"Genotype `{finding.genotype.id}`, derived after epoch {epoch}, whose own was `{own}`"
    return f"{words}. Rule: {_plain(rule).rstrip('.')}." if rule else f"{words}."


def _operations(genotype: Genotype) -> str:
    """Table of how often each cell uses each operation; too many skips stand out."""
    counts = {name: Counter(edge.operation for edge in genotype.cells[name]) for name in CELL_NAMES}
    rows = [[name, *(counts[name][operation] for operation in OPERATION_NAMES)] for name in CELL_NAMES]
    rows.append(["all", *map(genotype.count, OPERATION_NAMES)])
    full = [name for name, skips in _skips(genotype).items() if skips > MANY_SKIPS]
    for row in rows:
        if row[0] in full:
            row[-1] = f"**{row[-1]}**"
    lines = [["cell", *OPERATION_NAMES], ["---"] + ["---:"] * len(OPERATION_NAMES), *rows]
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in lines)
    verdict = f"Bold: more than {MANY_SKIPS} skips, in {', '.join(full)}." if full else ""
    return f"{table}\n\n{verdict or f'No cell has more than {MANY_SKIPS} skips.'}"


def _skips(genotype: Genotype) -> dict[str, int]:
    return {name: sum(edge.operation == "skip" for edge in edges) for name, edges in genotype.cells.items()}


def _cost(finding: Finding) -> str:
    """Expected and true cost of what was kept, where they are on record."""
    known = {**finding.kept, **finding.genotype.search}
    expected, true, parameters = (known.get(key) for key in ("expected_macs", "macs", "parameters"))
    facts = [
        f"- expected MACs: {expected / 1e6:.1f} million" if expected else "",
        f"- MACs of the derived network: {true / 1e6:.1f} million" if true else "",
        f"- parameters of the derived network: {parameters:,}" if parameters else "",
    ]
    return "\n".join(filter(None, facts))


def _changes(finding: Finding) -> str:
    facts = [_new_genotypes(finding.history), _strongest_change(finding.genotypes)]
    if "entropy" in finding.last:
        entropy, epoch = finding.last["entropy"], finding.last["epoch"]
        facts.append(f"Entropy after epoch {epoch}: {entropy:.4f} (1: all operations weigh the same).")
    return "\n".join(f"- {fact}" for fact in facts if fact)


def _new_genotypes(history: list[Record]) -> str:
    pairs = [(a, b) for a, b in pairwise(history) if "genotype" in a and "genotype" in b]
    changed = [b["epoch"] for a, b in pairs if a["genotype"] != b["genotype"]]
    if not changed:
        return "The genotype never changed." if pairs else ""
    return f"The genotype changed in {len(changed)} of {len(history)} epochs: {_ranges(changed)}."


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in few words: 2, 5 to 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _strongest_change(genotypes: list[tuple[int, Genotype]]) -> str:
    """In which epoch most edges were new, and how many were in the last."""
    new = [(_new_edges(a, b), epoch) for (_, a), (epoch, b) in pairwise(genotypes)]
    most, epoch = max(new, key=lambda change: change[0], default=(0, 0))
    if not most:
        return ""
    edges = sum(map(len, genotypes[-1][1].cells.values()))
    last = f"{new[-1][0]} in the last epoch, {new[-1][1]}"
    return f"Strongest change: {most} of {edges} edges new in epoch {epoch}; {last}."


def _new_edges(before: Genotype, after: Genotype) -> int:
    return sum(len(set(after.cells[name]) - set(before.cells[name])) for name in CELL_NAMES)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m training.report", description=__doc__, formatter_class=Manual)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder of training.search")
    args = parser.parse_args(argv)
    failed = False
    for run in args.runs:
        try:
            print(write_report(run))
        except ReportError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
