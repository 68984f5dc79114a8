"""Predictions, reports and exports need one class per photo."""

from __future__ import annotations

import torch
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import nn

from mmflowers.evaluation.metrics import SINGLE_LABEL, sum_to_one
from mmflowers.utils.errors import InputError


def require_single_label(model: nn.Module) -> None:
    """Refuse a multi-label classifier, which scores each class independently.

    The head predicts from artificial scores here; its weights are not used.

    Args:
        model: An MMPretrain classifier, or its wrapper for test-time augmentation; on any device.

    Raises:
        InputError: The predicted probabilities of a photo don't sum to 1, or it doesn't predict exactly one label.
    """
    model = getattr(model, "module", model)
    head = getattr(model, "head", None)
    if not isinstance(head, (ClsHead, MultiLabelClsHead)):
        return
    try:
        (sample,) = head._get_predictions(torch.linspace(-4, 4, 1000).unsqueeze(0), None)
        single = sum_to_one(sample.pred_score) and sample.pred_label.numel() == 1
    except Exception:  # a user's head of another form, or topk=(1, ) inherited from a replaced head
        single = not isinstance(head, MultiLabelClsHead)
    if not single:
        what = f"{type(head).__name__} predicts any number of classes for a photo, and here each photo has one"
        raise InputError(what, SINGLE_LABEL)
