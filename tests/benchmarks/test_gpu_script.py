"""benchmarks/gpu.sh: what it would run on a GPU are commands that the benchmark takes."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the script is written for a POSIX shell")
ROOT = Path(__file__).parents[2]
# In place of Python: notes what it was asked and leaves the results of two runs, of 95 and 96 %.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
asked = sys.argv[1:]
if asked[0] == "-c":
    os.execv(sys.executable, [sys.executable, *asked])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(asked) + "\\n")
if "--json" in asked:
    with open(asked[asked.index("--json") + 1], "w") as file:
        json.dump({{"results": [{{"rounds": [{{"last_accuracy": 95}}, {{"last_accuracy": 96}}]}}]}}, file)
"""


def calls(tmp_path: Path, part: str) -> list[list[str]]:
    stand_in, noted = tmp_path / "python", tmp_path / "calls"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    env = {**os.environ, "PYTHON": str(stand_in), "CALLS": str(noted), "OUT": str(tmp_path / "out")}
    command = ["bash", "benchmarks/gpu.sh", part, str(tmp_path), "weights.pth"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in noted.read_text().splitlines()]


def parsed(call: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The arguments as benchmarks/benchmark.py takes them."""
    taken: list[argparse.Namespace] = []
    main = runpy.run_path(str(ROOT / call[0]))["main"]
    monkeypatch.setitem(main.__globals__, "_train", taken.append)
    monkeypatch.setattr(sys, "argv", call)
    main()
    return taken[0]


def test_rates_are_those_of_the_stock_and_the_fast_recipe_in_two_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (parsed(call, monkeypatch) for call in calls(tmp_path, "rates"))
    for asked in (small, large):
        assert all((ROOT / path).is_file() for path in asked.trainings) and len(asked.trainings) == 2
        assert (asked.data, asked.weights, asked.to_accuracy) == (str(tmp_path), "weights.pth", None)
    assert not small.cfg_options and "train_dataloader.batch_size=128" in large.cfg_options


def test_the_fast_recipe_is_timed_to_the_mean_of_the_stock_recipes_last_accuracies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, fast = (parsed(call, monkeypatch) for call in calls(tmp_path, "accuracy"))
    assert (stock.trainings, stock.repeats) == (["configs/resnet50_flowers.py"], 5)
    assert (fast.trainings, fast.repeats, fast.to_accuracy) == (["configs/resnet50_flowers_fast.py"], 5, 95.5)


def test_peers_are_asked_for_what_their_driver_knows(tmp_path: Path) -> None:
    ((driver, *options),) = calls(tmp_path, "peers")
    known = subprocess.run([sys.executable, ROOT / driver, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in known for option in options if option.startswith("--"))
