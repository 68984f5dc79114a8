"""Metrics, statistics and records of tests, from predictions and training logs."""
