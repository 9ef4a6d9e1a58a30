"""Proves that depthwise convolutions learn by other arithmetic and to the same gradients, in bfloat16 too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import training.depthwise
import training.search
from searchseg.fast import SummingCell, faster
from searchseg.genotype import random_genotype
from searchseg.mixed import MixedOp, mixtures
from searchseg.network import SearchNet, UShapeConfig, USpace
from searchseg.task import pet
from training.depthwise import DepthwiseConv2d, as_before, depthwise, learn_depthwise
from training.presets import PRESETS, RECIPES, Memory
from training.trainer import Training


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same arithmetic in double precision, where it can be compared to the last digits."""
    monkeypatch.setattr(training.depthwise, "NARROW", (torch.float64,))


GEOMETRIES = [(3, 1, (7, 9)), (5, 1, (7, 9)), (3, 2, (8, 5)), (5, 2, (9, 12)), (7, 3, (5, 4)), (5, 2, (1, 1))]


def same(kernel: int, dilation: int, channels: int) -> tuple[Any, ...]:
    padding = dilation * (kernel - 1) // 2
    return (1, 1), (padding, padding), (dilation, dilation), channels


def drawn(kernel: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, *size, generator=chance, dtype=torch.float64)
    weight = torch.randn(6, 1, kernel, kernel, generator=chance, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "dilation", "size"), GEOMETRIES)
