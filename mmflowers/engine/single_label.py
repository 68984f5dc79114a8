"""One class a photo: what predictions, reports and exports are about."""

from __future__ import annotations

import torch
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import nn

from mmflowers.evaluation.metrics import SINGLE_LABEL, sum_to_one
from mmflowers.utils.errors import InputError


def require_single_label(model: nn.Module) -> None:
    """Refuse a classifier that scores each class by itself, as heads for several labels a photo do.

    The head is asked for predictions from scores that are made up here; nothing is computed with its weights.

    Args:
        model: An MMPretrain classifier, or its wrapper for test-time augmentation; on any device.

    Raises:
        InputError: The probabilities that it predicts for a photo don't sum to 1, or it predicts not one label.
    """
    model = getattr(model, "module", model)
    head = getattr(model, "head", None)
    if not isinstance(head, (ClsHead, MultiLabelClsHead)):
        return
    try:
        (sample,) = head._get_predictions(torch.linspace(-4, 4, 1000).unsqueeze(0), None)
        single = sum_to_one(sample.pred_score) and sample.pred_label.numel() == 1
    except Exception:  # a head of one's own in another form, or topk=(1, ) left from the head that was replaced
        single = not isinstance(head, MultiLabelClsHead)
    if not single:
        what = f"{type(head).__name__} predicts any number of classes for a photo, and here each photo has one"
        raise InputError(what, SINGLE_LABEL)
