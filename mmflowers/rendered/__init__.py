"""Rendered flower photos: a dataset that needs no download."""
