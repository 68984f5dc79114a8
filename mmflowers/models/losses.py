"""MMPretrain's losses, without their waiting."""

from __future__ import annotations

from mmpretrain.models.losses import LabelSmoothLoss
from mmpretrain.registry import MODELS
from torch import Tensor
from torch.nn import functional as F


@MODELS.register_module()
class FlowersLabelSmoothLoss(LabelSmoothLoss):
    """MMPretrain's to the bit, which reads no result off the device.

    MMPretrain's looks at the largest label of every batch and so waits for the GPU; a dataset folder has been held to
    its classes when it was read.
    """

    def generate_one_hot_like_label(self, label: Tensor) -> Tensor:
        """Labels of shape (n,), (n, 1) or, soft ones, (n, classes) as float32 of shape (n, classes)."""
        if label.dim() == 1 or (label.dim() == 2 and label.shape[1] == 1):
            label = F.one_hot(label.view(-1).long(), self.num_classes)
        return label.float()
