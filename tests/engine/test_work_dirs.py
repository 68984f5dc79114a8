"""One training at a time in a work dir, and the files that it leaves for the other commands."""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import NARROW, ROOT

from mmflowers.engine.runner import FlowersRunner
from mmflowers.engine.testing import last_run
from mmflowers.engine.testing import test as run_test
from mmflowers.engine.training import Outcome, TrainOptions, configure, train
from mmflowers.evaluation.report import read_report_data
from mmflowers.frozen.loops import FrozenTrainLoop
from mmflowers.inference.classifier import FlowerClassifier
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import hold_work_dir
from mmflowers.visualization.report import write_report

names = itertools.count()
ONE_EPOCH = "train_cfg.max_epochs=1"
WITHOUT_VALIDATION = ("val_dataloader=None", "val_cfg=None", "val_evaluator=None")


@pytest.fixture
def start(dataset: Path, tiny_config: Path, tmp_path: Path) -> Callable[..., Outcome]:
    def train_it(*options: str, **arguments) -> Outcome:
        weights = arguments.pop("weights", None if arguments.get("resume") else "none")
        named = [f"experiment_name=work_dir{next(names)}", *NARROW, ONE_EPOCH, *options]
        folder = tmp_path / "work_dirs" / "run"
        return train(
            configure(
                TrainOptions(
                    tiny_config, data=dataset, weights=weights, work_dir=folder, cfg_options=named, **arguments
                )
            )
        )

    return train_it


def log_of(run: Path) -> str:
    return "".join(path.read_text() for path in sorted(run.glob("*/*.log")))


def test_a_second_training_in_a_work_dir_is_refused_while_the_first_one_runs(
    start: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "work_dirs" / "run"
    with hold_work_dir(run):
        before = sorted(run.iterdir())
        told = rf"another training writes to .*run: process {os.getpid()} on \S+ since 20"
        with pytest.raises(InputError, match=told):
            start()
        assert sorted(run.iterdir()) == before
    build, refusals = FlowersRunner.from_cfg, []

    def start_beside(config):
        with pytest.raises(InputError, match="another training writes to") as caught:
            start()
        refusals.append(caught.value)
        return build(config)

    with monkeypatch.context() as patch:
        patch.setattr(FlowersRunner, "from_cfg", start_beside)  # before it writes anything
        start()
    assert len(refusals) == 1
    with hold_work_dir(run):
        run_test(None, run / "best.pth")  # readers aren't kept out
        with pytest.raises(InputError, match="another training writes to"):
            start(resume=True)


def test_train_torch_is_refused_a_work_dir_that_is_held(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = runpy.run_path(str(ROOT / "tools" / "train_torch.py"))
    arguments = ("--data", dataset, "--work-dir", tmp_path / "run", "--weights", "none", "--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["train_torch.py", *map(str, arguments)])
    with hold_work_dir(tmp_path / "run"):
        before = sorted((tmp_path / "run").iterdir())
        with pytest.raises(InputError, match="another training writes to"):
            script["main"](script["parse_arguments"]())
        assert sorted((tmp_path / "run").iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork and no SIGKILL")
def test_a_killed_training_releases_its_work_dir_though_its_loader_workers_live_on(tmp_path: Path) -> None:
    script = f"""\
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from mmflowers.utils.files import hold_work_dir
with hold_work_dir("run"):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        try:
            with pytest.raises(InputError, match=f"process {process.pid} on"), hold_work_dir(tmp_path / "run"):
                pass
            process.kill()
            process.wait()
            with hold_work_dir(tmp_path / "run"):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


@pytest.mark.slow
def test_a_job_script_may_name_its_weights_at_every_start_and_hears_when_nothing_is_left(
    start: Callable[..., Outcome], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    frozen = dict(freeze_to="layer3", views=1)
    before = start(**frozen)
    run = tmp_path / "work_dirs" / "run"
    assert "nothing left to train" not in log_of(run)
    capsys.readouterr()
    monkeypatch.setattr(FrozenTrainLoop, "_precompute", lambda *_: pytest.fail("features that nothing is trained on"))
    after = start(weights="gone.pth", resume=True, **frozen)
    told = capsys.readouterr().err
    assert f"weights: those of {run / 'last.pth'}, which is resumed; gone.pth isn't loaded\n" in told
    assert log_of(run).count("nothing left to train: epoch 1 of 1 is done") == 1
    assert str(before) == str(after)


@pytest.mark.slow
def test_a_run_without_validation_is_tested_predicted_with_and_reported_by_its_last_checkpoint(
    start: Callable[..., Outcome], dataset: Path, tmp_path: Path
) -> None:
    outcome = start(*WITHOUT_VALIDATION)
    run = tmp_path / "work_dirs" / "run"
    assert str(outcome) == "trained without a best checkpoint" and not (run / "best.pth").exists()
    torch_run = tmp_path / "work_dirs" / "torch_resnet18"
    torch_run.mkdir()
    (torch_run / "last.pth").touch()  # as tools/train_torch.py leaves it, without a config
    assert last_run(tmp_path / "work_dirs") == run
    tested = run_test(runs=tmp_path / "work_dirs")
    assert tested.coverage.is_whole
    photo = sorted((dataset / "val" / "rose").iterdir())[0]
    assert FlowerClassifier.from_run(run).predict([photo])[0].class_name
    page = write_report(read_report_data([run], data=dataset)).read_text()
    assert "not of best.pth" not in page
    assert "nothing left to train" not in log_of(run)


@pytest.mark.parametrize("kind", ["CheckpointHook", "mmengine.CheckpointHook"])
def test_mmengines_checkpoint_hook_is_refused_with_the_one_to_take(kind: str, start: Callable[..., Outcome]) -> None:
    with pytest.raises(InputError, match=r"MMEngine's CheckpointHook; no command finds its epoch_N\.pth") as caught:
        start(f"default_hooks.checkpoint.type={kind}")
    assert "type='BestAndLastHook'" in caught.value.problems[0].hint


def test_a_config_that_names_no_checkpoint_hook_gets_that_of_all_runs(
    dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        f"_base_ = {str(tiny_config)!r}\ndefault_hooks = dict(_delete_=True, logger=dict(type='LoggerHook'))\n",
        encoding="utf-8",
    )
    config = configure(TrainOptions(mine, data=dataset, weights="none", work_dir=tmp_path / "run"))
    assert config.default_hooks.checkpoint.type == "BestAndLastHook"
