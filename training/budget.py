"""A budget for the network that a search derives: MACs, parameters, or seconds on this machine."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import searchseg
from searchseg.cost import OperationCosts, cell_shapes, count_macs, count_parameters, macs, parameters
from searchseg.genotype import random_genotype
from searchseg.network import SearchNet, UShapeConfig, config_arguments
from searchseg.operations import OPERATIONS
from training.files import write_atomically
from training.options import processor as processor

COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
TIMES = {"ms": 1e-3, "s": 1.0}
UNITS = {"macs": COUNTS, "params": COUNTS, "latency": TIMES}
CHAIN = 4  # copies of an operation in a row: each finds its input fresh in the cache, as in a network
NETWORKS = 5  # random networks that the fixed part is taken from
ROUNDS, LEAST_ROUNDS, PATIENCE = 30, 5, 25.0  # passes of each network; fewer after so many seconds
KEPT_BYTES = 31 * 2**20  # glibc learns from blocks of up to 32 MB

clock = time.perf_counter


@dataclass(frozen=True)
class Budget:
    """The most that a derived network may cost: `limit` MACs a picture, parameters, or seconds a picture."""

    kind: str
    limit: float

    def __post_init__(self) -> None:
        if self.kind not in UNITS:
            raise ValueError(f"a budget is one of {', '.join(UNITS)}, got {self.kind!r}")
        if not 0 < self.limit < math.inf:
            raise ValueError(f"the budget of {self.kind} must be a positive number, got {self.limit!r}")

    def costs(
        self, config: UShapeConfig, size: tuple[int, int], device: str | torch.device = "cpu"
    ) -> OperationCosts:
        """What the operations cost in this budget's unit; measures when it is a latency."""
        if self.kind == "latency":
            return latency_costs(config, size, device)
        return count_macs(config, size) if self.kind == "macs" else count_parameters(config)

    def cost_of(self, network: nn.Module, size: tuple[int, int], device: str | torch.device = "cpu") -> float:
        """True cost of a network for a picture of `size` (H, W)."""
        if self.kind == "latency":
            return measure_latency(network, size, device)
        return macs(network, (1, 3, *size)) if self.kind == "macs" else parameters(network)

    def text(self, cost: float) -> str:
        """A cost as one writes it: "1.83G MACs", "812k parameters", "18.3 ms"."""
        if self.kind == "latency":
            return f"{1000 * cost:.3g} ms"
        unit = max((u for u in COUNTS if COUNTS[u] <= cost), key=COUNTS.__getitem__, default="")
        shown = "k" if unit == "k" else unit.upper()
        return f"{cost / COUNTS[unit]:.3g}{shown} {'MACs' if self.kind == 'macs' else 'parameters'}"


def parse_budget(text: str, kind: str | None = None) -> float:
    """The number that "2G", "500M", "1.5k" or "30000" stands for; "20ms" and "0.02s" give seconds.

    With a `kind` ("macs", "params", "latency") only its units will do. Raises ValueError with the
    accepted forms.
    """
    units = COUNTS | TIMES if kind is None else UNITS[kind]
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z]*)", text.strip().lower())
    value = float(match[1]) * units.get(match[2], 0.0) if match else 0.0
    if not 0 < value < math.inf:
        forms = {None: "2G, 500M, 1.5k, 20ms or 0.02s", "latency": "20ms or 0.02s"}
        wanted = forms.get(kind, "2G, 500M, 1.5k or 30000")
        raise ValueError(f"a budget must be a positive number like {wanted}, got {text!r}")
    return value


def penalty(expected: Tensor, limit: float) -> Tensor:
    """What the alpha loss pays for the budget: log(expected / limit) above the limit, 0 within it."""
    return (expected / limit).clamp(min=1).log()


def measure_latency(network: nn.Module, size: tuple[int, int], device: str | torch.device = "cpu") -> float:
    """Seconds of an undisturbed forward pass on one picture of `size` (H, W), in torch's present number
    of threads."""
    watch = Stopwatch(network, (1, 3, *size), device)
    take_turns([watch])
    return watch.seconds()


