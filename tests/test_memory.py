"""Proves that what saves memory changes neither gradients nor statistics, and that it saves memory."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from searchseg.genotype import random_genotype
from searchseg.network import SearchNet, UShape, UShapeConfig, USpace
from training import search
from training.darts import Darts
from training.presets import PRESETS, RECIPES, Memory
from training.trainer import Training

SHAPE = UShapeConfig((4, 4, 8, 8), 2, 1, 3)
NETS = {
    "space": lambda: USpace(SHAPE),
    "partial": lambda: USpace(SHAPE, partial=4),
    "final": lambda: SearchNet(SHAPE, random_genotype(2, seed=1)),
}


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 24, 32, generator=generator)
    return images, torch.randint(0, 3, (count, 24, 32), generator=generator)


def saved_bytes(net: nn.Module, images: Tensor) -> int:
    """What the graph of a forward pass keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = net(images)
    assert kept.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("name", NETS)
def test_cells_that_compute_twice_have_the_same_gradients_and_statistics(name: str) -> None:
    torch.manual_seed(0)
    plain: UShape = NETS[name]()
    again = copy.deepcopy(plain)
    again.recompute_cells()
    images, masks = batch()
    for net in (plain, again):
        nn.functional.cross_entropy(net.train()(images), masks).backward()
    pairs = list(zip(plain.parameters(), again.parameters(), strict=True))
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in pairs if a.grad is not None)
    assert sum(a.grad is not None and bool(a.grad.abs().sum()) for a, _ in pairs) > 50
    for (key, one), other in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(one, other), key
    assert saved_bytes(again, images) < 0.5 * saved_bytes(plain, images)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), again.eval()(images))


def test_a_batch_in_parts_has_the_mean_of_their_gradients() -> None:
    torch.manual_seed(0)
    run = Darts(USpace(SHAPE), PRESETS["smoke"].search, Accelerator(cpu=True))
    images, masks = batch(5)
    run.save_memory(Memory(accumulate=2))
    (loss, scores), found = run.differentiate((images, masks), run.alphas)
    assert scores.shape == (5, 3, 24, 32) and not scores.requires_grad
    wanted, total = [torch.zeros_like(a) for a in run.alphas], 0.0
    for part in (slice(0, 3), slice(3, 5)):
        share = len(images[part]) / 5
        value, _ = run.loss((images[part], masks[part]))
        total += value.item() * share
        wanted = [w + share * g for w, g in zip(wanted, torch.autograd.grad(value, run.alphas), strict=True)]
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_a_retraining_step_in_parts() -> None:
    images, masks = batch(4)
    trained = []
    for memory in (Memory(), Memory(accumulate=4, recompute=True)):
        torch.manual_seed(0)
        net = SearchNet(SHAPE, random_genotype(2, seed=1))
        # without batch statistics the parts together are the whole, but for Dice, which is left out
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        training = Training(net, RECIPES["strong"], Accelerator(cpu=True), memory=memory)
        training.criterion = nn.functional.cross_entropy
        loss, scores = training.step(images, masks, 1.0)
        trained.append((loss, scores, [p.detach().clone() for p in net.parameters()]))
    (loss, scores, one), (other_loss, other_scores, other) = trained
    assert torch.allclose(loss, other_loss, atol=1e-5) and torch.allclose(scores, other_scores, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(one, other, strict=True))


def test_second_order_needs_the_batch_as_a_whole(tmp_path, capsys) -> None:
    words = ["--task", "pet", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--cpu"]
    assert search.main([*words, "--accumulate", "0"]) == 1
    assert search.main([*words, "--accumulate", "2", "--order", "2"]) == 1
    assert capsys.readouterr().err.count("--accumulate") == 2
