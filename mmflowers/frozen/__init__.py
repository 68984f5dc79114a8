"""Train the layers after a frozen part on precomputed features."""
