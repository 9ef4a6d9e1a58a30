"""Proves that MACs and parameters are those of the formulas, and that expected costs follow the search."""

import pytest
import torch
from torch import nn

from searchseg.baselines import UNet
from searchseg.cost import (
    OperationCosts,
    count_macs,
    count_parameters,
    expected_cost,
    macs,
    parameters,
)
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES, random_genotype
from searchseg.network import SearchNet, UShapeConfig, USpace
from searchseg.operations import OPERATIONS


@pytest.mark.parametrize(
    "channels, layer, by_hand",
    [
        (3, nn.Conv2d(3, 8, 3, padding=1), 8 * 3 * 9 * 10 * 12),
        (3, nn.Conv2d(3, 8, 3, stride=2, padding=1), 8 * 3 * 9 * 5 * 6),
        (6, nn.Conv2d(6, 6, 5, padding=2, groups=6), 6 * 25 * 10 * 12),
        (6, nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3), 6 * 2 * 9 * 10 * 12),
        (6, nn.ConvTranspose2d(6, 4, 2, stride=2), 6 * 4 * 4 * 10 * 12),
        (6, nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)), 0),
    ],
    ids=["plain", "stride", "depthwise", "dilated", "transposed", "no product"],
)
def test_macs_of_a_layer_by_hand(channels, layer, by_hand):
    assert macs(layer, (1, channels, 10, 12)) == by_hand
    assert macs(layer, (4, channels, 10, 12)) == 4 * by_hand


