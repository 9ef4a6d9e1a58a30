"""Proves that a report says what a search left on record, nothing else, and refuses other folders."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from test_drawing import some_alpha, some_genotype

from searchseg.genotype import CELL_NAMES, Edge, Genotype
from training.report import ReportError, main, write_report

SETTINGS = {
    "command": "python -m training.search --preset smoke | tee log",
    "settings": {
        "widths": [4, 8, 16, 32],
        "nodes": 3,
        "stem_stride": 1,
        "size": 32,
        "epochs": 5,
        "batch_size": 2,
    },
    "machine": {"device": "abacus, 2 beads", "torch": "9.9"},
    "rows": 77,
    "processes": 2,
}
ORIGIN = {"task": "pet", "dataset": "folder pet", "preset": "smoke", "method": "darts-first-order", "seed": 3}
A, B, C = (some_genotype(3, seed) for seed in range(3))
GENOTYPES = [A, A, B, Genotype(3, {**B.cells, "C7": C.cells["C7"]})]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """The folder of a search that was stopped after four of five epochs; its curves, slow, are not drawn."""
    monkeypatch.setattr("training.report.draw_curves", lambda *_: None)
    return write_run(tmp_path / "run")


def write_run(run: Path, epochs: int = 4, more_history: dict | None = None, **search: object) -> Path:
    (run / "search").mkdir(parents=True)
    genotypes = [Genotype(3, g.cells, {**ORIGIN, "epochs": k}) for k, g in enumerate(GENOTYPES[:epochs], 1)]
    history = [
        {"epoch": k, "phase": "warmup" if k == 1 else "search", "weight_loss": 1 / k, "alpha_loss": 1.1 / k,
         "weight_miou": 0.2 * k, "alpha_miou": 0.1 * k, "entropy": 1 - k / 100, "skips": g.count("skip"),
         "expected_macs": k * 1e6, "genotype": g.id, "seconds": 45.0, **(more_history or {}).get(k, {})}
        for k, g in enumerate(genotypes, 1)
    ]  # fmt: skip
    kept = genotypes[search.get("epoch_kept", epochs) - 1]
    (run / "settings.json").write_text(json.dumps(SETTINGS))
    (run / "genotype.json").write_text(Genotype(3, kept.cells, {**kept.search, **search}).to_json())
    write_records(run / "history.jsonl", history)
    lines = [{"epoch": k, **json.loads(g.to_json())} for k, g in enumerate(genotypes, 1)]
    write_records(run / "search/genotype.jsonl", lines)
    write_records(
        run / "search/alpha.jsonl", [{"epoch": k, "alpha": some_alpha(3)} for k in range(1, epochs + 1)]
    )
    return run


def write_records(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_says_what_was_searched_and_found(run):
    text = write_report(run).read_text()
    assert text.startswith(f"# Search of SEARCH-Net `{GENOTYPES[3].id}` on pet\n")
    for row in (
        "task | pet", "dataset | folder pet", "rows | 77", "preset | smoke", "method | darts-first-order",
        "seed | 3", "epochs | 4 of 5, stopped, 1 of them warm-up of the weights alone", "minutes | 3.0",
        "machine | abacus, 2 beads, processes 2, torch 9.9",
        "network | nodes 3, widths 4-8-16-32, stem stride 1",
    ):  # fmt: skip
        assert f"| {row} |\n" in text
    assert f"\n    {SETTINGS['command']}\n" in text
    assert f"Genotype `{GENOTYPES[3].id}`, that of epoch 4, the last.\n" in text
    assert "changed in 2 of 4 epochs: 3 to 4." in text
    assert "Entropy after epoch 4: 0.9600" in text
    assert "expected MACs: 4.0 million" in text and "derived network" not in text and "Rule" not in text


def test_every_picture_is_there_and_named(tmp_path):
    run = write_run(tmp_path / "run")
    pictures = re.findall(r"!\[([^]]+)\]\(([^)]+)\)", write_report(run).read_text())
    names = ["film.svg", "loss.png", "miou.png", "entropy.png", "skips.png", "expected_cost.png", "alpha.svg"]
    assert [path for _, path in pictures] == [f"search/{name}" for name in names]
    for alt, path in pictures:
        assert len(alt) > 40
        if path.endswith("png"):
            Image.open(run / path).verify()
        else:
            assert ElementTree.parse(run / path).getroot().get("role") == "img"
    assert "Weights' half: 1 in epoch 1, 0.25 in epoch 4." in dict(map(reversed, pictures))["search/loss.png"]
    assert "32×32" in (run / "search/film.svg").read_text()


def test_an_earlier_epoch_that_was_kept_is_told_with_its_rule_and_ends_the_film(tmp_path):
    known = {"epoch_kept": 3, "rule": "the eigenvalue rose.", "macs": 1_234_567, "parameters": 9_876}
    run = write_run(tmp_path / "run", more_history={2: {"eigenvalue": 0.5}, 3: {"eigenvalue": 2}}, **known)
    text = write_report(run).read_text()
    assert f"Genotype `{GENOTYPES[2].id}`, that of epoch 3 of 4. Rule: the eigenvalue rose.\n" in text
    assert "expected MACs: 3.0 million" in text
    assert (
        "MACs of the derived network: 1.2 million" in text
        and "parameters of the derived network: 9,876" in text
    )
    assert "Eigenvalue: 0.5 in epoch 2, 2 in epoch 3." in text and (run / "search/eigenvalue.png").is_file()
    assert f"SEARCH-Net {GENOTYPES[2].id}" in ElementTree.parse(run / "search/film.svg").getroot().get(
        "aria-label"
    )


def test_a_genotype_that_another_rule_derived_is_told_and_ends_the_film(run):
    (run / "genotype.json").write_text(Genotype(3, C.cells, {**ORIGIN, "epoch_kept": 4}).to_json())
    text = write_report(run).read_text()
    words = f"Genotype `{C.id}`, derived after epoch 4, whose own was `{GENOTYPES[3].id}`.\n"
    assert words in text and "4 of 5, ended by its rule" in text
    assert "1 to 4, and at the end the one that was kept." in text
    assert f"SEARCH-Net {C.id}" in ElementTree.parse(run / "search/film.svg").getroot().get("aria-label")


def test_table_counts_operations_and_marks_cells_of_many_skips(run):
    few = tuple(Edge(s, t, "mbconv_3x3") for t in (2, 3, 4) for s in (0, 1))
    many = tuple(Edge(s, t, "skip" if t < 4 else "dilconv_5x5") for t in (2, 3, 4) for s in (0, 1))
    genotype = Genotype(3, {**dict.fromkeys(CELL_NAMES, few), "C5": many}, ORIGIN)
    (run / "genotype.json").write_text(genotype.to_json())
    text = write_report(run).read_text()
    assert "| C4 | 0 | 0 | 0 | 0 | 6 | 0 | 0 |\n| C5 | 0 | 0 | 0 | 2 | 0 | 0 | **4** |\n" in text
    assert "| all | 0 | 0 | 0 | 2 | 42 | 0 | 4 |\n" in text
    assert "Bold: more than 2 skips, in C5.\n" in text
    assert f"Genotype `{genotype.id}`.\n" in text  # no epoch had it, so none is named


def test_tells_the_epoch_of_most_new_edges(run):
    new = sum(edge not in A.cells[name] for name in CELL_NAMES for edge in B.cells[name])
    last = sum(edge not in B.cells["C7"] for edge in C.cells["C7"])
    assert 0 < last <= 6 < new
    words = f"Strongest change: {new} of 48 edges new in epoch 3; {last} in the last epoch, 4."
    assert words in write_report(run).read_text()


def test_what_is_missing_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", epochs=1)
    (run / "search/alpha.jsonl").unlink()
    (run / "search/genotype.jsonl").unlink()
    (run / "settings.json").write_text(json.dumps({"settings": {"widths": [4, 8, 16, 32]}}))
    write_records(run / "history.jsonl", [{"epoch": 1, "weight_loss": 0.5}])
    text = write_report(run).read_text()
    assert re.findall(r"\]\(search/([^)]+)\)", text) == ["loss.png"]
    assert "Weights' half: 0.5 in epoch 1.]" in text
    assert not re.search("None|\\| rows|machine|minutes|entropy|Strongest|changed|MACs", text)


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("settings.json", None, "has no settings.json"),
        ("genotype.json", None, "has no genotype.json"),
        ("history.jsonl", "", "history.jsonl cannot be read: it has no epoch"),
        ("history.jsonl", '{"loss": 1}\n', "history.jsonl cannot be read: every line needs"),
        ("genotype.json", "{", "genotype.json cannot be read"),
        ("settings.json", '{"settings": {"size": 3}}', "not that of a search"),
        ("search/genotype.jsonl", '{"epoch": 1}\n', "genotype.jsonl cannot be read"),
        ("search/alpha.jsonl", '{"epoch": 1, "alpha": {"C1": {}}}\n', "alpha needs exactly the cells"),
    ],
)
def test_a_folder_that_is_no_search_gives_one_error(run, file, content, words, capsys):
    (run / file).unlink() if content is None else (run / file).write_text(content)
    with pytest.raises(ReportError, match=words):
        write_report(run)
    assert main([str(run)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (run / "report.md").exists()


def test_command_reports_the_readable_folders(run, tmp_path, capsys):
    assert main([str(tmp_path / "none"), str(run)]) == 1
    assert capsys.readouterr().out == f"{run / 'report.md'}\n"
    assert main([str(run)]) == 0
