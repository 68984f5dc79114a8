"""MMPretrain's losses without waiting for the device."""

from __future__ import annotations

import torch
from mmpretrain.models.losses import LabelSmoothLoss
from torch import Tensor

from mmflowers.registry import MODELS


@MODELS.register_module()
class FlowersLabelSmoothLoss(LabelSmoothLoss):
    """MMPretrain's loss with the same results, which reads nothing from the device.

    MMPretrain's reads the largest label of every batch, and so waits for the GPU. Here the labels were checked when the
    dataset folder was read.
    """

    def generate_one_hot_like_label(self, label: Tensor) -> Tensor:
        """Return labels of shape (n,), (n, 1) or (soft ones) (n, classes) as float32 of shape (n, classes)."""
        if label.dim() == 1 or (label.dim() == 2 and label.shape[1] == 1):
            places = label.view(-1, 1).long()  # F.one_hot reads the labels too, on a CPU
            return torch.zeros(len(places), self.num_classes, device=label.device).scatter_(1, places, 1.0)
        return label.float()
