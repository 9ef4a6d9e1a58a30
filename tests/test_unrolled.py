"""Proves that the second-order gradient is the derivative of the held-out loss one training step ahead."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from searchseg.network import USpace
from training.darts import Darts
from training.presets import PRESETS, SearchMethod
from training.unrolled import unrolled_gradient


class Smooth(nn.Module):
    """Two mixtures of smooth functions, small enough for exact second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first, self.second, self.last = (
            nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64))
            for shape in ((3, 4, 4), (3, 4, 4), (1, 4, 3))
        )
        self.alphas = nn.Parameter(torch.randn(2, 3, generator=draw, dtype=torch.float64))

    def weights(self) -> list[nn.Parameter]:
        return [self.first, self.second, self.last]

    def forward(self, x: Tensor) -> Tensor:
        for alpha, layer in zip(self.alphas, (self.first, self.second), strict=True):
            mixed = zip(alpha.softmax(0), (torch.tanh, F.softplus, torch.sin), layer, strict=True)
            x = sum(weight * function(x @ matrix) for weight, function, matrix in mixed)
        return x @ self.last[0]


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PICTURES = {name: noise(20, 4, seed=seed) for seed, name in enumerate(("training", "held out"), 1)}
CLASSES = {name: noise(20, 3, seed=seed).argmax(1) for seed, name in enumerate(("training", "held out"), 3)}
VELOCITIES = [noise(3, 4, 4, seed=5), noise(3, 4, 4, seed=6), noise(1, 4, 3, seed=7)]
STEP = {"xi": 0.2, "momentum": 0.9, "weight_decay": 0.05, "velocities": VELOCITIES}


def loss(network: nn.Module, name: str) -> Tensor:
    return F.cross_entropy(network(PICTURES[name]), CLASSES[name])


def unrolled(network: Smooth, **step: object) -> Tensor:
    (gradient,) = unrolled_gradient(
        lambda: loss(network, "held out"),
        lambda: loss(network, "training"),
        network.weights(),
        [network.alphas],
        **step,
    )
    return gradient


def exact(network: Smooth, xi: float, momentum: float, weight_decay: float, velocities: list) -> Tensor:
    """The same by a second derivative: the step of the weights stays in the graph."""
    gradients = torch.autograd.grad(loss(network, "training"), network.weights(), create_graph=True)
    ahead = {
        name: w - xi * (momentum * v + g + weight_decay * w)
        for name, w, v, g in zip(
            ("first", "second", "last"), network.weights(), velocities, gradients, strict=True
        )
    }
    held_out = F.cross_entropy(functional_call(network, ahead, PICTURES["held out"]), CLASSES["held out"])
    return torch.autograd.grad(held_out, network.alphas)[0]


def far(one: Tensor, two: Tensor) -> float:
    """Length of the difference, as a share of the second."""
    return ((one - two).norm() / two.norm()).item()


@pytest.mark.parametrize(
    "change",
    [{}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"xi": 0.02}, {"xi": 1.0}],
    ids=["all", "no momentum", "no decay", "short step", "long step"],
)
def test_it_is_the_exact_gradient_through_the_training_step(change):
    network, step = Smooth(), {**STEP, **change}
    found, wanted = unrolled(network, **step), exact(network, **step)
    assert far(found, wanted) < 1e-4
    first_order = torch.autograd.grad(loss(network, "held out"), network.alphas)[0]
    assert far(first_order, wanted) > 0.02, "the step matters here"


@pytest.mark.parametrize("left_out", ["momentum", "weight_decay"])
def test_momentum_and_weight_decay_belong_to_the_step(left_out):
    network = Smooth()
    assert far(unrolled(network, **{**STEP, left_out: 0.0}), exact(network, **STEP)) > 0.01


def test_without_velocities_the_momentum_does_nothing():
    network = Smooth()
    still = [torch.zeros_like(v) for v in VELOCITIES]
    wanted = exact(network, **{**STEP, "velocities": still})
    for velocities in (None, [None] * 3, still, [None, still[1], None]):
        assert far(unrolled(network, **{**STEP, "velocities": velocities}), wanted) < 1e-4


def test_a_step_of_length_zero_is_first_order_and_looks_at_no_training_image():
    network = Smooth()

    def never() -> Tensor:
        raise AssertionError("first order needs no training loss")

    (found,) = unrolled_gradient(
        lambda: loss(network, "held out"), never, network.weights(), [network.alphas], **{**STEP, "xi": 0.0}
    )
    assert torch.equal(found, torch.autograd.grad(loss(network, "held out"), network.alphas)[0])


def test_every_gradient_is_averaged_before_it_is_used():
    # two processes of which the other has gradients of zero: every gradient halves, and so does the
    # radius' norm
    network, seen = Smooth(), []

    def average(gradients):
        seen.append([tuple(g.shape) for g in gradients])
        return list(gradients)

    unrolled(network, **STEP, average=average)
    weights, alphas = [(3, 4, 4), (3, 4, 4), (1, 4, 3)], [(2, 3)]
    assert seen == [weights, alphas, weights, alphas, alphas]


