"""How a run begins and ends: its folder, its processes, the record of its settings, and its errors as
sentences."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import InitProcessGroupKwargs

from hub.publish import PublishError, publish
from searchseg.genotype import GenotypeError
from searchseg.pretrained import PretrainedError
from searchseg.task import TaskError
from training.checkpoint import CheckpointError
from training.files import DiskFullError, write_atomically
from training.loop import Interrupted
from training.options import machine
from training.presets import PRESETS, Memory
from training.watch import tell, watched

SETTINGS = "settings.json"
# how gloo and NCCL begin when the other end is gone
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "ncclRemoteError", "Broken pipe")


def add_run_options(
    parser: argparse.ArgumentParser, seeds: str, precisions: tuple[str, ...], push: bool = True
) -> None:
    """Options of every command that fills a run folder; `seeds` says what --seed decides."""
    group = parser.add_argument_group("run")
    group.add_argument("--preset", choices=tuple(PRESETS), default="lite", help="how large")
    group.add_argument("--epochs", type=int, help="instead of the preset's number")
    group.add_argument("--seed", type=int, default=0, help=f"of {seeds}")
    group.add_argument("--out", type=Path, help="run folder, new or empty")
    group.add_argument(
        "--resume", type=Path, metavar="RUN", help="continue this run folder with its own settings"
    )
    group.add_argument(
        "--save-minutes", type=float, default=10.0, help="between saves within an epoch; each epoch is saved"
    )
    group.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    group.add_argument(
        "--mixed-precision",
        choices=precisions,
        default="no",
        help="pays on a GPU, and bf16 on a CPU that has it",
    )
    if push:
        group.add_argument(
            "--push-to-hub", metavar="USER/NAME", help="publish what the run leaves in the end"
        )
    group.add_argument("--cpu", action="store_true", help="stay on the CPU even where there is a GPU")


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """--accumulate and --checkpoint-activations."""
    group = parser.add_argument_group("memory, at the cost of time")
    group.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="a batch in N parts, one after the other"
    )
    group.add_argument(
        "--checkpoint-activations", action="store_true", help="compute cells twice instead of keeping them"
    )


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """--sync-batch-norm."""
    group = parser.add_argument_group("several processes, see docs/scaling.md")
    group.add_argument(
        "--sync-batch-norm", action="store_true",
        help="batch norm over the pictures of all processes: they learn what one would from the whole batch",
    )  # fmt: skip


def memory_of(args: argparse.Namespace) -> Memory:
    """What those options say; TaskError for parts that are none."""
    if args.accumulate < 1:
        raise TaskError(f"--accumulate must be at least 1, got {args.accumulate}")
    if args.accumulate > 1 and getattr(args, "order", 1) == 2:
        raise TaskError("--accumulate does not go with --order 2: its gradient needs the batch as a whole")
    return Memory(args.accumulate, args.checkpoint_activations)


def parse(top: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The options as given, or with --resume those the run began with; exits when there is no usable run
    folder."""
    args = top.parse_args(argv)
    if args.resume:
        path = args.resume / SETTINGS
        if not path.is_file():
            top.error(f"{args.resume} is no run folder: it has no {SETTINGS}")
        return argparse.Namespace(
            **{
                # what its version did not know yet is as it was then, whatever is said now
                **{name: top.get_default(name) for name in vars(args)},
                **json.loads(path.read_text())["options"],
                "out": args.resume,
                "resume": args.resume,
            }
        )
    if not args.out:
        top.error("say where to write with --out RUN, or which run to continue with --resume RUN")
    if args.out.exists() and not args.out.is_dir():
        top.error(f"{args.out} is a file: choose another --out")
    # a run that was killed while it wrote its first file has left nothing
    if args.out.exists() and any(path.suffix != ".partial" for path in args.out.iterdir()):
        top.error(f"{args.out} is not empty: choose another --out, or continue it with --resume {args.out}")
    if args.epochs is not None and args.epochs < 1:
        top.error(f"--epochs must be at least 1, got {args.epochs}")
    return args


def perform(
    run: Callable[[argparse.Namespace, Accelerator, str], None],
    args: argparse.Namespace,
    argv: list[str] | None,
    module: str,
) -> int:
    """Call `run` under accelerate; returns the exit status: 1 after a fault of the user's data, 130 after
    Ctrl-C."""
    # split_batches: the preset's batch size is that of all processes together
    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.mixed_precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        # the main process scores and writes for minutes while the others wait
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
    )
    again = f"python -m {module} --resume {args.out}"
    try:
        with watched(f"continue, with any number of processes, with: {again}"):
            command = ["python", "-m", module, *(sys.argv[1:] if argv is None else argv)]
            run(args, accelerator, shlex.join(command))
            accelerator.wait_for_everyone()  # the first one keeps what they meet in
    except PublishError as error:
        tell(f"error: {error}\nthe run is whole; publish it with: {again}")
        return 1
    except (TaskError, GenotypeError, PretrainedError, CheckpointError, FileNotFoundError) as error:
        tell(f"error: {error}")
        return 1
    except DiskFullError as error:
        tell(f"error: {error.strerror}; make room and continue with: {again}")
        return 1
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not any(words in str(error) for words in LOST_PEER):
            raise
        tell(f"error: another process is gone; continue, with any number of processes, with: {again}")
        return 1
    except (KeyboardInterrupt, Interrupted) as stop:
        accelerator.print(f"\nstopped; continue with: {again}", file=sys.stderr)
        return getattr(stop, "status", 130)
    finally:
        accelerator.end_training()
    return 0


def push(args: argparse.Namespace, accelerator: Accelerator, genotype_only: bool = False) -> None:
    """Publish the run folder under --push-to-hub, if given: the one call from training to hub.

    Raises PublishError; the run itself is whole then, and the message says how to try again.
    """
    if not args.push_to_hub or not accelerator.is_main_process:
        return
    accelerator.print(publish(args.out, args.push_to_hub, genotype_only=genotype_only).url)


def recorded(out: Path, accelerator: Accelerator) -> dict[str, Any]:
    """settings.json of a run: how it began, whoever continues it now."""
    accelerator.wait_for_everyone()  # the main process may just have written it
    return json.loads((out / SETTINGS).read_text())


def record_settings(args: argparse.Namespace, accelerator: Accelerator, command: str, **details: Any) -> None:
    """Write what the run does to settings.json; a resumed run keeps the record of its start."""
    path = args.out / SETTINGS
    if not accelerator.is_main_process or path.exists():
        return
    options = {key: value for key, value in vars(args).items() if key not in ("out", "resume")}
    document = {"command": command, "options": options, **details, "machine": machine()}
    document["processes"] = accelerator.num_processes
    write_atomically(path, json.dumps(document, indent=2) + "\n")
