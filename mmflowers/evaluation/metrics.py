"""Metrics for MMEngine's evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook
from torch import Tensor

from mmflowers.evaluation.predictions import Predictions, gather
from mmflowers.registry import METRICS
from mmflowers.utils.errors import InputError

SINGLE_LABEL = "use a head whose scores are a softmax over the classes: model.head.type='LinearClsHead'"


def sum_to_one(scores: Tensor) -> bool:
    """Return whether scores of shape (classes,) sum to 1, within the precision of bfloat16."""
    return abs(scores.float().sum().item() - 1) < 0.02


def rule_of(metric: str, rule: str | None = None) -> str:
    """Return which of two scores of a metric is better: "greater" or "less".

    Args:
        metric: Its name in the log, such as ``accuracy/top1``.
        rule: The rule in the config; None infers it from the name, as MMEngine's ``CheckpointHook`` does.

    Raises:
        InputError: The rule can't be inferred from the name, or ``rule`` is neither of the two.
    """
    known = [*CheckpointHook._default_greater_keys, "f1-score", "recall"]  # MMPretrain's other metrics
    try:
        return str(CheckpointHook(save_best=metric, rule=rule, greater_keys=known).rules[0])
    except (AssertionError, KeyError, ValueError) as error:
        what = f"default_hooks.checkpoint.rule is {rule!r}, with save_best={metric!r}"
        hint = "rule='greater' where a larger score is better, rule='less' where a smaller one is, as for a loss"
        raise InputError(what, hint) from error


@METRICS.register_module()
class CollectPredictions(BaseMetric):
    """Collect all predictions of the split in ``predictions``, on the main process.

    Photos that a distributed sampler repeats to fill the last batch are counted once, as in every MMEngine metric.

    Args:
        data_root: The dataset folder; the paths in ``predictions`` are relative to it.
        **kwargs: Arguments of ``BaseMetric``.
    """

    default_prefix = "predictions"

    def __init__(self, data_root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_root = data_root
        self.predictions: Predictions | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Collect the path, label and scores of each sample of a batch.

        Raises:
            InputError: The scores of a photo don't sum to 1.
        """
        for sample in data_samples:
            scores = sample["pred_score"]
            if not sum_to_one(scores):
                what = f"the scores of {sample['img_path']} sum to {scores.float().sum().item():.4g}, not to 1"
                raise InputError(what, SINGLE_LABEL)
            self.results.append(
                {
                    "image": sample["img_path"],
                    "label": int(sample["gt_label"]),
                    "scores": scores.float().cpu().numpy(),
                }
            )

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Set ``predictions``; return the number of photos as the metric ``count``."""
        self.predictions = gather(results, self.data_root, self.dataset_meta["classes"])
        return {"count": len(results)}


@METRICS.register_module()
class CountPhotos(BaseMetric):
    """Record the photos and labels that a validation counted, and its top-1 accuracy; adds no metric.

    ``FlowersRunner`` adds it to every validation. It finds photos that a custom transform, collate function or loop
    left out, repeated or relabelled. This can't be checked before the run.

    Attributes:
        counted: (path, label) of each prediction, on the main process; None for a label that isn't one class.
        top1: Top-1 accuracy in percent; None if a label or a prediction isn't a single class.
    """

    default_prefix = "photos"

    counted: Sequence[tuple[str, int | None]] = ()
    top1: float | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Collect the path, label and predicted class of each sample of a batch."""
        for sample in data_samples:
            label, score, predicted = (sample.get(name) for name in ("gt_label", "pred_score", "pred_label"))
            if score is not None:
                predicted = score.argmax()
            path = sample.get("img_path", "")
            if label is not None and label.numel() == 1 and predicted is not None and predicted.numel() == 1:
                self.results.append((path, int(label), int(predicted)))
            else:
                self.results.append((path, None, None))

    def compute_metrics(self, results: list[tuple[Any, ...]]) -> dict[str, float]:
        """Set ``counted`` and ``top1``; return no metric."""
        self.counted = [(path, label) for path, label, _ in results]
        self.top1 = None
        if results and all(label is not None for _, label, _ in results):
            self.top1 = 100 * sum(label == predicted for _, label, predicted in results) / len(results)
        return {}
