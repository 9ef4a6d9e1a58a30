"""Proves that regularisers, budget, auxiliary skips and skip limit steer a DARTS search as they should."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from searchseg.cost import OperationCosts, expected_cost
from searchseg.genotype import CELL_NAMES, OPERATION_NAMES
from searchseg.network import USpace
from training.darts import BUDGET_WEIGHT, Darts
from training.presets import PRESETS, SearchMethod

TINY = dataclasses.replace(
    PRESETS["smoke"].search,
    widths=(1, 1, 2, 2),
    nodes=1,
    epochs=5,
    batch_size=2,
    alpha_lr=0.1,
    alpha_weight_decay=0.0,
    gradient_clip=1e9,
)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 8, 8, generator=draw), torch.randint(0, 2, (2, 8, 8), generator=draw)


def begin(accelerator: Accelerator, partial: int = 1, limit: float | None = None, **method) -> Darts:
    """A search in its fourth epoch of five, with alphas that have grown apart."""
    torch.manual_seed(0)
    space = USpace(
        dataclasses.replace(TINY, **({"widths": (2, 2, 2, 4)} if partial > 1 else {})).network(2), partial
    )
    for parameter in space.architecture_parameters():
        parameter.data.mul_(1e3)
    costs = PRICES if limit is not None else None
    run = Darts(space, TINY, accelerator, SearchMethod(partial=partial, **method), costs, limit)
    run.begin_epoch(3)
    return run


def prices(fixed: float) -> OperationCosts:
    numbers = dict(zip(OPERATION_NAMES, (4, 6, 2, 3, 9, 10, 0), strict=True))
    return OperationCosts(dict.fromkeys(CELL_NAMES, numbers), fixed)


PRICES = prices(fixed=10)


def gradient(run: Darts) -> list[Tensor]:
    """What the last step of the architecture went down."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in run.alphas]


def table(run: Darts) -> Tensor:
    return torch.stack([mixed.alpha.detach().clone() for *_, mixed in run.space.edges()])


def test_beta_decay_keeps_the_alphas_of_an_edge_together(accelerator):
    sizes, spreads = {}, {}
    for regularise in ("none", "beta"):
        run = begin(accelerator, regularise=regularise)
        before = table(run)
        for seed in range(2):
            run.architecture_step(batch(seed))
        sizes[regularise] = table(run).logsumexp(1) - before.logsumexp(1)
        spreads[regularise] = (table(run).std(1) - before.std(1)).abs().mean()
    assert (sizes["beta"] < 0).all() and sizes["beta"].mean() < sizes["none"].mean() - 0.01
    # Adam gives the small gradients of the loss their full length when they are alone
    assert spreads["beta"] < spreads["none"] / 10 and spreads["none"] > 0.01


def test_beta_decay_adds_the_gradient_of_its_formula_and_grows_with_the_search(accelerator):
    plain = begin(accelerator)
    plain.architecture_step(batch(0))
    loss_alone = gradient(plain)
    for epoch, weight in ((0, 0), (4, 40)):
        run = begin(accelerator, regularise="beta")
        run.begin_epoch(epoch)
        alphas = table(run)
        run.architecture_step(batch(0))
        for found, alone, alpha in zip(gradient(run), loss_alone, alphas, strict=True):
            # the derivative of the mean over the edges of logsumexp(alpha) is softmax(alpha) / edges
            assert torch.allclose(found - alone, weight * alpha.softmax(0) / len(alphas), atol=1e-5)


