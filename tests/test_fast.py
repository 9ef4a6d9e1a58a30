"""Proves that the copy which runs on a CPU gives the scores of the network as trained, whatever is in it."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from test_fold import lived_in, norms, searchnets
from torch import nn

from searchseg import fast, kernels
from searchseg.baselines import BASELINES, UNet
from searchseg.config import ModelConfig
from searchseg.fast import SummingCell, faster
from searchseg.fold import folded
from searchseg.genotype import OPERATION_NAMES, random_genotype
from searchseg.kernels import OrderedConv, PointwiseConv
from searchseg.network import SearchNet, UShapeConfig
from searchseg.segmenter import Segmenter
from searchseg.task import pet


def kinds(model: nn.Module, *types: type) -> int:
    return sum(type(module) in types for module in model.modules())


@pytest.mark.parametrize("wide", [0, kernels.WIDE])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["random", *OPERATION_NAMES])
def test_every_operation_gives_the_same_scores(name: str, batch: int, wide: int, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "WIDE", wide)  # products of more values are oneDNN's
    model = lived_in(searchnets()[name])
    before = copy.deepcopy(model.state_dict())
    ready, image = faster(model), torch.randn(batch, 3, 37, 53)
    with torch.inference_mode():
        wanted, found, recorded, replayed = model(image), ready(image), ready(image), ready(image)
        other = torch.randn_like(image)
        assert (ready(other) - model(other)).abs().max() <= 1e-4 * wanted.abs().max().clamp_min(1)
    assert found.shape == wanted.shape and wanted.std() > 0
    assert torch.equal(found, recorded) and torch.equal(found, replayed)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max().clamp_min(1)
    assert set(ready.network._programs) == {image.shape}
    assert kinds(ready, SummingCell) == 8 and kinds(ready, nn.Conv2d) == norms(ready) == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_gives_the_same_scores(name: str) -> None:
    torch.manual_seed(0)
    model = lived_in(BASELINES[name](num_classes=3))
    ready, image = faster(model), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = model(image)
        for found in (folded(model)(image), ready(image)):
            assert (wanted - found).abs().max() <= 1e-4 * wanted.abs().max()
    assert kinds(ready, OrderedConv, PointwiseConv) > 0
    if name not in ("segformer", "dpt", "fpn"):  # whose few batch norms, if any, stand elsewhere
        assert norms(ready) < norms(model)


@pytest.mark.parametrize(
    ("pictures", "sides", "parts"), [(5, (20, 30), [2, 2, 1]), (2, (50, 50), [1, 1]), (2, (24, 25), [2])]
)
def test_a_large_batch_goes_through_in_parts(pictures, sides, parts, monkeypatch) -> None:
    monkeypatch.setattr(fast, "MOST_PIXELS", 1200)
    model, seen = lived_in(searchnets()["random"]), []
    ready, image = faster(model), torch.randn(pictures, 3, *sides)
    ready.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.inference_mode():
        wanted, found = model(image), ready(image)
    assert seen == parts and found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max().clamp_min(1)


def test_inputs_of_many_shapes_share_little_memory() -> None:
    model = lived_in(searchnets()["random"])
    ready = faster(model)
    with torch.inference_mode():
        for side in (16, 24, 33, 16):
            image = torch.randn(1, 3, side, side)
            assert torch.allclose(ready(image), model(image), atol=1e-4, rtol=1e-4)
    kept = [len(module.ordered) for module in ready.modules() if isinstance(module, OrderedConv)]
    assert kept and max(kept) == kernels.MOST_SHAPES


class Odd(nn.Module):
    """Convolutions that pad otherwise, one that is used twice, and a ReLU behind what changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.reflect = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.twice = nn.Conv2d(4, 4, 1)
        self.chain = nn.Sequential(self.twice, nn.BatchNorm2d(4), nn.Identity(), nn.ReLU())
        self.tail = nn.Sequential(
            nn.Conv2d(4, 4, 1, bias=False), nn.Dropout(), nn.ReLU(), nn.Conv2d(4, 2, 1, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.same(self.reflect(x))
        return self.tail(self.chain(x) + self.twice(x))


def test_convolutions_out_of_the_ordinary_stay_as_they_are() -> None:
    model = lived_in(Odd())
    ready, image = faster(model), torch.randn(2, 3, 9, 8)
    with torch.inference_mode():
        assert torch.allclose(ready(image), model(image), atol=1e-5)
    assert kinds(ready, nn.Conv2d) == 3 and kinds(ready, PointwiseConv, OrderedConv) == 2


@pytest.mark.parametrize("reason", ["no oneDNN", "float64"])
def test_where_it_cannot_be_the_network_is_only_folded(reason: str, monkeypatch) -> None:
    model, image = lived_in(searchnets()["mbconv_3x3"]), torch.randn(1, 3, 20, 20)
    if reason == "float64":
        model, image = model.double(), image.double()
    else:
        monkeypatch.setattr(fast, "onednn_works", lambda: False)
    ready = faster(model)
    assert kinds(ready, OrderedConv, SummingCell) == 0 == norms(ready)
    with torch.inference_mode():
        assert torch.allclose(ready(image), model(image), atol=1e-4)


@pytest.mark.parametrize("function", ["CONVOLVE", "MULTIPLY"])
def test_a_broken_onednn_is_noticed(function: str, monkeypatch) -> None:
    assert kernels.onednn_works()
    monkeypatch.setattr(kernels, function, lambda x, *_: x)
    assert not kernels.onednn_works.__wrapped__()


@pytest.mark.parametrize("classes", [fast.FEW, fast.FEW + 1])
def test_scores_of_few_classes_leave_the_head_as_upsampling_wants_them(classes: int, monkeypatch) -> None:
    network = SearchNet(UShapeConfig((4, 4, 8, 8), 2, 2, classes), random_genotype(2, seed=3))
    head, heads = faster(lived_in(network)).network.network.head, []
    head.register_forward_hook(lambda _, __, scores: heads.append(scores))
    with torch.inference_mode():
        head(torch.randn(2, 4, 5, 7).to(memory_format=torch.channels_last))
    assert heads[0].is_contiguous() == (classes == fast.FEW)


@pytest.mark.parametrize("wide", [0, kernels.WIDE])
def test_no_kernel_is_put_in_order_twice(wide: int, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "WIDE", wide)
    ready, image = faster(lived_in(searchnets()["random"])), torch.randn(2, 3, 37, 53)
    with torch.inference_mode():
        ready(image)
        with torch.profiler.profile() as seen:
            ready(image)
            ready(image)
    names = {event.name for event in seen.events()}
    assert not any("reorder" in name or "to_mkldnn" in name for name in names)
    assert ("mkldnn::_linear_pointwise" in names) == (wide == 0) and "mkldnn::_convolution_pointwise" in names


def test_cells_upsample_what_comes_from_below_after_their_input_convolution() -> None:
    ready = faster(lived_in(searchnets()["random"]))
    sizes: dict[str, int] = {}
    for name in ("C6", "C7", "C8"):
        _, enter = getattr(ready.network.network, name).inputs
        enter.register_forward_hook(lambda _, args, __, name=name: sizes.update({name: len(args[0])}))
    with torch.inference_mode():
        ready(torch.randn(1, 3, 64, 64))
    assert sizes == {"C6": 4 * 4, "C7": 8 * 8, "C8": 16 * 16}  # a stem of stride 2


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    task = pet("class")
    torch.manual_seed(0)
    model = lived_in(UNet((4, 8), len(task.classes)))
    nn.init.zeros_(model.head.bias)
    model.config = ModelConfig("unet", {}, task.classes, task.colors, (32, 24))
    return model


def test_onnxruntime_gives_the_same_masks(unet) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    photos = [np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8) for seed in range(3)]
    pictures = [Image.fromarray(photo) for photo in photos]
    one, other = (Segmenter(unet, "cpu", backend) for backend in ("torch", "onnxruntime"))
    for wanted, found in zip(one.masks(pictures), other.masks(pictures), strict=True):
        assert np.mean(wanted != found) < 0.01 and len(np.unique(wanted)) > 1


def test_backends_that_cannot_be_say_so(unet, monkeypatch) -> None:
    with pytest.raises(ValueError, match="backend must be torch or onnxruntime, got 'tensorrt'"):
        Segmenter(unet, "cpu", "tensorrt")
    with pytest.raises(ValueError, match="runs on the CPU, not on meta"):
        Segmenter(copy.deepcopy(unet), "meta", "onnxruntime")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="onnxruntime is not installed: pip install onnx onnxscript"):
        Segmenter(unet, "cpu", "onnxruntime")
