"""Proves that random genotypes are uniform, different, repeatable, and as near to a cost as was asked."""

from collections import Counter

import pytest

import training.sampling
from searchseg.cost import count_parameters
from searchseg.genotype import OPERATION_NAMES, Genotype, random_genotype
from searchseg.network import UShapeConfig
from searchseg.task import TaskError
from training.sampling import draw_genotypes


def ids(genotypes: list[Genotype]) -> list[str]:
    return [genotype.id for genotype in genotypes]


def skips(genotype: Genotype) -> float:
    return genotype.count("skip")


@pytest.mark.parametrize("nodes", [1, 3])
def test_as_many_different_genotypes_as_asked(nodes):
    drawn = draw_genotypes(nodes, 40, seed=0)
    assert len(drawn) == len(set(ids(drawn))) == 40
    assert all(genotype.nodes == nodes for genotype in drawn)
    assert draw_genotypes(nodes, 0, seed=0) == []


def test_a_seed_repeats_and_a_longer_draw_begins_with_the_shorter():
    drawn = draw_genotypes(1, 12, seed=3)
    assert draw_genotypes(1, 12, seed=3) == drawn
    assert draw_genotypes(1, 5, seed=3) == drawn[:5]


def test_other_seeds_share_no_genotype():
    drawn = [set(ids(draw_genotypes(2, 30, seed))) for seed in range(4)]
    assert len(set.union(*drawn)) == 4 * 30


def test_every_operation_and_every_pair_of_sources_is_equally_likely():
    drawn = draw_genotypes(2, 150, seed=1)
    operations = Counter(e.operation for g in drawn for edges in g.cells.values() for e in edges)
    pairs = Counter((edges[2].source, edges[3].source) for g in drawn for edges in g.cells.values())
    assert set(operations) == set(OPERATION_NAMES) and set(pairs) == {(0, 1), (0, 2), (1, 2)}
    assert chi_square(operations) < 22.5  # p = 0.001, 6 degrees of freedom
    assert chi_square(pairs) < 13.9  # p = 0.001, 2 degrees of freedom


def chi_square(counted: Counter) -> float:
    expected = counted.total() / len(counted)
    return sum((count - expected) ** 2 / expected for count in counted.values())


def test_near_keeps_the_tolerance():
    costs = count_parameters(UShapeConfig((4, 8, 16, 32), 2, 2))
    free = [costs.total(genotype) for genotype in draw_genotypes(2, 60, seed=0)]
    wanted = sorted(free)[45]  # away from the middle
    near = [costs.total(g) for g in draw_genotypes(2, 10, 0, near=(costs.total, wanted, 0.03))]
    assert max(abs(cost - wanted) for cost in near) <= 0.03 * wanted
    assert max(abs(cost - wanted) for cost in free) > 0.15 * wanted, "or the wish would mean nothing"


def test_near_leaves_out_what_does_not_fit_and_nothing_else():
    free = draw_genotypes(1, 120, seed=2)
    fitting = [genotype for genotype in free if 2 <= skips(genotype) <= 6]  # 4 * (1 - 0.5) to 4 * (1 + 0.5)
    near = draw_genotypes(1, 20, 2, near=(skips, 4, 0.5))
    assert near == fitting[:20] and len(fitting) < len(free)
    assert {2, 6} & {skips(genotype) for genotype in near}, "the tolerance itself still fits"


def test_a_genotype_that_comes_up_twice_counts_once(monkeypatch):
    three = lambda nodes, seed: random_genotype(nodes, seed % 3)  # noqa: E731
    monkeypatch.setattr(training.sampling, "random_genotype", three)
    monkeypatch.setattr(training.sampling, "MAX_DRAWS", 20)
    assert len(set(ids(draw_genotypes(1, 3, seed=0)))) == 3
    with pytest.raises(TaskError, match="found 3 of 4"):
        draw_genotypes(1, 4, seed=0)


@pytest.mark.parametrize("wanted, tolerance", [(1_000, 0.15), (4.5, 0.05), (0, 0.15)])
def test_an_impossible_wish_is_an_error_with_a_cure(monkeypatch, wanted, tolerance):
    monkeypatch.setattr(training.sampling, "MAX_DRAWS", 100)
    with pytest.raises(TaskError, match=r"found 0 of 2 .*allow more"):
        draw_genotypes(1, 2, 0, near=(lambda genotype: skips(genotype) + 1, wanted, tolerance))