def test_the_weights_are_bit_equal_afterwards():
    network = Smooth()
    before = [p.detach().clone() for p in network.parameters()]
    unrolled(network, **STEP)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(p.grad is None for p in network.parameters())


class Broken(Exception):
    pass


@pytest.mark.parametrize("moment", range(1, 5))
def test_the_weights_are_bit_equal_when_a_loss_raises(moment):
    network, calls = Smooth(), []
    before = [p.detach().clone() for p in network.parameters()]

    def broken(name: str) -> Tensor:
        calls.append([not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)])
        if len(calls) == moment:
            raise Broken
        return loss(network, name)

    with pytest.raises(Broken):
        unrolled_gradient(
            lambda: broken("held out"),
            lambda: broken("training"),
            network.weights(),
            [network.alphas],
            **STEP,
        )
    assert any(calls[-1]) == (moment > 1), "from the second loss on the weights stand elsewhere"
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


TINY = dataclasses.replace(
    PRESETS["smoke"].search, widths=(2, 2, 2, 4), nodes=1, batch_size=2, gradient_clip=1e9, weight_decay=0.01
)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def begin(accelerator: Accelerator, order: int, partial: int = 1) -> Darts:
    """A tiny search whose weights have moved already, so that they have velocities."""
    torch.manual_seed(0)
    method = SearchMethod(order=order, partial=partial)
    run = Darts(USpace(TINY.network(2), partial).double(), TINY, accelerator, method)
    run.weight_step(batch(1))
    return run


def batch(seed: int) -> tuple[Tensor, Tensor]:
    masks = torch.randint(0, 2, (2, 8, 8), generator=torch.Generator().manual_seed(seed))
    return noise(2, 3, 8, 8, seed=seed), masks


def moved_by(run: Darts) -> Tensor:
    """The gradient that the last step of the architecture took."""
    return torch.cat([alpha.grad.flatten() for alpha in run.alphas])


def exact_step(run: Darts, held_out: tuple[Tensor, Tensor], training: tuple[Tensor, Tensor]) -> Tensor:
    """The unrolled gradient of a search by a second derivative, with the optimiser as the one who knows."""
    (group,) = run.weight_optimizer.param_groups
    gradients = torch.autograd.grad(run.loss(training)[0], run.weights, create_graph=True)
    names = {id(parameter): name for name, parameter in run.space.named_parameters()}
    ahead = {}
    for w, g in zip(run.weights, gradients, strict=True):
        velocity = run.weight_optimizer.state[w]["momentum_buffer"]
        assert velocity.any() and velocity.shape == w.shape
        ahead[names[id(w)]] = w - group["lr"] * (g + 0.01 * w + 0.9 * velocity)
    logits = functional_call(run.space, ahead, held_out[0])
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(run.criterion(logits, held_out[1]), run.alphas)]
    )


@pytest.mark.parametrize("partial", [1, 2])
def test_a_second_order_search_takes_the_exact_gradient(accelerator, monkeypatch, partial):
    # a difference that crosses the kinks of ReLU is not the derivative, so every ReLU is made smooth
    for place in ((F, "relu"), (torch, "relu"), (Tensor, "relu"), (Tensor, "relu_")):
        monkeypatch.setattr(*place, lambda x, inplace=False: F.softplus(x))
    run = begin(accelerator, order=2, partial=partial)
    run.set_rate(0.5)
    wanted = exact_step(run, batch(10), batch(11))
    before = [w.detach().clone() for w in run.weights]
    run.architecture_step(batch(10), batch(11))
    found = moved_by(run)
    assert far(found, wanted) < 1e-2
    assert all(torch.equal(a, b) for a, b in zip(before, run.weights, strict=True))


def test_a_second_order_search_goes_elsewhere_than_a_first_order_one(accelerator):
    run, taken = begin(accelerator, order=2), {}
    start = [alpha.detach().clone() for alpha in run.alphas]
    for name, order, rate in (("first", 1, 1.0), ("second", 2, 1.0), ("second at rest", 2, 0.0)):
        run.method = SearchMethod(order=order)
        run.set_rate(rate)
        run.architecture_step(batch(10), batch(11))
        taken[name] = moved_by(run)
        for alpha, value in zip(run.alphas, start, strict=True):
            alpha.data.copy_(value)
    assert torch.equal(taken["second at rest"], taken["first"])
    assert far(taken["second"], taken["first"]) > 0.01


def test_the_weights_of_a_second_order_search_take_the_step_that_was_unrolled(accelerator):
    """The weight step is SGD with momentum 0.9, as the unrolled one assumes."""
    run = begin(accelerator, order=2)
    gradients = torch.autograd.grad(run.loss(batch(11))[0], run.weights)
    wanted = [
        w - TINY.sgd_lr * (g + 0.01 * w + 0.9 * run.weight_optimizer.state[w]["momentum_buffer"])
        for w, g in zip(run.weights, gradients, strict=True)
    ]
    run.weight_step(batch(11))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(run.weights, wanted, strict=True))
