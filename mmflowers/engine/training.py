"""One training run, from a config file to a work dir."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.datasets.served import Coverage
from mmflowers.engine import configuration, options
from mmflowers.engine.hooks import TOP1, BestAndLastHook
from mmflowers.engine.memory import OutOfMemory
from mmflowers.engine.record import RecordHook, check_recipe
from mmflowers.engine.runner import LAST, FlowersRunner, explained_disk
from mmflowers.engine.tracking import add_trackers
from mmflowers.evaluation.history import format_score
from mmflowers.utils.errors import InputError, Problem
from mmflowers.utils.files import LOCK, hold_work_dir
from mmflowers.utils.terminal import close_bars
from mmflowers.weights.loading import load_checkpoint_file, meta_of
from mmflowers.weights.sources import drop_sources, fetch_weights, needs_download, start_in_model

# How processes are started for each launcher, and what each of them then finds in its environment.
LAUNCHERS = {
    "pytorch": ("torchrun --nproc-per-node 2", ("RANK", "LOCAL_RANK")),
    "slurm": ("srun python", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST")),
    "mpi": ("mpirun -n 2 -x MASTER_ADDR=… python", ("OMPI_COMM_WORLD_LOCAL_RANK", "MASTER_ADDR")),
}
RANKS = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}


class Outcome(NamedTuple):
    """What a training leaves.

    Attributes:
        work_dir: Its folder, as the user or the config named it.
        best_score: The best validation by the metric that ``BestAndLastHook`` compares, in percent for top-1; None
            where there was no validation.
        best_epoch: Its epoch, from 1.
        name: What the score is called: "val top-1" if it is that of the whole split.
        part: Of which part of the split it is, " on 286 of 572 photos of val"; empty for all of it.
        coverage: How much of val the last validation was of; None on all but the main process.
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
    """What the command line says of a training.

    Attributes:
        config: A config of this project, or any MMPretrain classification config with our data side.
        data: Dataset folder in place of the config's.
        weights: Weights to start from in place of all that the config names (``load_from``, and in the model
            ``init_cfg`` and ``pretrained``); "none" starts from scratch. A resumed run has those of its checkpoint.
        work_dir: Default the config's, else ``work_dirs/<name of the config>``.
        resume: Go on from the work dir's ``last.pth`` (True) or from the given checkpoint.
        amp: bfloat16 autocast and channels-last memory, on a GPU or a CPU.
        seed: In place of the config's.
        laptop: Shrink the recipe: 3 epochs, smaller images.
        fast: The same recipe on decoded photos, augmented by whole batches where that can be (``options.make_fast``).
        freeze_to: Train only what comes after this layer, on feature maps computed once; implies ``fast``.
        views: Augmented views of each photo for ``freeze_to``.
        probe: Fit the head alone, on small images; implies ``fast``, and leaves nothing to ``laptop``.
        oom: What ``train`` does when a batch doesn't fit into memory.
        launcher: "none", "pytorch" (torchrun), "slurm" or "mpi".
        track: Trackers that follow the run (``add_trackers``).
        cfg_options: ``KEY=VALUE`` overrides in MMEngine's dotted form; applied last.
        command: What was typed, for the record.
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
    """Return the config that a training runs, complete in everything it depends on. Nothing is built yet.

    Args:
        asked: The options.
        problems: Takes what is wrong, each with its place, instead of an exception. The config is then completed as
            far as it can be, and weights that need a download are left for later.

    Raises:
        InputError: Config, dataset folder, weights or work dir are not in order, with all that is wrong; where the
            config can't be read at all, with ``problems`` too.
    """
    found: list[tuple[str, Problem]] = []
    attempt = partial(configuration.attempt, found)
    config = configuration.load_config(asked.config)
    config.work_dir = str(asked.work_dir or config.get("work_dir") or Path("work_dirs") / Path(asked.config).stem)
    config.launcher = asked.launcher
    attempt("config", _merge, config, asked)
    if asked.fast or asked.freeze_to or asked.probe:
        attempt("config", options.make_fast, config)
    if asked.freeze_to:
        attempt("config", options.freeze, config, asked.freeze_to, asked.views)
    if asked.probe:
        attempt("config", options.probe, config)
    attempt("config", configuration.merge_options, config, asked.cfg_options)
    attempt("config", _add_hooks, config, asked)
    attempt("config", configuration.settle_loaders, config)
    attempt("config", configuration.settle_checkpoints, config)
    attempt("config", configuration.settle_best, config)
    attempt("config", options.refuse_mixed_images, config)
    folder = attempt("dataset", lambda: read_dataset_folder(configuration.data_root(config)))
    if folder:
        attempt("config", configuration.set_classes, config, len(folder.classes))
    if asked.resume:
        attempt("resume", _set_resume, config, asked, folder.classes if folder else None)
    else:
        config.resume = False
        attempt("work dir", _refuse_used_work_dir, config)
        attempt("weights", _set_weights, config, asked.weights)
    attempt("work dir", _refuse_held_work_dir, config)
    attempt("trackers", add_trackers, config, asked.track)
    if problems is not None:
        problems.extend(found)
    elif found:
        raise InputError(problems=[problem for _, problem in found])
    elif config.get("load_from"):
        fetch_weights(config.load_from)
    return config


def _merge(config: configuration.Config, asked: TrainOptions) -> None:
    if asked.data is not None:
        configuration.set_data_root(config, asked.data)
    if asked.laptop and not asked.probe:
        options.fit_to_laptop(config)
    if asked.seed is not None:
        config.randomness = {**(config.get("randomness") or {}), "seed": asked.seed}
    if asked.amp:
        options.compute_in_bfloat16(config)


def _add_hooks(config: configuration.Config, asked: TrainOptions) -> None:
    """Add hooks behind the config's own, after ``--cfg-options``, which count those alone."""
    hooks = [dict(type=RecordHook.__name__, command=asked.command)]
    if asked.amp:
        hooks += [dict(type="ChannelsLastHook"), dict(type="FastDepthwiseHook")]
    config.custom_hooks = [*(config.get("custom_hooks") or []), *hooks]