def test_beta_decay_leaves_the_betas_to_the_loss(accelerator):
    found = {}
    for regularise in ("none", "beta"):
        run = begin(accelerator, partial=2, regularise=regularise)
        run.architecture_step(batch(0))
        found[regularise] = dict(zip(map(id, run.alphas), gradient(run), strict=True))
        kinds = {id(p): p.numel() for p in run.alphas}
        found[regularise] = [[g for p, g in found[regularise].items() if kinds[p] == n] for n in (7, 1)]
    (alphas, betas), (more_alphas, same_betas) = found["none"], found["beta"]
    assert len(betas) == len(alphas) == 16
    assert all(torch.equal(a, b) for a, b in zip(betas, same_betas, strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(alphas, more_alphas, strict=True))


@pytest.mark.parametrize("partial", [1, 2])
def test_over_the_limit_the_expected_cost_falls(accelerator, partial):
    reached = {}
    for limit in (None, 20.0):
        run = begin(accelerator, partial, limit=limit)
        start = expected_cost(run.space, PRICES).item()
        assert start > 40
        for seed in range(2):
            run.architecture_step(batch(seed))
        reached[limit] = expected_cost(run.space, PRICES).item()
    assert reached[20.0] < start - 1 and reached[20.0] < reached[None] - 1


def test_the_penalty_adds_the_gradient_of_its_formula(accelerator):
    plain, run = begin(accelerator), begin(accelerator, limit=20.0)
    cost = expected_cost(run.space, PRICES)
    wanted = torch.autograd.grad(cost, run.alphas)
    plain.architecture_step(batch(0)), run.architecture_step(batch(0))
    for found, alone, g in zip(gradient(run), gradient(plain), wanted, strict=True):
        assert torch.allclose(found - alone, BUDGET_WEIGHT * g / cost.detach().float(), atol=1e-6)
    assert max(g.abs().max() for g in wanted) > 0.1


def test_within_the_limit_the_budget_has_no_effect(accelerator):
    steps = []
    for limit in (None, 1e4):
        run = begin(accelerator, limit=limit)
        for seed in range(2):
            run.architecture_step(batch(seed))
        steps.append(table(run))
    assert torch.equal(*steps)


def test_regulariser_and_budget_add_up_in_second_order_too(accelerator):
    plain = begin(accelerator, order=2)
    both = begin(accelerator, order=2, regularise="beta", limit=20.0)
    cost = expected_cost(both.space, PRICES)
    alphas = torch.stack(both.alphas)
    wanted = torch.autograd.grad(30 * alphas.logsumexp(1).mean() + cost.log().float(), both.alphas)
    plain.architecture_step(batch(0), batch(1)), both.architecture_step(batch(0), batch(1))
    assert cost > 20
    for found, alone, g in zip(gradient(both), gradient(plain), wanted, strict=True):
        assert torch.allclose(found - alone, g, atol=1e-5) and g.any()


@pytest.mark.parametrize("epochs, wanted", [(5, [1, 0.75, 0.5, 0.25, 0]), (2, [1, 0]), (1, [1])])
def test_auxiliary_skips_fade_over_the_epochs(accelerator, epochs, wanted):
    settings = dataclasses.replace(TINY, epochs=epochs)
    method = SearchMethod(regularise="auxiliary-skip")
    run, seen = Darts(USpace(TINY.network(2)), settings, accelerator, method), []
    for epoch in range(epochs):
        run.begin_epoch(epoch)
        (weight,) = {mixed.auxiliary for *_, mixed in run.space.edges()}
        seen.append(weight)
    assert seen == wanted


@pytest.mark.parametrize("regularise", ["none", "beta"])
def test_no_other_method_has_auxiliary_skips(accelerator, regularise):
    run = begin(accelerator, regularise=regularise)
    assert {mixed.auxiliary for *_, mixed in run.space.edges()} == {0.0}


def prefer(run: Darts, *operations: str) -> None:
    """Alphas that like the given operations best, in this order."""
    numbers = [
        float(len(operations) - operations.index(o)) if o in operations else 0 for o in OPERATION_NAMES
    ]
    for *_, mixed in run.space.edges():
        mixed.alpha.data = torch.tensor(numbers)


@pytest.mark.parametrize("most, wanted", [(None, 2), (2, 2), (1, 1), (0, 0)])
def test_the_derived_network_has_no_more_skips_than_allowed(accelerator, most, wanted):
    run = begin(accelerator, max_skips=most)
    prefer(run, "skip", "mbconv_3x3")
    genotype = run.genotype({"seed": 0})
    assert [genotype.count("skip", cell) for cell in CELL_NAMES] == [wanted] * 8
    assert genotype.count("mbconv_3x3") == 8 * (2 - wanted) and genotype.search == {"seed": 0}
    assert run.finish({"seed": 1}, []).cells == genotype.cells


def test_the_derived_network_stays_within_budget_and_skip_limit_at_once(accelerator):
    most_skips = {}
    for limit, most in ((1e4, None), (60.0, None), (60.0, 1)):
        run = begin(accelerator, limit=limit, max_skips=most)
        prefer(run, "mbconv_5x5", "skip", "dilconv_3x3")
        genotype = run.genotype({})
        assert PRICES.total(genotype) <= limit
        most_skips[limit, most] = max(genotype.count("skip", cell) for cell in CELL_NAMES)
    assert most_skips == {(1e4, None): 0, (60.0, None): 2, (60.0, 1): 1}


def test_betas_decide_which_edges_are_derived(accelerator):
    torch.manual_seed(0)
    settings = dataclasses.replace(TINY, nodes=2, widths=(2, 2, 2, 2))
    run = Darts(USpace(settings.network(2), 2), settings, accelerator, SearchMethod(partial=2))
    for _, source, target, mixed in run.space.edges():
        mixed.beta.data.fill_(5.0 if source != 1 or target == 2 else -5.0)
    genotype = run.genotype({})
    for edges in genotype.cells.values():
        assert [(edge.source, edge.target) for edge in edges] == [(0, 2), (1, 2), (0, 3), (2, 3)]
