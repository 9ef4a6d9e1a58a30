"""Proves that the U follows its figure, takes any size, learns everywhere, and is derived as described."""

import copy
import json
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from searchseg.baselines import UNet, UNetConfig
from searchseg.cell import ArchitectureParameter
from searchseg.cost import parameters
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES, Edge, Genotype, possible_edges
from searchseg.network import SearchNet, UShapeConfig, USpace, config_arguments, derive

WIDTHS = (4, 6, 8, 10)
ODD_SIZES = [(1, 1), (37, 53), (1, 500), (500, 1)]
either_stride = pytest.mark.parametrize("stem_stride", [1, 2])


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_alphas(nodes: int, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    numbers = torch.Generator().manual_seed(seed)
    return {
        name: {f"{s}-{t}": torch.randn(7, generator=numbers).tolist() for s, t in possible_edges(nodes)}
        for name in CELL_NAMES
    }


def random_net(nodes: int = 2, stem_stride: int = 1, seed: int = 0, num_classes: int = 3) -> SearchNet:
    torch.manual_seed(seed)
    genotype = derive(random_alphas(nodes, seed), nodes, {})
    return SearchNet(UShapeConfig(WIDTHS, nodes, stem_stride, num_classes), genotype)


def space(nodes: int = 1, stem_stride: int = 1, seed: int = 0) -> USpace:
    torch.manual_seed(seed)
    return USpace(UShapeConfig(WIDTHS, nodes, stem_stride, num_classes=3))


def unet(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet((4, 6, 8), num_classes=3)


NETWORKS = {
    "USpace": space,
    "USpace stride 2": lambda seed=0: space(stem_stride=2, seed=seed),
    "SearchNet": lambda seed=0: random_net(seed=seed),
    "SearchNet stride 2": lambda seed=0: random_net(stem_stride=2, seed=seed),
    "UNet": unet,
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


class Record:
    """Inputs and output of every named module of a network in one forward pass."""

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        self.inputs: dict[str, tuple[Tensor, ...]] = {}
        self.output: dict[str, Tensor] = {}
        for name, module in network.named_modules():
            module.register_forward_hook(partial(self.keep, name))
        with torch.no_grad():
            self.result = network.eval()(image)

    def keep(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.inputs[name], self.output[name] = inputs, output


@pytest.mark.parametrize(
    "treated", [lambda n: n, copy.deepcopy, lambda n: n.double()], ids=["new", "copy", "double"]
)
def test_weights_and_alphas_partition_the_space(treated):
    network = treated(space(nodes=2))
    weights, alphas = list(network.weight_parameters()), list(network.architecture_parameters())
    everything = list(network.parameters())
    assert len(weights) + len(alphas) == len(everything)
    assert {id(p) for p in weights} | {id(p) for p in alphas} == {id(p) for p in everything}
    assert len(alphas) == 8 * len(possible_edges(2)) == len(list(network.edges()))
    assert {id(p) for p in alphas} == {id(mixed.alpha) for *_, mixed in network.edges()}


def test_a_final_network_has_no_alpha():
    for network in (random_net(), unet()):
        assert not any(isinstance(p, ArchitectureParameter) for p in network.parameters())


@either_stride
@pytest.mark.parametrize("make", [space, random_net], ids=["USpace", "SearchNet"])
@pytest.mark.parametrize("size", [(48, 32), (37, 53)], ids=str)
def test_the_forward_pass_follows_the_figure(make, stem_stride, size):
    network, image = make(stem_stride=stem_stride), noise(2, 3, *size)
    record = Record(network, image)
    sides = {0: size, 1: tuple(-(-n // stem_stride) for n in size)}
    for level in (2, 3, 4):
        sides[level] = tuple(-(-n // 2) for n in sides[level - 1])

    def shape(level: int, width_of: int | None = None) -> tuple[int, ...]:
        return (2, WIDTHS[(width_of or level) - 1], *sides[level])

    figure = {  # cell: level, level whose width comes in first, level of the second
        "C1": (1, 1, 1), "C2": (2, 2, 2), "C3": (3, 3, 3), "C4": (4, 4, 4),
        "C5": (4, 4, 4), "C6": (3, 3, 4), "C7": (2, 2, 3), "C8": (1, 1, 2),
    }  # fmt: skip
    for name, (level, first, second) in figure.items():
        assert [tuple(x.shape) for x in record.inputs[name]] == [shape(level, first), shape(second)]
        assert tuple(record.output[name].shape) == shape(level), name
    assert tuple(record.output["head"].shape) == (2, 3, *sides[1])
    assert tuple(record.result.shape) == (2, 3, *size)


def test_the_links_of_the_u_join_the_right_cells():
    record = Record(random_net(), noise(1, 3, 37, 53))
    out, into = record.output, record.inputs
    links = {
        "C1": ("stem", "stem"), "C2": ("down_stem", "down_C1"), "C3": ("down_C1_again", "down_C2"),
        "C4": ("down_C2_again", "down_C3"), "C5": ("down_C3", "C4"),
        "C6": ("C3", "C5"), "C7": ("C2", "C6"), "C8": ("C1", "C7"),
        "down_stem": ("stem",), "down_C1": ("C1",), "down_C2": ("C2",), "down_C3": ("C3",),
        "down_C1_again": ("down_C1",), "down_C2_again": ("down_C2",), "head": ("C8",),
    }  # fmt: skip
    for name, sources in links.items():
        assert [x.data_ptr() for x in into[name]] == [out[source].data_ptr() for source in sources], name


@every_network
@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
def test_any_size_goes_in_and_comes_out(make, size):
    with torch.no_grad():
        scores = make().eval()(noise(1, 3, *size))
    assert scores.shape == (1, 3, *size) and scores.isfinite().all()


@every_network
def test_pictures_of_a_batch_do_not_see_one_another(make):
    network, images = make().eval(), noise(2, 3, 21, 13)
    with torch.no_grad():
        assert torch.allclose(network(images)[1:], network(images[1:]), atol=1e-5)


FIXED = {
    f"SearchNet, {nodes} nodes, seed {seed}": lambda n=nodes, s=seed: random_net(n, stem_stride=1 + s, seed=s)
    for nodes in (1, 2, 3)
    for seed in (0, 1)
} | {"UNet": unet}


@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)
def test_every_parameter_of_a_final_network_learns(make):
    network = make().train()
    (network(noise(2, 3, 32, 32)) * noise(2, 3, 32, 32, seed=2)).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    idle = [name for name, gradient in gradients.items() if not gradient.any()]
    # a squeeze of one or two channels may begin below zero; everything else has to move
    assert all(".attend." in name for name in idle) and len(idle) < 0.1 * len(gradients)


def test_every_parameter_of_the_space_learns():
    network = space(nodes=1).train()
    (network(noise(2, 3, 32, 32)) * noise(2, 3, 32, 32, seed=2)).sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.any() or ".attend." in name, name


@every_network
def test_the_same_seed_gives_the_same_weights(make):
    one, same, other = (make(seed=seed).state_dict() for seed in (0, 0, 1))
    assert list(one) == list(same) and all(torch.equal(one[name], same[name]) for name in one)
    assert any(name not in other or not torch.equal(one[name], other[name]) for name in one)


def edge_alpha(operation: str, strength: float, level: float = 0.0) -> list[float]:
    return [level + strength * (name == operation) for name in OPERATION_NAMES]


def test_each_node_keeps_its_two_strongest_edges_with_their_strongest_operations():
    alphas = {name: {f"{s}-{t}": [0.0] * 7 for s, t in possible_edges(3)} for name in CELL_NAMES}
    alphas["C6"] = {
        "0-2": edge_alpha("skip", 1),
        "1-2": edge_alpha("mbconv_5x5", 2),
        "0-3": edge_alpha("sepconv_5x5", 3, level=-9),  # low numbers, but the clearest decision
        "1-3": edge_alpha("skip", 1, level=50),  # high numbers, weak decision: softmax sees differences
        "2-3": edge_alpha("dilconv_3x3", 2),
        "0-4": edge_alpha("skip", 1),
        "1-4": edge_alpha("dilconv_5x5", 5),
        "2-4": [4.0, 4.0, 0, 0, 0, 0, 0],  # two good operations share the weight: .496 each
        "3-4": edge_alpha("mbconv_3x3", 2.0),  # .55
    }
    genotype = derive(alphas, 3, {"seed": 7})
    assert genotype.cells["C6"] == (
        Edge(0, 2, "skip"), Edge(1, 2, "mbconv_5x5"),
        Edge(0, 3, "sepconv_5x5"), Edge(2, 3, "dilconv_3x3"),
        Edge(1, 4, "dilconv_5x5"), Edge(3, 4, "mbconv_3x3"),
    )  # fmt: skip
    assert genotype.search == {"seed": 7} and genotype.nodes == 3


def test_ties_go_to_the_first_source_and_the_first_operation():
    alphas = {name: {f"{s}-{t}": [0.0] * 7 for s, t in possible_edges(3)} for name in CELL_NAMES}
    first = tuple(Edge(source, target, OPERATION_NAMES[0]) for target in (2, 3, 4) for source in (0, 1))
    assert set(derive(alphas, 3, {}).cells.values()) == {first}


def test_the_order_of_the_table_decides_nothing():
    alphas = {name: {f"{s}-{t}": [0.0] * 7 for s, t in possible_edges(3)} for name in CELL_NAMES}
    turned = {name: dict(reversed(table.items())) for name, table in reversed(alphas.items())}
    assert derive(turned, 3, {}) == derive(alphas, 3, {})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_alphas_that_are_no_numbers_give_no_genotype(value):
    alphas = random_alphas(2)
    alphas["C3"]["0-2"][4] = value
    with pytest.raises(ValueError):
        derive(alphas, 2, {})


def test_a_space_reads_its_own_alphas():
    network = space(nodes=2)
    with torch.no_grad():
        for *_, mixed in network.edges():
            mixed.alpha.copy_(noise(7, seed=int(1e6 * mixed.alpha[0].abs())))
    assert network.genotype({"seed": 1}) == derive(network.alphas(), 2, {})
    assert network.genotype({"seed": 1}).search == {"seed": 1}
    table = json.loads(json.dumps(network.alphas()))
    for name, source, target, mixed in network.edges():
        assert network.cells()[name].edges[f"{source}-{target}"] is mixed
        assert table[name][f"{source}-{target}"] == pytest.approx(mixed.alpha.tolist())


@pytest.mark.parametrize(
    "alpha, wanted",
    [([0.0] * 7, 1), ([1e4] + [0.0] * 6, 0), ([9.0, 9.0] + [-1e4] * 5, math.log(2) / math.log(7))],
)
def test_entropy_runs_from_one_undecided_to_zero_decided(alpha, wanted):
    network = space(nodes=1)
    for *_, mixed in network.edges():
        mixed.alpha.data = torch.tensor(alpha)
    assert network.entropy() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"widths": (4, 8, 16)}, {"widths": (4, 8, 16, 32, 64)}, {"widths": (4, 8, 16, 0)},
        {"widths": (4, 8, 16, 32.0)}, {"widths": (4, 8, 16, 10_000)}, {"widths": "4816"},
        {"widths": (True,) * 4}, {"nodes": 0}, {"nodes": 17}, {"nodes": 2.0}, {"nodes": True},
        {"stem_stride": 0}, {"stem_stride": 3}, {"stem_stride": None}, {"num_classes": 1},
        {"num_classes": 256}, {"num_classes": "2"},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_shape_is_refused_with_its_name_and_value(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} must be .*got "):
        UShapeConfig(**{"widths": WIDTHS, **change})


@pytest.mark.parametrize(
    "widths, num_classes",
    [((4,), 2), ((4,) * 7, 2), ((4, 0), 2), ((4, 8.0), 2), ((4, 8), 1), ((4, 8), 256), ((4, 8), True)],
)
def test_a_bad_unet_is_refused(widths, num_classes):
    for make in (UNetConfig, UNet):
        with pytest.raises(ValueError, match="must be"):
            make(widths, num_classes)


def test_a_genotype_of_another_size_is_refused():
    genotype = derive(random_alphas(2), 2, {})
    with pytest.raises(ValueError, match="config has 3 nodes a cell, the genotype 2"):
        SearchNet(UShapeConfig(WIDTHS, nodes=3), genotype)


@pytest.mark.parametrize("config", [UShapeConfig(WIDTHS, 3, 2, 5), UNetConfig((4, 8, 16), 5)])
def test_arguments_are_plain_json_and_build_the_same_config(config):
    arguments = json.loads(json.dumps(config_arguments(config)))
    assert type(config)(**arguments) == config and hash(type(config)(**arguments)) == hash(config)


def test_a_search_net_keeps_its_genotype_and_arguments():
    network = random_net(nodes=3, stem_stride=2)
    assert isinstance(network.genotype, Genotype) and network.genotype.nodes == network.arguments.nodes == 3
    for name, cell in network.cells().items():
        edges = network.genotype.cells[name]
        assert set(cell.edges) == {f"{edge.source}-{edge.target}" for edge in edges}


def test_the_unet_of_the_literature_has_31_million_parameters():
    with torch.device("meta"):
        assert parameters(UNet((64, 128, 256, 512, 1024), 2)) / 1e6 == pytest.approx(31.04, abs=0.005)


@pytest.mark.parametrize("size", [(32, 32), (37, 53), (1, 1)], ids=str)
def test_the_decoder_of_the_unet_joins_the_skip_of_its_own_level(size):
    record = Record(unet(), noise(1, 3, *size))
    skips = [record.output["encoder.0"], record.output["first"]]
    for level, skip in enumerate(skips):
        (joined,) = record.inputs[f"decoder.{level}"]
        up = record.output[f"up.{level}"][..., : skip.shape[2], : skip.shape[3]]
        assert torch.equal(joined, torch.cat([skip, up], 1))
    widths = [record.output[name].shape[1] for name in ("first", "encoder.0", "encoder.1")]
    assert widths == [4, 6, 8] and all(a < b for a, b in pairwise(widths))
