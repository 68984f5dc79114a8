# PYTHON_ARGCOMPLETE_OK
"""Test a trained classifier: top-1 with 95 % interval, precision and recall per class, a file of all predictions."""

from mmflowers.cli.process import run
from mmflowers.cli.test import main

if __name__ == "__main__":
    run(main)
