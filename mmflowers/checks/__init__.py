"""Checks of config, photos and weights before a run starts. Importing them doesn't import torch."""
