"""Weights of any origin: found, downloaded, loaded as data only, renamed to the network's keys, saved atomically."""
