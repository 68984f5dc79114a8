# PYTHON_ARGCOMPLETE_OK
"""Work with flower photos: prepare a dataset folder, train a classifier, test and use it.

commands:
{commands}

mmflowers COMMAND --help shows the options of a command.
"""

from __future__ import annotations

import importlib
import os
import re
import sys

from mmflowers.cli.parser import Parser
from mmflowers.cli.process import run
from mmflowers.version import __version__

COMMANDS = {
    "prepare": "turn photos into a dataset folder",
    "check": "check a config, its dataset folder and its weights",
    "browse": "draw what a config's training pipeline makes of photos",
    "train": "train a classifier",
    "test": "test a trained classifier",
    "report": "write an HTML report of a tested run",
    "predict": "predict the classes of photos",
    "export": "export a trained run as ONNX, TorchScript or a slim checkpoint",
    "demo": "serve a web page that classifies photos",
}


def main() -> None:
    """Run the command that the first argument names."""
    if "_ARGCOMPLETE" in os.environ:
        _complete_from_command()
    listed = "\n".join(f"  {name:9}{what}" for name, what in COMMANDS.items())
    parser = Parser(prog="mmflowers", description=__doc__.format(commands=listed))
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands above")
    parser.add_argument("--version", action="version", version=f"mmflowers {__version__}")
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv = [f"mmflowers {command}", *sys.argv[2:]]
    importlib.import_module(f"mmflowers.cli.{command}").main()


def _complete_from_command() -> None:
    """Run the command that is being typed, if its name is complete: its parser completes what follows.

    argcomplete's variables hold the line, the place of the cursor, and which word of the line is the program: now the
    command.
    """
    *typed, _ = re.split(r"\s+", os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])])
    program = int(os.environ["_ARGCOMPLETE"])
    if len(typed) > program and typed[program] in COMMANDS:
        os.environ["_ARGCOMPLETE"] = str(program + 1)
        importlib.import_module(f"mmflowers.cli.{typed[program]}").main()


def console() -> None:
    """Run ``main`` as a process, with the project's exit codes and error format."""
    run(main)
