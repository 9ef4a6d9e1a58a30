"""Proves that a folded network computes the same, has fewer layers, and leaves the original alone."""

import pytest
import torch
from torch import nn

from searchseg.fold import folded
from searchseg.genotype import OPERATION_NAMES, Edge, Genotype, random_genotype
from searchseg.network import SearchNet, UShapeConfig
from searchseg.segmenter import Segmenter
from searchseg.task import pet


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def lived_in(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters as after a training: none of them is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def searchnets() -> dict[str, nn.Module]:
    config = UShapeConfig((4, 4, 8, 8), 1, 2, 3)
    nets = {"random": SearchNet(UShapeConfig((4, 4, 8, 8), 2, 2, 3), random_genotype(2, seed=3))}
    for name in OPERATION_NAMES:
        cell = (Edge(0, 2, name), Edge(1, 2, name))
        nets[name] = SearchNet(config, Genotype(1, {f"C{i}": cell for i in range(1, 9)}))
    return nets


@pytest.mark.parametrize("name", ["random", *OPERATION_NAMES])
def test_every_operation_computes_the_same(name: str) -> None:
    model = lived_in(searchnets()[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    faster, image = folded(model), torch.randn(2, 3, 37, 53)
    with torch.inference_mode():
        wanted, found = model(image), faster(image)
    assert torch.allclose(wanted, found, atol=1e-4, rtol=1e-4) and wanted.std() > 0
    assert norms(model) > 0 == norms(faster)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layers_in_several_places_and_subclasses_stay() -> None:
    class Gated(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    relu = nn.ReLU()
    chains = (
        nn.Sequential(relu, nn.Conv2d(3, 3, 1), relu, nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), Gated(3)),
    )
    for chain in chains:
        model, image = lived_in(chain), torch.randn(2, 3, 8, 8)
        assert torch.equal(model(image), folded(model)(image)) and norms(folded(model)) == 1


def test_the_segmenter_runs_the_folded_network() -> None:
    model = searchnets()["random"]
    from searchseg.config import ModelConfig

    task = pet("class")
    model.config = ModelConfig("searchnet", {}, task.classes, task.colors, (32, 32))
    segmenter = Segmenter(model, device="cpu")
    calls = []
    segmenter.model.register_forward_hook(lambda *_: calls.append("as trained"))
    segmenter._faster.register_forward_hook(lambda *_: calls.append("folded"))
    import numpy as np

    segmenter(np.zeros((20, 30, 3), np.uint8))
    assert calls == ["folded"] and norms(segmenter._faster) == 0
