"""The parts of a classifier: its backbone, and its classifier layer, whatever its name and place."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn

from mmflowers.utils.errors import InputError

WITH_BACKBONE = (
    "model = dict(type='ImageClassifier', backbone=dict(type='TIMMBackbone', model_name=…), "
    "neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', in_channels=…))"
)


def unwrap_model(model: nn.Module) -> Any:
    """Return the model inside a wrapper for distributed training; another model unchanged."""
    return model.module if is_model_wrapper(model) else model


def require_backbone(model: nn.Module) -> None:
    """Refuse a classifier without ``backbone``, as MMPretrain's ``TimmClassifier`` and ``HuggingFaceClassifier``.

    Raises:
        InputError: Naming what takes its place.
    """
    if not hasattr(model, "backbone"):
        raise InputError(f"{type(model).__name__} has no backbone and head", WITH_BACKBONE)


def classifier_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Find the linear layers that give a score for each class, by their sizes, not by their names.

    They are in the head, or in the backbone if the head has no parameters (VGG, Inception). Most networks have one.
    Those with several outputs (a distilled DeiT, Conformer, Inception's auxiliary one) have more.

    Args:
        model: An MMPretrain classifier with ``backbone`` and ``head``, or a module with a ``backbone`` alone.

    Returns:
        Layers by their names in the model, in the order of registration; the last one is the classifier. Empty if there
        is none, as in a head of convolutions.
    """
    head = getattr(model, "head", None)
    part = "backbone" if head is None or next(head.parameters(), None) is None else "head"
    found = {f"{part}.{name}": m for name, m in getattr(model, part).named_modules() if isinstance(m, nn.Linear)}
    count = getattr(getattr(model, part), "num_classes", None)
    if count is None and head is not None and found:  # VigClsHead doesn't keep it: the last linear layer tells
        count = list(found.values())[-1].out_features
    return {name: layer for name, layer in found.items() if layer.out_features == count}
