"""Proves that every architecture keeps one contract: any size in, class scores of that size out, and back
from disk."""

import copy
import json

import pytest
import torch
from PIL import Image

import searchseg
from searchseg.baselines import BASELINES, SMP_NAMES, TITLES
from searchseg.genotype import random_genotype
from searchseg.portrait import costs_of_parts, portrait
from searchseg.pretrained import ARCHITECTURES, PretrainedError, arguments_of, build
from searchseg.task import custom, pet
from training.networks import baseline
from training.presets import PRESETS

SMALL = {  # arguments that keep a test small; every other architecture stands on resnet18
    "searchnet": {"widths": [4, 8, 8, 8], "nodes": 2, "stem_stride": 2},
    "unet": {"widths": [4, 8, 16]},
    "segnet": {"encoder": "vgg11_bn"},
    "segformer": {"encoder": "mit_b0"},
    "dpt": {"encoder": "tu-vit_tiny_patch16_224"},
    "setr": {"width": 16},
}
CASES = [(name, SMALL.get(name, {"encoder": "resnet18"})) for name in ARCHITECTURES]
CASES += [("fcn", {"encoder": "resnetblur18"}), ("fcn", {"encoder": "vgg11_bn"})]
CASES += [("setr", {"width": 16, "decoder": "naive"}), ("setr", {"width": 16, "decoder": "mla"})]
GENOTYPE = random_genotype(2, seed=0)


def network(name: str, arguments: dict, classes: int = 2, size: int = 64) -> torch.nn.Module:
    torch.manual_seed(0)
    names = tuple(f"class {i}" for i in range(classes))
    colors = tuple(f"#{40 * i % 256:02x}4060" for i in range(classes))
    config = searchseg.ModelConfig(name, {**arguments, "num_classes": classes}, names, colors, (size, size))
    return build(config, GENOTYPE if name == "searchnet" else None)


each = pytest.mark.parametrize(
    ("name", "arguments"), CASES, ids=lambda v: v if isinstance(v, str) else v.get("decoder", "")
)


@each
def test_any_size_and_number_of_classes(name: str, arguments: dict) -> None:
    for classes, shape in ((2, (37, 53)), (11, (1, 70))):
        net = network(name, arguments, classes).eval()
        with torch.no_grad():
            scores = net(torch.randn(1, 3, *shape))
        assert scores.shape == (1, classes, *shape) and scores.isfinite().all()


@each
def test_every_weight_learns(name: str, arguments: dict) -> None:
    net = network(name, arguments).train()
    target = torch.randint(0, 2, (2, 64, 64))
    searchseg.dice_cross_entropy_loss(net(torch.randn(2, 3, 64, 64)), target).backward()
    learning = {key: p.grad for key, p in net.named_parameters() if p.requires_grad}
    assert [key for key, grad in learning.items() if grad is None or not grad.isfinite().all()] == []
    # timm begins the last norm of every residual branch at zero, and all before it has to wait one step
    assert sum(bool(grad.any()) for grad in learning.values()) > 0.4 * len(learning)
    frozen = [key for key, p in net.named_parameters() if not p.requires_grad]
    assert not frozen or name in ("pspnet", "dpt")


@each
def test_saved_and_loaded_it_says_the_same(name: str, arguments: dict, tmp_path) -> None:
    net = network(name, arguments, classes=3).eval()
    searchseg.save_pretrained(net, tmp_path, net.config)
    loaded = searchseg.from_pretrained(tmp_path)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(image), net(image))
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == name
    result = searchseg.Segmenter(loaded)(Image.new("RGB", (50, 40), "#806040"))
    assert result.mask.shape == (40, 50) and result.mask.max() < 3


@each
def test_half_precision_is_near(name: str, arguments: dict) -> None:
    net, image = network(name, arguments).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        exact = net(image)
        for kind in (torch.bfloat16, torch.float16):
            near = copy.deepcopy(net).to(kind)(image.to(kind)).float()
            assert (near - exact).abs().mean() < 0.1 * exact.std(), kind


@each
def test_it_is_drawn_with_its_costs(name: str, arguments: dict) -> None:
    with torch.device("meta"):
        net = network(name, arguments)
    costs = costs_of_parts(net)
    whole = sum(p.numel() for p in net.parameters())
    assert 0.5 * whole < sum(cost.parameters for cost in costs.values()) <= whole
    assert portrait(net).startswith("<svg") and TITLES[name]


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("fpn", {"encoder": "no_such_net"}, "fpn cannot stand on|Wrong encoder"),
        ("fpn", {"encoder": "hf-hub:user/name"}, "plain name"),
        ("setr", {"encoder": "hf_hub:user/name"}, "plain name"),
        ("fcn", {"encoder": "../x"}, "plain name"),
        ("setr", {"encoder": "resnet18"}, "setr cannot stand on"),
        ("setr", {"decoder": "other"}, "pup, naive, mla"),
        ("segnet", {"encoder": "resnet18"}, "VGG"),
        ("fpn", {"encoder": 7}, "plain name"),
        ("deeplabv3", {"other": 1}, "other"),
        ("deeplabv3", {"encoder": "tu-vovnet39a"}, "deeplabv3 cannot stand on"),
        ("fpn", {"pretrained": True}, "pretrained"),
    ],
)
def test_what_does_not_fit_is_refused_without_a_request(name: str, arguments: dict, told: str) -> None:
    with pytest.raises(PretrainedError, match=told):
        network(name, arguments)


def test_a_run_records_the_encoder_it_used() -> None:
    settings = PRESETS["smoke"].retrain
    net = baseline("fpn", settings, pet())
    assert net.config.arguments == {"encoder": "resnet18", "num_classes": 2} == arguments_of(net)
    other = baseline("setr", settings, custom(["a", "b", "c"]), encoder="vit_tiny_patch16_224")
    assert other.config.arguments["num_classes"] == 3 and other.config.arguments["decoder"] == "pup"
    with pytest.raises(PretrainedError, match="no encoder to choose"):
        baseline("unet", settings, pet(), encoder="resnet18")


def test_the_registry_is_complete() -> None:
    assert {"unet", "fpn", "deeplabv3", "unetplusplus", "setr", "fcn", "segnet"} <= set(BASELINES)
    assert set(SMP_NAMES) < set(BASELINES) and set(ARCHITECTURES) == {"searchnet", *BASELINES}
