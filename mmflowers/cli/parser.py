"""Argument parser and argument types that all commands share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from mmflowers.cli.process import EXIT_BAD_INPUT, _say
from mmflowers.utils.errors import Problem


class Once(argparse.Action):
    """An option that may be given once: argparse would take the last of several and drop the others in silence."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice: put the class folders into one folder, and give that")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the description's line breaks and prints errors in one line, as ``run`` does."""

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        if self.prog.startswith("mmflowers "):  # examples as they were typed; a package has no tools/ in sight
            named = re.sub(r"tools/(\w+?)(_flowers)?\.py", r"-m mmflowers \1", self.description or "")
            self.description = named.replace("python -m mmflowers", "mmflowers")

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:  # type: ignore[override]
        """Parse the arguments; if the shell asks for completions, print these and exit."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        return super().parse_args(*args, **kwargs)

    def add_launcher(self) -> None:
        """Add ``--launcher`` (torchrun, Slurm or MPI) and ``--local_rank``, as in MMEngine's tools."""
        self.add_argument(
            "--launcher",
            choices=("none", "pytorch", "slurm", "mpi"),
            default="none",
            help="launcher of a distributed run; pytorch means torchrun (default: none)",
        )
        self.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)

    def add_cfg_options(self) -> None:
        """Add ``--cfg-options``, which may be repeated."""
        self.add_argument(
            "--cfg-options",
            action="extend",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="override config values, with dotted keys",
        )

    def error(self, message: str) -> NoReturn:
        _say(Problem(message, f"{self.prog} --help"))
        sys.exit(EXIT_BAD_INPUT)


def existing_folder(text: str) -> Path:
    """Parse the path of an existing folder, as an argparse ``type``."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


def natural(text: str) -> int:
    """Parse an integer from 0, as an argparse ``type``."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def positive(text: str) -> int:
    """Parse an integer from 1, as an argparse ``type``."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
