"""Proves that a Genotype is checked at birth, never changes, and survives JSON, pickle and copies."""

import copy
import dataclasses
import json
import pickle
import random

import pytest

from searchseg.genotype import (
    CELL_NAMES,
    OPERATION_NAMES,
    Edge,
    Genotype,
    GenotypeError,
    possible_edges,
)

ORIGIN = {"task": "pet", "seed": 3, "epochs": 20, "revision": None, "nested": {"a": [1, 2.5, "ü"]}}


def random_cells(nodes: int, seed: int = 0) -> dict[str, tuple[Edge, ...]]:
    dice = random.Random(seed)
    return {
        name: tuple(
            Edge(source, target, dice.choice(OPERATION_NAMES))
            for target in range(2, 2 + nodes)
            for source in sorted(dice.sample(range(target), 2))
        )
        for name in CELL_NAMES
    }


def document(nodes: int = 2) -> dict:
    return json.loads(Genotype(nodes, random_cells(nodes), ORIGIN).to_json())


@pytest.mark.parametrize(
    "source, target, operation, fault",
    [
        (2, 2, "skip", "forward"),
        (3, 2, "skip", "forward"),
        (-1, 2, "skip", "forward"),
        (0, 1, "skip", "intermediate"),
        (0, 0, "skip", "intermediate"),
        (0.0, 2, "skip", "integers"),
        (True, 2, "skip", "integers"),
        (0, "2", "skip", "integers"),
        (0, None, "skip", "integers"),
        (0, 2, "pool", "unknown operation 'pool'; known: sepconv_3x3"),
        (0, 2, "SKIP", "unknown"),
        (0, 2, "", "unknown"),
        (0, 2, None, "unknown"),
        (0, 2, ["skip"], "unknown"),
    ],
)
def test_a_bad_edge_is_refused_at_birth(source, target, operation, fault):
    with pytest.raises(GenotypeError, match=fault):
        Edge(source, target, operation)


def a_cell(*edges: tuple[int, int]) -> tuple[Edge, ...]:
    return tuple(Edge(source, target, "skip") for source, target in edges)


@pytest.mark.parametrize(
    "cell",
    [
        (),
        a_cell((0, 2), (1, 2), (0, 3)),  # one edge too few
        a_cell((0, 2), (1, 2), (0, 3), (1, 3), (2, 3)),  # one too many
        a_cell((0, 2), (0, 2), (0, 3), (1, 3)),  # the same source twice
        a_cell((0, 2), (1, 2), (0, 3), (1, 3), (0, 4)),  # a node that the genotype has not
        a_cell((0, 2), (1, 2), (0, 4), (1, 4)),  # node 3 left out
    ],
)
def test_a_bad_cell_is_refused_at_birth_and_named(cell):
    with pytest.raises(GenotypeError, match="cell C5"):
        Genotype(2, {**random_cells(2), "C5": cell})


@pytest.mark.parametrize("nodes", [0, 17, -1, 2.0, True, "2", None])
def test_a_bad_number_of_nodes_is_refused(nodes):
    with pytest.raises(GenotypeError, match="nodes must be an integer from 1 to 16"):
        Genotype(nodes, random_cells(2))


@pytest.mark.parametrize("change", [{"C8": None}, {"C9": ()}, {"c1": ()}])
def test_exactly_the_cells_C1_to_C8_are_wanted(change):
    cells = {name: edges for name, edges in {**random_cells(2), **change}.items() if edges is not None}
    with pytest.raises(GenotypeError, match="exactly the cells C1 to C8"):
        Genotype(2, cells)


@pytest.mark.parametrize("nodes", [1, 2, 4, 16])
def test_every_edge_of_a_full_cell_is_possible(nodes):
    edges = possible_edges(nodes)
    assert len(edges) == len(set(edges)) == sum(range(2, 2 + nodes))
    assert all(Edge(source, target, "skip") for source, target in edges)
    chosen = Genotype(nodes, random_cells(nodes)).cells.values()
    assert {(edge.source, edge.target) for cell in chosen for edge in cell} <= set(edges)


def test_nothing_of_a_genotype_can_be_changed():
    cells, search = random_cells(2), dict(ORIGIN)
    genotype = Genotype(2, cells, search)
    text = genotype.to_json()
    cells["C1"], search["seed"] = cells["C2"], 99  # the caller's own mappings
    assert genotype.to_json() == text
    with pytest.raises(dataclasses.FrozenInstanceError):
        genotype.nodes = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        genotype.cells["C1"][0].operation = "skip"
    with pytest.raises(TypeError):
        genotype.cells["C1"] = ()
    with pytest.raises(TypeError):
        genotype.search["seed"] = 1


@pytest.mark.parametrize("nodes", [1, 2, 3, 16])
@pytest.mark.parametrize("search", [{}, ORIGIN], ids=["bare", "with origin"])
@pytest.mark.parametrize("as_text", [str, str.encode], ids=["text", "bytes"])
def test_json_goes_both_ways(nodes, search, as_text):
    genotype = Genotype(nodes, random_cells(nodes, nodes), search)
    again = Genotype.from_json(as_text(genotype.to_json()))
    assert again == genotype and again.search == search
    assert again.to_json() == genotype.to_json()


def test_json_holds_what_the_design_promises():
    assert set(document()) == {"schema", "nodes", "operations", "cells", "search"}
    assert document()["operations"] == list(OPERATION_NAMES)
    assert list(document()["cells"]) == list(CELL_NAMES)
    assert set(document()["cells"]["C1"][0]) == {"source", "target", "operation"}


