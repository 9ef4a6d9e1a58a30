"""Points for training.scaling: what a step does, counted, and what it takes, measured."""

from __future__ import annotations

import os
import pickle
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from searchseg.genotype import random_genotype
from searchseg.network import SearchNet, UShapeConfig, USpace
from training.darts import Darts
from training.memory import resident
from training.presets import PRESETS, RECIPES, SearchMethod
from training.trainer import Training

# most take a second or less on one core; every third one is kept out of the fit
MEASURED: list[dict[str, Any]] = [
    {"what": what, "widths": (w, 2 * w, 4 * w, 8 * w), "nodes": nodes, "size": size, "pictures": pictures,
     "partial": partial, "stem_stride": stride}
    for what, w, nodes, size, pictures, partial, stride in (
        ("search", 4, 2, 32, 4, 1, 1), ("search", 8, 2, 32, 4, 1, 1), ("search", 8, 3, 48, 2, 1, 2),
        ("search", 16, 2, 32, 2, 1, 1), ("search", 16, 2, 48, 2, 4, 1), ("search", 32, 2, 32, 2, 4, 1),
        ("retrain", 8, 2, 64, 8, 1, 1), ("retrain", 16, 3, 64, 4, 1, 1), ("retrain", 32, 3, 48, 4, 1, 1),
        ("retrain", 16, 4, 64, 4, 1, 1), ("retrain", 16, 3, 96, 4, 1, 2), ("retrain", 32, 4, 64, 4, 1, 2),
    )
]  # fmt: skip


MOST_SECONDS = 45.0  # after which no further turn begins


class Traffic(TorchDispatchMode):
    """Counts operations, and the bytes of the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and function is not torch.ops.aten.detach.default:
            touched = [t for t in torch.utils._pytree.tree_leaves((args, result)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in touched)
            self.calls += 1
        return result


def network_of(
    what: str, widths: tuple[int, ...], nodes: int, partial: int = 1, stem_stride: int = 1
) -> nn.Module:
    """The supernet of a search, or the network of a random genotype."""
    shape = UShapeConfig(tuple(widths), nodes, stem_stride)  # type: ignore[arg-type]
    return USpace(shape, partial) if what == "search" else SearchNet(shape, random_genotype(nodes, seed=0))


def cost_of(
    what: str, widths: tuple[int, ...], nodes: int, size: int, pictures: int, partial: int = 1,
    stem_stride: int = 1,
) -> dict[str, float]:  # fmt: skip
    """What a step does: `macs`, `bytes` and `calls`; bytes that its graph keeps, and bytes of the weights.

    Nothing is computed. A search step is two passes, one for alpha and one for the weights.
    """
    with torch.device("meta"):
        network = network_of(what, widths, nodes, partial, stem_stride)
        images = torch.empty(pictures, 3, size, size)
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with Traffic() as traffic:
        # forward alone: the counter takes the backward pass of a depthwise convolution for a dense one
        with (
            FlopCounterMode(display=False) as flops,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            scores = network(images)
        weights = [p for p in network.parameters() if p.requires_grad]
        torch.autograd.grad(scores.sum(), weights, allow_unused=True)
    values = sum(p.numel() for p in weights) * 4
    held = {id(p.untyped_storage()) for p in weights}
    kept = sum(s.nbytes() for s in storages.values() if id(s) not in held)
    passes = 2 if what == "search" else 1
    # backward has two products for each of forward; the optimiser moves weights, gradients and two moments
    return {"macs": passes * 3 * flops.get_total_flops() / 2, "bytes": passes * traffic.bytes + 7 * values,
            "calls": passes * traffic.calls, "kept": kept, "weights": values}  # fmt: skip


def measure(points: list[dict[str, Any]], runs: int) -> list[dict[str, Any]]:
    """The points with median seconds of a step, taken in turns, and peak bytes of a process that takes it."""
    # before this process has grown: its children would begin with its size
    peaks = [_in_child(lambda point=point: _peak(point)) for point in points]  # type: ignore[misc]
    calls = [_step(point) for point in points]
    seconds: list[list[float]] = [[] for _ in points]
    started = time.monotonic()
    for turn in range(runs + 1):
        if turn > 1 and time.monotonic() - started > MOST_SECONDS:
            break
        for call, values in zip(calls, seconds, strict=True):
            began = time.perf_counter()
            call()
            if turn:
                values.append(time.perf_counter() - began)
    return [
        {**point, "seconds": statistics.median(values), "range": [min(values), max(values)], "peak": peak}
        for point, values, peak in zip(points, seconds, peaks, strict=True)
    ]


def _step(point: dict[str, Any]) -> Callable[[], Any]:
    """A step of search or retraining, ready to be taken."""
    torch.manual_seed(0)
    accelerator, size = Accelerator(cpu=True), point["size"]
    names = ("what", "widths", "nodes", "partial", "stem_stride")
    network = network_of(**{name: point[name] for name in names}).to(memory_format=torch.channels_last)
    images = torch.randn(point["pictures"], 3, size, size)
    masks = torch.randint(0, 2, (point["pictures"], size, size))
    if point["what"] == "retrain":
        training = Training(network, RECIPES["paper"], accelerator)
        return lambda: training.step(images, masks, 1.0)
    method = SearchMethod(partial=point["partial"])
    run = Darts(network, PRESETS["paper"].search, accelerator, method)  # type: ignore[arg-type]
    return lambda: (run.architecture_step((images, masks)), run.weight_step((images, masks)))


def _peak(point: dict[str, Any]) -> int:
    call = _step(point)
    for _ in range(2):
        call()
    return resident(what="VmHWM")


def _in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a fork of this process."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, pickle.dumps(work()))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        result = pickle.loads(stream.read())
    os.waitpid(child, 0)
    return result


def measure_exchange(runs: int) -> list[dict[str, float]]:
    """Seconds in which two processes of this machine average gradients of some sizes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"

    def exchange(rank: int) -> list[dict[str, float]]:
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
        found = []
        for megabytes in (0.001, 1, 10, 50):
            values, seconds = torch.ones(int(megabytes * 250_000)), []
            for _ in range(runs + 1):
                torch.distributed.barrier()
                began = time.perf_counter()
                torch.distributed.all_reduce(values)
                seconds.append(time.perf_counter() - began)
            found.append({"mb": megabytes, "seconds": statistics.median(seconds[1:])})
        return found

    other = os.fork()
    if not other:
        try:
            exchange(1)
        finally:
            os._exit(0)
    found = _in_child(lambda: exchange(0))
    os.waitpid(other, 0)
    return found
