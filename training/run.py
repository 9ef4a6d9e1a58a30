"""All of it: search, derive, retrain, evaluate and pack, and with --push-to-hub publish.

With --minutes the epochs of both stages are chosen to take about that long, after a few steps timed here.
Every stage has a folder of its own under --out. Run the same command again after a stop: stages that are
done are skipped, a stage that was interrupted continues after its last whole epoch.

examples:
  python -m training.run --task pet --preset lite --out runs/pet
  python -m training.run --task custom --data me/leaves --classes soil,leaf --out runs/leaves
    --search "--partial 4 --regularise auxiliary-skip" --retrain "--epochs 60" --push-to-hub me/leaves

what it leaves in --out: search/ and net/ (run folders), and model/, the folder that is published.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator, PartialState

import hub.publish
import training.evaluate
import training.retrain
import training.search
from hub.card import write_card
from hub.pack import pack
from searchseg.genotype import Genotype
from searchseg.pretrained import PretrainedError, from_pretrained
from searchseg.task import Task, TaskError
from training.files import read_lines, write_atomically
from training.options import Manual, add_data_options, data_of, task_of
from training.plan import PlanError, make_plan
from training.presets import PRESETS
from training.rows import load_rows
from training.runs import SETTINGS
from training.source import add_stream_options

DATA = ("task", "data", "revision", "border", "image_column", "mask_column", "classes", "ignore_value")


def stages(args: argparse.Namespace) -> list[tuple[str, Callable[[], bool], Callable[[], int]]]:
    """The stages in order: name, whether it is done already, and what does it (an exit status)."""
    data = _options(args, DATA)
    common = [*data, "--preset", args.preset, "--seed", str(args.seed), *(["--cpu"] if args.cpu else [])]
    found, net, model = args.out / "search", args.out / "net", args.out / "model"
    streaming = ["--streaming"] if args.streaming else []
    number = ["--rows", str(args.rows)] if args.rows else []
    learning = ["--split", args.split, *streaming, *number]

    def epochs(stage: str) -> list[str]:
        return ["--epochs", str(_plan(args)[f"{stage}_epochs"])] if args.minutes else []

    def search() -> int:
        options = [*common, *learning, *epochs("search"), *shlex.split(args.search)]
        return training.search.main(_start(found, options))

    def retrain() -> int:
        genotype = ["--genotype", str(found / "genotype.json")]
        options = [*common, *learning, *genotype, *epochs("retrain"), *shlex.split(args.retrain)]
        return training.retrain.main(_start(net, options))

    def evaluate() -> int:
        status = training.evaluate.main([str(model), *data, *streaming, "--split", args.test])
        PartialState().wait_for_everyone()
        return status

    return [
        ("search", lambda: _searched(found), search),
        ("retrain", lambda: _trained(net), retrain),
        ("pack", lambda: model.is_dir(), lambda: _alone(lambda: _pack(net, found, model))),
        ("evaluate", lambda: (model / "metrics.json").is_file(), evaluate),
        ("card", lambda: (model / "README.md").is_file(), lambda: _alone(lambda: _describe(model))),
    ]


def _plan(args: argparse.Namespace) -> dict[str, float]:
    """The plan of this run, made once: a run that continues keeps its epochs."""
    path = args.out / "plan.json"
    if not path.is_file():
        task = task_of(args)
        if args.streaming and not args.rows:
            raise PlanError("--minutes with --streaming needs the number of rows: say it with --rows N")
        rows = args.rows or len(load_rows(*_source(args, task), task))
        accelerator = Accelerator(cpu=args.cpu)
        plan = make_plan(args.minutes, rows, args.preset, "strong", len(task.classes), accelerator)
        if accelerator.is_main_process:
            args.out.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(plan.to_dict()) + "\n")
            accelerator.print(
                f"plan: {plan.search_epochs} epochs of search, {plan.retrain_epochs} of training"
            )
        accelerator.wait_for_everyone()
    return json.loads(path.read_text())


def _source(args: argparse.Namespace, task: Task) -> tuple[str, str, str | None]:
    data, revision = data_of(args, task)
    return data, args.split, revision


def _options(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    given = [(f"--{name.replace('_', '-')}", getattr(args, name)) for name in names]
    return [word for option, value in given if value is not None for word in (option, str(value))]


def _start(folder: Path, options: list[str]) -> list[str]:
    """Arguments that begin a stage, or continue one that has begun."""
    return ["--resume", str(folder)] if (folder / SETTINGS).is_file() else [*options, "--out", str(folder)]


def _alone(work: Callable[[], int]) -> int:
    """Let the main process work while the others wait."""
    state = PartialState()
    status = work() if state.is_main_process else 0
    state.wait_for_everyone()
    return status


def _searched(folder: Path) -> bool:
    path = folder / "genotype.json"
    return path.is_file() and "epoch_kept" in Genotype.from_json(path.read_text()).search


def _trained(folder: Path) -> bool:
    if not (folder / SETTINGS).is_file():
        return False
    epochs = json.loads((folder / SETTINGS).read_text())["settings"]["epochs"]
    return len(read_lines(folder / "history.jsonl")) == epochs and _loads(folder)


def _loads(folder: Path) -> bool:
    try:
        from_pretrained(folder)
    except PretrainedError:
        return False
    return True


def _pack(net: Path, found: Path, model: Path) -> int:
    growing = model.with_name(model.name + ".partial")
    shutil.rmtree(growing, ignore_errors=True)
    pack(net, growing, search=found, half=True)
    growing.rename(model)
    return 0


def _describe(model: Path) -> int:
    write_card(model, model.name)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m training.run", description=__doc__, formatter_class=Manual)
    add_data_options(top, split="train")
    add_stream_options(top)
    group = top.add_argument_group("run")
    group.add_argument("--test", default="test", help="split to evaluate on, never used before the end")
    group.add_argument("--preset", choices=tuple(PRESETS), default="lite", help="how large")
    group.add_argument("--minutes", type=float, help="about how long, instead of the preset's epochs")
    group.add_argument("--seed", type=int, default=0, help="of every stage")
    group.add_argument("--cpu", action="store_true", help="stay on the CPU even where there is a GPU")
    group.add_argument("--search", default="", metavar="OPTIONS", help="more options of training.search")
    group.add_argument("--retrain", default="", metavar="OPTIONS", help="more options of training.retrain")
    group.add_argument("--out", type=Path, required=True, help="folder of the whole run, new or to continue")
    group.add_argument("--push-to-hub", metavar="USER/NAME", help="publish the model under this id")
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    main_process = PartialState(cpu=args.cpu).is_main_process
    for name, done, work in stages(args):
        if main_process:
            print(f"{name}: {'done already' if done() else 'begins'}", flush=True)
        if done():
            continue
        try:
            status = work()
        except (TaskError, PlanError) as error:  # of the plan; the stages tell of their own
            print(f"error: {error}", file=sys.stderr)
            status = 1
        if status:
            again = shlex.join(["python", "-m", "training.run", *(sys.argv[1:] if argv is None else argv)])
            print(f"{name} did not finish; continue with: {again}", file=sys.stderr)
            return status
    if not args.push_to_hub:
        return 0
    return _alone(lambda: hub.publish.main([str(args.out / "model"), args.push_to_hub, "--yes"]))


if __name__ == "__main__":
    sys.exit(main())
