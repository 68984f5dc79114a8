"""How commands end: exit codes and what they say, as processes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from mmflowers.utils.terminal import importing

PROGRAM = """
import os, signal
from mmflowers.cli.process import run
from mmflowers.utils.errors import InputError
def main():
    {}
run(main)
"""


def outcome(body: str) -> tuple[int, str]:
    command = [sys.executable, "-c", PROGRAM.format(body)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stderr.strip()


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("pass", 0, ""),
        ("raise InputError('no such folder', 'make it')", 2, "error: no such folder · hint: make it"),
    ],
)
def test_commands_end_as_documented(body: str, code: int, said: str) -> None:
    assert outcome(body) == (code, said)


def test_a_bug_shows_its_traceback() -> None:
    code, said = outcome("1 / 0")
    assert code == 1 and said.startswith("Traceback") and said.endswith("division by zero")


def test_garbage_is_not_looked_for_while_libraries_come_in_and_is_again_afterwards() -> None:
    with pytest.raises(ImportError), importing():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


@pytest.mark.skipif(os.name != "posix", reason="os.kill ends a process of Windows at once")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("then", ["", "\n    except: raise SyntaxError('something else')"])
def test_a_signal_ends_a_command_even_where_a_library_makes_another_error_of_it(
    name: str, code: int, then: str
) -> None:
    kill = f"os.kill(os.getpid(), signal.{name}); signal.pause()"
    assert outcome(f"try: {kill}{then}" if then else kill) == (code, "stopped")
