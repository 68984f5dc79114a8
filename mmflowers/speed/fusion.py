"""BatchNorm fusion: the same network for evaluation, with its batch normalisations in the convolutions before them."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map


def fold_batchnorm(model: BaseModel, inputs: Tensor) -> BaseModel:
    """Return a copy of a classifier in eval mode, with every BatchNorm fused that directly follows a convolution.

    Args:
        model: With ``extract_feat``, as MMPretrain's classifiers have.
        inputs: A few normalised images (n, 3, H, W) on the model's device.
    """
    return fold(model, foldable(model, inputs))


@torch.no_grad()
def foldable(model: BaseModel, inputs: Tensor) -> list[tuple[str, str]]:
    """Return the names of the convolutions and norms that ``fold`` can fuse, whatever their weights are.

    A forward pass shows which norm follows which convolution. Then the outputs of a fused copy are compared with the
    model's; if they differ (by a path around the normalisation, say), nothing is fused. Both compute in float32, also
    under the caller's autocast, because the rounding of bfloat16 exceeds the tolerance. Autocast that a module of
    the model enables itself stays enabled.

    Args:
        model, inputs: See ``fold_batchnorm``.
    """
    plain, inputs = copy.deepcopy(model).eval().float(), inputs.float()
    with _exact(inputs.device):
        pairs = _pairs(plain, inputs)
        expected, got = (tree_leaves(one.extract_feat(inputs)) for one in (plain, fold(plain, pairs)))
    return pairs if all(_close(one, other) for one, other in zip(expected, got, strict=True)) else []


@torch.no_grad()
def fold(model: BaseModel, pairs: list[tuple[str, str]]) -> BaseModel:
    """Return a copy of a classifier in eval mode with ``pairs`` of convolutions and norms fused (see ``foldable``)."""
    folded = copy.deepcopy(model).eval()
    for conv, norm in pairs:
        _fold(folded, conv, norm)
    return folded


def in_float32(features: Any) -> Any:
    """Return features in float32, in the same tuples and lists; what isn't a tensor is unchanged."""
    return tree_map(lambda value: value.float() if isinstance(value, Tensor) else value, features)


def _exact(device: torch.device) -> AbstractContextManager:
    """Return a context without autocast and TF32, and without cuDNN's benchmark, too slow for two passes."""
    stack, cudnn = ExitStack(), torch.backends.cudnn
    stack.enter_context(torch.autocast(device.type, enabled=False))
    kept = dict(enabled=cudnn.enabled, deterministic=cudnn.deterministic)
    stack.enter_context(cudnn.flags(**kept, benchmark=False, allow_tf32=False))
    return stack


def _close(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):  # Inception has None in place of an auxiliary output
        return one is other
    # A share of the largest value: single small values are sums of large ones that cancel out.
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max())


def _pairs(model: BaseModel, inputs: Tensor) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the norms whose only input is their output."""
    made: dict[int, str] = {}
    calls: Counter[str] = Counter()
    kept, found = [], []

    def note_output(name: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            made[id(output)] = name
            kept.append(output)  # so that no other tensor gets its id
            calls[name] += 1

        return hook

    def note_input(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            calls[name] += 1
            if id(args[0]) in made:
                found.append((made[id(args[0])], name))

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(note_output(name)))
        elif isinstance(module, _BatchNorm) and module.track_running_stats and module.affine:
            handles.append(module.register_forward_pre_hook(note_input(name)))
    model.extract_feat(inputs)
    for handle in handles:
        handle.remove()
    return [(conv, norm) for conv, norm in found if calls[conv] == calls[norm] == 1]


def _fold(model: BaseModel, conv_name: str, norm_name: str) -> None:
    conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = 0 if conv.bias is None else conv.bias
    conv.weight.mul_(scale.view(-1, 1, 1, 1))
    conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
    parent, _, child = norm_name.rpartition(".")
    # timm's norms include their activation.
    rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
    setattr(model.get_submodule(parent), child, nn.Sequential(*rest) if rest else nn.Identity())
