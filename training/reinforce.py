"""Search by reinforcement: a recurrent controller writes genotypes and learns from the reward they earn.

The controller follows NASNet (Zoph et al. 2018, arXiv 1707.07012); its settings, and rewards that come from
shared weights, follow ENAS (Pham et al. 2018, arXiv 1802.03268).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from searchseg.genotype import CELL_NAMES, EDGES_PER_NODE, INPUT_NODES, OPERATION_NAMES, Edge, Genotype

TANH_CONSTANT = 2.5  # ENAS: with it no choice gets more than exp(5) = 148 times as likely as another
TEMPERATURE = 5.0  # ENAS

Choose = Callable[[range, Tensor], int]  # the legal choices and their log-probabilities -> one of the choices


class Controller(nn.Module):
    """An LSTM that writes a genotype: cell by cell, node by node, edge by edge, a source and an operation.

    It writes the two edges of a node in rising order of source, as Genotype stores them, so that every
    genotype can be written in one way only and its probability is exactly that of the decisions. It lives
    on the CPU: it works on one vector at a time.
    """

    def __init__(self, nodes: int, size: int = 100) -> None:
        super().__init__()
        self.targets = range(INPUT_NODES, INPUT_NODES + nodes)
        sources, operations = self.targets[-1], len(OPERATION_NAMES)
        self.lstm = nn.LSTMCell(size, size)
        self.source_words, self.operation_words = nn.Embedding(sources, size), nn.Embedding(operations, size)
        self.source_head, self.operation_head = nn.Linear(size, sources), nn.Linear(size, operations)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)  # ENAS
        # our choice: the input names the cell and node, and loudly (values of size 1). Without it the
        # controller long writes one operation into all eight cells where the best differs from cell to cell
        self.places = nn.Embedding(len(CELL_NAMES) * nodes, size)

    def sample(self, generator: torch.Generator | None = None) -> tuple[Genotype, Tensor, Tensor]:
        """Draw a genotype; with it come its log-probability and the summed entropy of its decisions
        (scalars, nats, with gradients)."""
        return self._write(
            lambda legal, scores: legal[int(torch.multinomial(scores.exp(), 1, generator=generator))]
        )

    def log_probability(self, genotype: Genotype) -> Tensor:
        """The log-probability (scalar, nats, with gradients) that `sample` draws `genotype`. Raises
        ValueError when it has another number of nodes."""
        if genotype.nodes != len(self.targets):
            raise ValueError(
                f"the controller writes {len(self.targets)} nodes a cell, the genotype has {genotype.nodes}: "
                "make them equal"
            )
        decisions = _decisions(genotype)
        return self._write(lambda legal, scores: next(decisions))[1]

    @torch.no_grad()
    def most_likely(self) -> Genotype:
        """The genotype of the likeliest choice at every decision (greedy: a likelier genotype may exist)."""
        return self._write(lambda legal, scores: legal[int(scores.argmax())])[0]

    def _write(self, choose: Choose) -> tuple[Genotype, Tensor, Tensor]:
        pen = _Pen(self, choose)
        cells: dict[str, list[Edge]] = {name: [] for name in CELL_NAMES}
        for place, (name, target) in enumerate((n, t) for n in CELL_NAMES for t in self.targets):
            source = -1
            for missing in reversed(range(EDGES_PER_NODE)):
                source = pen.write_source(place, range(source + 1, target - missing), target, missing)
                cells[name].append(Edge(source, target, pen.write_operation(place)))
        genotype = Genotype(len(self.targets), {name: tuple(edges) for name, edges in cells.items()})
        return genotype, pen.log_probability, pen.entropy


class _Pen:
    """A genotype being written: the LSTM's memory, and log-probability and entropy of the decisions so
    far."""

    def __init__(self, controller: Controller, choose: Choose) -> None:
        self.controller, self.choose = controller, choose
        self.memory: tuple[Tensor, Tensor] | None = None
        self.last_word = self.log_probability = self.entropy = torch.zeros(())

    def write_source(self, place: int, legal: range, target: int, missing: int) -> int:
        """One of `legal` as the source of an edge to `target`, with `missing` edges to come after it."""
        # the first source leaves the more pairs open the lower it is; counting them makes equal scores mean
        # equally likely pairs, so that an untrained controller draws like random search
        ways = torch.tensor([math.comb(target - 1 - source, missing) for source in legal])
        source = self._decide(place, self.controller.source_head, legal, ways.log())
        self.last_word = self.controller.source_words.weight[source]
        return source

    def write_operation(self, place: int) -> str:
        legal = range(len(OPERATION_NAMES))
        operation = self._decide(place, self.controller.operation_head, legal, torch.zeros(len(legal)))
        self.last_word = self.controller.operation_words.weight[operation]
        return OPERATION_NAMES[operation]

    def _decide(self, place: int, head: nn.Linear, legal: range, prior: Tensor) -> int:
        step = self.controller.places.weight[place] + self.last_word
        self.memory = self.controller.lstm(step, self.memory)
        logits = TANH_CONSTANT * torch.tanh(head(self.memory[0]) / TEMPERATURE)
        scores = torch.log_softmax(logits[legal.start : legal.stop] + prior, 0)
        choice = self.choose(legal, scores)
        self.log_probability = self.log_probability + scores[legal.index(choice)]
        self.entropy = self.entropy - (scores.exp() * scores).sum()
        return choice


def _decisions(genotype: Genotype) -> Iterator[int]:
    """The source and the operation's number of every edge, in the controller's order."""
    for name in CELL_NAMES:
        for edge in genotype.cells[name]:
            yield edge.source
            yield OPERATION_NAMES.index(edge.operation)


class Reinforce:
    """Policy gradient with a moving-average baseline (Williams 1992, REINFORCE; settings of ENAS).

    The draws come from an own generator with `seed`, so that rewards that use chance do not change them.
    """

    def __init__(self, controller: Controller, seed: int, learning_rate: float = 3.5e-4,
                 baseline_decay: float = 0.95, entropy_weight: float = 1e-4) -> None:  # fmt: skip
        self.controller = controller
        self.optimizer = torch.optim.Adam(controller.parameters(), learning_rate)
        self.generator = torch.Generator().manual_seed(seed)
        self.baseline_decay, self.entropy_weight = baseline_decay, entropy_weight
        self.baseline: float | None = None  # before the first reward

    def step(self, reward: Callable[[Genotype], float], samples: int = 1) -> list[tuple[Genotype, float]]:
        """Draw genotypes, ask for their rewards, and make what earned more than the baseline likelier.

        Returns the genotypes with their rewards. Raises ValueError for a reward that is not finite.
        """
        drawn = [self.controller.sample(self.generator) for _ in range(samples)]
        rewards = [float(reward(genotype)) for genotype, _, _ in drawn]
        if not all(map(math.isfinite, rewards)):
            raise ValueError(f"rewards must be finite numbers, got {rewards}: has the supernet diverged?")
        mean = sum(rewards) / samples
        # ENAS starts at 0, which makes everything that is drawn first likelier when all rewards are positive
        baseline = mean if self.baseline is None else self.baseline
        gains = [
            (value - baseline) * log_probability + self.entropy_weight * entropy
            for value, (_, log_probability, entropy) in zip(rewards, drawn, strict=True)
        ]
        self.optimizer.zero_grad()
        (-torch.stack(gains).mean()).backward()
        self.optimizer.step()
        self.baseline = self.baseline_decay * baseline + (1 - self.baseline_decay) * mean
        return [(genotype, value) for (genotype, _, _), value in zip(drawn, rewards, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """All that a later run needs to go on bit for bit."""
        return {
            "controller": self.controller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "baseline": self.baseline,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state["controller"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline = state["baseline"]
        self.generator.set_state(state["generator"])
