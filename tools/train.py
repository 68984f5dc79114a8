# PYTHON_ARGCOMPLETE_OK
"""Train a classifier on a dataset folder, on a GPU if there is one."""

from mmflowers.cli.process import run
from mmflowers.cli.train import main

if __name__ == "__main__":
    run(main)
