"""Flowers that the project draws: a dataset that needs no download."""
