"""The version of mmflowers."""

__version__ = "0.1.0"
