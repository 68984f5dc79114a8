# PYTHON_ARGCOMPLETE_OK
"""Check a config, its dataset folder and its weights before training starts."""

from mmflowers.cli.check import main
from mmflowers.cli.process import run

if __name__ == "__main__":
    run(main)
