"""The quick depthwise convolution computes what the library's computes."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvWS2d
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from torch import nn

from mmflowers.speed.depthwise import DepthwiseConv2d, depthwise_conv2d, replace_depthwise


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(9, 11), (12, 7)])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_gradients_equal_the_librarys(kernel: int, stride: int, size: tuple[int, int], padding: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=torch.double, requires_grad=True)
    expected = F.conv2d(x, weight, None, stride, padding, groups=3)
    result = depthwise_conv2d(x, weight, stride, padding)
    torch.testing.assert_close(result, expected)
    grad = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(result, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_network_keeps_its_numbers_its_parameters_and_its_names() -> None:
    torch.manual_seed(0)
    # In double precision: BatchNorm over a handful of values magnifies float32's rounding.
    reference = timm.create_model("tf_efficientnet_lite0", num_classes=3).double().train()
    quick = timm.create_model("tf_efficientnet_lite0", num_classes=3).double().train()
    quick.load_state_dict(reference.state_dict())
    parameters = list(quick.parameters())
    assert replace_depthwise(quick) == 16
    assert list(quick.state_dict()) == list(reference.state_dict())
    assert all(one is other for one, other in zip(quick.parameters(), parameters, strict=True))
    # 33 and 50 pixels, odd and even, meet both of TensorFlow's paddings.
    x = torch.randn(2, 3, 33, 50, dtype=torch.double).to(memory_format=torch.channels_last)
    for model in (reference, quick):
        model(x).square().sum().backward()
    for ours, theirs in zip(quick.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_mmcvs_padding_of_tensorflows_kind_is_kept(stride: int) -> None:
    torch.manual_seed(0)
    conv = Conv2dAdaptivePadding(4, 4, 5, stride=stride, padding=2, groups=4, bias=False).double()
    x = torch.randn(2, 4, 33, 50, dtype=torch.double)
    model = nn.Sequential(conv)
    assert replace_depthwise(model) == 1
    torch.testing.assert_close(model(x), conv(x))


def test_under_autocast_it_computes_in_bfloat16_and_returns_float32_gradients() -> None:
    conv = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = DepthwiseConv2d(conv)(x)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert x.grad.dtype == conv.weight.grad.dtype == torch.float32


def test_what_is_not_plainly_depthwise_is_left_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=8, dilation=2),
        nn.Conv2d(8, 8, 3, groups=8),  # with a bias
        nn.Conv2d(8, 8, 3, groups=8, bias=False, padding_mode="reflect", padding=1),
        ConvWS2d(8, 8, 3, groups=8, bias=False),  # standardises its weights
    )
    assert replace_depthwise(model) == 0
