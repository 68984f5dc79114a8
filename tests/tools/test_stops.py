"""Trainings that are killed and stopped from outside, as processes; `make soak` does much more of the same."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from soak import ROOT, Trainings, differences, soak_edits  # noqa: E402

from mmflowers.utils.errors import InputError  # noqa: E402

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has neither signal")


@pytest.mark.slow
def test_killed_and_stopped_trainings_end_in_the_weights_of_one_left_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(TESTS / "soak.py"), "--kills", "2", "--terms", "1", "--seed", "1"]
    command += ["--frozen", "0", "--edits", "0"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr
    for what in ("1 × SIGKILL inside a write", "1 × SIGKILL anywhere", "1 × SIGTERM anywhere", "all equal to the bit"):
        assert what in result.stdout


@pytest.mark.slow
def test_frozen_layers_and_the_probe_killed_between_checkpoints_end_in_the_same_weights(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(TESTS / "soak.py"), "--kills", "0", "--terms", "0", "--frozen", "1", "--edits", "0"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr
    for what in ("--freeze-to", "--probe"):
        assert f"1 × SIGKILL between checkpoints of {what}" in result.stdout


@pytest.mark.slow
def test_train_torch_resumes_the_photos_it_was_started_with_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(ROOT / "tools" / "train_torch.py"))
    # Photos of 32 pixels in place of 224: which photos there are is the question, not what is learned from them.
    for name in ("TRAIN_TRANSFORMS", "VAL_TRANSFORMS"):
        script[name][:] = [transforms.Resize((32, 32)), transforms.ToTensor()]

    def command(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train_torch.py", *map(str, arguments)])
        try:
            script["main"](script["parse_arguments"]())
        except InputError as error:
            return 2, "".join(f"error: {problem}\n" for problem in error.problems)
        return 0, ""

    generator = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 2)):
        rows = [
            f"{split}/{name}/{at}.png {label}" for label, name in enumerate(("daisy", "rose")) for at in range(number)
        ]
        for row in rows:
            path = tmp_path / "data" / row.rpartition(" ")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(path)
        (tmp_path / "data" / f"{split}.txt").write_text("\n".join(rows) + "\n")
    (tmp_path / "data" / "classes.txt").write_text("daisy\nrose\n")
    done = soak_edits(tmp_path, tmp_path / "data", 10, command)
    assert sorted(done.values()) == [2, 10]


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
