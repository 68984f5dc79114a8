"""Preprocesses batches on the device: augmentation and normalisation."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models import ClsDataPreprocessor

from mmflowers.registry import MODELS


@MODELS.register_module()
class FlowersDataPreprocessor(ClsDataPreprocessor):
    """MMPretrain's preprocessor, which also augments whole batches and passes precomputed features on.

    A batch of a ``FlowersDataset`` with a cache has ``augment``, which is called with the batch's pixels on the device
    before they are normalised. A batch of precomputed features has ``features``, and only its labels are processed.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._of_features = ClsDataPreprocessor(to_onehot=self.to_onehot, num_classes=self.num_classes)

    @torch.no_grad()
    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Move, augment and normalise a batch; ``inputs`` becomes float32, on a CPU in channels-last memory format."""
        if data.get("features"):
            return self._of_features(data, training)
        if "augment" in data:
            data = {"inputs": data["augment"](self.cast_data(data["inputs"])), "data_samples": data["data_samples"]}
        return super().forward(data, training)
