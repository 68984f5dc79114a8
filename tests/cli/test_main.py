"""The command ``mmflowers``: which command it runs, its help, its errors, its completions."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmflowers.cli.main import COMMANDS

CODE = """
import sys
class Lacking:
    def find_spec(name, path=None, target=None):
        if name in {lacking!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking)
sys.argv[0] = "mmflowers"
{then}
"""


def python(then: str, *words: str, cwd: Path, lacking: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run Python code in a process of its own, without the packages that it is ``lacking``."""
    command = [sys.executable, "-c", CODE.format(lacking=lacking.split(), then=then), *words]
    env = {**os.environ, "COLUMNS": "120", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


# As its console script runs it.
mmflowers = functools.partial(python, "from mmflowers.cli.main import console; console()")


def test_its_help_names_every_command_and_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = "torch numpy PIL mmengine argcomplete"
    result = mmflowers("--help", cwd=tmp_path, lacking=heavy)
    assert result.returncode == 0, result.stderr
    listed = result.stdout.partition("commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split(maxsplit=1) for line in listed] == [[name, what] for name, what in COMMANDS.items()]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples_as_they_are_typed(command: str, tmp_path: Path) -> None:
    result = mmflowers(command, "--help", cwd=tmp_path)
    examples = result.stdout.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert result.returncode == 0 and result.stdout.startswith(f"usage: mmflowers {command} ")
    assert examples and all(f"mmflowers {command}" in line and "tools/" not in line for line in examples)


@pytest.mark.parametrize("words", [(), ("trian",), ("--no-such-option",), ("train",), ("train", "x.py", "--no-such")])
def test_what_it_doesnt_take_is_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    result = mmflowers(*words, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"error: .* · hint: mmflowers.* --help\n", result.stderr)


@pytest.mark.parametrize("package", ["mmpretrain", "mmengine", "mmcv", "pkg_resources"])
def test_a_missing_package_of_openmmlab_is_one_line(package: str, tmp_path: Path, dataset: Path) -> None:
    result = mmflowers(
        "check", "resnet50_flowers", "--data", str(dataset), "--weights", "none", cwd=tmp_path, lacking=package
    )
    *_, told = result.stderr.splitlines()
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert told.startswith(f"error: the package {package} isn't installed") and "mmflowers[openmmlab]" in told


@pytest.mark.slow
def test_python_names_a_missing_package_as_well(tmp_path: Path) -> None:
    result = python("from mmflowers import FlowerClassifier", cwd=tmp_path, lacking="mmcv")
    assert result.stderr.splitlines()[-1].startswith("ModuleNotFoundError: the package mmcv isn't installed")


@pytest.mark.parametrize(
    ("line", "program", "completed"),
    [
        ("mmflowers tr", 1, {"train"}),
        ("mmflowers train", 1, {"train"}),
        ("mmflowers train --lap", 1, {"--laptop"}),
        ("mmflowers  test --split ", 1, {"train", "val", "test"}),
        ("python -m mmflowers export --form", 3, {"--formats"}),
        ("mmflowers trian --lap", 1, set()),
    ],
)
def test_it_completes_commands_and_their_options(line: str, program: int, completed: set[str], tmp_path: Path) -> None:
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": str(program), "_ARGCOMPLETE_IFS": ","}
    mmflowers(cwd=tmp_path, _ARGCOMPLETE_STDOUT_FILENAME="completions", **asked)
    answers = (tmp_path / "completions").read_text(encoding="utf-8")
    assert {answer.strip() for answer in answers.split(",")} - {""} == completed
