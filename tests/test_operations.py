"""Proves that the seven operations keep the shape, differ, see what their kernel says, and learn."""

from itertools import combinations

import pytest
import torch
from torch import nn

from searchseg.genotype import OPERATION_NAMES
from searchseg.operations import OPERATIONS, ConvNorm, SqueezeExcitation, channel_means

CHANNELS = 8
every_operation = pytest.mark.parametrize("name", OPERATION_NAMES)
either_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
either_norm = pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])


def build(name: str, channels: int = CHANNELS, affine: bool = True, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return OPERATIONS[name](channels, affine)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@every_operation
@either_mode
def test_every_operation_keeps_the_shape(name, training):
    operation = build(name).train(training)
    for size in ((1, 1), (1, 7), (2, 3), (5, 9), (16, 16)):
        x = noise(2, CHANNELS, *size)
        assert operation(x).shape == x.shape


@either_mode
@either_norm
def test_no_two_operations_are_the_same(training, affine):
    # one seed: two operations with the same layers would draw the same weights and give the same output
    x = noise(2, CHANNELS, 9, 9)
    outputs = {name: build(name, affine=affine).train(training)(x) for name in OPERATION_NAMES}
    for first, second in combinations(OPERATION_NAMES, 2):
        assert (outputs[first] - outputs[second]).abs().mean() > 1e-3, (first, second)


@every_operation
@either_mode
def test_the_input_is_left_as_it_was(name, training):
    # the states of a cell feed several edges: an operation that writes into its input spoils the others
    x = noise(2, CHANNELS, 9, 9)
    before = x.clone()
    with torch.no_grad():
        build(name).train(training)(x)
    assert torch.equal(x, before)


@every_operation
@either_mode
@either_norm
def test_gradients_reach_the_input_and_every_parameter(name, training, affine):
    operation = build(name, affine=affine).train(training)
    x = noise(2, CHANNELS, 9, 9).requires_grad_()
    (operation(x) * noise(2, CHANNELS, 9, 9).flip(0)).sum().backward()
    for value in (x, *operation.parameters()):
        assert value.grad.isfinite().all() and value.grad.abs().sum() > 0


@every_operation
def test_without_affine_only_the_norms_lose_their_parameters(name):
    def norms(operation: nn.Module) -> list[nn.BatchNorm2d]:
        return [module for module in operation.modules() if isinstance(module, nn.BatchNorm2d)]

    with_affine, plain = build(name, affine=True), build(name, affine=False)
    assert all(norm.affine for norm in norms(with_affine)) and not any(norm.affine for norm in norms(plain))
    kernels = [[p.shape for p in operation.parameters() if p.ndim > 1] for operation in (with_affine, plain)]
    assert kernels[0] == kernels[1]


def footprint(operation: nn.Module, size: int = 23) -> set[tuple[int, int]]:
    """Offsets of the input pixels that the middle output pixel depends on."""
    x = (noise(1, 16, size, size).abs() + 0.1).requires_grad_()  # positive: the first ReLU lets all through
    operation.eval()(x)[:, :, size // 2, size // 2].square().sum().backward()
    return {(int(y) - size // 2, int(x) - size // 2) for y, x in x.grad.abs().sum((0, 1)).nonzero()}


def square(reach: int, step: int = 1) -> set[tuple[int, int]]:
    offsets = range(-reach, reach + 1, step)
    return {(y, x) for y in offsets for x in offsets}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("skip", square(0)),
        ("sepconv_3x3", square(2)),  # 3x3 twice: 5x5
        ("sepconv_5x5", square(4)),  # 5x5 twice: 9x9
        ("dilconv_3x3", square(2, step=2)),  # 9 pixels, every other one of 5x5
        ("dilconv_5x5", square(4, step=2)),
    ],
)
def test_an_operation_sees_what_its_kernel_says(name, expected):
    assert footprint(build(name, 16)) == expected


@pytest.mark.parametrize("name, reach", [("mbconv_3x3", 1), ("mbconv_5x5", 2)])
def test_mbconv_sees_its_kernel_and_through_its_gate_the_whole_picture(name, reach):
    operation = build(name, 16)
    assert footprint(operation) == square(11)
    operation.attend = nn.Identity()
    assert footprint(operation) == square(reach)


def test_mbconv_starts_from_its_input_and_expands_threefold():
    operation = build("mbconv_3x3")
    x = noise(2, CHANNELS, 5, 5)
    nn.init.zeros_(operation.project[1].weight)
    assert torch.equal(operation(x), x)
    assert operation.depthwise[0].weight.shape == (3 * CHANNELS, 1, 3, 3)


def test_squeeze_and_excitation_scales_each_channel_by_one_number_between_0_and_1():
    torch.manual_seed(0)
    x = noise(2, CHANNELS, 4, 5)
    scale = SqueezeExcitation(CHANNELS, 2)(x) / x
    assert ((scale > 0) & (scale < 1)).all()
    assert torch.allclose(scale, scale[:, :, :1, :1].expand_as(scale), rtol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_conv_norm_pads_so_that_only_the_stride_changes_the_size(kernel, stride, dilation):
    layer = ConvNorm(4, 6, kernel, stride=stride, dilation=dilation, groups=2, activation=True).eval()
    for size in (1, 2, 7, 8):
        out = layer(noise(1, 4, size, size + 1))
        assert out.shape == (1, 6, -(-size // stride), -(-(size + 1) // stride))
        assert out.min() >= 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channel_means_are_means_and_their_gradient_is_channels_last(layout):
    x = torch.randn(2, 5, 7, 3).contiguous(memory_format=layout).requires_grad_()
    means = channel_means(x)
    assert torch.equal(means, x.mean((2, 3), keepdim=True))
    (gradient,) = torch.autograd.grad(means.sum(), x)  # x.grad would be a copy in the order of x
    assert torch.equal(gradient, torch.full_like(x, 1 / 21))
    assert gradient.is_contiguous(memory_format=torch.channels_last)
