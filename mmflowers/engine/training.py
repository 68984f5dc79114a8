"""One training run, from a config file to a work dir."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmengine.dist import get_world_size

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.datasets.served import Coverage
from mmflowers.engine import configuration, options, starting
from mmflowers.engine.checkpoints import LAST
from mmflowers.engine.failures import explained_disk
from mmflowers.engine.hooks import TOP1, BestAndLastHook
from mmflowers.engine.launching import is_first_process, join_process_group
from mmflowers.engine.memory import OutOfMemory
from mmflowers.engine.record import RecordHook
from mmflowers.engine.runner import FlowersRunner
from mmflowers.engine.tracking import add_trackers
from mmflowers.evaluation.history import format_score
from mmflowers.utils.errors import InputError, Problem
from mmflowers.utils.files import hold_work_dir
from mmflowers.utils.terminal import close_bars
from mmflowers.weights.sources import fetch_weights


class Outcome(NamedTuple):
    """The result of a training.

    Attributes:
        work_dir: Its folder, as the user or the config named it.
        best_score: The best validation score, in percent for top-1, by the metric that ``BestAndLastHook`` compares;
            None without validation.
        best_epoch: Its epoch, from 1.
        name: The name of the score: "val top-1" if it is that of the whole split.
        part: The part of the split that was validated, such as " on 286 of 572 photos of val"; empty for all of it.
        coverage: How much of val the last validation covered; None on all but the main process.
    """

    work_dir: Path
    best_score: float | None
    best_epoch: int | None
    name: str = ""
    part: str = ""
    coverage: Coverage | None = None

    def __str__(self) -> str:
        if self.best_score is None:
            return "trained without a best checkpoint"
        unit = " %" if self.name in (TOP1, "accuracy") else ""
        return f"best {self.name} {format_score(self.best_score)}{unit}{self.part} at epoch {self.best_epoch}"


@dataclass(frozen=True)
class TrainOptions:
    """The options of a training, as on the command line.

    Attributes:
        config: A config of this project, or any MMPretrain classification config with our datasets.
        data: Dataset folder in place of the config's.
        weights: Weights to start from in place of all that the config names (``load_from``, and in the model
            ``init_cfg`` and ``pretrained``); "none" starts from scratch. A resumed run has those of its checkpoint.
        work_dir: Default the config's, else ``work_dirs/<name of the config>``.
        resume: Resume the work dir's ``last.pth`` (True) or the given checkpoint.
        amp: bfloat16 autocast and channels-last memory, on a GPU or a CPU.
        seed: In place of the config's.
        laptop: Shrink the recipe: 3 epochs, smaller images.
        fast: The same recipe on decoded photos, augmented in whole batches where possible (``options.make_fast``).
        freeze_to: Train only the layers after this one, on precomputed features; implies ``fast``.
        views: Augmented views of each photo for ``freeze_to``.
        probe: Fit the head alone, on small images; implies ``fast``, and ``laptop`` has no effect.
        oom: What ``train`` does if a batch doesn't fit into memory.
        launcher: "none", "pytorch" (torchrun), "slurm" or "mpi".
        track: Experiment trackers (``add_trackers``).
        cfg_options: ``KEY=VALUE`` overrides in MMEngine's dotted form; applied after the other options.
        command: The command line, for the record.
    """

    config: str | Path
    data: str | Path | None = None
    weights: str | None = None
    work_dir: str | Path | None = None
    resume: str | bool = False
    amp: bool = False
    seed: int | None = None
    laptop: bool = False
    fast: bool = False
    freeze_to: str | None = None
    views: int = 4
    probe: bool = False
    oom: Literal["stop", "retry"] = "stop"
    launcher: str = "none"
    track: Sequence[str] = ()
    cfg_options: Sequence[str] = ()
    command: str = ""


def configure(asked: TrainOptions, problems: list[tuple[str, Problem]] | None = None) -> configuration.Config:
    """Return the complete config of a training. Nothing is built yet.

    Args:
        asked: The options.
        problems: Takes all problems, each with its place, instead of an exception. The config is then completed as far
            as possible, and weights are not downloaded yet.

    Raises:
        InputError: With all problems of config, dataset folder, weights and work dir; if the config can't be read at
            all, with ``problems`` too.
    """
    found: list[tuple[str, Problem]] = []
    attempt = partial(configuration.attempt, found)
    config = configuration.load_config(asked.config)
    config.work_dir = str(asked.work_dir or config.get("work_dir") or Path("work_dirs") / Path(asked.config).stem)
    config.launcher = asked.launcher

    for change, *arguments in _changes(asked):
        attempt("config", change, config, *arguments)
    attempt("config", configuration.merge_options, config, asked.cfg_options)
    attempt("config", _add_hooks, config, asked)
    attempt("config", configuration.disable_idle_workers, config)
    attempt("config", configuration.require_our_checkpoints, config)
    attempt("config", configuration.set_best_rule, config)
    attempt("config", options.refuse_mixed_images, config)

    folder = attempt("dataset", lambda: read_dataset_folder(configuration.data_root(config)))
    classes = folder.classes if folder else None
    if classes:
        attempt("config", configuration.set_classes, config, len(classes))
    if asked.resume:
        attempt("resume", starting.set_resume, config, asked, classes)
    else:
        config.resume = False
        attempt("work dir", starting.refuse_used_work_dir, config)
        attempt("weights", starting.set_weights, config, asked.weights)
    attempt("work dir", starting.refuse_held_work_dir, config)
    attempt("trackers", add_trackers, config, asked.track)

    if problems is not None:
        problems.extend(found)
    elif found:
        raise InputError(problems=[problem for _, problem in found])
    elif config.get("load_from"):
        fetch_weights(config.load_from)
    return config


def train(config: configuration.Config, *, oom: Literal["stop", "retry"] = "stop") -> Outcome:
    """Train with the config that ``configure`` returned.

    Args:
        config: Changed if a smaller batch size is needed.
        oom: What to do if a batch doesn't fit into memory: "stop" with an error that names the batch size that fits, or
            "retry" with that, from ``last.pth`` if it exists. Gradients are then accumulated, so that the effective
            batch size stays (BatchNorm uses the smaller one). Several processes always stop.

    Raises:
        InputError: What only building or training can find: weights that don't fit, images that can't be read. Another
            training writes to the work dir.
        OutOfMemory: See ``oom``.
    """
    join_process_group(config.launcher)
    with hold_work_dir(config.work_dir) if is_first_process(config.launcher) else nullcontext():
        if not config.resume:
            starting.refuse_used_work_dir(config)  # by a training that has ended since ``configure``
        while True:
            with explained_disk(config.work_dir):
                runner = FlowersRunner.from_cfg(config)
            try:
                runner.train()
                return _outcome(config, runner)
            except OutOfMemory as error:
                if oom == "stop" or not error.fits or get_world_size() > 1:
                    raise
                too_large = error.with_traceback(None)  # the traceback would keep the model alive
            runner.visualizer.close()
            del runner
            gc.collect()
            _use_smaller_batches(config, too_large)


def _changes(asked: TrainOptions) -> Iterator[tuple[Any, ...]]:
    """Yield the functions that apply the options other than ``cfg_options`` to a config, each with its arguments."""
    if asked.data is not None:
        yield configuration.set_data_root, asked.data
    if asked.laptop and not asked.probe:
        yield (options.fit_to_laptop,)
    if asked.seed is not None:
        yield options.set_seed, asked.seed
    if asked.amp:
        yield (options.compute_in_bfloat16,)
    if asked.fast or asked.freeze_to or asked.probe:
        yield (options.make_fast,)
    if asked.freeze_to:
        yield options.freeze, asked.freeze_to, asked.views
    if asked.probe:
        yield (options.probe,)


def _add_hooks(config: configuration.Config, asked: TrainOptions) -> None:
    """Add hooks after the config's own.

    This comes after ``cfg_options``, so that ``--cfg-options custom_hooks.0.…`` counts the hooks of the config alone.
    """
    hooks = [dict(type=RecordHook.__name__, command=asked.command)]
    if asked.amp:
        hooks += [dict(type="ChannelsLastHook"), dict(type="FastDepthwiseHook")]
    config.custom_hooks = [*(config.get("custom_hooks") or []), *hooks]


def _outcome(config: configuration.Config, runner: FlowersRunner) -> Outcome:
    """Return the result of a training that has ended."""
    work_dir = Path(config.work_dir)
    if not any(isinstance(hook, BestAndLastHook) for hook in runner.hooks):  # MMEngine's hook has a score of this name
        return Outcome(work_dir, None, None)
    best_score, best_epoch, best_of = (
        runner.message_hub.get_info(key, default=None) for key in ("best_score", "best_epoch", "best_of")
    )
    name, part = best_of or ("", "")
    coverage = runner.validated.coverage if runner.validated else None
    return Outcome(work_dir, best_score, best_epoch, name, part, coverage)


def _use_smaller_batches(config: configuration.Config, error: OutOfMemory) -> None:
    """Give a loader the batch size that fits, and accumulate gradients over what was a batch before."""
    loader = config[error.loader]
    parts = -(-loader.batch_size // error.fits)
    loader.batch_size = error.fits
    if error.loader == "train_dataloader":
        config.optim_wrapper.accumulative_counts = config.optim_wrapper.get("accumulative_counts", 1) * parts
    last = Path(config.work_dir, LAST)
    if last.is_file():
        starting.resume_from(config, last)
    close_bars()
    print(f"{error.problems[0].what}: continuing with batches of {error.fits}", file=sys.stderr, flush=True)
    # MMEngine keeps state by this name; its default has a resolution of one second.
    config.experiment_name = f"{Path(config.work_dir).name}_{error.fits}_{time.monotonic_ns()}"
