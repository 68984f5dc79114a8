"""Flower photo classification on MMPretrain. Importing the package is cheap: each room imports what it needs."""

__version__ = "0.1.0"
