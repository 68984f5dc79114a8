"""Shared by all packages: errors, files, downloads, terminal output, the resources of the machine."""
