"""Proves that every option of a search reaches its method, or is refused, and that budgets and rules hold."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import training.monitor
import training.sampling
import training.search
from searchseg.cost import count_macs, count_parameters, macs, parameters
from searchseg.genotype import Genotype
from searchseg.network import SearchNet, UShapeConfig
from searchseg.task import TaskError
from training.darts import Darts
from training.files import read_lines
from training.presets import PRESETS, RetrainSettings, SearchMethod
from training.search import main, method_name, method_of, parser
from training.supernet import Supernet

FINAL = RetrainSettings((4, 8, 8, 8), 2, (2, 2, 2, 4), 32, 1, 4)
SHAPE = UShapeConfig(FINAL.widths, 1, FINAL.stem_stride, 2)


def drawn(number: int) -> dict:
    numbers = np.random.default_rng(number)
    picture = Image.fromarray(numbers.integers(0, 120, (36, 40, 3), dtype=np.uint8))
    trimap = Image.new("L", picture.size, 2)
    box = (*numbers.integers(2, 10, 2).tolist(), *numbers.integers(20, 34, 2).tolist())
    ImageDraw.Draw(picture).ellipse(box, fill=(230, 180, 90))
    ImageDraw.Draw(trimap).ellipse(box, fill=1, outline=3)
    return {"image": picture, "segmentation_mask": trimap}


@pytest.fixture(scope="module", autouse=True)
def tiny_presets(tmp_path_factory):
    """ "tiny" searches one epoch; in "rest", alpha rests, so that the genotype never changes."""
    tiny = dataclasses.replace(
        PRESETS["smoke"].search,
        widths=(2, 2, 2, 4),
        nodes=1,
        size=16,
        epochs=1,
        warmup_epochs=0,
        batch_size=2,
    )
    rest = dataclasses.replace(tiny, epochs=6, warmup_epochs=1, alpha_lr=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, settings in {"tiny": tiny, "rest": rest}.items():
            preset = dataclasses.replace(PRESETS["smoke"], search=settings, retrain=FINAL)
            patch.setitem(PRESETS, name, preset)
        # all networks here have one size: to count its costs takes longer than a search
        for count in ("count_macs", "count_parameters"):
            patch.setattr(training.search, count, functools.cache(getattr(training.search, count)))
        yield


@pytest.fixture
def no_report(monkeypatch) -> None:
    """For searches whose report nobody reads: its pictures take longer than the search."""
    monkeypatch.setattr(training.search, "write_report", lambda out: out / "report.md")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    rows = datasets.Dataset.from_list([drawn(number) for number in range(4)])
    rows.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def words(data: Path, out: Path, *more: object, preset: str = "tiny") -> list[str]:
    return [str(word) for word in ("--data", data, "--preset", preset, "--cpu", "--out", out, *more)]


def read_genotype(out: Path) -> Genotype:
    return Genotype.from_json((out / "genotype.json").read_text())


# from options to the method


def given(*more: str) -> SearchMethod:
    return method_of(parser().parse_args(["--out", "run", *more]))


def test_without_options_the_method_is_first_order_darts():
    assert given() == SearchMethod()
    assert method_name(given()) == "darts-first-order"


@pytest.mark.parametrize(
    "option, value, field, meaning",
    [
        ("--order", "2", "order", 2),
        ("--partial", "4", "partial", 4),
        ("--regularise", "beta", "regularise", "beta"),
        ("--regularise", "auxiliary-skip", "regularise", "auxiliary-skip"),
        ("--max-skips", "2", "max_skips", 2),
        ("--max-skips", "0", "max_skips", 0),
        ("--monitor-every", "3", "monitor_every", 3),
        ("--early-stop", "unchanged", "early_stop", "unchanged"),
        ("--derive", "perturbation", "derive", "perturbation"),
    ],
)
def test_an_option_changes_its_field_and_no_other(option, value, field, meaning):
    assert given(option, value) == dataclasses.replace(SearchMethod(), **{field: meaning})


@pytest.mark.parametrize(
    "option, text, kind, limit",
    [
        ("--max-macs", "2G", "macs", 2e9),
        ("--max-params", "1.5M", "params", 1.5e6),
        ("--max-params", "30000", "params", 30000),
        ("--max-latency", "20ms", "latency", 0.02),
    ],
)
def test_a_budget_has_its_kind_and_its_number(option, text, kind, limit):
    assert given(option, text) == SearchMethod(budget=kind, limit=limit)


@pytest.mark.parametrize("name", ["random", "random-shared", "reinforce"])
def test_the_other_methods_take_samples(name):
    assert given("--method", name, "--samples", "5") == SearchMethod(name, samples=5)
    assert method_name(given("--method", name)) == name


def test_the_rule_of_the_eigenvalue_measures_it():
    assert given("--early-stop", "eigenvalue").monitor_every == 2
    assert given("--early-stop", "eigenvalue", "--monitor-every", "5").monitor_every == 5


def test_the_name_of_a_method_tells_its_options():
    method = given(
        "--order", "2", "--partial", "4", "--regularise", "beta", "--max-skips", "1", "--max-params", "1M",
        "--derive", "perturbation",
    )  # fmt: skip
    name = "darts-second-order partial-4 beta max-1-skips max-params-1e+06 derive-perturbation"
    assert method_name(method) == name


@pytest.mark.parametrize(
    "options, sentence",
    [
        (("--method", "random-shared", "--order", "2"), "--method random-shared takes --samples alone"),
        (("--method", "reinforce", "--partial", "2"), "--method reinforce takes --samples alone"),
        (("--method", "random", "--max-params", "1M"), "--method random takes --samples alone"),
        (("--method", "random-shared", "--early-stop", "unchanged"), "the other options belong to darts"),
        (("--method", "random-shared", "--monitor-every", "1"), "the other options belong to darts"),
        (("--partial", "0"), "--partial and --samples must be 1 or more, got 0, 64"),
        (("--partial", "-3"), "--partial and --samples must be 1 or more, got -3, 64"),
        (("--method", "random", "--samples", "0"), "--partial and --samples must be 1 or more, got 1, 0"),
        (("--max-params", "5 apples"), "a budget must be a positive number like 2G, 500M, 1.5k or 30000"),
        (("--max-params", "0"), "got '0'"),
        (("--max-macs", "20ms"), "got '20ms'"),
        (("--max-latency", "2G"), "a budget must be a positive number like 20ms or 0.02s"),
        (("--method", "random", "--params", "5 apples"), "got '5 apples'"),
        (("--params", "1M"), "belong to --method random"),
        (("--method", "random-shared", "--params", "1M"), "belong to --method random"),
        (("--max-skips", "-1"), "cannot be negative"),
        (("--monitor-every", "-1"), "cannot be negative"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_with_a_sentence(
    data, tmp_path, capsys, monkeypatch, no_report, options, sentence
):
    monkeypatch.setattr(training.search, "search", lambda *_, **__: Genotype.from_json(ANY))
    assert main(words(data, tmp_path / "out", *options)) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and sentence in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists(), "the cured command may use the same --out"


ANY = (Path(__file__).parent.parent / "hub/models/searchnet-pet/genotype.json").read_text()


@pytest.mark.parametrize(
    "options", [("--max-params", "1M", "--max-macs", "1G"), ("--order", "3"), ("--method", "by-hand")]
)
def test_what_no_search_could_mean_ends_in_the_usage(tmp_path, capsys, options):
    with pytest.raises(SystemExit) as end:
        main(["--out", str(tmp_path / "out"), *options])
    assert end.value.code == 2 and options[-2] in capsys.readouterr().err


# budgets


@pytest.fixture(scope="module")
def free(data, tmp_path_factory) -> Genotype:
    """What the search finds without a budget."""
    out = tmp_path_factory.mktemp("free")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.search, "write_report", lambda out: out / "report.md")
        assert main(words(data, out)) == 0
    return read_genotype(out)


def test_without_a_budget_the_true_cost_is_on_record(free):
    network = SearchNet(SHAPE, free)
    assert free.search["parameters"] == parameters(network)
    assert free.search["macs"] == macs(network, (1, 3, FINAL.size, FINAL.size))
    assert not {"budget", "predicted", "measured"} & set(free.search)


@pytest.mark.parametrize("kind, cost", [("params", "parameters"), ("macs", "macs")])
def test_a_search_keeps_its_budget(free, data, tmp_path, capsys, no_report, kind, cost):
    costs = count_parameters(SHAPE) if kind == "params" else count_macs(SHAPE, (FINAL.size, FINAL.size))
    limit = round((costs.fixed + free.search[cost]) / 2)
    assert main(words(data, tmp_path / "out", f"--max-{kind}", limit)) == 0
    found = read_genotype(tmp_path / "out")
    network = SearchNet(SHAPE, found)
    assert found.search["parameters"] == parameters(network)
    assert found.search["macs"] == macs(network, (1, 3, FINAL.size, FINAL.size))
    assert costs.fixed < found.search[cost] <= limit < free.search[cost]
    unit = "parameters" if kind == "params" else "MACs"
    assert found.search["budget"].endswith(unit) and found.search["measured"] == found.search["predicted"]
    assert f"measured   {found.search['measured']}" in capsys.readouterr().out
    assert f"max-{kind}-{limit:g}" in found.search["method"]
    history = read_lines(tmp_path / "out" / "history.jsonl")
    assert history[-1]["genotype"] == found.id, "the genotypes of the epochs keep it too"


def test_a_budget_that_nothing_keeps_is_refused_with_the_smallest_cost(data, tmp_path, capsys):
    assert main(words(data, tmp_path / "out", "--max-params", 10)) == 1
    smallest = f"{count_parameters(SHAPE).fixed:,}"
    printed = capsys.readouterr().err
    assert f"budget of 10: the cheapest costs {smallest}; raise the budget" in printed


# rules that end a search


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def unchanged(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unchanged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.monitor, "PATIENCE", 2)
        assert main(words(data, out, "--early-stop", "unchanged", preset="rest")) == 0
    return out


def test_a_search_stops_when_the_genotype_no_longer_changes(unchanged):
    history, found = read_lines(unchanged / "history.jsonl"), read_genotype(unchanged)
    assert [record["phase"] for record in history] == ["warmup", "search", "search", "search"]  # of 6
    assert {record["genotype"] for record in history} == {found.id}
    assert found.search["epochs"] == found.search["epoch_kept"] == 4
    assert found.search["rule"] == "early stop: unchanged"
    assert "4 of 6, ended by its rule" in (unchanged / "report.md").read_text()


def test_a_search_resumed_after_its_early_stop_changes_nothing(unchanged, tmp_path, monkeypatch, no_report):
    monkeypatch.setattr(training.monitor, "PATIENCE", 2)
    monkeypatch.setattr(Supernet, "loss", lambda *_: pytest.fail("there is nothing left to learn"))
    again = shutil.copytree(unchanged, tmp_path / "again")
    assert main(["--resume", str(again)]) == 0
    assert files(again) == files(unchanged)


def test_the_rule_of_the_eigenvalue_keeps_an_earlier_epoch(data, tmp_path, monkeypatch, no_report):
    growing = iter([1.0, 1.0, 1.0, 9.0])
    monkeypatch.setattr(training.search, "largest_eigenvalue", lambda *_, **__: next(growing))
    learning = dataclasses.replace(
        PRESETS["rest"].search, alpha_lr=0.5, warmup_epochs=0
    )  # another genotype every epoch
    monkeypatch.setitem(PRESETS, "rest", dataclasses.replace(PRESETS["rest"], search=learning))
    out, options = tmp_path / "out", ("--early-stop", "eigenvalue", "--monitor-every", 1)
    assert main(words(data, out, *options, preset="rest")) == 0
    history, found = read_lines(out / "history.jsonl"), read_genotype(out)
    assert [record.get("eigenvalue") for record in history] == [1.0, 1.0, 1.0, 9.0]
    assert found.search["epochs"] == 4 and found.search["epoch_kept"] == 2
    assert found.id == history[1]["genotype"] != history[3]["genotype"]
    network = SearchNet(SHAPE, found)
    assert found.search["parameters"] == parameters(network), "of the genotype that was kept"
    before = files(out)
    assert main(["--resume", str(out)]) == 0
    assert files(out) == before


class Killed(Exception):
    pass


def test_the_end_of_a_resumed_search_tunes_on_the_batches_of_the_undisturbed_one(
    data, tmp_path, monkeypatch, no_report
):
    seen: list[list[torch.Tensor]] = []

    def finish(self, search, batches, tuning=()):
        seen.append([images for images, _ in (*batches, *tuning)])
        if len(seen) == 1:
            raise Killed
        return self.genotype(search)

    monkeypatch.setattr(Darts, "finish", finish)
    out = tmp_path / "out"
    with pytest.raises(Killed):
        main(words(data, out, "--epochs", 2, "--derive", "perturbation"))
    assert main(["--resume", str(out)]) == 0
    assert len(seen[0]) == len(seen[1]) > 1
    assert all(torch.equal(one, two) for one, two in zip(*seen, strict=True))


# random draws


@pytest.mark.parametrize("options, tolerance", [((), 0.15), (("--within", "0.02"), 0.02)])
def test_random_genotypes_have_the_parameters_asked_for(tmp_path, options, tolerance):
    wish = ("--method", "random", "--samples", 3, "--params", "12.5k", *options)
    assert main(words(tmp_path, tmp_path / "out", *wish)) == 0
    paths = sorted((tmp_path / "out" / "genotypes").iterdir())
    assert [path.name for path in paths] == ["001.json", "002.json", "003.json"]
    found = [Genotype.from_json(path.read_text()) for path in paths]
    assert len({genotype.id for genotype in found}) == 3
    for number, genotype in enumerate(found, 1):
        facts = genotype.search
        assert facts["parameters"] == parameters(SearchNet(SHAPE, genotype)) and facts["number"] == number
        assert abs(facts["parameters"] - 12_500) <= tolerance * 12_500
        assert facts["method"] == "random" and facts["seed"] == 0 and facts["epochs"] == 0
    assert (tmp_path / "out" / "genotype.json").read_text() == paths[0].read_text()


def test_a_tolerance_of_zero_is_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(training.sampling, "MAX_DRAWS", 10)
    wish = ("--method", "random", "--samples", 3, "--params", "11282.5", "--within", 0)  # no half parameters
    assert main(words(tmp_path, tmp_path / "out", *wish)) == 1


def test_a_random_draw_reads_no_rows(tmp_path, capsys):
    assert main(words(tmp_path / "nowhere", tmp_path / "out", "--method", "random", "--samples", 2)) == 0
    assert "2 genotypes in" in capsys.readouterr().out


def test_a_size_that_no_genotype_has_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training.sampling, "MAX_DRAWS", 10)
    assert main(words(tmp_path, tmp_path / "out", "--method", "random", "--params", "9G")) == 1
    assert "error: found 0 of 64 random genotypes" in capsys.readouterr().err


def test_the_settings_of_a_run_hold_its_method(unchanged):
    method = json.loads((unchanged / "settings.json").read_text())["method"]
    assert SearchMethod(**method) == SearchMethod(early_stop="unchanged")
    with pytest.raises(TaskError):
        given("--method", "random", "--order", "2")
