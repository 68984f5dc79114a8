"""Batch normalisation folded into the convolutions before it: the same network for evaluation, in fewer passes."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def fold_batchnorm(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy of a classifier in eval mode, with every BatchNorm that directly follows a convolution folded into it.

    Which follows which is seen in a forward pass. The copy is compared with the model; where they differ (a path
    around the normalisation, say), an unfolded copy is returned.

    Args:
        model: With ``extract_feat``, as MMPretrain's classifiers have.
        inputs: A few normalised images (n, 3, H, W) on the model's device.
    """
    plain = copy.deepcopy(model).eval()
    folded = copy.deepcopy(plain)
    for conv, norm in _pairs(folded, inputs):
        _fold(folded, conv, norm)
    expected, got = plain.extract_feat(inputs), folded.extract_feat(inputs)
    same = all(_close(one, other) for one, other in zip(expected, got, strict=True))
    return folded if same else plain


def _close(one: Tensor, other: Tensor) -> bool:
    # A share of the largest value: single small ones are sums of large ones that cancel out.
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max())


def _pairs(model: nn.Module, inputs: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the norms that take their output and nothing else."""
    made: dict[int, str] = {}
    kept, found, calls = [], [], Counter()

    def note_output(name: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            made[id(output)] = name
            kept.append(output)  # alive, so that no other tensor gets its id
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


def _fold(model: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = 0 if conv.bias is None else conv.bias
    conv.weight.mul_(scale.view(-1, 1, 1, 1))
    conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
    parent, _, child = norm_name.rpartition(".")
    # timm's norms bring their activation along.
    rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
    setattr(model.get_submodule(parent), child, nn.Sequential(*rest) if rest else nn.Identity())
