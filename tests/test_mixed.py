"""Proves that partial channels, betas and the fast ways through a mixture compute what their sentences
say."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchseg.cell import ArchitectureParameter, Cell, MixedOp, searching_cell
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES, possible_edges, random_genotype
from searchseg.mixed import ALL, _one_by_one, _side_by_side
from searchseg.network import SearchNet, UShapeConfig, USpace

either_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
CONFIG = UShapeConfig((4, 6, 5, 8), nodes=2, stem_stride=2, num_classes=3)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lived_in(module: nn.Module) -> nn.Module:
    """The module with numbers that differ everywhere: alphas, betas and running statistics too."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if isinstance(parameter, ArchitectureParameter):
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.copy_(0.3 * torch.randn(norm.running_mean.shape, generator=draw))
                norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=draw))
    return module


def plainly(mixed: MixedOp, x: Tensor) -> Tensor:
    """The sentence of a mixed operation, word by word."""
    weights = mixed.alpha[list(mixed.candidates)].softmax(0)
    front, rest = x[:, : mixed.passing], x[:, mixed.passing :]
    outputs = [mixed.operations[index](front) for index in mixed.candidates]
    mixture = sum(weight * output for weight, output in zip(weights, outputs, strict=True))
    return torch.cat([mixture + mixed.auxiliary * front, rest], dim=1)


def interleaved(x: Tensor, groups: int) -> Tensor:
    """Channel 0 of every group, channel 1 of every group, ...; what fills no group stays at the end."""
    size = x.shape[1] // groups
    order = [group * size + place for place in range(size) for group in range(groups)]
    return x[:, order + list(range(size * groups, x.shape[1]))]


def plain_cell(cell: Cell, first: Tensor, second: Tensor, partial: int) -> Tensor:
    """The sentence of a cell: a node is the shuffled sum of its edges, each times its softmax(beta)."""
    states = [cell.inputs[0](first), cell.inputs[1](second)]
    while f"0-{len(states)}" in cell.edges:
        edges = [cell.edges[f"{source}-{len(states)}"] for source in range(len(states))]
        arrived = [(edge, plainly(edge, x)) for edge, x in zip(edges, states, strict=True) if edge.candidates]
        if partial == 1:
            states.append(sum(y for _, y in arrived))
        else:
            shares = torch.stack([edge.beta[0] for edge, _ in arrived]).softmax(0)
            total = sum(share * y for share, (_, y) in zip(shares, arrived, strict=True))
            whole = arrived[0][0].passing == total.shape[1]
            states.append(total if whole else interleaved(total, partial))
    return cell.merge(torch.cat(states[2:], dim=1))


def plain_space(space: USpace, image: Tensor, partial: int) -> Tensor:
    """The U of figure 2 from plain cells, in NCHW."""
    cells = {
        name: lambda one, two, cell=cell: plain_cell(cell, one, two, partial)
        for name, cell in space.cells().items()
    }

    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    stem = space.stem(image)
    c1 = cells["C1"](stem, stem)
    c2 = cells["C2"](space.down_stem(stem), second := space.down_C1(c1))
    c3 = cells["C3"](space.down_C1_again(second), third := space.down_C2(c2))
    c4 = cells["C4"](space.down_C2_again(third), fourth := space.down_C3(c3))
    c5 = cells["C5"](fourth, c4)
    c6 = cells["C6"](c3, up(c5, c3))
    c7 = cells["C7"](c2, up(c6, c2))
    c8 = cells["C8"](c1, up(c7, c1))
    return up(space.head(c8), image)


@pytest.mark.parametrize(
    "channels, partial, passing", [(8, 4, 2), (6, 2, 3), (7, 2, 3), (5, 4, 1), (2, 4, 1), (6, 1, 6)]
)
def test_a_share_of_the_channels_passes_and_the_others_go_round(channels, partial, passing):
    torch.manual_seed(0)
    mixed, x = MixedOp(channels, partial).eval(), noise(2, channels, 6, 5)
    out = mixed(x)
    assert mixed.passing == passing and out.shape == x.shape
    assert torch.equal(out[:, passing:], x[:, passing:])
    changed = [not torch.allclose(out[:, c], x[:, c], atol=1e-3) for c in range(channels)]
    assert changed == [True] * passing + [False] * (channels - passing)
    # the rest has no say in what the passing channels become
    other = torch.cat([x[:, :passing], noise(2, channels - passing, 6, 5, seed=9)], dim=1)
    assert torch.equal(mixed(other)[:, :passing], out[:, :passing])


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("channels, partial", [(4, 1), (7, 2)])
def test_an_auxiliary_skip_adds_its_weight_times_the_input(channels, partial, weight):
    torch.manual_seed(0)
    mixed, x = MixedOp(channels, partial).eval(), noise(2, channels, 6, 5)
    before = mixed(x)
    mixed.auxiliary = weight
    change = (mixed(x) - before).split([mixed.passing, channels - mixed.passing], dim=1)
    assert torch.allclose(change[0], weight * x[:, : mixed.passing], atol=1e-6)
    assert not change[1].any()


