"""Proves that the monitor finds the sharpest eigenvalue of a Hessian, and its rules stop when they say."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from searchseg.network import USpace
from training.darts import Darts
from training.monitor import PATIENCE, largest_eigenvalue, stop_at
from training.presets import PRESETS


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(noise(2, 3, seed=2)), nn.Parameter(noise(4, seed=3))]


def quadratic(alphas: list[nn.Parameter], eigenvalues: list[float]):
    """A loss with a Hessian of these eigenvalues, along axes that belong to no single alpha."""
    axes = torch.linalg.qr(noise(10, 10, seed=4))[0]
    hessian = axes @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ axes.T

    def loss() -> Tensor:
        x = torch.cat([alpha.flatten() for alpha in alphas])
        return x @ hessian @ x / 2 + x @ noise(10, seed=5)

    return loss


@pytest.mark.parametrize("largest", [5.0, -5.0])
def test_it_is_the_eigenvalue_of_largest_size_with_its_sign(largest):
    alphas = parameters()
    loss = quadratic(alphas, [largest, -1.5, 1.2, 1, 0.7, 0.3, 0, -0.1, -0.2, -1])
    assert largest_eigenvalue(loss, alphas) == pytest.approx(largest, rel=1e-3)
    assert largest_eigenvalue(loss, alphas, iterations=30) == pytest.approx(largest, rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_that_of_the_exact_hessian_of_a_curved_loss(sign):
    alphas, x, y = parameters(), noise(20, 10, seed=6), noise(20, seed=7)

    def loss_at(values: Tensor) -> Tensor:
        return sign * ((x @ values).tanh() - y).square().mean()

    at = torch.cat([alpha.detach().flatten() for alpha in alphas])
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss_at, at))
    wanted = exact[exact.abs().argmax()].item()
    found = largest_eigenvalue(lambda: loss_at(torch.cat([a.flatten() for a in alphas])), alphas, 100)
    assert found == pytest.approx(wanted, rel=1e-6)


def test_more_iterations_come_closer():
    alphas = parameters()
    loss = quadratic(alphas, [5, 4, 3, 3, 2, 2, 1, 1, 0, 0])
    errors = [abs(5 - largest_eigenvalue(loss, alphas, iterations=n)) for n in (1, 4, 16, 64)]
    assert errors[0] > errors[1] > errors[2] > errors[3] and errors[3] < 1e-6


def test_a_flat_loss_has_the_eigenvalue_zero():
    alphas = parameters()
    assert largest_eigenvalue(quadratic(alphas, [0.0] * 10), alphas) == 0


def test_the_same_seed_gives_the_same_number_and_global_randomness_rests():
    alphas = parameters()
    loss = quadratic(alphas, [5, 4, 3, -3, 2, 1, 0, 0, -1, -2])
    state = torch.get_rng_state()
    numbers = [largest_eigenvalue(loss, alphas, iterations=2, seed=seed) for seed in (0, 0, 1)]
    torch.rand(3)
    assert numbers[0] == numbers[1] == largest_eigenvalue(loss, alphas, iterations=2) != numbers[2]
    torch.set_rng_state(state)
    largest_eigenvalue(loss, alphas)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_product_is_averaged_over_the_processes():
    alphas, shapes = parameters(), []
    loss = quadratic(alphas, [5, 1, 0, 0, 0, 0, 0, 0, 0, 0])

    def average(product: Tensor) -> Tensor:
        shapes.append(tuple(product.shape))
        return product / 2  # the other process has a flat loss

    assert largest_eigenvalue(loss, alphas, average=average) == pytest.approx(2.5, rel=1e-3)
    assert shapes == [(10,)] * 8


def test_a_look_at_a_search_leaves_it_as_it_was():
    settings = dataclasses.replace(PRESETS["smoke"].search, widths=(2, 2, 2, 4), nodes=1)
    torch.manual_seed(0)
    run = Darts(USpace(settings.network(2), partial=2), settings, Accelerator(cpu=True))
    draw = torch.Generator().manual_seed(0)
    batch = torch.randn(2, 3, 16, 16, generator=draw), torch.randint(0, 2, (2, 16, 16), generator=draw)
    before = [p.detach().clone() for p in run.space.parameters()]
    number = largest_eigenvalue(lambda: run.loss(batch)[0], run.alphas, iterations=3)
    assert 0 < abs(number) < 10
    assert all(torch.equal(a, b) for a, b in zip(before, run.space.parameters(), strict=True))
    assert all(p.grad is None for p in run.space.parameters())


def history(*eigenvalues: float | None, genotypes: str = "", warmup: int = 0) -> list[dict]:
    """A record an epoch; a letter of `genotypes` each, or all different; None: nothing was measured."""
    records = []
    for epoch, eigenvalue in enumerate(eigenvalues, 1):
        genotype = genotypes[epoch - 1] if genotypes else str(epoch)
        phase = "warmup" if epoch <= warmup else "search"
        record = {"epoch": epoch, "phase": phase, "genotype": genotype}
        records.append(record | ({} if eigenvalue is None else {"eigenvalue": eigenvalue}))
    return records


def test_without_a_rule_nothing_stops():
    assert stop_at("none", history(1, 1, 100, 100, genotypes="aaaa")) is None
    assert stop_at("none", history(*[1] * 20, genotypes="a" * 20)) is None


@pytest.mark.parametrize("rule", ["none", "eigenvalue", "unchanged"])
def test_an_empty_history_stops_nothing(rule):
    assert stop_at(rule, []) is None
    assert stop_at(rule, history(1, 1, 100, 100, 1, 1, 1, 1, 1, genotypes="a" * 9, warmup=9)) is None


@pytest.mark.parametrize(
    "measured, kept",
    [
        ((1, 1, 2, 2), 2),  # the second of four: two measurements back from the last
        ((9, 9, 1, 1, 2, 2), 4),
        ((1, 1, 1.3, 1.3), None),  # the earlier mean is 0.77 of the present one
        ((1, 1, 1.4, 1.4), 2),  # 0.71
        ((1, 1, 0, 4), 2),  # means of two, not single numbers
        ((3, 0, 1, 1), None),
        ((2, 2, 1, 1), None),
        ((1, 2, 2), None),  # too few
        ((1, 9, 9), None),
        ((-1, -1, -2, -2), 2),  # size counts: a sharp maximum is sharp
        ((2, -2, 2, -2), None),
        ((1, -1, 2, -2), 2),
    ],
    ids=str,
)
def test_a_growing_eigenvalue_goes_back_to_before_it_grew(measured, kept):
    assert stop_at("eigenvalue", history(*measured)) == kept
    assert stop_at("unchanged", history(*measured)) is None


def test_the_eigenvalue_is_compared_among_epochs_that_have_one():
    gaps = history(None, 1, None, 1, None, 2, None, None, 2, None)
    assert stop_at("eigenvalue", gaps) == 4
    assert stop_at("eigenvalue", gaps[:8]) is None
    assert stop_at("eigenvalue", [{**record, "eigenvalue": None} for record in gaps]) is None


def test_warm_up_has_no_part_in_the_eigenvalue():
    assert stop_at("eigenvalue", history(1, 1, 2, 2, warmup=1)) is None
    assert stop_at("eigenvalue", history(0.1, 0.1, 1, 1, 1, 1, warmup=2)) is None
    assert stop_at("eigenvalue", history(9, 9, 1, 1, 2, 2, warmup=2)) == 4


@pytest.mark.parametrize(
    "genotypes, warmup, kept",
    [
        ("aaaaaa", 0, 6),  # unchanged for five epochs after the first
        ("aaaaa", 0, None),
        ("baaaaaa", 0, 7),
        ("baaaaa", 0, None),
        ("aaabaaa", 0, None),
        ("aaaaaab", 0, None),
        ("aaaaaaaa", 2, 8),
        ("aaaaaaaa", 3, None),
    ],
)
def test_a_genotype_that_stays_for_five_epochs_is_kept(genotypes, warmup, kept):
    assert PATIENCE == 5
    records = history(*[None] * len(genotypes), genotypes=genotypes, warmup=warmup)
    assert stop_at("unchanged", records) == kept
    assert stop_at("eigenvalue", records) is None
