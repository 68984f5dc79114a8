"""Metrics for MMEngine's evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook
from mmpretrain.registry import METRICS
from torch import Tensor

from mmflowers.errors import InputError
from mmflowers.evaluation.predictions import Predictions, gather

SINGLE_LABEL = "use a head whose scores are a softmax over the classes: model.head.type='LinearClsHead'"


def sum_to_one(scores: Tensor) -> bool:
    """Whether the scores of a photo, of shape (classes,), are probabilities of one class, in bfloat16 too."""
    return abs(scores.float().sum().item() - 1) < 0.02


def rule_of(metric: str, rule: str | None = None) -> str:
    """Say which of two scores of a metric is the better one: "greater" or "less".

    Args:
        metric: Its name, as validations log it: ``accuracy/top1``.
        rule: What the config says; None tells it by the name, as MMEngine's ``CheckpointHook`` does.

    Raises:
        InputError: The name doesn't tell it, or ``rule`` is neither.
    """
    known = [*CheckpointHook._default_greater_keys, "f1-score", "recall"]  # MMPretrain's other metrics
    try:
        return CheckpointHook(save_best=metric, rule=rule, greater_keys=known).rules[0]
    except (AssertionError, KeyError, ValueError) as error:
        what = f"default_hooks.checkpoint.rule is {rule!r}, with save_best={metric!r}"
        hint = "rule='greater' where a larger score is better, rule='less' where a smaller one is, as for a loss"
        raise InputError(what, hint) from error


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
        """Take a batch: of each sample the path, the label and the scores.

        Raises:
            InputError: The scores aren't probabilities of one class.
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

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Put the predictions together; as a metric, say how many they are."""
        self.predictions = gather(results, self.data_root, self.dataset_meta["classes"])
        return {"count": len(results)}


@METRICS.register_module()
class CountPhotos(BaseMetric):
    """Record the photos and labels that a validation counted, and the share of right predictions; adds no metric.

    ``FlowersRunner`` adds it to every validation. It finds photos that a custom transform, collate function or loop
    left out, repeated or relabelled, which can't be known before they are loaded.

    Attributes:
        counted: (path, label) of each prediction, on the main process; None for a label that isn't one class.
        top1: Share of right predictions in percent; None where labels aren't one class each.
    """

    default_prefix = "photos"

    counted: Sequence[tuple[str, int | None]] = ()
    top1: float | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Take a batch."""
        for sample in data_samples:
            label, score, predicted = (sample.get(name) for name in ("gt_label", "pred_score", "pred_label"))
            if score is not None:
                predicted = score.argmax()
            path = sample.get("img_path", "")
            if label is not None and label.numel() == 1 and predicted is not None and predicted.numel() == 1:
                self.results.append((path, int(label), int(predicted)))
            else:
                self.results.append((path, None, None))

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        """Put them together."""
        self.counted = [(path, label) for path, label, _ in results]
        self.top1 = None
        if results and all(label is not None for _, label, _ in results):
            self.top1 = 100 * sum(label == predicted for _, label, predicted in results) / len(results)
        return {}
