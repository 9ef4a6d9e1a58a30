"""Proves that budgets are read as written, press only when exceeded, and that latency is measured soundly."""

import json
import math

import pytest
import torch
from torch import nn

import training.budget
from searchseg.cost import OperationCosts, count_macs, count_parameters, expected_cost, macs, parameters
from searchseg.derivation import derive
from searchseg.genotype import random_genotype
from searchseg.network import SearchNet, UShapeConfig, USpace
from training.budget import Budget, latency_costs, measure_latency, parse_budget, penalty

CONFIG, SIZE = UShapeConfig((2, 3, 4, 5), nodes=1, stem_stride=2, num_classes=2), (16, 24)


@pytest.mark.parametrize(
    "text, value",
    [
        ("2G", 2e9), ("500M", 5e8), ("1.5k", 1500), ("30000", 30000), ("1 m", 1e6), (".5g", 5e8),
        ("20ms", 0.02), ("0.02s", 0.02), ("1 s", 1), (" 7.5 MS ", 0.0075),
    ],
)  # fmt: skip
def test_a_budget_is_read_as_written(text, value):
    assert parse_budget(text) == pytest.approx(value, rel=1e-12)
    kind = "latency" if text.strip().lower().endswith("s") else "macs"
    assert parse_budget(text, kind) == parse_budget(text)


@pytest.mark.parametrize(
    "text", ["", "G", "2X", "-2G", "0", "0ms", "nan", "inf", "2GG", "2,5G", "1e400", "2G MACs", "9" * 400]
)
def test_what_is_no_budget_is_refused_with_the_forms_that_are(text):
    for kind in (None, "macs", "params", "latency"):
        with pytest.raises(ValueError, match=r"must be a positive number like .*, got ") as error:
            parse_budget(text, kind)
        assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    "text, kind", [("2G", "latency"), ("20", "latency"), ("20ms", "macs"), ("1s", "params")]
)
def test_a_unit_of_another_kind_is_refused(text, kind):
    with pytest.raises(ValueError, match="20ms or 0.02s" if kind == "latency" else "2G, 500M"):
        parse_budget(text, kind)


@pytest.mark.parametrize(
    "kind, limit", [("flops", 1.0), ("macs", 0.0), ("latency", math.nan), ("params", math.inf)]
)
def test_a_budget_knows_its_kinds_and_needs_a_positive_limit(kind, limit):
    with pytest.raises(ValueError, match=f"got {kind!r}" if kind == "flops" else f"{kind} must be"):
        Budget(kind, limit)


@pytest.mark.parametrize(
    "kind, cost, text",
    [("macs", 1.834e9, "1.83G MACs"), ("params", 812_345, "812k parameters"), ("latency", 0.01834, "18.3 ms"),
     ("macs", 17, "17 MACs"), ("params", 5e6, "5M parameters")],
)  # fmt: skip
def test_a_cost_is_written_as_one_reads_it(kind, cost, text):
    assert Budget(kind, 1.0).text(cost) == text


@pytest.mark.parametrize("cost, wanted, slope", [(50.0, 0.0, 0.0), (200.0, math.log(2), 1 / 200)])
def test_the_penalty_is_the_logarithm_of_the_excess(cost, wanted, slope):
    expected = torch.tensor(cost, dtype=torch.float64, requires_grad=True)
    loss = penalty(expected, 100)
    loss.backward()
    assert loss.item() == pytest.approx(wanted) and expected.grad.item() == pytest.approx(slope)


def test_the_penalty_alone_brings_a_space_into_its_budget():
    torch.manual_seed(0)
    space, costs = USpace(CONFIG), count_macs(CONFIG, SIZE)
    undecided = expected_cost(space, costs).item()
    limit = costs.fixed + 0.5 * (undecided - costs.fixed)
    alphas = list(space.architecture_parameters())
    optimizer = torch.optim.Adam(alphas, 0.3)
    for _ in range(20):
        optimizer.zero_grad()
        penalty(expected_cost(space, costs), limit).backward()
        optimizer.step()
    assert expected_cost(space, costs).item() < 1.02 * limit
    genotype = derive(space.alphas(), CONFIG.nodes, {}, costs=costs, limit=limit)
    assert macs(SearchNet(CONFIG, genotype), (1, 3, *SIZE)) <= limit


