"""Test a checkpoint on a split of a dataset folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mmengine.dist import is_main_process

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.datasets.identity import photos_digest
from mmflowers.datasets.served import Coverage, coverage
from mmflowers.datasets.wrappers import dataset_of
from mmflowers.engine import configuration
from mmflowers.engine.checkpoints import BEST, LAST
from mmflowers.engine.launching import join_process_group
from mmflowers.engine.runner import FlowersRunner
from mmflowers.engine.starting import check_classes
from mmflowers.engine.tracking import drop_trackers
from mmflowers.evaluation.metrics import CollectPredictions
from mmflowers.evaluation.predictions import Predictions, write_predictions
from mmflowers.evaluation.tested import default_checkpoint, write_record
from mmflowers.utils.errors import InputError, Problem
from mmflowers.weights.loading import load_checkpoint_file, meta_of
from mmflowers.weights.sources import drop_sources


class Tested(NamedTuple):
    """The result of a test.

    Attributes:
        predictions: Of each tested photo.
        path: The file with them.
        coverage: How much of the split was tested.
    """

    predictions: Predictions
    path: Path
    coverage: Coverage


def test(
    config_path: str | Path | None = None,
    checkpoint: str | Path | None = None,
    *,
    data: str | Path | None = None,
    split: str = "val",
    tta: bool = False,
    amp: bool = False,
    work_dir: str | Path | None = None,
    runs: str | Path = "work_dirs",
    launcher: str = "none",
    cfg_options: Sequence[str] = (),
    before: Callable[[configuration.Config, list[tuple[str, Problem]]], object] | None = None,
) -> Tested | None:
    """Run a checkpoint over ``split`` and write ``predictions_<split>.csv`` into its work dir.

    The file's name ends in ``_tta``, ``_amp`` and ``_partial`` (a part of the split was tested) where that applies, so
    that the plain file stays for comparison.

    Args:
        config_path: The config the checkpoint was trained with; default the one in its work dir.
        checkpoint: Default that of the last run below ``runs``: ``best.pth``, or ``last.pth`` without validation.
        data: Dataset folder in place of the config's.
        split: The list to test on, "val", "test" or "train".
        tta: Test-time augmentation: the scores are the mean over several views of a photo (``augment_test``).
        amp: Half precision, as MMEngine's ``fp16`` of test loops: bfloat16 on a CPU, float16 on a GPU.
        work_dir: Output folder for logs and predictions; default the checkpoint's folder.
        runs: The folder of work dirs in which runs are searched.
        launcher: See ``TrainOptions``.
        cfg_options: ``KEY=VALUE`` overrides in MMEngine's dotted form.
        before: Called with the config and the problems so far, each with its place, before anything is built; by
            default problems are raised.

    Returns:
        The result; None on all but the main process.

    Raises:
        InputError: There is no run, config or checkpoint; the dataset folder has errors or other classes; photos were
            counted twice, or aren't in the split's list.
    """
    checkpoint = Path(checkpoint) if checkpoint else default_checkpoint(last_run(Path(runs)))
    out = Path(work_dir or checkpoint.parent)
    config = configuration.load_config(config_path or kept_config(checkpoint.parent))
    config.work_dir = str(out / "test")  # MMEngine writes a config into it, and `out` has the training's
    config.launcher = launcher
    config.resume, config.load_from = False, str(checkpoint)
    drop_sources(config.get("model"))  # all weights are the checkpoint's

    problems: list[tuple[str, Problem]] = []
    attempt = partial(configuration.attempt, problems)
    attempt("config", _prepare, config, data, split, cfg_options)
    if classes := attempt("dataset", _set_classes, config, split):
        attempt("weights", _check_classes, config, checkpoint, classes)
    if before is not None:
        before(config, problems)
    elif problems:
        raise InputError(problems=[problem for _, problem in problems])

    if tta:
        augment_test(config)
    if amp:
        config.test_cfg.fp16 = True
    evaluator, root = config.test_evaluator, Path(configuration.data_root(config))
    evaluators = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    config.test_evaluator = [*evaluators, dict(type="CollectPredictions", data_root=str(root))]
    join_process_group(launcher)
    # MMEngine keeps loggers and visualizers by this name; its default has a resolution of one second.
    if launcher == "none":
        config.experiment_name = f"{out.name}_test_{time.monotonic_ns()}"
    runner = FlowersRunner.from_cfg(config)
    runner.test()
    if not is_main_process():
        return None

    metrics = runner.test_evaluator.metrics
    (predictions,) = (metric.predictions for metric in metrics if isinstance(metric, CollectPredictions))
    assert predictions is not None  # on the main process, after the test
    paths, labels = [root / image for image in predictions.images], predictions.labels.tolist()
    found = coverage(zip(paths, labels, strict=True), root, split)
    found.require_sound(split)
    kind = f"{'_tta' if tta else ''}{'_amp' if amp else ''}{'' if found.is_whole else '_partial'}"
    path = out / f"predictions_{split}{kind}.csv"
    write_predictions(predictions, path)
    digest = photos_digest(paths, labels)
    write_record(path, checkpoint, split=split, counted=found.counted, listed=found.listed, photos=digest)
    return Tested(predictions, path, found)


def _prepare(config: configuration.Config, data: str | Path | None, split: str, cfg_options: Sequence[str]) -> None:
    """Apply the options, and replace what only a training needs."""
    if data is not None:
        configuration.set_data_root(config, data)
    configuration.merge_options(config, cfg_options)
    config.custom_hooks = [dict(type="ChannelsLastHook"), dict(type="KeepMemoryHook")]
    drop_trackers(config)
    if config.get("test_cfg") is not None:
        config.test_cfg.setdefault("type", "FastTestLoop")
    configuration.disable_idle_workers(config)
    configuration.test_on(config, split)


def _set_classes(config: configuration.Config, split: str) -> list[str]:
    """Set the number of classes to that of the dataset folder, and return them."""
    classes = read_dataset_folder(configuration.data_root(config), splits=(split,)).classes
    configuration.set_classes(config, len(classes))
    return classes


def _check_classes(config: configuration.Config, checkpoint: Path, classes: list[str]) -> None:
    check_classes(checkpoint, meta_of(load_checkpoint_file(checkpoint)), classes, configuration.data_root(config))


def augment_test(config: configuration.Config) -> None:
    """Test with the mean scores of several views: the config's ``tta_pipeline``, or the photo and its mirror image.

    Raises:
        InputError: The test pipeline can't be mirrored, because it doesn't end in ``PackInputs``.
    """
    dataset = dataset_of(config, "test_dataloader")
    if config.get("tta_pipeline") is None:
        *steps, pack = dataset.pipeline
        if pack.get("type") != "PackInputs":
            what = f"--tta can't mirror the test pipeline: it ends in {pack.get('type')}, not in PackInputs"
            raise InputError(what, "set tta_pipeline in the config")
        flips = [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)]
        config.tta_pipeline = [*steps, dict(type="TestTimeAug", transforms=[flips, [pack]])]
    dataset.pipeline = config.tta_pipeline
    if dataset.get("cache"):  # it holds one view of a photo
        dataset.cache = False
    config.test_cfg.type = "TestLoop"
    config.model = dict(**config.get("tta_model", dict(type="AverageClsScoreTTA")), module=config.model)


def last_run(runs: Path, otherwise: str = "name CONFIG and CHECKPOINT") -> Path:
    """Return the work dir below ``runs`` with the newest checkpoint (``default_checkpoint``).

    Args:
        runs: A folder of work dirs.
        otherwise: What else a user can do, for the hint of the error.

    Raises:
        InputError: There is none.
    """
    folders = {path.parent for path in runs.glob(f"*/{BEST}")}
    folders |= {path.parent for path in runs.glob(f"*/{LAST}") if any(path.parent.glob("*.py"))}  # not train_torch's
    found = {default_checkpoint(folder) for folder in folders}
    if not found:
        raise InputError(f"no trained run in {runs}", f"python tools/train.py CONFIG trains one, or {otherwise}")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def kept_config(work_dir: Path) -> Path:
    """Return the config that MMEngine wrote into the work dir of a run.

    Raises:
        InputError: There is none, or several.
    """
    configs = sorted(work_dir.glob("*.py"))
    if len(configs) != 1:
        found = f"{len(configs)} configs" if configs else "no config"
        raise InputError(f"{work_dir} holds {found}", "name it: python tools/test.py CONFIG CHECKPOINT")
    return configs[0]
