"""Predictions → numbers. Importing this registers the metric that configs name."""

from mmflowers.evaluation.metrics import CollectPredictions

__all__ = ["CollectPredictions"]
