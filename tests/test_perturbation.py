"""Proves that perturbation keeps the operations and edges whose removal costs most, in an order by seed."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import training.darts
from searchseg.derivation import derive
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES, Genotype, possible_edges, random_genotype
from searchseg.mixed import ALL
from searchseg.network import UShapeConfig, USpace
from training.darts import Darts
from training.perturbation import perturb
from training.presets import PRESETS, SearchMethod

NODES = 2
EDGES = 8 * len(possible_edges(NODES))


@pytest.fixture
def space() -> USpace:
    torch.manual_seed(0)
    return USpace(UShapeConfig((2, 2, 2, 2), NODES))


class Script:
    """A score that is high while the space holds what `wanted` holds; the weights have no say."""

    def __init__(self, space: USpace, wanted: Genotype) -> None:
        self.space = space
        self.seen: list[dict[tuple, tuple]] = []  # what was open at every score
        self.tuned: list[tuple] = []  # the edge that was decided last, at every tuning
        # every operation is worth something on every edge, so that all comparisons have an answer
        draw = np.random.default_rng(5)
        self.worth = {
            (cell, source, target): dict(zip(ALL, draw.uniform(0, 0.001, 7).tolist(), strict=True))
            for cell, source, target, _ in space.edges()
        }
        for cell, edges in wanted.cells.items():
            for edge in edges:
                self.worth[cell, edge.source, edge.target][OPERATION_NAMES.index(edge.operation)] = 0.01

    def open(self) -> dict[tuple, tuple]:
        return {(cell, s, t): mixed.candidates for cell, s, t, mixed in self.space.edges()}

    def score(self) -> float:
        self.seen.append(self.open())
        return 0.1 + sum(sum(self.worth[edge][o] for o in open) for edge, open in self.seen[-1].items())

    def tune(self) -> None:
        decided = {edge for edge, candidates in self.open().items() if len(candidates) == 1}
        self.tuned += [edge for edge in decided if edge not in self.tuned]


@pytest.mark.parametrize("seed", [0, 1])
def test_it_keeps_what_the_score_misses_most(space, seed):
    wanted = random_genotype(NODES, seed)
    script = Script(space, wanted)
    table = perturb(space, script.score, script.tune, seed)
    assert derive(table, NODES, {}) == wanted
    for cell, source, target, _ in space.edges():
        strengths, worth = table[cell][f"{source}-{target}"], script.worth[cell, source, target]
        best = max(ALL, key=worth.__getitem__)
        assert strengths == [pytest.approx(1 + worth[o]) if o == best else 0.0 for o in ALL]
    assert list(table) == list(CELL_NAMES)


def test_every_edge_is_tried_without_each_operation_and_then_without_itself(space):
    script = Script(space, random_genotype(NODES, 0))
    perturb(space, script.score, script.tune, seed=0)
    assert len(script.seen) == 7 * EDGES + 1 + EDGES
    trials, whole, closings = script.seen[: 7 * EDGES], script.seen[7 * EDGES], script.seen[7 * EDGES + 1 :]
    for step, edge in enumerate(script.tuned):
        for operation, open in zip(ALL, trials[7 * step : 7 * step + 7], strict=True):
            assert set(open[edge]) == set(ALL) - {operation}
            # the edges before it are decided, those after it are whole
            assert [len(open[other]) for other in script.tuned] == [1] * step + [6] + [7] * (EDGES - step - 1)
    assert all(len(candidates) == 1 for candidates in whole.values())
    for edge, open in zip(whole, closings, strict=True):
        assert open == whole | {edge: ()}


def test_the_weights_settle_once_after_every_decision(space):
    script, counts = Script(space, random_genotype(NODES, 0)), []

    def tune() -> None:
        script.tune()
        counts.append((len(script.seen), len(script.tuned)))

    perturb(space, script.score, tune, seed=0)
    assert counts == [(7 * n, n) for n in range(1, EDGES + 1)]


def test_the_seed_draws_the_order(space):
    orders = []
    for seed in (0, 0, 1):
        script = Script(space, random_genotype(NODES, 0))
        perturb(space, script.score, script.tune, seed)
        assert set(script.tuned) == set(script.worth) and len(script.tuned) == EDGES
        orders.append(script.tuned)
    assert orders[0] == orders[1] != orders[2] and orders[0] != list(script.worth)


def test_afterwards_the_space_runs_the_whole_mixture_with_the_same_alphas(space):
    alphas, script = space.alphas(), Script(space, random_genotype(NODES, 0))
    perturb(space, script.score, script.tune, seed=0)
    assert all(mixed.candidates == ALL for *_, mixed in space.edges())
    assert space.alphas() == alphas


@pytest.mark.parametrize("helps", [True, False], ids=["some edges harm", "a tie"])
def test_edges_whose_removal_helps_come_last(space, helps):
    # a negative loss: 1 + it must stay above the 0 of the operations that were not kept
    script = Script(space, random_genotype(NODES, 0))
    for edge, worth in script.worth.items():
        sign = -1 if helps and edge[1] == 0 else helps
        script.worth[edge] = {o: sign * (0.001 + w) / 10 for o, w in worth.items()}
    table = perturb(space, script.score, script.tune, seed=0)
    genotype = derive(table, NODES, {})
    kept = {(e.source, e.target) for e in genotype.cells["C1"]}
    assert kept == ({(0, 2), (1, 2), (1, 3), (2, 3)} if helps else {(0, 2), (1, 2), (0, 3), (1, 3)})
    assert all(max(numbers) > 0.9 for cell in table.values() for numbers in cell.values())
    if not helps:
        assert all(
            edge.operation == OPERATION_NAMES[0] for edges in genotype.cells.values() for edge in edges
        )


TINY = dataclasses.replace(PRESETS["smoke"].search, widths=(1, 1, 1, 1), nodes=1, batch_size=2)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 8, 8, generator=draw), torch.randint(0, 2, (2, 8, 8), generator=draw)


def test_a_search_derives_by_the_score_on_held_out_images_and_tunes_on_training_images(monkeypatch):
    torch.manual_seed(0)
    method = SearchMethod(derive="perturbation", regularise="auxiliary-skip", partial=2, max_skips=0)
    run = Darts(USpace(TINY.network(2), 2), TINY, Accelerator(cpu=True), method)
    run.begin_epoch(0)
    held_out, tuning, used, given = [batch(0), batch(1)], [batch(2), batch(3), batch(4)], [], []

    def scripted(space, score, tune, seed):
        assert not any(mixed.auxiliary for *_, mixed in space.edges())
        given.append(seed)
        assert 0 <= score() <= 1
        for _ in range(4):
            tune()
        table = {name: {key: [0.0] * 6 + [1.5] for key in ("0-2", "1-2")} for name in CELL_NAMES}
        table["C4"]["1-2"] = [0, 0, 0, 0.5, 0, 0, 0]
        return table

    monkeypatch.setattr(training.darts, "perturb", scripted)
    monkeypatch.setattr(run, "look", lambda b: used.append(b) or (torch.zeros(()), torch.zeros(2, 2, 8, 8)))
    monkeypatch.setattr(run, "weight_step", lambda b: used.append(b))
    genotype = run.finish({"seed": 7}, held_out, tuning)
    assert given == [7] and genotype.search == {"seed": 7}
    assert [id(b) for b in used] == [id(b) for b in (*held_out, *tuning, tuning[0])]
    assert genotype.count("skip") == 0 and genotype.cells["C4"][1].operation == "dilconv_5x5"


def test_a_real_search_survives_it(monkeypatch):
    torch.manual_seed(0)
    run = Darts(USpace(TINY.network(2)), TINY, Accelerator(cpu=True), SearchMethod(derive="perturbation"))
    alphas, really = run.space.alphas(), {name: getattr(run, name) for name in ("score", "weight_step")}
    calls = {"score": 0, "weight_step": 0}

    def sometimes(name: str, given: object) -> float:
        calls[name] += 1  # every call would take half a minute
        return really[name](given) if calls[name] % 16 == 15 else 0.1

    monkeypatch.setattr(run, "score", lambda batches: sometimes("score", batches))
    monkeypatch.setattr(run, "weight_step", lambda given: sometimes("weight_step", given))
    genotype = run.finish({"seed": 0}, [batch(0)], [batch(1)])
    assert calls == {"score": 16 * 7 + 1 + 16, "weight_step": 16}
    assert genotype.nodes == 1 and run.space.alphas() == alphas
    assert all(mixed.candidates == ALL for *_, mixed in run.space.edges())
    loss, _ = really["weight_step"](batch(1))
    assert loss.isfinite() and all(w.grad is not None for w in run.weights)