def operation_macs(name: str, c: int, pixels: int) -> int:
    """Multiply-accumulates of an operation, from its description: depthwise k*k a channel, pointwise c*c."""
    kernel = int(name[-1]) ** 2 if name != "skip" else 0
    if name.startswith("sepconv"):
        return 2 * (c * kernel + c * c) * pixels
    if name.startswith("dilconv"):
        return (c * kernel + c * c) * pixels
    if name.startswith("mbconv"):
        expanded, squeezed = 3 * c, max(1, c // 4)
        return (2 * c * expanded + expanded * kernel) * pixels + 2 * expanded * squeezed
    return 0


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_macs_of_every_operation_by_formula(name):
    for channels, height, width in ((4, 8, 8), (6, 5, 9)):
        counted = macs(OPERATIONS[name](channels, True), (1, channels, height, width))
        assert counted == operation_macs(name, channels, height * width)


@pytest.mark.parametrize("widths, classes, size", [((2, 4), 2, 8), ((3, 5, 8), 4, 16), ((4, 8, 16), 3, 32)])
def test_macs_and_parameters_of_a_unet_by_formula(widths, classes, size):
    def block(channels_in: int, channels: int) -> int:
        return 9 * (channels_in * channels + channels * channels)

    def norms(channels: int) -> int:
        return 2 * 2 * channels

    pixels = [(size >> level) ** 2 for level in range(len(widths))]
    work, values = block(3, widths[0]) * pixels[0], block(3, widths[0]) + norms(widths[0])
    for level in range(len(widths) - 1):
        above, below = widths[level], widths[level + 1]
        work += block(above, below) * pixels[level + 1]
        work += above * below * pixels[level] + block(2 * above, above) * pixels[level]
        values += block(above, below) + norms(below)
        values += 4 * above * below + above + block(2 * above, above) + norms(above)
    work, values = work + classes * widths[0] * pixels[0], values + classes * (widths[0] + 1)
    network = UNet(widths, classes)
    assert macs(network, (1, 3, size, size)) == work
    assert parameters(network) == values


def test_counting_leaves_the_network_alone():
    network = UNet((2, 4), 2).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    macs(network, (1, 3, 64, 64))
    assert network.training and all(module.training for module in network.modules())
    assert all(p.device.type == "cpu" for p in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


WIDTHS, SIZE = (4, 6, 8, 12), (24, 40)


@pytest.fixture(scope="module")
def counted() -> tuple[USpace, OperationCosts]:
    """A space and its MACs, counted once; every test sets the alphas that it needs."""
    space = USpace(UShapeConfig(WIDTHS, nodes=1, stem_stride=1, num_classes=2))
    return space, count_macs(space.arguments, SIZE)


def certain(operation: str) -> torch.Tensor:
    """Alphas that give one operation a weight of exactly 1."""
    return 1e4 * torch.tensor([float(name == operation) for name in OPERATION_NAMES])


def decide(space: USpace, operation: str) -> None:
    for *_, mixed in space.edges():
        mixed.alpha.data = certain(operation)


def fixed_macs() -> int:
    """Everything but the edges: stem, links, the cells' inputs and merges, head."""
    levels = [0, 1, 2, 3, 3, 2, 1, 0]
    incoming = [(0, 0), (1, 1), (2, 2), (3, 3), (3, 3), (2, 3), (1, 2), (0, 1)]
    pixels = [(SIZE[0] >> level) * (SIZE[1] >> level) for level in range(4)]
    total = 9 * 3 * WIDTHS[0] * pixels[0] + 2 * WIDTHS[0] * pixels[0]
    total += sum(2 * 9 * WIDTHS[level - 1] * WIDTHS[level] * pixels[level] for level in (1, 2, 3))
    for level, sources in zip(levels, incoming, strict=True):
        width = WIDTHS[level]
        total += (sum(WIDTHS[source] for source in sources) * width + width * width) * pixels[level]
    return total


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_expected_macs_of_a_decided_space_by_formula(counted, name):
    space, costs = counted
    decide(space, name)
    levels = [0, 1, 2, 3, 3, 2, 1, 0]
    edges = sum(
        2 * operation_macs(name, WIDTHS[level], (SIZE[0] >> level) * (SIZE[1] >> level)) for level in levels
    )
    assert expected_cost(space, costs).item() == pytest.approx(fixed_macs() + edges, rel=1e-6)


def test_expected_macs_of_an_undecided_space_are_the_mean_of_the_decided_ones(counted):
    (space, costs), decided = counted, []
    for name in OPERATION_NAMES:
        decide(space, name)
        decided.append(expected_cost(space, costs).item())
    for *_, mixed in space.edges():
        mixed.alpha.data = torch.zeros(7)
    assert expected_cost(space, costs).item() == pytest.approx(sum(decided) / 7, rel=1e-6)


def test_expected_macs_go_by_the_alphas_of_now_and_count_each_edge_for_itself(counted):
    space, costs = counted
    decide(space, "skip")
    cheapest, extra = expected_cost(space, costs).item(), {}
    for name, _, _, mixed in space.edges():
        mixed.alpha.data = certain("sepconv_3x3")
        extra[name] = expected_cost(space, costs).item() - cheapest
        mixed.alpha.data = certain("skip")
    for level, name in enumerate(CELL_NAMES[:4]):
        pixels = (SIZE[0] >> level) * (SIZE[1] >> level)
        assert extra[name] == pytest.approx(operation_macs("sepconv_3x3", WIDTHS[level], pixels), rel=1e-3)


def test_more_of_the_dearest_operation_costs_more_and_more_of_the_cheapest_less(counted):
    space, costs = counted
    for *_, mixed in space.edges():
        mixed.alpha.data = torch.zeros(7)
    before = expected_cost(space, costs)
    before.backward()
    dearest, cheapest = OPERATION_NAMES.index("mbconv_5x5"), OPERATION_NAMES.index("skip")
    for *_, mixed in space.edges():
        assert mixed.alpha.grad[dearest] > 0 > mixed.alpha.grad[cheapest]
    assert all(p.grad is None for p in space.weight_parameters())
    with torch.no_grad():
        for *_, mixed in space.edges():
            mixed.alpha[dearest] += 0.1
    assert expected_cost(space, costs) > before


def test_with_one_node_a_cell_the_expectation_is_the_cost_of_the_derived_network():
    # both edges of the only node stay; the odd size and the stride are part of the count
    space = USpace(UShapeConfig(WIDTHS, nodes=1, stem_stride=2, num_classes=2))
    decide(space, "mbconv_3x3")
    net = SearchNet(space.arguments, space.genotype())
    costs = count_macs(space.arguments, (37, 53))
    assert expected_cost(space, costs).item() == pytest.approx(macs(net, (1, 3, 37, 53)), rel=1e-6)


CONFIGS = [
    UShapeConfig(WIDTHS, nodes=1, stem_stride=1, num_classes=2),
    UShapeConfig((3, 5, 9, 16), nodes=3, stem_stride=2, num_classes=11),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["1 node", "3 nodes"])
def test_the_tables_add_up_to_any_network_exactly(config):
    work, values = count_macs(config, (37, 53)), count_parameters(config)
    for seed in range(2):
        net = SearchNet(config, random_genotype(config.nodes, seed))
        assert work.total(net.genotype) == macs(net, (1, 3, 37, 53))
        assert values.total(net.genotype) == parameters(net)


def test_the_tables_hold_the_operations_of_each_cell():
    work, values = count_macs(CONFIGS[0], SIZE), count_parameters(CONFIGS[0])
    for name, level in zip(CELL_NAMES, [0, 1, 2, 3, 3, 2, 1, 0], strict=True):
        pixels = (SIZE[0] >> level) * (SIZE[1] >> level)
        for operation in OPERATION_NAMES:
            assert work.of(name, operation) == operation_macs(operation, WIDTHS[level], pixels)
            assert values.of(name, operation) == parameters(OPERATIONS[operation](WIDTHS[level], True))
    assert work.fixed == fixed_macs()


def test_counting_draws_no_random_numbers():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    for count in (count_macs, count_parameters):
        count.cache_clear()  # else it would not count
    torch.manual_seed(0)
    count_macs(CONFIGS[0], SIZE), count_parameters(CONFIGS[0])
    assert torch.equal(torch.rand(3), wanted)


def prices(fixed: float = 1.0, scale: float = 1.0) -> OperationCosts:
    """Operation i costs i + 1 in C1, twice that in C2, and so on."""
    return OperationCosts(
        {
            cell: {name: scale * level * i for i, name in enumerate(OPERATION_NAMES, 1)}
            for level, cell in enumerate(CELL_NAMES, 1)
        },
        fixed,
    )


def test_the_expected_cost_weights_edges_by_what_a_node_keeps_and_operations_by_alpha():
    space, costs = USpace(UShapeConfig((2, 2, 2, 2), nodes=3)), prices(fixed=5)
    by_hand = 5.0
    for cell, source, target, mixed in space.edges():
        mixed.alpha.data = torch.randn(7, generator=torch.Generator().manual_seed(10 * source + target))
        mean = sum(
            w * costs.of(cell, o)
            for w, o in zip(mixed.alpha.softmax(0).tolist(), OPERATION_NAMES, strict=True)
        )
        by_hand += 2 / target * mean  # node 2 has two edges, node 3 three, node 4 four
    assert expected_cost(space, costs).item() == pytest.approx(by_hand, rel=1e-6)


def test_the_expected_cost_of_a_decided_space_is_the_cost_of_its_network():
    space, costs = USpace(CONFIGS[0]), count_macs(CONFIGS[0], SIZE)
    for i, (*_, mixed) in enumerate(space.edges()):
        mixed.alpha.data = certain(OPERATION_NAMES[i % 7])
    assert expected_cost(space, costs).item() == costs.total(space.genotype())


def test_betas_weight_the_edges_of_their_node():
    space, costs = USpace(UShapeConfig((4, 4, 4, 4), nodes=2), partial=4), prices(fixed=0)
    for cell, source, target, mixed in space.edges():
        mixed.alpha.data = certain(OPERATION_NAMES[source])  # price: source + 1, times the place of the cell
        shares = (0.6, 0.25, 0.15) if (cell, target) == ("C2", 3) else (1.0, 1.0, 1.0)
        mixed.beta.data.fill_(shares[source]).log_()
    others = sum(level * (1 + 2 + 2 / 3 * (1 + 2 + 3)) for level in range(1, 9))
    # drawn first, or second after one of the two others
    kept = [0.6 + 0.25 * 0.6 / 0.75 + 0.15 * 0.6 / 0.85, 0.25 + 0.6 * 0.25 / 0.4 + 0.15 * 0.25 / 0.85]
    in_c2 = 2 * (kept[0] * 1 + kept[1] * 2 + (2 - sum(kept)) * 3 - 2 / 3 * (1 + 2 + 3))
    assert expected_cost(space, costs).item() == pytest.approx(others + in_c2, rel=1e-6)


def test_the_gradient_reaches_every_alpha_and_beta_and_no_weight():
    space = USpace(UShapeConfig((4, 4, 4, 4), nodes=2), partial=4)
    expected_cost(space, prices()).backward()
    for _, _, target, mixed in space.edges():
        assert mixed.alpha.grad[-1] > 0 > mixed.alpha.grad[0] and mixed.alpha.dtype == torch.float32
        assert target == 2 or mixed.beta.grad.any()
    assert all(p.grad is None for p in space.weight_parameters())


def test_large_costs_keep_their_last_digits():
    space = USpace(UShapeConfig((2, 2, 2, 2), nodes=1))
    decide(space, "sepconv_3x3")
    costs = prices(fixed=1e12 + 1, scale=1e9)
    assert expected_cost(space, costs).item() == 1e12 + 1 + 1e9 * 2 * 36