def test_output_and_gradients_are_those_of_conv2d(
    kernel: int, dilation: int, size: tuple[int, int], layout: torch.memory_format
) -> None:
    x, weight = drawn(kernel, size)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    results = []
    for convolve in (F.conv2d, depthwise):
        y = convolve(x, weight, bias, *same(kernel, dilation, 6))
        results.append((y, *torch.autograd.grad((y * y.detach().cos()).sum(), (x, weight, bias))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("wide")
def test_double_precision_stays_under_autocast_and_functions_are_transformed() -> None:
    x, weight = drawn(5, (7, 9))
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise(x, weight, None, *same(5, 1, 6)).dtype == torch.float64
    gradient = torch.func.grad(lambda w: depthwise(x, w, None, *same(5, 1, 6)).sum())(weight)
    torch.testing.assert_close(
        gradient, torch.func.grad(lambda w: F.conv2d(x, w, None, *same(5, 1, 6)).sum())(weight)
    )


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(("kernel", "dilation", "size"), [(3, 2, (4, 3)), (5, 1, (3, 4))])
def test_gradients_of_gradients(kernel: int, dilation: int, size: tuple[int, int]) -> None:
    x, weight = drawn(kernel, size)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise(x[:1, :2], weight[:2], None, *same(kernel, dilation, 2))

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(32, 32), (23, 30)])
@pytest.mark.parametrize(("kernel", "dilation"), [(5, 1), (3, 2), (5, 2)])
def test_narrow_gradients_are_as_close_as_their_type_allows(
    kernel: int, dilation: int, size: tuple[int, int], narrow: torch.dtype
) -> None:
    """torch's own of dilated kernels in bfloat16 hold memory that nobody wrote, on processors with AMX."""
    torch.manual_seed(0)
    x = torch.randn(8, 16, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(16, 1, kernel, kernel, requires_grad=True)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", narrow, enabled=enabled):
            y = depthwise(x, weight, None, *same(kernel, dilation, 16))
        assert y.dtype == (narrow if enabled else torch.float32)
        gradients.append(torch.autograd.grad(y.float().square().mean(), (x, weight)))
    for exact, found in zip(*gradients, strict=True):
        assert (found - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.usefixtures("wide")
def test_a_search_net_learns_what_it_learned_before(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = SearchNet(UShapeConfig((4, 8, 16, 32), 3, 2, 3), random_genotype(3, seed=5)).double()
    x, before = torch.randn(2, 3, 32, 48, dtype=torch.float64), dict(net.named_modules())
    expected = gradients_of(net, lambda: net(x))
    names = list(net.state_dict())
    learn_depthwise(net)
    changed = [m for m in net.modules() if type(m) is DepthwiseConv2d]
    assert len(changed) > 10 and list(net.state_dict()) == names and dict(net.named_modules()) == before
    assert all(max(m.kernel_size) > 3 or max(m.dilation) > 1 for m in changed)
    called = count_calls(monkeypatch)
    for found, gradient in zip(gradients_of(net, lambda: net(x)), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-7, atol=1e-9)
    assert len(called) == len(changed)
    with torch.no_grad():
        net(x)
    monkeypatch.setattr(training.depthwise, "NARROW", (torch.bfloat16,))
    gradients_of(net, lambda: net(x))
    assert len(called) == len(changed)  # nothing learned, or in a wide type: torch's way


@pytest.mark.usefixtures("wide")
def test_mixed_operations_side_by_side_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    edges = nn.ModuleList(MixedOp(8, partial=4) for _ in range(3)).double()
    x = torch.randn(2, 8, 9, 6, dtype=torch.float64)
    before = gradients_of(edges, lambda: torch.cat(mixtures(list(edges), x)))  # type: ignore[arg-type]
    learn_depthwise(edges)
    called = count_calls(monkeypatch)
    after = gradients_of(edges, lambda: torch.cat(mixtures(list(edges), x)))  # type: ignore[arg-type]
    for found, gradient in zip(after, before, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-7, atol=1e-9)
    # mbconv_5x5 on three times the channels; sepconv_5x5 twice and both dilconv; all edges at once
    assert called == [18, 6, 6, 6, 6]


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2}, {"padding": 1}, {"padding": "same"}, {"groups": 1}, {"padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 1}, {"kernel_size": 4, "padding": 2},
    ],
)  # fmt: skip
def test_other_convolutions_stay(options: dict[str, Any]) -> None:
    usual = {"kernel_size": 5, "padding": 2, "groups": 6}
    assert kind_after(usual) is DepthwiseConv2d
    assert kind_after(usual | options) is nn.Conv2d


@pytest.mark.parametrize("memory", [Memory(), Memory(accumulate=2, recompute=True)])
def test_retraining_in_bfloat16_follows_the_gradients_of_single_precision(memory: Memory) -> None:
    chance = torch.Generator().manual_seed(0)
    masks = torch.zeros(4, 64, 64, dtype=torch.long)
    masks[:, 16:40, 8:50] = 1
    batch = torch.rand(4, 3, 64, 64, generator=chance) + 3 * masks[:, None], masks
    gradients = []
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()
        torch.manual_seed(0)
        net = SearchNet(UShapeConfig((16, 16, 16, 16), 1, 2), random_genotype(1, seed=1))
        recipe = dataclasses.replace(RECIPES["paper"], lr=0.0, gradient_clip=0.0)
        learning = Training(net, recipe, Accelerator(cpu=True, mixed_precision=precision), memory=memory)
        changed = [m for m in net.modules() if type(m) is DepthwiseConv2d]
        assert any(max(m.dilation) > 1 for m in changed)
        learning.step(*batch, 1.0)
        gradients.append(torch.cat([m.weight.grad.flatten() for m in changed]))  # type: ignore[union-attr]
    AcceleratorState._reset_state()
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.6


def test_a_search_learns_by_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Seen(Exception):
        pass

    def see(network: nn.Module) -> None:
        raise Seen(network)

    monkeypatch.setattr(training.search, "learn_depthwise", see)
    monkeypatch.setattr(
        training.search, "open_source", lambda *_: SimpleNamespace(halves=lambda seed: ([], []))
    )
    words = PRESETS["smoke"].search, pet(), [0, 1], tmp_path, {"seed": 0}, Accelerator(cpu=True)
    with pytest.raises(Seen) as seen:
        training.search.search(*words)
    assert isinstance(seen.value.args[0], USpace)


def test_what_has_learned_is_made_ready_as_ever() -> None:
    torch.manual_seed(0)
    net = SearchNet(UShapeConfig((4, 8, 16, 32), 2, 2), random_genotype(2, seed=5))
    x = torch.rand(2, 3, 32, 48)
    net(x)  # batch norms that are more than the identity
    net.eval()
    with torch.no_grad():
        expected = net(x)
        learn_depthwise(net)
        torch.testing.assert_close(faster(net)(x), expected, rtol=1e-4, atol=1e-4)
        assert sum(type(m) is SummingCell for m in faster(net).modules()) < 8
        ready = faster(as_before(net))
        torch.testing.assert_close(ready(x), expected, rtol=1e-4, atol=1e-4)
        assert sum(type(m) is SummingCell for m in ready.modules()) == 8


def kind_after(options: dict[str, Any]) -> type:
    conv = nn.Conv2d(6, 6, **options)
    learn_depthwise(nn.Sequential(conv))
    return type(conv)


def gradients_of(network: nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, ...]:
    y = run()
    weights = [p for p in network.parameters() if p.requires_grad]
    return torch.autograd.grad((y * torch.linspace(0, 1, y.shape[-1])).sum(), weights, allow_unused=True)  # type: ignore[return-value]


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of channels of every gradient of kernels that is computed from now on."""
    called: list[int] = []
    plain = training.depthwise._weight_gradient

    def counted(x: Tensor, *rest: Any) -> Tensor:
        called.append(x.shape[1])
        return plain(x, *rest)

    monkeypatch.setattr(training.depthwise, "_weight_gradient", counted)
    return called
