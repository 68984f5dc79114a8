# PYTHON_ARGCOMPLETE_OK
"""Prepare a dataset folder: check every photo, remove duplicates, split into train and val."""

from mmflowers.cli.prepare import main
from mmflowers.cli.process import run

if __name__ == "__main__":
    run(main)
