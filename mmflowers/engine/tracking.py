"""Experiment trackers beside MMEngine's logs: TensorBoard, MLflow and Weights & Biases."""

from __future__ import annotations

import atexit
import importlib.util
import os
from collections.abc import Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.visualization import BaseVisBackend, WandbVisBackend

from mmflowers.registry import VISBACKENDS
from mmflowers.utils.errors import InputError, Problem

PROJECT = "mmflowers"  # MLflow's experiment and W&B's project, if their environment variables name none
LOCAL = "LocalVisBackend"  # writes scalars.json, from which curves and report are drawn
# The columns of MLflow's table of runs; the run also has the whole config as text.
PARAMETERS = ("data_root", "load_from", "optim_wrapper", "param_scheduler", "train_cfg", "randomness")


def add_trackers(config: Config, trackers: Sequence[str]) -> None:
    """Set the trackers of a training. Their local files are in its work dir.

    Args:
        config: With its ``work_dir``; trackers of an earlier training are removed.
        trackers: Of "tensorboard", "mlflow" and "wandb".

    Raises:
        InputError: A package isn't installed.
    """
    drop_trackers(config)
    problems = []
    for name in dict.fromkeys(trackers):
        missing = [package for package in _packages(name) if importlib.util.find_spec(package) is None]
        if missing:
            what = f"--track {name} needs a package that isn't installed: {missing[0]}"
            problems.append(Problem(what, f"pip install {name}, or train without it"))
    if problems:
        raise InputError(problems=problems)
    visualizer = config.get("visualizer") or dict(type="UniversalVisualizer", vis_backends=[dict(type=LOCAL)])
    backends = [
        dict(type=TrackerVisBackend.__name__, name=name, tracker=name, backend=BACKENDS[name](config))
        for name in dict.fromkeys(trackers)
    ]
    if backends:
        config.visualizer = {**visualizer, "vis_backends": [*visualizer.get("vis_backends", []), *backends]}


def drop_trackers(config: Config) -> None:
    """Remove the trackers from the config of an earlier training."""
    visualizer = config.get("visualizer") or {}
    if visualizer.get("vis_backends"):
        visualizer["vis_backends"] = [
            backend for backend in visualizer["vis_backends"] if backend.get("type") != TrackerVisBackend.__name__
        ]


@VISBACKENDS.register_module()
class TrackerVisBackend(BaseVisBackend):
    """Wraps a tracker's backend: a failure at the start ends the training, a later one only the tracking.

    Args:
        save_dir: Not used: the tracker's own backend has the run's.
        tracker: Its name.
        backend: The config of its backend.
    """

    def __init__(self, save_dir: str, tracker: str, backend: dict) -> None:
        super().__init__(save_dir)
        self._tracker = tracker
        self._backend = VISBACKENDS.build(backend)
        self._tracking = False

    @property
    def experiment(self) -> Any:
        """The experiment of the tracker's backend."""
        return self._backend.experiment

    def _init_env(self) -> None:
        """Do nothing: the tracker's backend starts with its first call."""

    def add_config(self, config: Config, **kwargs) -> None:
        """Start tracking, with the config.

        Raises:
            InputError: The server can't be reached, the login is missing, or the folder can't be written to.
        """
        try:
            self._backend.add_config(config, **kwargs)
        except Exception as error:  # of its client, of any type
            what = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{self._tracker} can't start tracking: {what}", f"fix that, or train without --track {self._tracker}"
            ) from error
        self._tracking = True
        atexit.register(self.close)  # a stopped run doesn't close it, and would lose what is buffered

    def close(self) -> None:
        """Write what is buffered."""
        self._call("close")
        self._tracking = False

    def _call(self, method: str, *args, **kwargs) -> None:
        """Call a method of the tracker's backend; after a failure, never again."""
        if self._tracking:
            try:
                getattr(self._backend, method)(*args, **kwargs)
            except Exception as error:  # the server is gone, the disk is full …
                self._tracking = False
                what = " ".join(str(error).split()) or type(error).__name__
                MMLogger.get_current_instance().warning(f"{self._tracker} failed, the training continues: {what}")

    add_graph = partialmethod(_call, "add_graph")
    add_image = partialmethod(_call, "add_image")
    add_scalar = partialmethod(_call, "add_scalar")
    add_scalars = partialmethod(_call, "add_scalars")


@VISBACKENDS.register_module()
class WandbWithoutCodeVisBackend(WandbVisBackend):
    """MMEngine's backend, without its upload of every Python file below the current folder."""

    def add_config(self, config: Config, **kwargs) -> None:
        """Record the config."""
        self.experiment.config.update(config.to_dict())


def _packages(tracker: str) -> list[str]:
    if tracker == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        return ["mlflow", "sqlalchemy", "alembic"]  # mlflow-skinny has no database of its own
    return [tracker]


def _tensorboard(config: Config) -> dict:
    return dict(type="TensorboardVisBackend", save_dir=str(Path(config.work_dir, "tensorboard")))


def _mlflow(config: Config) -> dict:
    # A missing server should delay a training by seconds, not by the minutes of MLflow's default.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    work_dir = Path(config.work_dir).absolute()
    store = work_dir / "mlflow"
    server = os.environ.get("MLFLOW_TRACKING_URI")
    return dict(
        type="MLflowVisBackend",
        save_dir=str(store),
        exp_name=os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT,
        run_name=work_dir.name,
        tracking_uri=server or f"sqlite:///{(store / 'mlflow.db').as_posix()}",
        artifact_location=None if server else (store / "artifacts").as_uri(),
        artifact_suffix=(),  # MMEngine would copy the work dir's logs, including its copies of the last run
        tracked_config_keys=[key for key in PARAMETERS if key in config],
    )


def _wandb(config: Config) -> dict:
    init_kwargs = dict(name=Path(config.work_dir).absolute().name, project=os.environ.get("WANDB_PROJECT") or PROJECT)
    return dict(type=WandbWithoutCodeVisBackend.__name__, save_dir=config.work_dir, init_kwargs=init_kwargs)


BACKENDS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
