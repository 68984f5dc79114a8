# PYTHON_ARGCOMPLETE_OK
"""Draw the output of a config's training pipeline as a picture: the pixels that the network gets."""

from mmflowers.cli.browse import main
from mmflowers.cli.process import run

if __name__ == "__main__":
    run(main)