def test_auxiliary_skips_sit_on_every_edge_of_the_space():
    space = USpace(CONFIG, partial=2)
    space.use_auxiliary_skips(0.5)
    assert [mixed.auxiliary for *_, mixed in space.edges()] == [0.5] * 8 * len(possible_edges(2))


@pytest.mark.parametrize("candidates", [(0, 6), (5, 1, 3), (4,), (6,)], ids=str)
def test_only_candidates_take_part(candidates):
    torch.manual_seed(0)
    mixed, x = lived_in(MixedOp(5)).eval(), noise(2, 5, 6, 5)
    whole = mixed(x)
    mixed.candidates = candidates
    assert mixed.weights().sum().item() == pytest.approx(1) and len(mixed.weights()) == len(candidates)
    assert torch.allclose(mixed(x), plainly(mixed, x), atol=1e-5)
    assert not torch.allclose(mixed(x), whole, atol=1e-2)
    mixed.candidates = ALL
    assert torch.equal(mixed(x), whole)


def computed(how, edges: list[MixedOp], x: Tensor) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Outputs, gradients and buffers of edges that are computed in one of two ways."""
    edges, x = copy.deepcopy(edges), x.clone().requires_grad_()
    outputs = how(edges, x, x.relu())
    scored = sum((out * noise(*out.shape, seed=20 + i)).sum() for i, out in enumerate(outputs))
    parameters = [p for edge in edges for name, p in edge.named_parameters() if name != "beta"]
    gradients = torch.autograd.grad(scored, [x, *parameters])
    buffers = {f"{i} {name}": b for i, edge in enumerate(edges) for name, b in edge.named_buffers()}
    return outputs, list(gradients), buffers


@pytest.mark.parametrize("count, channels", [(2, 1), (2, 4), (3, 3), (4, 2), (4, 24)])
@either_mode
def test_side_by_side_is_one_by_one(count, channels, training):
    # 24 channels of four edges: 576 expanded channels are more than the dense product takes
    torch.manual_seed(0)
    edges = [lived_in(MixedOp(2 * channels, 2)).train(training) for _ in range(count)]
    for i, edge in enumerate(edges):
        edge.alpha.data = noise(7, seed=30 + i)
    x = noise(3, channels, 6, 5)
    fast = computed(_side_by_side, edges, x)
    slow = computed(lambda *given: [_one_by_one(edge, *given[1:]) for edge in given[0]], edges, x)
    assert len(fast[0]) == count and len(fast[1]) == len(slow[1]) == 1 + 27 * count
    for one, two in zip(fast[0] + fast[1], slow[0] + slow[1], strict=True):
        assert (one - two).abs().max() < 1e-5 * two.abs().max().clamp_min(1)
    assert sum(bool(gradient.any()) for gradient in slow[1]) > len(slow[1]) // 2  # some gates may be shut
    statistics = [name for name in slow[2] if "running" in name]
    assert len(statistics) == count * 2 * 12
    for name in statistics:
        assert torch.allclose(fast[2][name], slow[2][name], atol=1e-5)
        start = dict(edges[int(name[0])].named_buffers())[name[2:]]
        assert training != torch.equal(slow[2][name], start)


def test_an_edge_that_lacks_candidates_is_not_taken_side_by_side():
    torch.manual_seed(0)
    cell = lived_in(searching_cell((3, 3), 4, 2, partial=2)).eval()
    cell.edges["0-3"].candidates = (1, 6)
    first, second = noise(2, 3, 6, 5), noise(2, 3, 6, 5, seed=2)
    assert torch.allclose(cell(first, second), plain_cell(cell, first, second, 2), atol=1e-5)


@pytest.mark.parametrize("channels, partial", [(8, 4), (6, 2), (7, 2), (5, 3), (2, 4), (6, 1)])
@either_mode
def test_a_node_is_the_shuffled_sum_of_its_edges_times_their_betas(channels, partial, training):
    torch.manual_seed(0)
    cell = lived_in(searching_cell((3, 5), channels, 3, partial)).train(training)
    first, second = noise(2, 3, 6, 5), noise(2, 5, 6, 5, seed=2)
    wanted = plain_cell(copy.deepcopy(cell), first, second, partial)
    assert torch.allclose(cell(first, second), wanted, atol=1e-4)


def test_the_shuffle_is_that_of_shufflenet():
    x = torch.arange(8.0).view(1, 8, 1, 1)
    assert interleaved(x, 4).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    wanted = F.channel_shuffle(noise(2, 12, 3, 3), 3)
    assert torch.equal(interleaved(noise(2, 12, 3, 3), 3), wanted)


def test_betas_of_a_node_become_shares_of_one():
    cell = lived_in(searching_cell((3, 3), 4, 3, partial=2))
    shares = cell.edge_weights()
    assert set(shares) == set(possible_edges(3))
    for target in (2, 3, 4):
        entering = torch.stack([shares[source, target] for source in range(target)])
        betas = torch.cat([cell.edges[f"{source}-{target}"].beta for source in range(target)])
        assert torch.allclose(entering, betas.exp() / betas.exp().sum()) and entering.sum().item() == approx(
            1
        )


def approx(value: float) -> object:
    return pytest.approx(value, abs=1e-6)


def test_closed_edges_have_no_share():
    cell = lived_in(searching_cell((3, 3), 4, 2, partial=2)).eval()
    cell.edges["1-3"].candidates = ()
    shares = cell.edge_weights()
    assert (1, 3) not in shares and (shares[0, 3] + shares[2, 3]).item() == approx(1)
    first, second = noise(2, 3, 6, 5), noise(2, 3, 6, 5, seed=2)
    wanted = cell(first, second)
    assert torch.allclose(wanted, plain_cell(cell, first, second, 2), atol=1e-5)
    cell.edges["1-3"].beta.data.fill_(1e4)
    assert torch.equal(cell(first, second), wanted)


def test_without_partial_channels_there_are_no_shares():
    assert searching_cell((3, 3), 4, 2).edge_weights() == {}
    assert USpace(CONFIG).betas() is None


@pytest.mark.parametrize("partial", [1, 3])
def test_the_space_is_its_sentences(partial):
    torch.manual_seed(0)
    space = lived_in(USpace(CONFIG, partial))
    plain, image = copy.deepcopy(space), noise(2, 3, 32, 32)
    space.use_auxiliary_skips(0.5), plain.use_auxiliary_skips(0.5)
    space = space.to(memory_format=torch.channels_last)
    for training in (True, False):
        space.train(training), plain.train(training)
        with torch.no_grad():
            found = space(image.contiguous(memory_format=torch.channels_last))
            wanted = plain_space(plain, image, partial)
        assert found.std() > 0.01
        assert torch.allclose(found, wanted, atol=1e-4)
    for (name, one), two in zip(space.named_buffers(), plain.buffers(), strict=True):
        assert "num_batches" in name or torch.allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("partial", [1, 4])
def test_weights_alphas_and_betas_partition_the_space(partial):
    space, edges = USpace(CONFIG, partial), 8 * len(possible_edges(2))
    architecture = [id(p) for p in space.architecture_parameters()]
    weights = [id(p) for p in space.weight_parameters()]
    everything = dict(space.named_parameters())
    assert sorted(architecture + weights) == sorted(map(id, everything.values()))
    ends = {name.rsplit(".", 1)[-1] for name, p in everything.items() if id(p) in architecture}
    assert ends == ({"alpha"} if partial == 1 else {"alpha", "beta"})
    assert len(architecture) == edges * len(ends) and len(weights) > 1000
    if partial > 1:
        table = space.betas()
        assert list(table) == list(CELL_NAMES)
        assert table["C3"] == {key: edge.beta.item() for key, edge in space.C3.edges.items()}


def network_of(space: USpace, genotype) -> SearchNet:
    """The SEARCH-Net of a genotype with the weights of the space: fresh affine norms change nothing."""
    network, given = SearchNet(space.arguments, genotype), space.state_dict()
    copied = {}
    for name, value in network.state_dict().items():
        cell, _, tail = name.partition(".edges.")
        if tail:
            key, _, rest = tail.partition(".")
            source, target = map(int, key.split("-"))
            (edge,) = (e for e in genotype.cells[cell] if (e.source, e.target) == (source, target))
            name_there = f"{cell}.edges.{key}.operations.{OPERATION_NAMES.index(edge.operation)}.{rest}"
            copied[name] = given.get(name_there, value)
            assert name_there in given or name.endswith((".weight", ".bias"))
        else:
            copied[name] = given[name]
    network.load_state_dict(copied)
    return network


@either_mode
def test_a_chosen_genotype_is_its_network_on_the_weights_of_the_space(training):
    torch.manual_seed(0)
    space, image = lived_in(USpace(CONFIG)), noise(2, 3, 32, 32)
    for seed in range(2):
        genotype = random_genotype(CONFIG.nodes, seed)
        network = network_of(space, genotype).train(training)
        space.choose(genotype)
        with torch.no_grad():
            wanted = network(image)
            assert torch.allclose(space.train(training)(image), wanted, atol=1e-5) and wanted.std() > 0.01


def test_choosing_nothing_runs_the_mixture_again():
    torch.manual_seed(0)
    space, image = lived_in(USpace(CONFIG, 2)).eval(), noise(1, 3, 32, 32)
    with torch.no_grad():
        mixture = space(image)
        space.choose(random_genotype(CONFIG.nodes, 1))
        chosen = space(image)
        assert not torch.allclose(chosen, mixture, atol=1e-3)
        assert torch.allclose(chosen, plain_space(space, image, 2), atol=1e-4)
        space.choose(None)
        assert torch.equal(space(image), mixture)
    assert all(mixed.candidates == ALL for *_, mixed in space.edges())
