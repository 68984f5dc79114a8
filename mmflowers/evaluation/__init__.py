"""Predictions and logs → numbers."""
