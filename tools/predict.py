# PYTHON_ARGCOMPLETE_OK
"""Predict the classes of photos with a trained run. Each photo gets a line or a row, unreadable files too."""

from mmflowers.cli.predict import main
from mmflowers.cli.process import run

if __name__ == "__main__":
    run(main)
