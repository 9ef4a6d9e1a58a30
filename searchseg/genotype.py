"""The discrete architecture: which operation sits on which edge of which cell."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

OPERATION_NAMES = (
    "sepconv_3x3",
    "sepconv_5x5",
    "dilconv_3x3",
    "dilconv_5x5",
    "mbconv_3x3",
    "mbconv_5x5",
    "skip",
)
CELL_NAMES = ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8")
INPUT_NODES = 2  # every cell has the input nodes 0 and 1; intermediate nodes start at 2
EDGES_PER_NODE = 2
SCHEMA = 1


class GenotypeError(ValueError):
    """A genotype that cannot be a network of this search space; the message says which part and why."""


@dataclass(frozen=True, order=True)
class Edge:
    """One operation from node `source` to the later node `target` of a cell."""

    source: int
    target: int
    operation: str

    def __post_init__(self) -> None:
        if type(self.source) is not int or type(self.target) is not int:
            raise GenotypeError(f"edge nodes must be integers, got {self.source!r} -> {self.target!r}")
        if not 0 <= self.source < self.target or self.target < INPUT_NODES:
            raise GenotypeError(
                f"edge {self.source} -> {self.target} must run forward, to an intermediate node (2 or later)"
            )
        if self.operation not in OPERATION_NAMES:
            raise GenotypeError(f"unknown operation {self.operation!r}; known: {', '.join(OPERATION_NAMES)}")


@dataclass(frozen=True)
class Genotype:
    """The eight cells C1..C8 of a SEARCH-Net, two incoming edges for each of `nodes` intermediate nodes.

    `search` says where the genotype comes from (task, dataset, revision, preset, method, seed, epochs,
    version, created); it does not enter the identity. Raises GenotypeError at birth when the cells do not
    fit together.
    """

    nodes: int
    cells: Mapping[str, tuple[Edge, ...]]
    search: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if type(self.nodes) is not int or not 1 <= self.nodes <= 16:
            raise GenotypeError(f"nodes must be an integer from 1 to 16, got {self.nodes!r}")
        if set(self.cells) != set(CELL_NAMES):
            raise GenotypeError(
                f"a genotype needs exactly the cells C1 to C8, got {sorted(map(str, self.cells))}"
            )
        if not all(isinstance(edge, Edge) for edges in self.cells.values() for edge in edges):
            raise GenotypeError("the cells of a genotype must hold Edge values")
        cells = {
            name: tuple(sorted(self.cells[name], key=lambda e: (e.target, e.source, e.operation)))
            for name in CELL_NAMES
        }
        for name, edges in cells.items():
            _check_cell(name, edges, self.nodes)
        object.__setattr__(self, "cells", MappingProxyType(cells))
        object.__setattr__(self, "search", MappingProxyType(dict(self.search)))

    def __hash__(self) -> int:
        return hash((self.nodes, tuple(self.cells.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        # a mapping proxy cannot be pickled or deep-copied; the plain values can
        return Genotype, (self.nodes, dict(self.cells), dict(self.search))

    @property
    def id(self) -> str:
        """First 12 hex digits of the sha256 of the cells: equal for equal architectures, whatever found
        them."""
        text = json.dumps(self._cells_as_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def count(self, operation: str, cell: str | None = None) -> int:
        """How many edges of one cell, or of all eight, carry `operation`."""
        cells = self.cells.values() if cell is None else [self.cells[cell]]
        return sum(edge.operation == operation for edges in cells for edge in edges)

    def to_json(self) -> str:
        """The text of genotype.json (schema 1)."""
        document = {
            "schema": SCHEMA,
            "nodes": self.nodes,
            "operations": list(OPERATION_NAMES),
            "cells": self._cells_as_json(),
            "search": dict(self.search),
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Genotype:
        """Read genotype.json; raises GenotypeError naming the first thing that is wrong."""
        try:
            document = json.loads(text, object_pairs_hook=no_duplicates)
        except (ValueError, RecursionError) as error:
            raise GenotypeError(f"genotype is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise GenotypeError(f"genotype must be a JSON object, got {type(document).__name__}")
        if document.get("schema") != SCHEMA:
            raise GenotypeError(
                f"genotype has schema {document.get('schema')!r}, this version reads {SCHEMA}: "
                "upgrade searchseg"
            )
        unknown = sorted(set(document) - {"schema", "nodes", "operations", "cells", "search"})
        if unknown:
            raise GenotypeError(f"genotype has the unknown entry {unknown[0]!r:.80}")
        if document.get("operations", list(OPERATION_NAMES)) != list(OPERATION_NAMES):
            raise GenotypeError(
                f"genotype was searched over other operations than {', '.join(OPERATION_NAMES)}: "
                "it belongs to another version"
            )
        nodes: Any = document.get("nodes")
        cells, search = document.get("cells"), document.get("search", {})
        if not isinstance(cells, dict) or not isinstance(search, dict):
            raise GenotypeError(
                "genotype needs an object 'cells' (and 'search', if present, must be an object)"
            )
        return cls(nodes, {name: _read_edges(name, edges) for name, edges in cells.items()}, search)

    def _cells_as_json(self) -> dict[str, list[dict[str, Any]]]:
        return {
            name: [{"source": e.source, "target": e.target, "operation": e.operation} for e in edges]
            for name, edges in self.cells.items()
        }


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: of an entry that stands twice the last would silently win."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def possible_edges(nodes: int) -> list[tuple[int, int]]:
    """All (source, target) pairs of a cell with `nodes` intermediate nodes: every earlier node feeds
    every later one."""
    return [
        (source, target) for target in range(INPUT_NODES, INPUT_NODES + nodes) for source in range(target)
    ]


def random_genotype(nodes: int, seed: int) -> Genotype:
    """A genotype drawn uniformly: two different sources for every node, any operation on each edge."""
    draw = random.Random(seed)
    targets = range(INPUT_NODES, INPUT_NODES + nodes)
    cells = {
        name: tuple(
            Edge(source, target, draw.choice(OPERATION_NAMES))
            for target in targets
            for source in draw.sample(range(target), EDGES_PER_NODE)
        )
        for name in CELL_NAMES
    }
    return Genotype(nodes, cells, {"method": "random", "seed": seed})


def _check_cell(name: str, edges: tuple[Edge, ...], nodes: int) -> None:
    for target in range(INPUT_NODES, INPUT_NODES + nodes):
        sources = [edge.source for edge in edges if edge.target == target]
        if len(sources) != EDGES_PER_NODE or len(set(sources)) != EDGES_PER_NODE:
            raise GenotypeError(
                f"cell {name}: node {target} needs two edges from different nodes, got {sources}"
            )
    if len(edges) != EDGES_PER_NODE * nodes:
        raise GenotypeError(
            f"cell {name}: {nodes} nodes need {EDGES_PER_NODE * nodes} edges, got {len(edges)}"
        )


def _read_edges(name: str, edges: Any) -> tuple[Edge, ...]:
    keys = {"source", "target", "operation"}
    if not isinstance(edges, list) or not all(isinstance(edge, dict) and set(edge) == keys for edge in edges):
        raise GenotypeError(f"cell {name}: edges must be a list of objects with source, target and operation")
    return tuple(Edge(**edge) for edge in edges)