def train(config: configuration.Config, *, oom: Literal["stop", "retry"] = "stop") -> Outcome:
    """Train as a settled config says (see ``configure``).

    Args:
        config: Changed where a smaller batch had to be taken.
        oom: What to do when a batch doesn't fit into memory: "stop", saying what would fit, or "retry" with that,
            accumulating gradients so that the effective batch stays (BatchNorm sees the smaller one), from
            ``last.pth`` if the run has got that far. Several processes always stop.

    Raises:
        InputError: What building shows to be wrong: weights that don't fit, images that can't be read. Another training
            writes to the work dir.
        OutOfMemory: See ``oom``.
    """
    join_process_group(config.launcher)
    with hold_work_dir(config.work_dir) if is_first_process(config.launcher) else nullcontext():
        return _train(config, oom)


def is_first_process(launcher: str) -> bool:
    """Whether this is the main process of a training, also before the processes have joined."""
    return launcher == "none" or os.environ.get(RANKS[launcher], "0") == "0"


def _train(config: configuration.Config, oom: Literal["stop", "retry"]) -> Outcome:
    if not config.resume:
        _refuse_used_work_dir(config)  # by a training that has ended since ``configure``
    while True:
        with explained_disk(config.work_dir):
            runner = FlowersRunner.from_cfg(config)
        try:
            runner.train()
            break
        except OutOfMemory as error:
            if oom == "stop" or not error.fits or get_world_size() > 1:
                raise
            too_much = error.with_traceback(None)  # which would keep the model alive
        runner.visualizer.close()
        del runner
        gc.collect()
        _take_less(config, too_much)
    if not any(isinstance(hook, BestAndLastHook) for hook in runner.hooks):  # MMEngine's keeps a score of the same name
        return Outcome(Path(config.work_dir), None, None)
    best_score, best_epoch, names = (
        runner.message_hub.get_info(key, default=None) for key in ("best_score", "best_epoch", "best_of")
    )
    covered = runner.validated.coverage if runner.validated else None
    name, part = names or ("", "")
    return Outcome(Path(config.work_dir), best_score, best_epoch, name, part, covered)


