"""Proves that a decided mixed operation is its winner, and that both kinds of cell are wired alike."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from searchseg.cell import ArchitectureParameter, Cell, MixedOp, fixed_cell, searching_cell
from searchseg.genotype import OPERATION_NAMES, Edge, possible_edges
from searchseg.operations import OPERATIONS

CHANNELS = 6
either_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decide(mixed: MixedOp, operation: str) -> None:
    """Raise one alpha so far that its softmax weight is exactly 1 and the others' exactly 0."""
    with torch.no_grad():
        mixed.alpha[OPERATION_NAMES.index(operation)] = 1e4


@pytest.mark.parametrize("name", OPERATION_NAMES)
@either_mode
def test_a_mixed_operation_with_one_winner_is_that_operation(name, training):
    torch.manual_seed(0)
    mixed = MixedOp(CHANNELS).train(training)
    decide(mixed, name)
    operation = copy.deepcopy(mixed.operations[OPERATION_NAMES.index(name)])
    x = noise(2, CHANNELS, 7, 5)
    assert torch.equal(mixed(x), operation(x))


def test_a_mixed_operation_is_the_weighted_sum_of_the_seven():
    torch.manual_seed(0)
    mixed, x = MixedOp(CHANNELS).eval(), noise(2, CHANNELS, 7, 5)
    mixed.alpha.data = noise(7)
    weights = mixed.alpha.exp() / mixed.alpha.exp().sum()
    wanted = sum(weight * operation(x) for weight, operation in zip(weights, mixed.operations, strict=True))
    assert torch.allclose(mixed(x), wanted, atol=1e-6)


def test_a_mixed_operation_begins_undecided_and_cannot_scale_its_operations():
    torch.manual_seed(0)
    mixed = MixedOp(CHANNELS)
    assert torch.allclose(mixed.alpha.softmax(0), torch.full((7,), 1 / 7), atol=1e-3)
    assert mixed.alpha.unique().numel() == 7  # equal alphas would tie
    assert len(mixed.operations) == len(OPERATION_NAMES)
    assert all(not norm.affine for norm in mixed.modules() if isinstance(norm, nn.BatchNorm2d))


def test_every_alpha_of_an_edge_gets_a_gradient():
    torch.manual_seed(0)
    mixed = MixedOp(CHANNELS)
    (mixed(noise(2, CHANNELS, 5, 5)) * noise(2, CHANNELS, 5, 5, seed=2)).sum().backward()
    assert mixed.alpha.grad.abs().min() > 0
    assert mixed.alpha.grad.sum().abs() < 1e-4  # softmax: only differences of alpha count


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda cell: cell.to(torch.float64),
        lambda cell: cell.to(memory_format=torch.channels_last),
        lambda cell: cell.half().float(),
        lambda cell: cell.share_memory(),
    ],
    ids=["deepcopy", "float64", "channels_last", "half", "shared"],
)
def test_alphas_stay_architecture_parameters(copied):
    cell = copied(searching_cell((3, 4), 2, nodes=2))
    alphas = [p for p in cell.parameters() if isinstance(p, ArchitectureParameter)]
    assert len(alphas) == len(possible_edges(2)) and all(alpha.shape == (7,) for alpha in alphas)
    assert {id(p) for p in alphas} == {id(p) for name, p in cell.named_parameters() if name.endswith("alpha")}
    assert not isinstance(nn.Parameter(torch.zeros(7)), ArchitectureParameter)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_searching_cell_has_a_mixed_operation_on_every_possible_edge(nodes):
    cell = searching_cell((3, 4), 2, nodes)
    assert list(cell.edges) == [f"{source}-{target}" for source, target in possible_edges(nodes)]
    assert all(type(edge) is MixedOp for edge in cell.edges.values())


