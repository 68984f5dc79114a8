"""Find a config file: by its path, or by the name of one that mmflowers ships."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from mmflowers.utils.errors import InputError
from mmflowers.utils.terminal import is_first_process

SHIPPED = Path(__file__).parents[1] / ".mim" / "configs"  # in a checkout a link to configs/


def find_config(config: str | Path) -> Path:
    """Return the path of a config file.

    Args:
        config: A path. If there is no such file, ``NAME``, ``NAME.py`` and ``configs/NAME.py`` mean the shipped config
            of that name; stderr says so.

    Raises:
        InputError: Neither a file nor the name of a shipped config.
    """
    path = Path(config)
    if path.is_file():
        return path
    shipped = {file.stem: file.resolve() for file in sorted(SHIPPED.glob("*.py"))}
    name = path.name.removesuffix(".py")
    if name in shipped and path.parent in (Path(), Path("configs")):
        if is_first_process():
            print(f"config: {shipped[name]}, which mmflowers ships; there is no file {path} here", file=sys.stderr)
        return shipped[name]
    close = difflib.get_close_matches(name, shipped, 1)
    hint = f"did you mean {close[0]}? mmflowers" if close else "mmflowers"
    raise InputError(f"no config at {path}", f"{hint} ships {', '.join(shipped)}")
