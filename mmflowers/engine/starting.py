"""What a training starts from: pretrained weights, random weights, or a checkpoint to resume."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config

from mmflowers.engine.checkpoints import LAST
from mmflowers.engine.configuration import data_root
from mmflowers.engine.launching import is_first_process
from mmflowers.engine.record import check_recipe
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import LOCK, hold_work_dir
from mmflowers.weights.loading import load_checkpoint_file, meta_of
from mmflowers.weights.sources import drop_placeholders, drop_sources, fetch_weights, needs_download, start_in_model

if TYPE_CHECKING:
    from mmflowers.engine.training import TrainOptions


def set_weights(config: Config, weights: str | None) -> None:
    """Set the weights that the model starts from.

    Args:
        config: Changed in place.
        weights: In place of all that the config names; "none" for random weights, None for the config's.

    Raises:
        InputError: The config names no weights, or a local file doesn't exist.
    """
    drop_placeholders(config.get("model"))
    if weights is not None:
        drop_sources(config.get("model"))
        config.load_from = None if weights == "none" else weights
    elif not config.get("load_from") and not start_in_model(config.get("model")):
        raise InputError(
            "the config names no weights (load_from)", "--weights FILE, or --weights none for a start from scratch"
        )
    if config.load_from and not needs_download(config.load_from):
        fetch_weights(config.load_from)


def set_resume(config: Config, asked: TrainOptions, classes: list[str] | None) -> None:
    """Set the checkpoint to resume, and compare its run with the config.

    Args:
        config: Changed in place.
        asked: The options, with ``resume``.
        classes: Those of the dataset folder; None if it can't be read.

    Raises:
        InputError: There is no checkpoint; it is of another run than the work dir's, or of another seed, recipe or
            classes.
    """
    last = Path(config.work_dir, LAST)
    checkpoint = last if asked.resume is True else Path(str(asked.resume))
    if not checkpoint.is_file():
        raise InputError(f"nothing to resume: no checkpoint at {checkpoint}", "train without --resume")
    if last.exists() and last.resolve() != checkpoint.resolve():
        raise InputError(
            f"{config.work_dir} holds another run than {checkpoint}", "--work-dir names a folder for the resumed run"
        )
    weights = asked.weights
    if weights is None and any(option.startswith("load_from=") for option in asked.cfg_options):
        weights = config.get("load_from")
    if weights is not None and is_first_process(config.launcher):  # a job script may be the same at each start
        print(f"weights: those of {checkpoint}, which is resumed; {weights} isn't loaded", file=sys.stderr, flush=True)
    seeded = any(option.startswith("randomness") for option in asked.cfg_options)
    seed = config.randomness.get("seed") if seeded else asked.seed
    meta = resume_from(config, checkpoint)
    if seed is not None and config.randomness.seed != seed:
        what = f"seed {seed}, but {checkpoint} is of a run with seed {config.randomness.seed}"
        raise InputError(what, "leave the seed out: a resumed run keeps its own")
    check_recipe(checkpoint, meta, config, asked.cfg_options)
    if classes is not None:
        check_classes(checkpoint, meta, classes, data_root(config))


def resume_from(config: Config, checkpoint: Path) -> dict:
    """Set the checkpoint to resume and its seed, which the loaders need before MMEngine reads it from the file.

    Returns:
        The checkpoint's ``meta``.
    """
    config.resume, config.load_from = True, str(checkpoint)
    meta = meta_of(load_checkpoint_file(checkpoint))
    if isinstance(meta.get("seed"), int):
        config.randomness = {**(config.get("randomness") or {}), "seed": meta["seed"]}
    return meta


def check_classes(checkpoint: Path, meta: dict, classes: list[str], data_root: str) -> None:
    """Compare a checkpoint's class names, if it has some, with those of a dataset folder.

    Raises:
        InputError: They differ, or are in another order.
    """
    known = meta.get("dataset_meta")
    trained_on = list(known["classes"]) if isinstance(known, dict) and known.get("classes") else None
    if trained_on is not None and trained_on != classes:
        raise InputError(
            f"{checkpoint} was trained on the classes {', '.join(trained_on)}; {data_root} has {', '.join(classes)}",
            "use a dataset folder with the same classes in the same order",
        )


def refuse_used_work_dir(config: Config) -> None:
    """Refuse to start a new run in the work dir of another one.

    Raises:
        InputError: The work dir has a ``last.pth``.
    """
    if Path(config.work_dir, LAST).exists():
        raise InputError(
            f"{config.work_dir} holds a run already",
            "--resume continues it, --work-dir names another folder; delete the folder to start again",
        )


def refuse_held_work_dir(config: Config) -> None:
    """Refuse a work dir that another training holds now, before anything is written into it.

    Raises:
        InputError: Naming the holder.
    """
    if is_first_process(config.launcher) and Path(config.work_dir, LOCK).exists():
        with hold_work_dir(config.work_dir):
            pass
