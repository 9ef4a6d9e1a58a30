"""The calls of a network as one straight program, which Python runs faster than its modules.

A SEARCH-Net makes some 600 calls for a picture. Between them Python walks through modules, looks parameters
up and asks for shapes, 2 to 5 ms in all, as long as the calls themselves take for a small picture; and while
it does, no other thread of the process can. Replayed, the same calls give the same scores bit for bit.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

MOST_PROGRAMS = 4  # kept, by shape of the input; each holds the ordered kernels of its shape
SEEN = 64  # shapes that are remembered without one


class Replayed(nn.Module):
    """A network whose calls are recorded when an input (B, C, H, W) has a shape for the second time, and
    replayed from then on.

    For networks that make the same calls for all inputs of a shape, write into nothing but what they made
    themselves from their input, and run in inference mode or without gradients. The first input of a shape is
    not recorded: that takes as long as two calls.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._seen: Counter[torch.Size] = Counter()
        self._programs: dict[torch.Size, Callable[[Tensor], Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        program = self._programs.get(x.shape)
        if program is not None:
            return program(x)
        if len(self._seen) >= SEEN:
            self._seen.clear()
        self._seen[x.shape] += 1
        if self._seen[x.shape] < 2:
            return self.network(x)
        with Recorder(x) as recorder:
            scores = self.network(x)
        while len(self._programs) >= MOST_PROGRAMS:
            oldest, *_ = list(self._programs)  # a copy: the page has two threads
            self._programs.pop(oldest, None)
        self._programs[x.shape] = recorder.program(scores)
        return scores


class Recorder(TorchFunctionMode):
    """Writes the calls of torch that are made inside it down, as a program of torch.fx from `x`.

    Tensors that do not come from `x` are constants of the program, also those that a call makes of constants.
    TypeError for a call that gives nothing, such as an assignment to a part of a tensor.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._graph, self._root = fx.Graph(), nn.Module()
        self._nodes = WeakIdKeyDictionary({x: self._graph.placeholder("x")})  # of what comes from x
        self._constants = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, kwargs = (tuple(args), kwargs or {}), kwargs or {}
        result = func(*args, **kwargs)
        if not any(value in self._nodes for value in _tensors(given)):
            return result
        if result is None:
            raise TypeError(f"{func} cannot be replayed: it gives nothing")
        if isinstance(result, Tensor):
            self._nodes[result] = self._call(func, given)
        elif tensors := _tensors(result):
            call = self._call(func, given)
            for number, part in enumerate(tensors):
                self._nodes[part] = self._graph.call_function(operator.getitem, (call, number))
        return result  # else a shape or a number of dimensions, the same for every input of this shape

    def _call(self, func: Any, given: Any) -> fx.Node:
        return self._graph.call_function(func, *map_aggregate(given, self._node))

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value in self._nodes:
            return self._nodes[value]
        if value not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._root.register_buffer(name, value)
            self._constants[value] = self._graph.get_attr(name)
        return self._constants[value]

    def program(self, result: Tensor) -> Callable[[Tensor], Tensor]:
        """The program whose last value is `result`."""
        self._graph.output(self._node(result))
        program = fx.GraphModule(self._root, self._graph)
        vars(program).update(program.named_buffers())  # found at once, without nn.Module's search
        return program.forward


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in a value, or in tuples, lists and dictionaries of it."""
    found: list[Tensor] = []
    map_aggregate(values, lambda value: found.append(value) if isinstance(value, Tensor) else None)
    return found