class Factor(nn.Module):
    """An edge that multiplies, so that the paths through a cell can be counted."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def test_a_node_is_the_sum_of_its_edges_and_the_output_merges_all_nodes():
    # nodes by hand: 2 = 3a + 5b, 3 = 7b + 11n2, 4 = 13a + 17n3
    factors = {(0, 2): 3, (1, 2): 5, (1, 3): 7, (2, 3): 11, (0, 4): 13, (3, 4): 17}
    cell = Cell((2, 3), 4, 3, {edge: Factor(factor) for edge, factor in factors.items()}).eval()
    first, second = noise(1, 2, 3, 3), noise(1, 3, 3, 3, seed=2)
    a, b = cell.inputs[0](first), cell.inputs[1](second)
    n2 = 3 * a + 5 * b
    n3 = 7 * b + 11 * n2
    n4 = 13 * a + 17 * n3
    assert torch.allclose(cell(first, second), cell.merge(torch.cat([n2, n3, n4], 1)), atol=1e-5)


NODES = 3
CHOSEN = tuple(
    Edge(source, target, operation)
    for (source, target), operation in zip(
        [(0, 2), (1, 2), (0, 3), (2, 3), (1, 4), (3, 4)],
        ["sepconv_3x3", "skip", "mbconv_5x5", "dilconv_3x3", "mbconv_3x3", "sepconv_5x5"],
        strict=True,
    )
)


@pytest.mark.parametrize("size", [(8, 8), (3, 5)], ids=str)
@either_mode
def test_a_decided_searching_cell_is_the_fixed_cell(training, size):
    torch.manual_seed(0)
    fixed = fixed_cell((2, 5), CHANNELS, NODES, CHOSEN)
    searching = searching_cell((2, 5), CHANNELS, NODES)
    searching.inputs.load_state_dict(fixed.inputs.state_dict())
    searching.merge.load_state_dict(fixed.merge.state_dict())
    kept = {f"{edge.source}-{edge.target}": edge.operation for edge in CHOSEN}
    for key in searching.edges:
        if key not in kept:
            searching.edges[key] = Factor(0)  # the edges that the search drops
            continue
        decide(searching.edges[key], kept[key])
        operation = searching.edges[key].operations[OPERATION_NAMES.index(kept[key])]
        # fresh affine norms multiply by 1 and add 0, so leaving their parameters out changes nothing
        unexpected = operation.load_state_dict(fixed.edges[key].state_dict(), strict=False).unexpected_keys
        assert all(name.endswith((".weight", ".bias")) for name in unexpected)
    first, second = noise(2, 2, *size), noise(2, 5, *size, seed=2)
    fixed.train(training), searching.train(training)
    assert torch.allclose(searching(first, second), fixed(first, second), atol=1e-6)


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_a_fixed_cell_holds_the_operations_of_the_genotype(name):
    edges = (Edge(0, 2, name), Edge(1, 2, "skip"))
    cell = fixed_cell((3, 3), CHANNELS, 1, edges)
    assert list(cell.edges) == ["0-2", "1-2"] and type(cell.edges["1-2"]) is nn.Identity
    wanted = OPERATIONS[name](CHANNELS, True).state_dict()
    assert {k: v.shape for k, v in cell.edges["0-2"].state_dict().items()} == {
        k: v.shape for k, v in wanted.items()
    }


def test_the_order_of_the_edges_does_not_matter():
    torch.manual_seed(0)
    cell = fixed_cell((2, 2), CHANNELS, NODES, CHOSEN).eval()
    other = fixed_cell((2, 2), CHANNELS, NODES, CHOSEN[::-1]).eval()
    other.load_state_dict(cell.state_dict())
    first, second = noise(1, 2, 4, 4), noise(1, 2, 4, 4, seed=2)
    assert torch.allclose(cell(first, second), other(first, second), atol=1e-6)


@either_mode
@pytest.mark.parametrize("fixed", [True, False])
def test_the_second_input_is_upsampled_before_all_else(fixed, training):
    torch.manual_seed(0)
    edges = (Edge(0, 2, "sepconv_3x3"), Edge(1, 2, "mbconv_5x5"))
    cell = fixed_cell((4, 3), CHANNELS, 1, edges) if fixed else searching_cell((4, 3), CHANNELS, 1)
    cell, first, small = cell.train(training), noise(2, 4, 9, 7), noise(2, 3, 5, 4)
    wide = F.interpolate(small, size=(9, 7), mode="bilinear", align_corners=False)
    assert torch.equal(copy.deepcopy(cell)(first, small), cell(first, wide))
