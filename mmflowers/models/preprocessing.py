"""What happens to a batch on the device, before the backbone."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models import ClsDataPreprocessor

from mmflowers.registry import MODELS


@MODELS.register_module()
class FlowersDataPreprocessor(ClsDataPreprocessor):
    """MMPretrain's, which augments whole batches too where they ask for it, and leaves ready features alone.

    A batch of a ``FlowersDataset`` with a cache brings ``augment``: it is called with the batch's pixels on the device
    before they are normalised. One of a frozen trunk's feature maps brings ``features``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._of_features = ClsDataPreprocessor(to_onehot=self.to_onehot, num_classes=self.num_classes)

    @torch.no_grad()
    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Move, augment, normalise; ``inputs`` comes out as float32, on a CPU in the memory order "channels last"."""
        if data.get("features"):
            return self._of_features(data, training)
        if "augment" in data:
            data = {"inputs": data["augment"](self.cast_data(data["inputs"])), "data_samples": data["data_samples"]}
        return super().forward(data, training)
