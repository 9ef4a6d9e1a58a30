"""Proves that derivation keeps what is strongest, counts skips, and meets a budget at the least loss."""

import itertools
import math

import pytest
import torch

from searchseg.cost import OperationCosts
from searchseg.derivation import derive
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES, Edge, GenotypeError, possible_edges

PRICES = dict(zip(OPERATION_NAMES, (40, 60, 20, 30, 90, 100, 0), strict=True))


def flat(nodes: int) -> dict[str, dict[str, list[float]]]:
    return {name: {f"{s}-{t}": [0.0] * 7 for s, t in possible_edges(nodes)} for name in CELL_NAMES}


def random_alphas(nodes: int, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    numbers = torch.Generator().manual_seed(seed)
    return {
        name: {key: (2 * torch.randn(7, generator=numbers)).tolist() for key in table}
        for name, table in flat(nodes).items()
    }


def alpha(**numbers: float) -> list[float]:
    return [numbers.get(name, 0.0) for name in OPERATION_NAMES]


def prices(fixed: float = 1000, **cells: float) -> OperationCosts:
    """The same prices in every cell, times a factor for the cells that are named."""
    table = {name: {o: cells.get(name, 1) * price for o, price in PRICES.items()} for name in CELL_NAMES}
    return OperationCosts(table, fixed)


def test_beta_times_alpha_decides_which_edges_stay():
    alphas = flat(2)
    alphas["C2"] |= {
        "0-3": alpha(skip=3),  # the clearest operation, on the weakest edge
        "1-3": alpha(mbconv_3x3=1),
        "2-3": alpha(dilconv_5x5=1.5),
    }
    betas = {name: dict.fromkeys(table, 0.0) for name, table in alphas.items()}
    betas["C2"] |= {"0-3": -2.0, "1-3": 1.0, "2-3": 0.0}

    def into_3(betas: dict | None) -> tuple[Edge, ...]:
        return derive(alphas, 2, {}, betas).cells["C2"][2:]

    assert into_3(None) == into_3(dict.fromkeys(betas, dict.fromkeys(alphas["C2"], 7.0)))
    assert into_3(None) == (Edge(0, 3, "skip"), Edge(2, 3, "dilconv_5x5"))
    assert into_3(betas) == (Edge(1, 3, "mbconv_3x3"), Edge(2, 3, "dilconv_5x5"))


def test_betas_compare_the_edges_of_one_node_only():
    # by softmax over the node edge 1-3 wins; a softmax over the cell gives the same order, raw sums another
    alphas = flat(2)
    alphas["C7"] |= {"0-3": alpha(skip=9), "1-3": alpha(skip=8), "2-3": alpha(sepconv_3x3=0.1)}
    betas = {name: dict.fromkeys(table, 0.0) for name, table in alphas.items()}
    betas["C7"] |= {"0-2": 50.0, "2-3": 1.0}  # e times the weight, against .99 and .14 of the operations
    assert derive(alphas, 2, {}, betas).cells["C7"][2:] == (Edge(0, 3, "skip"), Edge(1, 3, "skip"))
    betas["C7"]["2-3"] = 3.0  # 20 times
    assert derive(alphas, 2, {}, betas).cells["C7"][2:] == (Edge(0, 3, "skip"), Edge(2, 3, "sepconv_3x3"))


def test_the_weakest_skips_give_way_to_the_next_best_operation():
    alphas = flat(2)
    alphas["C3"] = {
        "0-2": alpha(skip=3, dilconv_3x3=1),
        "1-2": alpha(skip=2, mbconv_5x5=1),
        "0-3": alpha(skip=4, sepconv_5x5=1),
        "1-3": alpha(skip=2.5, dilconv_5x5=1),
        "2-3": alpha(),
    }
    plain = (Edge(0, 2, "skip"), Edge(1, 2, "skip"), Edge(0, 3, "skip"), Edge(1, 3, "skip"))
    one_fewer = (plain[0], Edge(1, 2, "mbconv_5x5"), *plain[2:])
    two = (*one_fewer[:3], Edge(1, 3, "dilconv_5x5"))
    none = (Edge(0, 2, "dilconv_3x3"), two[1], Edge(0, 3, "sepconv_5x5"), two[3])
    for most, wanted in ((None, plain), (4, plain), (3, one_fewer), (2, two), (0, none)):
        genotype = derive(alphas, 2, {}, max_skips=most)
        assert genotype.cells["C3"] == wanted, most
        assert genotype.cells["C4"] == derive(alphas, 2, {}).cells["C4"]


def test_equal_skips_stay_on_the_first_sources():
    alphas = {name: dict.fromkeys(table, alpha(skip=1)) for name, table in flat(2).items()}
    kept = derive(alphas, 2, {}, max_skips=2).cells["C1"]
    other = OPERATION_NAMES[0]
    assert kept == (Edge(0, 2, "skip"), Edge(1, 2, other), Edge(0, 3, "skip"), Edge(1, 3, other))


def test_a_budget_that_is_met_changes_nothing():
    alphas, costs = random_alphas(3), prices()
    plain = derive(alphas, 3, {"seed": 7})
    same = derive(alphas, 3, {"seed": 7}, costs=costs, limit=costs.total(plain))
    assert same == plain and same.search == {"seed": 7}
    assert derive(alphas, 3, {}, costs=costs) == plain


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("max_skips", [None, 2])
def test_any_possible_budget_is_met_with_the_same_edges(share, max_skips):
    for seed in range(3):
        alphas, costs = random_alphas(3, seed), prices(C1=10, C5=0.5)
        plain = derive(alphas, 3, {}, max_skips=max_skips)
        skips = 6 if max_skips is None else max_skips
        least = costs.fixed + sum(
            (6 - skips) * costs.of(name, "dilconv_3x3") + skips * costs.of(name, "skip")
            for name in CELL_NAMES
        )
        limit = least + share * (costs.total(plain) - least)
        genotype = derive(alphas, 3, {}, max_skips=max_skips, costs=costs, limit=limit)
        assert costs.total(genotype) <= limit
        for name, edges in genotype.cells.items():
            assert [(e.source, e.target) for e in edges] == [(e.source, e.target) for e in plain.cells[name]]
            assert max_skips is None or sum(e.operation == "skip" for e in edges) <= max_skips
        exact = derive(alphas, 3, {}, max_skips=max_skips, costs=costs, limit=least)
        assert costs.total(exact) == least
        with pytest.raises(GenotypeError, match=rf"the cheapest costs {least:,.10g};"):
            derive(alphas, 3, {}, max_skips=max_skips, costs=costs, limit=least - 1)


def test_the_first_replacement_loses_least_weight_for_what_it_saves():
    # every pair (edge, cheaper operation) by brute force; one replacement is enough for a limit just below
    for seed in range(5):
        alphas, costs = random_alphas(1, seed), prices(C4=3)
        plain = derive(alphas, 1, {})
        rates = {}
        for name, (index, edge), operation in itertools.product(CELL_NAMES, enumerate("01"), OPERATION_NAMES):
            numbers, now = alphas[name][f"{edge}-2"], plain.cells[name][index].operation
            saved = costs.of(name, now) - costs.of(name, operation)
            if saved > 0:
                lost = numbers[OPERATION_NAMES.index(now)] - numbers[OPERATION_NAMES.index(operation)]
                rates[name, index, operation] = lost / saved
        name, index, operation = min(rates, key=rates.__getitem__)
        changed = derive(alphas, 1, {}, costs=costs, limit=costs.total(plain) - 1)
        wanted = {cell: list(edges) for cell, edges in plain.cells.items()}
        wanted[name][index] = Edge(index, 2, operation)
        assert {cell: list(edges) for cell, edges in changed.cells.items()} == wanted


def test_equal_replacements_go_by_cell_source_and_operation():
    alphas = {name: dict.fromkeys(table, alpha(sepconv_3x3=1)) for name, table in flat(2).items()}
    table = {name: {o: float(o == "sepconv_3x3") for o in OPERATION_NAMES} for name in CELL_NAMES}
    genotype = derive(alphas, 2, {}, costs=OperationCosts(table, 0), limit=30)  # of 32
    replaced = [
        (name, e) for name in CELL_NAMES for e in genotype.cells[name] if e.operation != "sepconv_3x3"
    ]
    assert replaced == [("C1", Edge(0, 2, OPERATION_NAMES[1])), ("C1", Edge(0, 3, OPERATION_NAMES[1]))]


def test_a_skip_is_replaced_too_where_another_operation_is_cheaper():
    # a measured table may say so, by noise
    alphas = {name: dict.fromkeys(table, alpha(skip=1)) for name, table in flat(1).items()}
    table = {name: {o: 2.0 - (o == "dilconv_5x5") for o in OPERATION_NAMES} for name in CELL_NAMES}
    genotype = derive(alphas, 1, {}, max_skips=1, costs=OperationCosts(table, 0), limit=16)
    assert genotype.count("dilconv_5x5") == 16


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_give_no_genotype(value):
    alphas = random_alphas(2)
    betas = {name: dict.fromkeys(table, 0.0) for name, table in alphas.items()}
    betas["C6"]["1-3"] = value
    with pytest.raises(GenotypeError, match="beta of C6 into node 3 is not finite: the search diverged"):
        derive(alphas, 2, {}, betas)
    alphas["C3"]["0-2"][4] = value
    with pytest.raises(GenotypeError, match="alpha of C3 0-2 is not finite: the search diverged"):
        derive(alphas, 2, {})


def test_a_decided_search_far_from_zero_is_derived_without_overflow():
    alphas = {name: dict.fromkeys(table, alpha(mbconv_3x3=1e4, skip=-1e4)) for name, table in flat(2).items()}
    assert derive(alphas, 2, {}).count("mbconv_3x3") == 32
    assert derive(alphas, 2, {}, costs=prices(), limit=1000).count("skip") == 32
