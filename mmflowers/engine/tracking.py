"""Trackers beside MMEngine's own logs: TensorBoard, MLflow and Weights & Biases, through its vis_backends."""

from __future__ import annotations

import atexit
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.visualization import BaseVisBackend, WandbVisBackend

from mmflowers.registry import VISBACKENDS
from mmflowers.utils.errors import InputError, Problem

PROJECT = "mmflowers"  # MLflow's experiment and W&B's project, if their environment variables name none
LOCAL = "LocalVisBackend"  # writes scalars.json, from which curves and report are drawn
# What MLflow shows as columns of its table of runs; the whole config lies with the run as a text.
PARAMETERS = ("data_root", "load_from", "optim_wrapper", "param_scheduler", "train_cfg", "randomness")


def add_trackers(config: Config, trackers: Sequence[str]) -> None:
    """Let these trackers alone follow the training of a settled config. What they keep here lies in its work dir.

    Args:
        config: With its ``work_dir``.
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
    """Leave the trackers out that the config of an earlier training has."""
    visualizer = config.get("visualizer") or {}
    if visualizer.get("vis_backends"):
        visualizer["vis_backends"] = [
            backend for backend in visualizer["vis_backends"] if backend.get("type") != TrackerVisBackend.__name__
        ]


@VISBACKENDS.register_module()
class TrackerVisBackend(BaseVisBackend):
    """Another backend, which ends a training that it can't follow from the start, and never one under way.

    Args:
        save_dir: Not used: MMEngine's of the start, where the tracker's own is the run's.
        tracker: Its name.
        backend: Its config.
    """

    def __init__(self, save_dir: str, tracker: str, backend: dict) -> None:
        super().__init__(save_dir)
        self._tracker = tracker
        self._backend = VISBACKENDS.build(backend)
        self._following = False

    @property
    def experiment(self) -> Any:
        """That of the other backend."""
        return self._backend.experiment

    def _init_env(self) -> None:
        """Nothing: the other backend does at its first call."""

    def add_config(self, config: Config, **kwargs) -> None:
        """Begin, with the config.

        Raises:
            InputError: It can't: no server there, no login, no place to write.
        """
        try:
            self._backend.add_config(config, **kwargs)
        except Exception as error:  # whatever its client raises
            what = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{self._tracker} can't begin to track: {what}", f"mend that, or train without --track {self._tracker}"
            ) from error
        self._following = True
        atexit.register(self.close)  # a run that is stopped doesn't come to it: what is buffered would be lost

    def add_graph(self, *args, **kwargs) -> None:
        """Pass the network on."""
        self._tell(self._backend.add_graph, *args, **kwargs)

    def add_image(self, *args, **kwargs) -> None:
        """Pass an image on."""
        self._tell(self._backend.add_image, *args, **kwargs)

    def add_scalar(self, *args, **kwargs) -> None:
        """Pass a number on."""
        self._tell(self._backend.add_scalar, *args, **kwargs)

    def add_scalars(self, *args, **kwargs) -> None:
        """Pass numbers on."""
        self._tell(self._backend.add_scalars, *args, **kwargs)

    def close(self) -> None:
        """Let it write what is left."""
        self._tell(self._backend.close)
        self._following = False

    def _tell(self, method: Callable, *args, **kwargs) -> None:
        if not self._following:
            return
        try:
            method(*args, **kwargs)
        except Exception as error:  # a server that is gone, a full disk …
            self._following = False
            what = " ".join(str(error).split()) or type(error).__name__
            MMLogger.get_current_instance().warning(f"{self._tracker} is lost, the training goes on: {what}")


@VISBACKENDS.register_module()
class WandbWithoutCodeVisBackend(WandbVisBackend):
    """MMEngine's backend, which also uploads every Python file below the current folder. This one does not."""

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
    # A server that is gone should cost a training seconds, not the minutes that MLflow's client would try.
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
        artifact_suffix=(),  # MMEngine would copy the logs of the work dir, its own copies of the last time among them
        tracked_config_keys=[key for key in PARAMETERS if key in config],
    )


def _wandb(config: Config) -> dict:
    init_kwargs = dict(name=Path(config.work_dir).absolute().name, project=os.environ.get("WANDB_PROJECT") or PROJECT)
    return dict(type=WandbWithoutCodeVisBackend.__name__, save_dir=config.work_dir, init_kwargs=init_kwargs)


BACKENDS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
