"""Proves that the controller draws by the probabilities it states, learns from reward and resumes."""

import math
from collections import Counter
from itertools import combinations

import pytest
import torch

from searchseg.genotype import CELL_NAMES, OPERATION_NAMES, Edge, Genotype, random_genotype
from training.checkpoint import load_checkpoint, save_checkpoint
from training.reinforce import Controller, Reinforce
from training.shared_weights import best_of


def controller(nodes: int, seed: int = 0, decided: bool = False) -> Controller:
    torch.manual_seed(seed)
    made = Controller(nodes, size=16)
    if decided:  # far from uniform, and every decision depends on the ones before
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, 0, 1.5)
    return made


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def share_of_skip(genotype: Genotype) -> float:
    return genotype.count("skip") / (16 * genotype.nodes)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_everything_written_is_a_genotype(nodes):
    for made in (controller(nodes), controller(nodes, decided=True)):
        for drawn in (made.sample(generator(3))[0], made.most_likely()):
            assert drawn.nodes == nodes  # Genotype itself refuses edges that do not fit together
            assert Genotype.from_json(drawn.to_json()) == drawn


@pytest.mark.parametrize("nodes", [1, 3])
def test_log_probability_of_a_sample_is_the_one_it_was_drawn_with(nodes):
    made, dice = controller(nodes, decided=True), generator(0)
    for _ in range(4):
        genotype, log_probability, _ = made.sample(dice)
        again = made.log_probability(Genotype.from_json(genotype.to_json()))
        assert torch.equal(again, log_probability)
        ours, theirs = (
            torch.autograd.grad(value, made.lstm.weight_hh)[0] for value in (again, log_probability)
        )
        assert torch.equal(ours, theirs)
        assert ours.abs().sum() > 0


def test_log_probability_refuses_another_number_of_nodes():
    with pytest.raises(ValueError, match="writes 2 nodes a cell, the genotype has 3"):
        controller(2).log_probability(random_genotype(3, 0))


@torch.no_grad()
def test_equal_scores_mean_equally_likely_genotypes():
    made, nodes = controller(3), (2, 3, 4)
    for head in (made.source_head, made.operation_head):
        head.weight.zero_(), head.bias.zero_()
    genotypes = math.prod(math.comb(target, 2) * len(OPERATION_NAMES) ** 2 for target in nodes) ** 8
    dice, pairs = generator(0), Counter()
    for _ in range(40):
        genotype, log_probability, _ = made.sample(dice)
        assert -log_probability.item() == pytest.approx(math.log(genotypes), rel=1e-5)
        for edges in genotype.cells.values():
            pairs[edges[4].source, edges[5].source] += 1  # of node 4, the last one
    assert chi_square(pairs, dict.fromkeys(combinations(range(4), 2), 1 / 6)) < 20.5  # p = 0.001


@torch.no_grad()
def test_frequencies_are_the_stated_probabilities():
    made = controller(2)
    for parameter in made.parameters():
        parameter.zero_()  # no memory: every edge is drawn from the same distribution
    made.source_head.bias.copy_(torch.tensor([-3.0, 4.0, 1.0]))
    made.operation_head.bias.copy_(torch.linspace(-6, 6, len(OPERATION_NAMES)))
    dice = generator(6)
    drawn = [made.sample(dice)[0] for _ in range(60)]
    last = drawn[0].cells["C8"]
    operations = {name: (*last[:3], Edge(last[3].source, 3, name)) for name in OPERATION_NAMES}
    pairs = {
        pair: (*last[:2], *(Edge(source, 3, "skip") for source in pair)) for pair in combinations(range(3), 2)
    }
    counted = Counter(e.operation for g in drawn for edges in g.cells.values() for e in edges)
    assert chi_square(counted, stated(made, drawn[0], operations)) < 22.5  # p = 0.001, 6 degrees of freedom
    counted = Counter((edges[2].source, edges[3].source) for g in drawn for edges in g.cells.values())
    assert chi_square(counted, stated(made, drawn[0], pairs)) < 13.9  # p = 0.001, 2 degrees of freedom


def stated(made: Controller, genotype: Genotype, cells: dict) -> dict:
    """How likely each of some last cells is among them, by `log_probability`."""
    logs = [
        made.log_probability(Genotype(genotype.nodes, {**genotype.cells, "C8": c})) for c in cells.values()
    ]
    return dict(zip(cells, torch.stack(logs).softmax(0).tolist(), strict=True))


def chi_square(counted: Counter, probabilities: dict) -> float:
    assert set(counted) <= set(probabilities)
    total = counted.total()
    return sum((counted[key] - total * p) ** 2 / (total * p) for key, p in probabilities.items())


@torch.no_grad()
def test_surprise_of_the_samples_averages_to_the_stated_entropy():
    # -E[log p] = entropy holds decision by decision, also with memory: the difference has mean 0
    made, dice = controller(1, decided=True), generator(7)
    samples = [made.sample(dice) for _ in range(120)]
    gap = torch.stack([log_probability + entropy for _, log_probability, entropy in samples])
    assert gap.std() > 0.5
    assert abs(gap.mean()) < 3.3 * gap.std() / math.sqrt(len(gap))  # p = 0.001


