"""Random transforms, computed for whole batches."""