def test_a_budget_counts_the_table_and_the_network_in_one_unit(monkeypatch):
    network = SearchNet(CONFIG, random_genotype(1, seed=1))
    assert Budget("macs", 1).costs(CONFIG, SIZE) == count_macs(CONFIG, SIZE)
    assert Budget("macs", 1).cost_of(network, SIZE) == macs(network, (1, 3, *SIZE))
    assert Budget("params", 1).costs(CONFIG, SIZE) == count_parameters(CONFIG)
    assert Budget("params", 1).cost_of(network, SIZE) == parameters(network)
    monkeypatch.setattr(training.budget, "latency_costs", lambda *given: given)
    monkeypatch.setattr(training.budget, "measure_latency", lambda *given: given)
    assert Budget("latency", 1).costs(CONFIG, SIZE, "cuda") == (CONFIG, SIZE, "cuda")
    assert Budget("latency", 1).cost_of(network, SIZE, "cuda") == (network, SIZE, "cuda")


class Machine:
    """A machine on which a convolution takes as many seconds as it has weights and all else takes nothing.

    In every pass it is busy with something else for `interruption` seconds, each time before another
    convolution.
    """

    def __init__(self, interruption: float = 0.0) -> None:
        self.now, self.interruption, self.countdown, self.forward_passes = 0.0, interruption, 0, 0

    def clock(self) -> float:
        return self.now

    def work(self, module: nn.Module, _: object) -> None:
        if isinstance(module, SearchNet):
            self.forward_passes += 1
            self.countdown = 1 + 7 * self.forward_passes % 30
        if isinstance(module, nn.Conv2d):
            self.now += module.weight.numel()
            self.countdown -= 1
            if self.countdown == 0:
                self.now += self.interruption


@pytest.fixture
def machine(monkeypatch, request):
    machine = Machine(getattr(request, "param", 0.0))
    monkeypatch.setattr(training.budget, "clock", machine.clock)
    monkeypatch.setattr(training.budget, "ROUNDS", 5)
    monkeypatch.setattr(training.budget, "NETWORKS", 2)
    monkeypatch.setattr(training.budget, "PATIENCE", math.inf)
    hook = nn.modules.module.register_module_forward_pre_hook(machine.work)
    yield machine
    hook.remove()


def weights_of_convolutions(network: nn.Module) -> int:
    return sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("machine", [0.0, 1e6], indirect=True, ids=["idle", "interrupted"])
def test_a_whole_pass_is_timed_without_its_interruptions(machine):
    network = SearchNet(CONFIG, random_genotype(1, seed=3))
    assert measure_latency(network, SIZE) == weights_of_convolutions(network)
    assert machine.forward_passes == training.budget.ROUNDS == 5
    assert (machine.now > 1e6) == (machine.interruption > 0)