def latency_costs(
    config: UShapeConfig,
    size: tuple[int, int],
    device: str | torch.device = "cpu",
    cache: Path | None = None,
) -> OperationCosts:
    """Seconds of every operation of a SearchNet on one picture of `size` (H, W), measured on this machine.

    The same machine, threads, device, versions and sizes are measured once: the table is kept in the
    folder `cache`, by default ~/.cache/searchseg.
    """
    key = {
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "searchseg": searchseg.__version__,
        "config": config_arguments(config),
        "size": list(size),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    path = (cache or Path.home() / ".cache" / "searchseg") / f"latency-{name}.json"
    known = _read(path, key)
    if known is not None:
        return known
    with torch.random.fork_rng(devices=[]):  # a search gives the same whether the table was known or not
        costs = _measure(config, size, device)
    with contextlib.suppress(OSError):  # a home that cannot be written to costs time, not the search
        write_atomically(path, json.dumps({"key": key, **asdict(costs)}, indent=2) + "\n")
    return costs


class Stopwatch:
    """Times forward passes of a copy of `network` in pieces, each from the end of a layer to the next end.

    A busy machine interrupts nearly every pass somewhere, but no piece every time: the shortest times of
    the pieces add up to a pass without interruptions. (Measured beside a training, one thread: the lower
    quartile of whole passes is 1.2 to 2.3 times that, and does not order networks.)
    """

    def __init__(self, network: nn.Module, shape: Sequence[int], device: str | torch.device) -> None:
        self.device = torch.device(device)
        layout: dict[str, Any] = {"device": self.device, "memory_format": torch.channels_last}
        self.network = copy.deepcopy(network).to(**layout).eval()
        self.input = torch.ones(tuple(shape)).to(**layout)
        self.passes: list[list[float]] = []
        for module in self.network.modules():
            if not any(module.children()):
                module.register_forward_hook(self._note)

    @torch.inference_mode()
    def run(self) -> None:
        """One forward pass, on record."""
        self._wait()
        self.passes.append([clock()])
        self.network(self.input)
        self._wait()
        self._note()

    def seconds(self) -> float:
        """Time of an undisturbed pass."""
        pieces = torch.tensor(self.passes, dtype=torch.float64).diff(dim=1)
        return pieces.amin(dim=0).sum().item()

    def _note(self, *_: Any) -> None:
        self.passes[-1].append(clock())

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def take_turns(watches: Sequence[Stopwatch]) -> None:
    """Run all networks in turns, so that a busy moment of the machine hits all of them."""
    # glibc would give memory back after each pass and fetch it again page by page, a quarter of the time; a
    # large block that was freed once makes it keep that much
    torch.empty(KEPT_BYTES, dtype=torch.uint8)
    began = clock()
    for turn in range(ROUNDS):
        if turn >= LEAST_ROUNDS and clock() - began > PATIENCE:
            break
        for watch in watches:
            watch.run()


def _measure(config: UShapeConfig, size: tuple[int, int], device: str | torch.device) -> OperationCosts:
    """Time each operation once per shape, and whole networks for the rest."""
    shapes = cell_shapes(config, size)
    chains = {
        (shape, name): Stopwatch(nn.Sequential(*(build(shape[1], True) for _ in range(CHAIN))), shape, device)
        for shape in set(shapes.values())
        for name, build in OPERATIONS.items()
    }
    genotypes = [random_genotype(config.nodes, seed) for seed in range(NETWORKS)]
    networks = [Stopwatch(SearchNet(config, genotype), (1, 3, *size), device) for genotype in genotypes]
    take_turns([*chains.values(), *networks])
    table: Mapping[str, Mapping[str, float]] = {
        cell: {name: chains[shape, name].seconds() / CHAIN for name in OPERATIONS}
        for cell, shape in shapes.items()
    }
    operations = OperationCosts(table, 0.0)
    rests = [
        watch.seconds() - operations.total(genotype)
        for watch, genotype in zip(networks, genotypes, strict=True)
    ]
    return OperationCosts(table, max(0.0, statistics.median(rests)))


def _read(path: Path, key: dict[str, Any]) -> OperationCosts | None:
    """The table kept at `path`; None when there is none, or it is torn, or of something else."""
    try:
        document = json.loads(path.read_text())
        return OperationCosts(document["table"], document["fixed"]) if document["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
