"""Proves that two processes learn what one learns from the whole batch, and that they stop together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torchmetrics.classification
from accelerate import Accelerator, DataLoaderConfiguration
from courses import begin, draw_table, in_memory, without_extras
from processes import fork_group, statuses
from torch import Tensor, nn

from searchseg.genotype import random_genotype
from searchseg.task import TaskError
from training import retrain
from training.faults import draw_rows
from training.files import read_lines, write_atomically
from training.steps import LOSSES
from training.together import normalise_together, over_processes
from training.watch import watched

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_atomically(folder / "genotype.json", random_genotype(2, seed=0).to_json())
    datasets.disable_progress_bars()
    return draw_rows(folder / "boxes")


def words_of(data: Path, *more: str) -> list[str]:
    words = ["--task", "custom", "--classes", "ground,box", "--data", str(data), "--preset", "smoke", "--cpu"]
    genotype = ["--genotype", str(data.parent / "genotype.json")]
    return [*words, *genotype, "--epochs", "1", "--split", "train[:16]", *more]


def run_alone(words: list[str], log: Path) -> None:
    assert statuses(fork_group(1, lambda rank: retrain.main(words), log)) == [0], log.read_text()[-3000:]


NAMES = ("darts", "second order", "reinforce", "retraining", "paper recipe")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders 1 and 2 with the runs of one process and of two, in double precision, where nothing but the
    arithmetic itself can differ."""
    folder, rows = tmp_path_factory.mktemp("learned"), draw_table()
    torchmetrics.classification.MulticlassConfusionMatrix(2)  # what takes long is imported before the fork

    def work(rank: int) -> int:
        torch.set_default_dtype(torch.float64)
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
        for name in NAMES:
            begin(name, rows, folder / str(accelerator.num_processes) / name, accelerator, sync=True)
        return 0

    with without_extras(), in_memory():
        for count in (1, 2):
            children = fork_group(count, work, folder / "log")
            assert statuses(children) == [0] * count, (folder / "log").read_text()[-3000:]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_learn_what_one_learns(learned: Path, name: str) -> None:
    one, two = (read_lines(learned / str(count) / name / "history.jsonl") for count in (1, 2))
    assert len(one) == len(two) == 2
    for before, after in zip(one, two, strict=True):
        numbers = [key for key, value in before.items() if isinstance(value, float) and key != "seconds"]
        assert len(numbers) >= 2
        assert [after[key] for key in numbers] == pytest.approx([before[key] for key in numbers], rel=1e-6)
        assert before.get("genotype") == after.get("genotype")


def share(rank: int, values: Tensor) -> Tensor:
    return values.chunk(2)[rank].clone()


def test_batch_norm_and_losses_of_two_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images, masks = 40 + torch.randn(4, 3, 5, 6, dtype=torch.double), torch.randint(0, 3, (4, 5, 6))
    masks[0], masks[3] = 255, 2  # one share has fewer counted pixels than the other, and other classes
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.double)

    def learn(images: Tensor, masks: Tensor, **more: Any) -> list[Tensor]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).double()
        normalise_together(net)
        scores = net(images)
        loss = LOSSES["dice+ce"](scores, masks, weight=weight, **more)
        (slope,) = torch.autograd.grad(loss, [net[0].weight], create_graph=True)
        curve = torch.autograd.grad(slope.square().sum(), net[0].weight, retain_graph=True)[0]
        return [loss.detach(), *torch.autograd.grad(loss, list(net.parameters())), curve, *net.buffers()]

    wanted = learn(images, masks)

    def work(rank: int) -> int:
        accelerator = Accelerator(cpu=True)
        found = learn(share(rank, images), share(rank, masks), total=over_processes)
        count, parameters = accelerator.num_processes, 6
        found[1 : 1 + parameters] = [accelerator.reduce(g, "mean") for g in found[1 : 1 + parameters]]
        bad = [
            place
            for place, (one, two) in enumerate(zip(wanted, found, strict=True))
            if place != parameters + 1
            and not torch.allclose(one.double(), two.double(), rtol=1e-9, atol=1e-12)
        ]
        print(bad, [(wanted[place], found[place]) for place in bad])
        return int(count != 2 or bool(bad))

    assert statuses(fork_group(2, work, tmp_path / "log")) == [0, 0], (tmp_path / "log").read_text()[-3000:]


def test_other_batch_norms_are_refused() -> None:
    class Special(nn.BatchNorm2d):
        pass

    with pytest.raises(TaskError, match="Special cannot be shared"):
        normalise_together(nn.Sequential(nn.BatchNorm2d(2), Special(2)))


def test_a_process_that_dies_stops_the_other_and_one_goes_on(data: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    words = words_of(data, "--out", str(out))
    words[words.index("--epochs") + 1] = "40"
    first, second = fork_group(2, lambda rank: retrain.main(words), log)
    end = time.monotonic() + 60
    while not read_lines(out / "history.jsonl") and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(second, signal.SIGKILL)
    began = time.monotonic()
    assert statuses([first, second], 60) == [1, -signal.SIGKILL], log.read_text()[-3000:]
    told = log.read_text()
    assert "is gone; continue, with any number of processes" in told and f"--resume {out}" in told
    assert time.monotonic() - began < 60
    done = len(read_lines(out / "history.jsonl"))
    settings = json.loads((out / "settings.json").read_text())
    settings["options"]["epochs"] = done + 1
    write_atomically(out / "settings.json", json.dumps(settings))
    run_alone(["--resume", str(out)], log)
    assert len(read_lines(out / "history.jsonl")) == done + 1


def test_a_process_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    def work(rank: int) -> int:
        accelerator = Accelerator(cpu=True)
        with watched("continue so", beat=0.1):
            accelerator.wait_for_everyone()
            if rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            accelerator.reduce(torch.ones(3))
        return 0

    first, second = fork_group(2, work, tmp_path / "log")
    try:
        assert statuses([first], 30) == [1]
    finally:
        os.kill(second, signal.SIGKILL)
        os.waitpid(second, 0)
    assert "process 0 stops, as process 1 is gone; continue so" in (tmp_path / "log").read_text()


def test_processes_that_find_different_states_do_not_begin(data: Path, tmp_path: Path) -> None:
    """As on two machines without a disk in common."""
    outs = [tmp_path / "0", tmp_path / "1"]
    run_alone(words_of(data, "--out", str(outs[0])), tmp_path / "log")
    shutil.copytree(outs[0], outs[1])
    for path in outs[1].glob("*.pt"):
        path.unlink()
    (outs[1] / "history.jsonl").unlink()
    children = fork_group(2, lambda rank: retrain.main(["--resume", str(outs[rank])]), tmp_path / "log")
    assert statuses(children) == [1, 1]
    said = (tmp_path / "log").read_text()
    assert said.count("the processes find different states") >= 1 and "see the same files" in said
