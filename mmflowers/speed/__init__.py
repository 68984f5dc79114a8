"""Faster training and evaluation with the same results. Each piece is optional."""
