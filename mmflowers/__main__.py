# PYTHON_ARGCOMPLETE_OK
"""``python -m mmflowers COMMAND``, the same as the console command ``mmflowers``."""

from mmflowers.cli.main import console

if __name__ == "__main__":
    console()
