"""Trainings that are killed and stopped from outside, as processes; `make soak` does much more of the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from soak import ROOT, Trainings, differences  # noqa: E402

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has neither signal")


def test_killed_and_stopped_trainings_end_in_the_weights_of_one_left_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(TESTS / "soak.py"), "--kills", "2", "--terms", "1", "--seed", "1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr
    for what in ("1 × SIGKILL inside a write", "1 × SIGKILL anywhere", "1 × SIGTERM anywhere", "all equal to the bit"):
        assert what in result.stdout


@pytest.mark.slow
def test_two_processes_stop_after_the_same_iteration_and_go_on_to_the_same_weights(tmp_path: Path) -> None:
    trainings = Trainings(tmp_path)

    def start(name: str, *how: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(ROOT / "tools" / "train.py"), str(trainings.config), "--launcher", "pytorch", "--data", "data"]
        with (tmp_path / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--work-dir", name, *how],
                cwd=tmp_path,
                env=trainings.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    assert start("straight", "--weights", "none").wait(300) == 0, (tmp_path / "straight.log").read_text()
    stopped = start("stopped", "--weights", "none")
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "stopped" / "last.pth").exists() and time.monotonic() < deadline:  # an epoch is done
            time.sleep(0.01)
        time.sleep(0.3)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(200) != 0
    finally:
        if stopped.poll() is None:
            os.killpg(stopped.pid, signal.SIGKILL)
    log = (tmp_path / "stopped.log").read_text()
    assert "stopping after this iteration" in log and "--resume goes on there" in log, log
    before = torch.load(tmp_path / "stopped" / "last.pth", weights_only=True)["meta"]["iter"]
    assert start("stopped", "--resume").wait(300) == 0, (tmp_path / "stopped.log").read_text()
    one, other = (torch.load(tmp_path / name / "last.pth", weights_only=True) for name in ("straight", "stopped"))
    assert 0 < before < one["meta"]["iter"]
    for part in ("state_dict", "optimizer", "param_schedulers"):
        assert not differences(one[part], other[part], part)