def _take_less(config: configuration.Config, error: OutOfMemory) -> None:
    """Give a loader the batch that fits; training accumulates what a batch was before."""
    loader = config[error.loader]
    parts = -(-loader.batch_size // error.fits)
    loader.batch_size = error.fits
    if error.loader == "train_dataloader":
        config.optim_wrapper.accumulative_counts = config.optim_wrapper.get("accumulative_counts", 1) * parts
    last = Path(config.work_dir, LAST)
    if last.is_file():
        _resume_from(config, last)
    close_bars()
    print(f"{error.problems[0].what}: going on with batches of {error.fits}", file=sys.stderr, flush=True)
    # MMEngine keeps state by this name, by default one that differs by the second.
    config.experiment_name = f"{Path(config.work_dir).name}_{error.fits}_{time.monotonic_ns()}"


def _refuse_held_work_dir(config: configuration.Config) -> None:
    """Refuse a work dir that another training holds now, before anything is written into it."""
    if is_first_process(config.launcher) and Path(config.work_dir, LOCK).exists():
        with hold_work_dir(config.work_dir):
            pass


def _refuse_used_work_dir(config: configuration.Config) -> None:
    if Path(config.work_dir, LAST).exists():
        raise InputError(
            f"{config.work_dir} holds a run already",
            "--resume goes on with it, --work-dir names another folder; delete the folder to start again",
        )


def _set_weights(config: configuration.Config, weights: str | None) -> None:
    """Decide what the model starts from, before anything is built; a file that isn't there is known at once."""
    if weights is not None:
        drop_sources(config.get("model"))
        config.load_from = None if weights == "none" else weights
    elif not config.get("load_from") and not start_in_model(config.get("model")):
        raise InputError(
            "the config names no weights (load_from)", "--weights FILE, or --weights none for a start from scratch"
        )
    if config.load_from and not needs_download(config.load_from):
        fetch_weights(config.load_from)


def _set_resume(config: configuration.Config, asked: TrainOptions, classes: list[str] | None) -> None:
    """Decide what is resumed, and that it can be, before anything is built."""
    last = Path(config.work_dir, LAST)
    checkpoint = last if asked.resume is True else Path(str(asked.resume))
    if not checkpoint.is_file():
        raise InputError(f"nothing to resume: no checkpoint at {checkpoint}", "train without --resume")
    if last.exists() and last.resolve() != checkpoint.resolve():
        raise InputError(
            f"{config.work_dir} holds another run than {checkpoint}", "--work-dir names a folder for what is resumed"
        )
    weights = asked.weights
    if weights is None and any(option.startswith("load_from=") for option in asked.cfg_options):
        weights = config.get("load_from")
    if weights is not None and is_first_process(config.launcher):  # as in a job script that is the same at each start
        print(f"weights: those of {checkpoint}, which is resumed; {weights} isn't loaded", file=sys.stderr, flush=True)
    seeded = any(option.startswith("randomness") for option in asked.cfg_options)
    seed = config.randomness.get("seed") if seeded else asked.seed
    meta = _resume_from(config, checkpoint)
    if seed is not None and config.randomness.seed != seed:
        what = f"seed {seed}, but {checkpoint} is of a run with seed {config.randomness.seed}"
        raise InputError(what, "leave the seed out: a resumed run keeps its own")
    check_recipe(checkpoint, meta, config, asked.cfg_options)
    if classes is not None:
        check_classes(checkpoint, classes, configuration.data_root(config))


def _resume_from(config: configuration.Config, checkpoint: Path) -> dict:
    """Resume from ``checkpoint`` with its seed, which the loaders need before MMEngine reads it out of the file.

    Returns:
        What the checkpoint says about itself.
    """
    config.resume, config.load_from = True, str(checkpoint)
    meta = meta_of(load_checkpoint_file(checkpoint))
    if isinstance(meta.get("seed"), int):
        config.randomness = {**(config.get("randomness") or {}), "seed": meta["seed"]}
    return meta


def check_classes(checkpoint: Path, classes: list[str], data_root: str) -> None:
    """Hold a checkpoint's class names, where it knows them, against those of a dataset folder.

    Raises:
        InputError: Others, or the same in another order: every number would be about something else.
    """
    known = meta_of(load_checkpoint_file(checkpoint)).get("dataset_meta")
    trained_on = list(known["classes"]) if isinstance(known, dict) and known.get("classes") else None
    if trained_on is not None and trained_on != classes:
        raise InputError(
            f"{checkpoint} was trained on the classes {', '.join(trained_on)}; {data_root} has {', '.join(classes)}",
            "use a dataset folder with the same classes in the same order",
        )


def join_process_group(launcher: str) -> None:
    """Join torchrun's processes by gloo where there is no GPU; MMEngine's own way, which joins all others, needs one.

    Raises:
        InputError: This process wasn't started by that launcher, or there is no GPU for another than torchrun.
    """
    if launcher == "none" or torch.distributed.is_initialized():
        return
    starts, variables = LAUNCHERS[launcher]
    missing = [name for name in variables if name not in os.environ]
    if missing:
        hint = f"start it by {starts} tools/train.py … --launcher {launcher}"
        raise InputError(f"--launcher {launcher}: {', '.join(missing)} not set in the environment", hint)
    if get_device() == "cpu":
        if launcher != "pytorch":
            hint = f"on CPUs: {LAUNCHERS['pytorch'][0]} tools/train.py … --launcher pytorch"
            raise InputError(f"--launcher {launcher} needs GPUs, and there is none here", hint)
        torch.distributed.init_process_group("gloo")