def test_most_likely_beats_the_samples():
    made, dice = controller(1, decided=True), generator(8)
    best = made.log_probability(made.most_likely())
    assert all(made.sample(dice)[1] <= best for _ in range(40))


def test_seeds_repeat_and_differ():
    def draw(seed: int) -> list[str]:
        run = Reinforce(controller(1), seed)
        return [genotype.id for genotype, _ in run.step(share_of_skip, samples=2)]

    assert draw(1) == draw(1)
    assert not set(draw(1)) & set(draw(2))


def test_rewards_that_use_chance_do_not_change_the_draws():
    quiet, noisy = Reinforce(controller(1), 4), Reinforce(controller(1), 4)
    for _ in range(2):
        left = quiet.step(lambda genotype: 1.0)
        right = noisy.step(lambda genotype: float(torch.rand(3).sum() * 0 + 1))
        assert left == right


def mean_reward(run: Reinforce, reward, draws: int) -> float:
    with torch.no_grad():
        return sum(reward(run.controller.sample(generator(i))[0]) for i in range(draws)) / draws


def early_and_late(genotype: Genotype) -> float:
    """Share of edges with MBConv in C1..C4 and a skip in C5..C8; one operation everywhere earns 0.5."""
    wanted = {name: "mbconv_3x3" if name < "C5" else "skip" for name in CELL_NAMES}
    return sum(e.operation == wanted[name] for name, c in genotype.cells.items() for e in c) / 16


def later_nodes(genotype: Genotype) -> float:
    """Share of the cells whose node 3 reads the nodes 1 and 2; a third of all genotypes' cells do."""
    return sum({e.source for e in c if e.target == 3} == {1, 2} for c in genotype.cells.values()) / 8


@pytest.mark.parametrize(
    "nodes, reward, start, average, greedy, steps",
    [(1, early_and_late, 1 / 7, 0.4, 0.6, 100), (2, later_nodes, 1 / 3, 0.5, 0.8, 40)],
)
def test_the_controller_learns_what_is_rewarded(nodes, reward, start, average, greedy, steps):
    run = Reinforce(controller(nodes), 0, learning_rate=1e-2)
    assert mean_reward(run, reward, 20) == pytest.approx(start, abs=0.1)
    # rewards far above zero: only the difference from the baseline says which draws were good
    for _ in range(steps):
        run.step(lambda genotype: 10 + reward(genotype))
    assert mean_reward(run, reward, 20) > average
    assert reward(run.controller.most_likely()) > greedy


def test_one_step_is_the_policy_gradient():
    run, twin = Reinforce(controller(1), 0, entropy_weight=0.25), controller(1)
    run.baseline = 0.5
    ((genotype, reward),) = run.step(lambda genotype: 2.0)
    drawn, log_probability, entropy = twin.sample(generator(0))
    assert (drawn, reward) == (genotype, 2.0)
    (-(1.5 * log_probability + 0.25 * entropy)).backward()
    for ours, theirs in zip(run.controller.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)
    assert run.baseline == pytest.approx(0.95 * 0.5 + 0.05 * 2.0)


def test_the_first_reward_is_the_first_baseline():
    run = Reinforce(controller(1), 0)
    run.step(lambda genotype: 7.0, samples=2)
    assert run.baseline == pytest.approx(7.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused_and_changes_nothing(bad):
    run = Reinforce(controller(1), 0)
    before = [p.clone() for p in run.controller.parameters()]
    with pytest.raises(ValueError, match="diverged"):
        run.step(lambda genotype: bad)
    assert run.baseline is None
    assert all(map(torch.equal, before, run.controller.parameters()))


def test_a_resumed_run_goes_on_to_the_bit(tmp_path):
    whole = Reinforce(controller(1), 0, learning_rate=1e-2)
    for _ in range(3):
        whole.step(share_of_skip, samples=2)
    save_checkpoint(tmp_path / "checkpoint.pt", {"reinforce": whole.state_dict()})
    resumed = Reinforce(controller(1, seed=9), seed=9, learning_rate=1e-2)
    resumed.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt")["reinforce"])
    for _ in range(3):
        assert whole.step(share_of_skip, samples=2) == resumed.step(share_of_skip, samples=2)
    assert whole.baseline == resumed.baseline
    assert all(map(torch.equal, whole.controller.parameters(), resumed.controller.parameters()))


def test_best_of_takes_the_first_of_the_best():
    genotypes = [random_genotype(1, seed) for seed in range(4)]
    scores = {g.id: score for g, score in zip(genotypes, (0.2, 0.7, 0.1, 0.7), strict=True)}
    best = best_of(iter(genotypes), lambda genotype: scores[genotype.id])
    assert best == (genotypes[1], 0.7, [0.2, 0.7, 0.1, 0.7])


@pytest.mark.parametrize("scores", [[], [math.nan, 0.5], [0.5, math.nan]])
def test_best_of_refuses_to_choose_without_scores(scores):
    genotypes, given = [random_genotype(1, seed) for seed in range(len(scores))], iter(scores)
    with pytest.raises(ValueError, match="finite scores"):
        best_of(genotypes, lambda genotype: next(given))
