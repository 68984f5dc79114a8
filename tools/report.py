# PYTHON_ARGCOMPLETE_OK
"""Write a self-contained HTML report of a tested run: its dataset, curves, mistakes and calibration."""

from mmflowers.cli.process import run
from mmflowers.cli.report import main

if __name__ == "__main__":
    run(main)
