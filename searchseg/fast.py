"""A network made ready for a CPU: the same function from fewer and cheaper passes over memory.

Batch norms are folded into convolutions (searchseg/fold.py), convolutions take their ReLU along and keep
their kernels in the order that oneDNN wants (searchseg/kernels.py), and the cells of a SEARCH-Net become
matrix products that add into their nodes; its calls are replayed without the modules around them
(searchseg/replay.py). What each step brings is in docs/performance.md.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from searchseg.cell import Cell, upsampled
from searchseg.fold import folded
from searchseg.kernels import OrderedConv, Pointwise, PointwiseConv, as_picture, as_rows, onednn_works
from searchseg.network import SearchNet
from searchseg.operations import DilConv, MBConv, SepConv
from searchseg.replay import Replayed

MOST_PIXELS = (
    2**18
)  # of a batch that goes through at once, 4 pictures of 256x256; a larger picture goes alone
FEW = 4  # classes, whose scores are upsampled faster channel by channel


def faster(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode for float32 pictures on a CPU; scores differ by rounding alone.

    `model` is not changed. Where torch lacks oneDNN, or the weights are not float32, the copy is
    `folded(model)` in channels_last.
    """
    copy = folded(model).to(memory_format=torch.channels_last).requires_grad_(False)
    if not onednn_works() or any(p.dtype != torch.float32 for p in copy.parameters()):
        return copy
    for owner in list(copy.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is Cell and _all_folded(child):
                setattr(owner, name, SummingCell(child))
    _order_kernels(copy)
    if type(copy) is not SearchNet:
        return InParts(copy)
    if isinstance(copy.head, PointwiseConv):
        copy.head.planes = copy.arguments.num_classes <= FEW
    return InParts(Replayed(copy))


class InParts(nn.Module):
    """A network that gets a batch of more than MOST_PIXELS in parts, so that its activations stay small:
    large ones leave the cache, and glibc takes their memory from the system anew every time.

    From (N, C, H, W) to what the network makes of it, in the order of the batch.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        most = max(1, MOST_PIXELS // math.prod(x.shape[2:]))
        if len(x) <= most:
            return self.network(x)
        return torch.cat([self.network(part) for part in x.split(most)])


def _all_folded(cell: Cell) -> bool:
    """Whether its operations are ours and no batch norm is left, which the products would lose."""
    ours = all(type(edge) in READY for edge in cell.edges.values())
    return ours and not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in cell.modules())


class State:
    """A node of a cell: its pixels in rows, and what the edges that begin with a ReLU share."""

    def __init__(self, rows: Tensor, like: Tensor) -> None:
        self.rows, self.like = rows, like

    @functools.cached_property
    def after_relu(self) -> Tensor:
        return as_picture(self.rows.relu(), self.like)


class SummingCell(nn.Module):
    """A cell of folded operations. The last product of every edge adds into its node, and every node adds
    into the merge: no sum and no concatenation is a pass of its own."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(Pointwise(chain[0]) for chain in cell.inputs)  # type: ignore[index]
        entering: dict[int, list[tuple[int, Adding]]] = {}
        for key, edge in cell.edges.items():
            source, target = map(int, key.split("-"))
            entering.setdefault(target, []).append((source, READY[type(edge)](edge)))
        self.entering = [entering[target] for target in sorted(entering)]
        self.edges = nn.ModuleList(edge for edges in self.entering for _, edge in edges)
        self.biases = [functools.reduce(torch.add, [e.bias for _, e in edges]) for edges in self.entering]
        merge = Pointwise(cell.merge[0])  # type: ignore[arg-type]
        self.merge_bias, self.merge = merge.bias, merge.weight.chunk(len(self.entering))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        enter, enter_second = self.inputs
        states = [State(enter(as_rows(first)), first)]
        small = as_picture(enter_second(as_rows(second)), second)  # upsampling later gives the same
        states.append(State(as_rows(upsampled(small, first)), first))
        out: Tensor = self.merge_bias
        for edges, node, weight in zip(self.entering, self.biases, self.merge, strict=True):
            for source, edge in edges:
                node = edge(states[source], node)
            states.append(State(node, first))
            out = plus(out, node, weight)
        return as_picture(out.relu_(), first)


def plus(total: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """total + rows @ weight, in place unless `total` is still the bias (channels) that a sum begins with."""
    return torch.addmm(total, rows, weight) if total.dim() == 1 else total.addmm_(rows, weight)


class Adding(nn.Module):
    """An edge: `edge(state, node)` adds what it makes of a state to a node, in place where the node has
    begun. Its `bias` is what every pixel of the node begins with."""

    bias: Tensor


class Skip(Adding):
    """Adds a state as it is."""

    def __init__(self, _: nn.Module) -> None:
        super().__init__()
        self.bias = torch.zeros(1)

    def forward(self, state: State, node: Tensor) -> Tensor:
        return node + state.rows if node.dim() == 1 else node.add_(state.rows)


class Separable(Adding):
    """Adds a SepConv or DilConv of a state."""

    def __init__(self, edge: SepConv | DilConv) -> None:
        super().__init__()
        _, *inside, chain = edge
        self.inside, last = nn.Sequential(*inside), Pointwise(chain[0])  # type: ignore[index]
        self.weight, self.bias = last.weight, last.bias

    def forward(self, state: State, node: Tensor) -> Tensor:
        return plus(node, as_rows(self.inside(state.after_relu)), self.weight)


class Inverted(Adding):
    """Adds an MBConv of a state. The gate of its squeeze-and-excitation scales the few weights of the last
    product instead of all pixels."""

    def __init__(self, edge: MBConv) -> None:
        super().__init__()
        self.expand = Pointwise(edge.expand[0], relu=True)  # type: ignore[arg-type]
        self.depthwise = OrderedConv(edge.depthwise[0], relu=True)  # type: ignore[arg-type]
        self.squeeze, self.excite = Pointwise(edge.attend.squeeze, relu=True), Pointwise(edge.attend.excite)
        project = Pointwise(edge.project[0])  # type: ignore[arg-type]
        self.weight, self.bias = project.weight, project.bias

    def forward(self, state: State, node: Tensor) -> Tensor:
        batch = len(state.like)
        rows = as_rows(self.depthwise(as_picture(self.expand(state.rows), state.like)))
        node = node + state.rows if node.dim() == 1 else node.add_(state.rows)
        for sums, pixels in zip(node.chunk(batch), rows.chunk(batch), strict=True):
            sums.addmm_(pixels, self._gated(pixels))
        return node

    def _gated(self, rows: Tensor) -> Tensor:
        """Weights of the last product for one picture (H * W, channels)."""
        mean = torch.mm(_shares(len(rows)), rows)  # three times as fast as rows.mean(0)
        gate = self.excite(self.squeeze(mean)).sigmoid_()
        return gate.t() * self.weight


@functools.lru_cache(maxsize=32)
def _shares(pixels: int) -> Tensor:
    """(1, pixels) of 1 / pixels; one for all layers and programs."""
    with torch.inference_mode(False):
        return torch.full((1, pixels), 1 / pixels)


READY: dict[type, Callable[[Any], Adding]] = {
    nn.Identity: Skip, SepConv: Separable, DilConv: Separable, MBConv: Inverted,
}  # fmt: skip


def _order_kernels(model: nn.Module) -> None:
    """Put an OrderedConv, or a product where the kernel is 1x1, in place of every plain convolution."""
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    for owner in list(model.modules()):
        chain = list(owner._modules.items())
        for at, (name, conv) in enumerate(chain):
            if type(conv) is not nn.Conv2d or places[id(conv)] > 1 or not _ordinary(conv):
                continue
            setattr(owner, name, ready := _ready(conv))
            if type(owner).forward is nn.Sequential.forward:
                _take_relu_along(owner, ready, chain[at + 1 :])


def _ready(conv: nn.Conv2d) -> OrderedConv | PointwiseConv:
    plain = conv.kernel_size == (1, 1) == conv.stride and conv.groups == 1 and conv.padding == (0, 0)
    return PointwiseConv(conv) if plain else OrderedConv(conv, relu=False)


def _ordinary(conv: nn.Conv2d) -> bool:
    return (
        conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and conv.weight.dtype == torch.float32
    )


def _take_relu_along(
    chain: nn.Module, conv: OrderedConv | PointwiseConv, rest: Sequence[tuple[str, nn.Module | None]]
) -> None:
    for name, module in rest:
        if type(module) is nn.ReLU:
            conv.relu = True
            setattr(chain, name, nn.Identity())
        if type(module) is not nn.Identity:
            return
