"""Predict photos from files, archives, addresses and cameras with a trained run."""
