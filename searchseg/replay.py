"""The calls of a network as one straight program, which Python runs faster than its modules.

A SEARCH-Net makes some 700 calls for a picture. Between them Python walks through modules, looks parameters
up and asks for shapes, 2 to 5 ms in all, as long as the calls themselves take for a small picture; and while
it does, no other thread of the process can. Replayed, the same calls give the same scores bit for bit.

torch.fx writes the program and lets Python execute it: its text is made of names of torch's functions and of
numbers, never of anything that a file or a user says.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

MOST_PROGRAMS = 8  # of a network, for the shapes that come first: torch keeps the text of each for good
STATIC = (torch.Size, torch.dtype, torch.device, torch.layout, int, bool)  # alike for inputs of one shape
READERS = {"item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__"}

Program = Callable[[Tensor], Tensor]


class NotReplayable(RuntimeError):
    """What a network does with one input does not tell what it does with another one of the same shape."""


class Replayed(nn.Module):
    """A network whose calls are recorded when an input (B, C, H, W) has a shape for the second time, and
    replayed from then on, for the first MOST_PROGRAMS shapes.

    For networks that make the same calls for all inputs of a shape and write only into what they made from
    the input. Hooks of inner modules and new weights are not seen after the recording. That takes 0.1 to
    0.2 s of Python, once a shape and in one thread: others run the network meanwhile.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._programs: dict[torch.Size, Program] = {}
        self._shapes: set[torch.Size] = set()  # that are replayed, or to be recorded, or cannot be
        self._waiting: set[torch.Size] = set()  # of these, to be recorded
        self._recording = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        program = self._programs.get(x.shape)
        if program is not None:
            return program(x)
        if x.shape not in self._shapes:
            if len(self._shapes) < MOST_PROGRAMS:
                self._shapes.add(x.shape)
                self._waiting.add(x.shape)
        elif x.shape in self._waiting and self._recording.acquire(blocking=False):
            try:
                self._waiting.discard(x.shape)
                return self._record(x)
            finally:
                self._recording.release()
        return self.network(x)

    def _record(self, x: Tensor) -> Tensor:
        try:
            with Recorder(x) as recorder:
                scores = self.network(x)
            program = recorder.program(scores)
        except NotReplayable:
            return self.network(x)
        if torch.equal(program(x), scores):
            self._programs[x.shape] = program
        return scores


class Recorder(TorchFunctionMode):
    """Writes the calls of torch that are made inside it down, as a program of torch.fx from `x`.

    Tensors that do not come from `x` are constants of the program, also those that a call makes of constants.
    Raises NotReplayable for a call that reads values of a tensor, writes into a constant, or gives what is
    neither tensors nor the same for all inputs of this shape.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._graph = fx.Graph()
        self._nodes = WeakIdKeyDictionary({x: self._graph.placeholder("x")})  # of what comes from x
        self._constants: dict[str, Tensor] = {}
        self._constant_nodes = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = (tuple(args), kwargs)
        tensors = _tensors(given)
        if not any(value in self._nodes for value in tensors):
            return result
        several = isinstance(result, (tuple, list)) and not isinstance(result, torch.Size)
        parts = list(result) if several else [result]
        if parts and all(isinstance(part, Tensor) for part in parts):
            if any(part is value and value not in self._nodes for part in parts for value in tensors):
                raise NotReplayable(f"{func} writes into a constant")
            call = self._graph.call_function(func, *map_aggregate(given, self._node))
            for number, part in enumerate(parts):
                node = self._graph.call_function(operator.getitem, (call, number)) if several else call
                self._nodes[part] = node
        elif getattr(func, "__name__", "") in READERS or not all(isinstance(part, STATIC) for part in parts):
            raise NotReplayable(f"{func} gives {type(result).__name__}")
        return result

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value in self._nodes:
            return self._nodes[value]
        if value not in self._constant_nodes:
            name = f"constant_{len(self._constants)}"
            self._constants[name] = value
            self._constant_nodes[value] = self._graph.get_attr(name)
        return self._constant_nodes[value]

    def program(self, result: Tensor) -> Program:
        """The program whose last value is `result`."""
        if result not in self._nodes:
            raise NotReplayable("the result does not come from the input")
        self._graph.output(self._nodes[result])
        program = fx.GraphModule(self._constants, self._graph)
        vars(program).update(self._constants)  # found at once, without nn.Module's search
        return program.forward


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in tuples, lists and dictionaries."""
    found: list[Tensor] = []
    map_aggregate(values, lambda value: found.append(value) if isinstance(value, Tensor) else None)
    return found
