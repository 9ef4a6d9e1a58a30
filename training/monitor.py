"""Collapse monitor: how sharp the held-out loss is in alpha, and rules that stop a search by its history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

DROP = 0.75  # RobustDARTS stops when the earlier eigenvalue is below this share of the present one
WINDOW = 2  # measurements that are averaged, and how many measurements back the rule looks and goes
PATIENCE = 5  # epochs without a new genotype
RULES = ("none", "eigenvalue", "unchanged")


def largest_eigenvalue(
    loss: Callable[[], Tensor],
    alphas: Sequence[nn.Parameter],
    iterations: int = 8,
    seed: int = 0,
    average: Callable[[Tensor], Tensor] = lambda product: product,
) -> float:
    """The eigenvalue of largest size of the Hessian of `loss` in alpha, by power iteration.

    Its growth announces networks that generalise badly (Zela et al., RobustDARTS, arXiv 1909.09656,
    section 4). The gradient's graph is kept, so every iteration costs one backward pass. `average` takes
    the mean over processes.
    """
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(), alphas, create_graph=True)])
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(gradient.numel(), generator=generator).to(gradient)
    eigenvalue = 0.0
    for _ in range(iterations):
        direction = direction / direction.norm().clamp_min(1e-12)
        parts = torch.autograd.grad(gradient @ direction, alphas, retain_graph=True)
        product = average(torch.cat([p.flatten() for p in parts]))
        eigenvalue = (direction @ product).item()
        direction = product
    return eigenvalue


def stop_at(rule: str, history: Sequence[dict[str, Any]]) -> int | None:
    """The epoch (counted from 1) whose genotype `rule` keeps when the search should end now, else None."""
    searched = [record for record in history if record["phase"] == "search"]
    if rule == "unchanged" and len(searched) > PATIENCE:
        recent = {record["genotype"] for record in searched[-PATIENCE - 1 :]}
        return searched[-1]["epoch"] if len(recent) == 1 else None
    measured = [record for record in searched if record.get("eigenvalue") is not None]
    if rule == "eigenvalue" and len(measured) >= 2 * WINDOW:
        present = sum(abs(record["eigenvalue"]) for record in measured[-WINDOW:]) / WINDOW
        earlier = sum(abs(record["eigenvalue"]) for record in measured[-2 * WINDOW : -WINDOW]) / WINDOW
        return measured[-WINDOW - 1]["epoch"] if earlier < DROP * present else None
    return None