def test_timing_leaves_the_network_alone(machine):
    network = SearchNet(CONFIG, random_genotype(1, seed=3)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measure_latency(network, SIZE)
    assert all(module.training and not module._forward_hooks for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("machine", [0.0, 1e6], indirect=True, ids=["idle", "interrupted"])
def test_the_table_adds_up_to_any_network(machine, tmp_path):
    costs = latency_costs(CONFIG, SIZE, cache=tmp_path)
    for seed in (100, 101):
        network = SearchNet(CONFIG, random_genotype(1, seed))
        assert costs.total(network.genotype) == pytest.approx(weights_of_convolutions(network))
    assert costs.of("C1", "sepconv_3x3") == 2 * (2 * 9 + 2 * 2) and costs.of("C5", "skip") == 0
    assert costs.of("C4", "dilconv_5x5") == 5 * 25 + 5 * 5
    assert costs.fixed > 0


def test_the_fixed_part_is_never_negative(machine, monkeypatch, tmp_path):
    # operations alone may take longer than in a network
    seconds = training.budget.Stopwatch.seconds
    monkeypatch.setattr(training.budget, "ROUNDS", 1)
    monkeypatch.setattr(
        training.budget.Stopwatch,
        "seconds",
        lambda watch: seconds(watch) * (1 if isinstance(watch.network, SearchNet) else 1000),
    )
    assert latency_costs(CONFIG, SIZE, cache=tmp_path).fixed == 0


def test_the_table_is_measured_once_a_machine_and_subject(monkeypatch, tmp_path):
    measured = []

    def measure(config: UShapeConfig, size: tuple[int, int], device: str) -> OperationCosts:
        measured.append((config, size, device))
        return OperationCosts({"C1": {"skip": 1e-6}}, len(measured) / 1000)

    def ask(config: UShapeConfig = CONFIG, size: tuple[int, int] = SIZE, device: str = "cpu") -> float:
        costs = latency_costs(config, size, device, tmp_path)
        assert costs == latency_costs(config, size, device, tmp_path)  # exactly, through JSON
        return costs.fixed

    monkeypatch.setattr(training.budget, "_measure", measure)
    wider = UShapeConfig((2, 3, 4, 6), 1, 2, 2)
    assert [ask(), ask(size=(16, 16)), ask(wider), ask(device="meta")] == [0.001, 0.002, 0.003, 0.004]
    assert measured == [
        (CONFIG, SIZE, "cpu"),
        (CONFIG, (16, 16), "cpu"),
        (wider, SIZE, "cpu"),
        (CONFIG, SIZE, "meta"),
    ]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert ask() == 0.005
    monkeypatch.setattr(training.budget, "processor", lambda: "another, 8 cores")
    assert ask() == 0.006
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert ask() == 0.007
    assert len(measured) == len(list(tmp_path.iterdir())) == 7


def test_measuring_draws_no_random_numbers_from_the_search(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(training.budget, "ROUNDS", 1)
    network = SearchNet(CONFIG, random_genotype(1, seed=3))
    state = torch.get_rng_state()
    latency_costs(CONFIG, SIZE, cache=tmp_path)
    measure_latency(network, SIZE)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_cache_is_kept_under_the_home(monkeypatch, tmp_path):
    monkeypatch.setattr(training.budget, "_measure", lambda *_: count_parameters(CONFIG))
    monkeypatch.setattr(training.budget.Path, "home", lambda: tmp_path)
    latency_costs(CONFIG, SIZE)
    (path,) = tmp_path.rglob("*.json")
    assert path.parent == tmp_path / ".cache" / "searchseg"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"key": {}, "table": {}, "fixed": 0}'])
def test_a_torn_or_foreign_cache_is_measured_again(monkeypatch, tmp_path, content):
    costs = count_parameters(CONFIG)
    monkeypatch.setattr(training.budget, "_measure", lambda *_: costs)
    latency_costs(CONFIG, SIZE, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    assert latency_costs(CONFIG, SIZE, cache=tmp_path) == costs
    assert json.loads(path.read_text())["fixed"] == costs.fixed


def test_a_cache_that_cannot_be_written_does_not_stop_the_search(monkeypatch, tmp_path):
    costs = count_parameters(CONFIG)
    monkeypatch.setattr(training.budget, "_measure", lambda *_: costs)
    (tmp_path / "file").write_text("")
    assert latency_costs(CONFIG, SIZE, cache=tmp_path / "file") == costs


def test_a_slow_machine_measures_fewer_rounds(machine, monkeypatch):
    monkeypatch.setattr(training.budget, "ROUNDS", 30)
    monkeypatch.setattr(training.budget, "PATIENCE", 1.0)
    measure_latency(SearchNet(CONFIG, random_genotype(1, seed=3)), SIZE)
    assert machine.forward_passes == training.budget.LEAST_ROUNDS


def test_a_real_clock_gives_real_seconds(monkeypatch):
    monkeypatch.setattr(training.budget, "ROUNDS", 2)
    assert 0 < measure_latency(nn.Conv2d(3, 4, 3), (8, 8)) < 1
