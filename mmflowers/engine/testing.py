"""Test a checkpoint on a split of a dataset folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.dist import is_main_process

from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.datasets.identity import photos_digest
from mmflowers.datasets.served import Coverage, coverage
from mmflowers.datasets.wrappers import innermost
from mmflowers.engine import configuration
from mmflowers.engine.hooks import BEST
from mmflowers.engine.runner import LAST, FlowersRunner
from mmflowers.engine.tracking import drop_trackers
from mmflowers.engine.training import check_classes, join_process_group
from mmflowers.evaluation.metrics import CollectPredictions
from mmflowers.evaluation.predictions import Predictions, write_predictions
from mmflowers.evaluation.tested import default_checkpoint, write_record
from mmflowers.utils.errors import InputError, Problem
from mmflowers.weights.sources import drop_sources


class Tested(NamedTuple):
    """What a test found.

    Attributes:
        predictions: Of each photo that was counted.
        path: The file they are in.
        coverage: How much of the split they are of.
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

    With ``tta`` the file is ``predictions_<split>_tta.csv``, and with ``amp`` its name ends in ``_amp``: the plain one
    stays to be compared with. Predictions of a part of the split are in ``predictions_<split>_partial.csv``.

    Args:
        config_path: The config the checkpoint was trained with; default the one its work dir keeps.
        checkpoint: Default that of the last run below ``runs``: ``best.pth``, or ``last.pth`` without validation.
        data: Dataset folder in place of the config's.
        split: The list to test on, "val", "test" or "train".
        tta: Test-time augmentation: the scores are the mean over several views of a photo (``augment_test``).
        amp: Half precision, as MMEngine's loops have it by ``fp16``: bfloat16 on a CPU, float16 on a GPU.
        work_dir: Where logs and predictions go; default the checkpoint's folder.
        runs: Where runs are looked for.
        launcher: As in training.
        cfg_options: ``KEY=VALUE`` overrides in MMEngine's dotted form.
        before: Called with the settled config and what is wrong so far, each with its place, before anything is built;
            default: what is wrong is raised.

    Returns:
        What the test found; None on all but the main process.

    Raises:
        InputError: No run, config or checkpoint; a dataset folder that isn't in order or has other classes; photos that
            were counted twice, or that the split's list doesn't have.
    """
    checkpoint = Path(checkpoint) if checkpoint else default_checkpoint(last_run(Path(runs)))
    config = configuration.load_config(config_path or kept_config(checkpoint.parent))
    out = Path(work_dir or checkpoint.parent)
    config.work_dir = str(out / "test")  # apart: MMEngine leaves the config that it runs in its work dir
    config.launcher = launcher
    config.resume, config.load_from = False, str(checkpoint)
    drop_sources(config.get("model"))  # all weights are the checkpoint's
    problems: list[tuple[str, Problem]] = []
    attempt = partial(configuration.attempt, problems)
    attempt("config", _settle, config, data, split, cfg_options)
    if classes := attempt("dataset", _fit, config, split):
        attempt("weights", check_classes, checkpoint, classes, configuration.data_root(config))
    if before is not None:
        before(config, problems)
    elif problems:
        raise InputError(problems=[problem for _, problem in problems])

    if tta:
        augment_test(config)
    if amp:
        config.test_cfg.fp16 = True
    collect_predictions = dict(type="CollectPredictions", data_root=configuration.data_root(config))
    config.test_evaluator = [*_as_list(config.test_evaluator), collect_predictions]
    join_process_group(launcher)
    # MMEngine keeps loggers and visualizers by this name, by default one that differs by the second.
    if launcher == "none":
        config.experiment_name = f"{out.name}_test_{time.monotonic_ns()}"
    runner = FlowersRunner.from_cfg(config)
    runner.test()
    (collect,) = (metric for metric in runner.test_evaluator.metrics if isinstance(metric, CollectPredictions))

    if not is_main_process():
        return None
    root = Path(configuration.data_root(config))
    predictions = collect.predictions
    assert predictions is not None  # on the main process, after the test
    paths = [root / image for image in predictions.images]
    found = coverage(zip(paths, predictions.labels.tolist(), strict=True), root, split)
    found.require_sound(split)
    kind = f"{'_tta' if tta else ''}{'_amp' if amp else ''}{'' if found.is_whole else '_partial'}"
    path = out / f"predictions_{split}{kind}.csv"
    write_predictions(predictions, path)
    digest = photos_digest(paths, predictions.labels.tolist())
    write_record(path, checkpoint, split=split, counted=found.counted, listed=found.listed, photos=digest)
    return Tested(predictions, path, found)


def _settle(config: configuration.Config, data: str | Path | None, split: str, cfg_options: Sequence[str]) -> None:
    if data is not None:
        configuration.set_data_root(config, data)
    configuration.merge_options(config, cfg_options)
    hooks = ("ChannelsLastHook", "KeepMemoryHook")
    config.custom_hooks = [dict(type=name) for name in hooks]  # not those of the training: nothing to draw or to keep
    drop_trackers(config)
    if config.get("test_cfg") is not None:
        config.test_cfg.setdefault("type", "FastTestLoop")
    configuration.settle_loaders(config)
    configuration.test_on(config, split)


def augment_test(config: configuration.Config) -> None:
    """Let the test take the mean of the scores of several views: the config's ``tta_pipeline``, else photo and mirror.

    Raises:
        InputError: The test pipeline can't be mirrored, as it doesn't end in packing.
    """
    dataset: Any = innermost(config.test_dataloader)
    if config.get("tta_pipeline") is None:
        *steps, pack = dataset.pipeline
        if pack.get("type") != "PackInputs":
            what = f"--tta can't mirror what the test pipeline makes: it ends in {pack.get('type')}, not in PackInputs"
            raise InputError(what, "set tta_pipeline in the config")
        flips = [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)]
        config.tta_pipeline = [*steps, dict(type="TestTimeAug", transforms=[flips, [pack]])]
    dataset.pipeline = config.tta_pipeline
    if dataset.get("cache"):  # it holds one view of a photo
        dataset.cache = False
    config.test_cfg.type = "TestLoop"
    config.model = dict(**config.get("tta_model", dict(type="AverageClsScoreTTA")), module=config.model)


def _fit(config: configuration.Config, split: str) -> list[str]:
    classes = read_dataset_folder(configuration.data_root(config), splits=(split,)).classes
    configuration.set_classes(config, len(classes))
    return classes


def last_run(runs: Path, otherwise: str = "name CONFIG and CHECKPOINT") -> Path:
    """The work dir below ``runs`` whose checkpoint (``default_checkpoint``) is the newest.

    Args:
        runs: A folder of work dirs.
        otherwise: What else a user can do who has none there.

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
    """The config that MMEngine left in the work dir of a run.

    Raises:
        InputError: None there, or several.
    """
    configs = sorted(work_dir.glob("*.py"))
    if len(configs) != 1:
        found = f"{len(configs)} configs" if configs else "no config"
        raise InputError(f"{work_dir} holds {found}", "name it: python tools/test.py CONFIG CHECKPOINT")
    return configs[0]


def _as_list(evaluator: dict | list) -> list:
    return list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
