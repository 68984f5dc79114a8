"""Calibration: reliability bins and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmflowers.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Calibration:
    """Predictions in bins of equal width by confidence, the score of the predicted class.

    Attributes:
        edges: Edges of the bins in 0…1, float64 of shape (bins + 1,); a bin includes its upper edge, not its lower one.
        counts: Photos in each bin, int64 of shape (bins,).
        confidence: Mean confidence in each bin, NaN in empty bins, float64 of shape (bins,).
        accuracy: Share of correct predictions in each bin, in 0…1, NaN in empty bins, float64 of shape (bins,).
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error in 0…1: the mean gap between confidence and accuracy, weighted by photos."""
        gaps = np.abs(np.nan_to_num(self.accuracy) - np.nan_to_num(self.confidence))
        return float((self.counts * gaps).sum() / max(self.counts.sum(), 1))


def calibrate(predictions: Predictions, bins: int = 15) -> Calibration:
    """Bin the predictions as in Guo et al. (On Calibration of Modern Neural Networks, ICML 2017, equations 1 to 3)."""
    confidence = predictions.scores.max(axis=1).astype(np.float64)
    right = (predictions.predicted == predictions.labels).astype(np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    # Clipped, because rounding can make a float32 softmax slightly larger than 1.
    where = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    counts = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(where, values, minlength=bins) / counts for values in (confidence, right)]
    return Calibration(edges, counts, *means)
