"""Depthwise convolutions with a backward pass that is fast on CPUs.

oneDNN has fast kernels for most depthwise work, but not for two parts of the backward pass: the weight gradient of a
5×5 kernel and the input gradient at stride 2 (measured with PyTorch 2.15 on a CPU with AVX-512, bfloat16: 76 ms against
1 ms for a 3×3 kernel of the same layer, 177 ms against 7 ms at stride 1). Both can be computed with the fast kernels: a
kernel's taps are divided by their phase (position modulo stride) and into windows of at most 3×3, and each window is an
ordinary 3×3 convolution at stride 1 on a shifted, subsampled input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

WINDOW = 3


class _Window(NamedTuple):
    """Taps of one axis of a kernel: ``tap``, ``tap + stride``, … ``size`` of them, at most three."""

    tap: int
    size: int


def _windows(kernel: int, stride: int) -> Iterator[_Window]:
    for phase in range(min(stride, kernel)):
        taps = range(phase, kernel, stride)
        for start in range(0, len(taps), WINDOW):
            yield _Window(taps[start], min(WINDOW, len(taps) - start))


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(x, weight, grad, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, weight, grad, ctx.stride, ctx.padding)
        return grad_x, grad_weight, None, None


def _input_gradient(x: Tensor, weight: Tensor, grad: Tensor, stride: int, padding: int) -> Tensor:
    if stride == 1:
        return conv2d_input(x.shape, weight, grad, 1, padding, groups=x.shape[1])
    # Each phase of the padded input uses only the taps of that phase: a convolution at stride 1 of the gradient with
    # those taps, flipped.
    height, width = x.shape[2] + 2 * padding, x.shape[3] + 2 * padding
    padded = x.new_zeros((x.shape[0], height, width, x.shape[1])).permute(0, 3, 1, 2)
    for row in range(min(stride, weight.shape[2])):
        for column in range(min(stride, weight.shape[3])):
            taps = weight[:, :, row::stride, column::stride].flip(2, 3)
            reach = (taps.shape[2] - 1, taps.shape[3] - 1)
            part = F.conv2d(grad, taps.contiguous(), padding=reach, groups=x.shape[1])
            place = padded[:, :, row::stride, column::stride]
            part = part[:, :, : place.shape[2], : place.shape[3]]
            place[:, :, : part.shape[2], : part.shape[3]] = part
    return padded[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]]


def _weight_gradient(x: Tensor, weight: Tensor, grad: Tensor, stride: int, padding: int) -> Tensor:
    kernel = weight.shape[2]
    if kernel <= WINDOW:
        return conv2d_weight(x, weight.shape, grad, stride, padding, groups=x.shape[1])
    channels, rows, columns = x.shape[1], *grad.shape[2:]
    # Padding at the end, so that a window with fewer than three taps can be computed as a full one.
    x = F.pad(x, (padding, padding + WINDOW * stride, padding, padding + WINDOW * stride))
    result = torch.empty_like(weight)
    for row in _windows(kernel, stride):
        for column in _windows(kernel, stride):
            part = x[
                :,
                :,
                row.tap : row.tap + stride * (rows + WINDOW - 1) : stride,
                column.tap : column.tap + stride * (columns + WINDOW - 1) : stride,
            ].contiguous(memory_format=torch.channels_last)
            shape = (channels, 1, WINDOW, WINDOW)
            taps = conv2d_weight(part, shape, grad, groups=channels)
            result[
                :,
                :,
                row.tap : row.tap + stride * row.size : stride,
                column.tap : column.tap + stride * column.size : stride,
            ] = taps[:, :, : row.size, : column.size]
    return result


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Compute the depthwise convolution of ``x`` (N, C, H, W) with ``weight`` (C, 1, k, k).

    The forward pass is ``torch.nn.functional.conv2d``; under CPU autocast both are cast as autocast would cast them.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
    return _DepthwiseConv2d.apply(x, weight, stride, padding)


def _is_same(module: nn.Module) -> bool:
    """Whether it is one of the two classes, timm's and mmcv's, that pad by TensorFlow's rule."""
    return type(module).__name__ in ("Conv2dSame", "Conv2dAdaptivePadding")


def _is_plain_depthwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        isinstance(module, nn.Conv2d)
        and (type(module).forward is nn.Conv2d.forward or _is_same(module))  # others standardise weights, say
        and module.groups == module.in_channels == module.out_channels > 1
        and module.bias is None
        and module.kernel_size[0] == module.kernel_size[1]
        and module.stride[0] == module.stride[1]
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.padding[0] == module.padding[1]
    )


class DepthwiseConv2d(nn.Module):
    """Replaces a depthwise ``nn.Conv2d``, or timm's or mmcv's with TensorFlow's padding; keeps the parameter object.

    Args:
        conv: The convolution it replaces.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)  # ``replace_depthwise`` excludes these
        self.weight = conv.weight
        self.stride, self.padding, self.kernel = conv.stride[0], conv.padding[0], conv.kernel_size[0]
        self.same = _is_same(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H', W') for (N, C, H, W)."""
        if self.same:  # TensorFlow's rule: ceil(size / stride) outputs, an odd pixel of padding at the end
            pads = []
            for size in (x.shape[3], x.shape[2]):
                total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
                pads += [total // 2, total - total // 2]
            return depthwise_conv2d(F.pad(x, pads), self.weight, self.stride)
        return depthwise_conv2d(x, self.weight, self.stride, self.padding)


def replace_depthwise(model: nn.Module) -> int:
    """Replace every depthwise convolution of ``model`` by ``DepthwiseConv2d``; return their number.

    Parameters and the names of the state dict stay the same, so optimizers and checkpoints are not affected.
    """
    count = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _is_plain_depthwise(child):
                setattr(module, name, DepthwiseConv2d(child).train(child.training))
                count += 1
    return count
