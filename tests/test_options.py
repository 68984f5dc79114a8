"""The commands side by side: options that are named alike mean alike, each has its help, and a shell completes them."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import sys
import time
from pathlib import Path

import pytest
from conftest import BENCHMARK, ROOT

from mmflowers.cli.parser import Parser

TOOLS = [*sorted(path.name for path in (ROOT / "tools").glob("*.py")), BENCHMARK]
# One name for two things each, kept as their users know them.
TWOFOLD = {"--cam", "--json", "--link", "--memory", "--out", "--resume", "--source", "--split"}


def parsers(tool: str, monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """The parser of a command, and those of its subcommands."""
    caught = []

    def catch(parser: Parser, *args, **kwargs) -> None:
        caught.append(parser)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_args", catch)
        names = runpy.run_path(str(ROOT / "tools" / tool))
        with pytest.raises(KeyboardInterrupt):
            names.get("parse_arguments", names["main"])()
    subcommands = [action for action in caught[0]._actions if isinstance(action, argparse._SubParsersAction)]
    return [*caught, *(parser for action in subcommands for parser in action.choices.values())]


def test_options_that_are_named_alike_take_alike_and_all_say_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, dict[str, tuple]] = {}
    for tool in TOOLS:
        for parser in parsers(tool, monkeypatch):
            for action in parser._actions:
                assert action.help or isinstance(action, argparse._SubParsersAction), (tool, action.dest)
                assert not re.search(r"(^|[^(])default[: ]", action.help or ""), (tool, action.help)
                for name in action.option_strings:
                    form = (action.metavar, action.nargs, tuple(action.choices or ()))
                    taken.setdefault(name, {})[tool] = form
    different = {name: forms for name, forms in taken.items() if len(set(forms.values())) > 1}
    assert not {name: forms for name, forms in different.items() if name not in TWOFOLD}


@pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="needs bash on a pseudo-terminal")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("tools/train.py --lap", "--laptop "),
        ("tools/train.py --track ml", "mlflow "),
        ("tools/browse.py configs/resnet18", "configs/resnet18_flowers.py "),
        ("benchmarks/benchmark.py predict --rep", "--repeats "),
        ("-m mmflowers pred", "predict "),
        ("-m mmflowers train --lap", "--laptop "),
    ],
)
def test_bash_completes_a_command(typed: str, completed: str) -> None:
    import pty

    folder = Path(sys.executable).parent
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PS1": "$ ", "TERM": "dumb", "COLUMNS": "200"}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], env)
    try:
        os.write(terminal, b'eval "$(activate-global-python-argcomplete --dest=-)"; echo re""ady\n')
        _read_until(terminal, "\nready")
        os.write(terminal, f"{Path(sys.executable).name} {typed}\t".encode())
        _read_until(terminal, typed.rpartition(" ")[0] + " " + completed)
    finally:
        os.close(terminal)  # which hangs bash up
        os.waitpid(pid, 0)


def _read_until(terminal: int, text: str, seconds: float = 30.0) -> None:
    import select

    drawn, end = "", time.monotonic() + seconds
    while text not in drawn.replace("\r", ""):
        assert time.monotonic() < end and select.select([terminal], [], [], seconds)[0], drawn
        drawn += os.read(terminal, 4096).decode()