def test_identity_is_that_of_the_cells_alone():
    cells = random_cells(3)
    genotype = Genotype(3, cells, ORIGIN)
    shuffled = {name: cells[name][::-1] for name in reversed(CELL_NAMES)}
    for same in (Genotype(3, cells), Genotype(3, shuffled, {"seed": 4})):
        assert same == genotype and same.id == genotype.id and hash(same) == hash(genotype)
        assert list(same.cells) == list(CELL_NAMES)
    old, new = cells["C7"][0], next(name for name in OPERATION_NAMES if name != cells["C7"][0].operation)
    for other in ({"C7": (dataclasses.replace(old, operation=new), *cells["C7"][1:])}, {"C7": cells["C6"]}):
        assert Genotype(3, {**cells, **other}) != genotype
        assert Genotype(3, {**cells, **other}).id != genotype.id


def test_the_id_is_the_same_on_every_machine_and_in_every_version():
    # written into published model cards: a change of this number breaks every one of them
    genotype = Genotype(1, {name: a_cell((0, 2), (1, 2)) for name in CELL_NAMES})
    assert genotype.id == "22ad3ccd05da"
    assert genotype.count("skip") == 16 and genotype.count("mbconv_3x3") == 0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_copies_and_pickles_are_equal_and_still_frozen(copied):
    genotype = Genotype(3, random_cells(3), ORIGIN)
    twin = copied(genotype)
    assert twin == genotype and hash(twin) == hash(genotype) and twin.search == ORIGIN
    with pytest.raises(TypeError):
        twin.cells["C1"] = ()


def test_a_genotype_can_be_a_key():
    assert len({Genotype(2, random_cells(2, seed), {"n": n}) for seed in (1, 2) for n in range(3)}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "genotype",
        "{",
        "{'schema': 1}",
        b"\xff\xfe\x00",
        b"\x80\x04\x95",
        "[" * 100_000,
        '{"search": ' * 5_000 + "{}" + "}" * 5_000,
        "1" * 10_000,
    ],
    ids=lambda text: f"{text[:12]!r}",
)
def test_what_is_not_json_is_refused(text):
    with pytest.raises(GenotypeError):
        Genotype.from_json(text)


@pytest.mark.parametrize("value", [None, 1, "text", [], [{}], True])
def test_json_that_is_no_object_is_refused(value):
    with pytest.raises(GenotypeError, match="must be a JSON object"):
        Genotype.from_json(json.dumps(value))


@pytest.mark.parametrize("schema", [None, 0, 2, "1", [1]])
def test_another_schema_is_refused_with_the_cure(schema):
    with pytest.raises(GenotypeError, match="this version reads 1: upgrade"):
        Genotype.from_json(json.dumps({**document(), "schema": schema}))


@pytest.mark.parametrize("depth", [10, 500, 900, 950, 980, 990, 1000, 100_000])
@pytest.mark.parametrize("key", ["source", "target", "operation"])
def test_a_nested_bomb_in_an_edge_is_refused(key, depth):
    bad = document()
    bad["cells"]["C2"][0][key] = "BOMB"
    with pytest.raises(GenotypeError):
        Genotype.from_json(json.dumps(bad).replace('"BOMB"', "[" * depth + "]" * depth))


def without(table: dict, key: str) -> dict:
    return {k: v for k, v in table.items() if k != key}


EDGE = {"source": 0, "target": 2, "operation": "skip"}


@pytest.mark.parametrize(
    "edges",
    [
        None,
        {},
        "skip",
        [None],
        [[0, 2, "skip"]],
        [{}],
        [without(EDGE, "operation"), EDGE],
        [{**EDGE, "weight": 1}, EDGE],
        [{**EDGE, "operation": "max_pool_3x3"}, EDGE],
        [{**EDGE, "operation": {}}, EDGE],
        [{**EDGE, "source": "0"}, EDGE],
        [{**EDGE, "source": 1e400}, EDGE],
        [{**EDGE, "target": 10**30}, EDGE],
        [EDGE] * 1000,
    ],
    ids=lambda edges: f"{edges!r:.40}",
)
def test_bad_edges_in_json_are_refused(edges):
    bad = document(1)
    bad["cells"]["C3"] = edges
    with pytest.raises(GenotypeError):
        Genotype.from_json(json.dumps(bad))


@pytest.mark.parametrize(
    "change",
    [
        {"cells": None},
        {"cells": []},
        {"cells": {}},
        {"cells": without(document()["cells"], "C4")},
        {"cells": {**document()["cells"], "C9": []}},
        {"cells": {**document()["cells"], "C9": document()["cells"]["C1"]}},
        {"nodes": None},
        {"nodes": 3},
        {"nodes": 1},
        {"nodes": 10**9},
        {"search": []},
        {"search": "pet"},
        {"search": None},
    ],
    ids=lambda change: f"{change!r:.40}",
)
def test_documents_that_do_not_fit_together_are_refused(change):
    with pytest.raises(GenotypeError):
        Genotype.from_json(json.dumps({**document(), **change}))


@pytest.mark.parametrize("key", ["schema", "nodes", "cells"])
def test_a_document_without_an_entry_is_refused(key):
    with pytest.raises(GenotypeError):
        Genotype.from_json(json.dumps(without(document(), key)))
