"""Trackers: real local stores, read back with the trackers' own clients."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from conftest import NARROW, run_tool
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import BaseVisBackend

import mmflowers.engine  # noqa: F401  registers
from mmflowers.engine.configuration import load_config
from mmflowers.engine.testing import kept_config
from mmflowers.engine.tracking import add_trackers, drop_trackers
from mmflowers.evaluation.history import read_history
from mmflowers.registry import VISBACKENDS, VISUALIZERS
from mmflowers.utils.errors import InputError


@pytest.mark.slow
def test_tensorboard_and_mlflow_get_the_numbers_that_the_log_has(
    dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked = ("--track", "tensorboard", "--track", "mlflow")
    options = (*tracked, "--weights", "none", "--work-dir", "runs/mine", "--cfg-options", *NARROW)
    clean = {"MLFLOW_TRACKING_URI": "", "MLFLOW_EXPERIMENT_NAME": ""}
    result = run_tool("train.py", tiny_config, "--data", dataset, *options, cwd=tmp_path, **clean)
    assert result.returncode == 0, result.stderr
    work_dir = tmp_path / "runs" / "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # nothing outside of the work dir
    history = read_history(work_dir)

    events = EventAccumulator(str(work_dir / "tensorboard"))
    events.Reload()
    accuracies = [(event.step, event.value) for event in events.Scalars("accuracy/top1")]
    assert accuracies == [(1, pytest.approx(history.scores[0])), (2, pytest.approx(history.scores[1]))]
    assert [event.value for event in events.Scalars("loss_epoch")] == pytest.approx(history.losses)

    client = MlflowClient(f"sqlite:///{(work_dir / 'mlflow' / 'mlflow.db').as_posix()}")
    (run,) = client.search_runs([client.get_experiment_by_name("mmflowers").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["train_cfg.max_epochs"] == "2"
    kept = client.get_metric_history(run.info.run_id, "accuracy/top1")
    assert [(metric.step, metric.value) for metric in kept] == list(enumerate(history.scores, 1))

    # The config that the run keeps names the trackers, and tools/test.py takes them out of it.
    kept = load_config(kept_config(work_dir))
    names = [backend["type"] for backend in kept.visualizer.vis_backends]
    assert names == ["LocalVisBackend", "TrackerVisBackend", "TrackerVisBackend"]
    drop_trackers(kept)
    assert [backend["type"] for backend in kept.visualizer.vis_backends] == ["LocalVisBackend"]


def test_missing_packages_are_said_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError) as raised:
        add_trackers(Config(dict(work_dir=str(tmp_path))), ["wandb", "mlflow", "wandb"])
    assert [str(problem).partition(" · hint: ")[::2] for problem in raised.value.problems] == [
        ("--track wandb needs a package that isn't installed: wandb", "pip install wandb, or train without it"),
        ("--track mlflow needs a package that isn't installed: mlflow", "pip install mlflow, or train without it"),
    ]


@VISBACKENDS.register_module()
class GoneVisBackend(BaseVisBackend):
    """A tracker whose server goes away."""

    calls = 0

    def __init__(self, gone_at_start: bool = False) -> None:
        self.gone_at_start = gone_at_start

    experiment = property(lambda self: None)

    def _init_env(self) -> None: ...

    def add_config(self, config: Config, **kwargs) -> None:
        if self.gone_at_start:
            raise ConnectionError("no server\n at x")

    def add_scalars(self, *args, **kwargs) -> None:
        GoneVisBackend.calls += 1
        raise ConnectionError("it is gone")

    def close(self) -> None:
        raise ConnectionError("it is gone")


def visualizer(tmp_path: Path, name: str, **options):
    backend = dict(type="TrackerVisBackend", tracker="it", backend=dict(type="GoneVisBackend", **options))
    with DefaultScope.overwrite_default_scope("mmflowers"):
        return VISUALIZERS.build(
            dict(type="UniversalVisualizer", name=name, save_dir=str(tmp_path), vis_backends=[backend])
        )


def test_a_tracker_that_is_lost_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    MMLogger.get_instance(f"lost in {tmp_path}")  # the current one now, which talks to this test's stderr
    followed = visualizer(tmp_path, "lost")
    followed.add_config(Config())
    for step in range(3):
        followed.add_scalars({"loss": 1.0}, step=step)
    followed.close()
    assert GoneVisBackend.calls == 1
    said = capfd.readouterr()
    assert (said.out + said.err + caplog.text).count("it failed, the training continues: it is gone") == 1


def test_a_tracker_that_cannot_begin_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it can't start tracking: no server at x"):
        visualizer(tmp_path, "never", gone_at_start=True).add_config(Config())


def test_other_backends_of_a_config_stay(tmp_path: Path) -> None:
    own = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
    config = Config(dict(work_dir=str(tmp_path), visualizer=dict(type="UniversalVisualizer", vis_backends=own)))
    add_trackers(config, [])
    assert config.visualizer.vis_backends == own
    add_trackers(config, ["tensorboard"])
    assert len(config.visualizer.vis_backends) == 3
    drop_trackers(config)
    assert config.visualizer.vis_backends == own
