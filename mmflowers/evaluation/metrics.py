"""Metrics for MMEngine's evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS

from mmflowers.evaluation.predictions import Predictions, gather


@METRICS.register_module()
class CollectPredictions(BaseMetric):
    """Keep every prediction of the split; ``predictions`` holds them afterwards, on the main process.

    The photos a distributed sampler repeats to fill its last round are counted once, as in every MMEngine metric.

    Args:
        data_root: The dataset folder, which paths are made relative to.
        **kwargs: Those of ``BaseMetric``.
    """

    default_prefix = "predictions"

    def __init__(self, data_root: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.data_root = data_root
        self.predictions: Predictions | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Take a batch: of each sample the path, the label and the scores."""
        for sample in data_samples:
            self.results.append(
                {
                    "image": sample["img_path"],
                    "label": int(sample["gt_label"]),
                    "scores": sample["pred_score"].float().cpu().numpy(),
                }
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Put the predictions together; as a metric, say how many they are."""
        self.predictions = gather(results, self.data_root, self.dataset_meta["classes"])
        return {"count": len(results)}
