# PYTHON_ARGCOMPLETE_OK
"""Serve a web page that classifies photos with a trained run, from files or from the camera."""

from mmflowers.cli.demo import main
from mmflowers.cli.process import run

if __name__ == "__main__":
    run(main)
