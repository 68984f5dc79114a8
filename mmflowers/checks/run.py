"""Runs the checks on a training, a test or a dataset folder."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmflowers.checks.data
import mmflowers.checks.recipe
import mmflowers.checks.weights  # noqa: F401
from mmflowers.checks import keys
from mmflowers.checks.findings import CHECKS, Finding, from_problems, run_checks
from mmflowers.datasets.folder import DatasetFolder, read_dataset_folder
from mmflowers.errors import InputError, Problem


@dataclass
class Case:
    """What the checks look at.

    Attributes:
        config: The settled config; empty where a dataset folder is checked alone.
        root: The dataset folder, if the config names one.
        folder: It as it was read; None where it isn't in order.
        model: The network that the config builds, without the numbers in it where that can be; None if it can't be.
        checkpoint: What the training starts from or the test tests; None where there is none yet.
        source: Its name.
        testing: Whether it is a test.
        split: The list that a test is on.
        resume: Whether the training goes on.
        options: ``--cfg-options``, as typed.
        deep: Whether every photo is decoded.
    """

    config: Any = field(default_factory=dict)
    root: Path | None = None
    folder: DatasetFolder | None = None
    model: Any = None
    checkpoint: dict | None = None
    source: str = ""
    testing: bool = False
    split: str = "val"
    options: Sequence[str] = ()
    deep: bool = False

    @property
    def resume(self) -> bool:
        return bool(self.config.get("resume"))


def check_config(
    config_path: str | Path,
    *,
    data: str | Path | None = None,
    weights: str | None = None,
    cfg_options: Sequence[str] = (),
    deep: bool = False,
) -> list[Finding]:
    """Everything that can be known to be wrong with a training of a config, whatever its work dir holds.

    The arguments are those of ``mmflowers.engine.training.configure``.

    Raises:
        InputError: The config can't be read.
    """
    from mmflowers.engine.training import configure

    problems: list[tuple[str, Problem]] = []
    with tempfile.TemporaryDirectory() as unused:
        config = configure(
            config_path, data=data, weights=weights, work_dir=unused, cfg_options=cfg_options, problems=problems
        )
        return check_training(config, problems, options=cfg_options, deep=deep)


def check_training(
    config: Any, problems: Iterable[tuple[str, Problem]] = (), *, options: Sequence[str] = (), deep: bool = False
) -> list[Finding]:
    """Everything that can be known to be wrong with a training.

    Args:
        config: From ``mmflowers.engine.training.configure``.
        problems: What ``configure`` found.
        options: ``--cfg-options``, as typed.
        deep: Decode every photo too.
    """
    return _check(Case(config, options=options, deep=deep), problems)


def check_testing(
    config: Any, problems: Iterable[tuple[str, Problem]] = (), *, split: str = "val", options: Sequence[str] = ()
) -> list[Finding]:
    """Everything that can be known to be wrong with a test, given the config that ``test`` settled."""
    return _check(Case(config, testing=True, split=split, options=options), problems)


def check_dataset(root: str | Path, *, deep: bool = False) -> list[Finding]:
    """Everything that can be known to be wrong with a dataset folder."""
    case = Case(root=Path(root), deep=deep)
    found = []
    try:
        case.folder = read_dataset_folder(root)
    except InputError as problem:
        found = from_problems("dataset", problem.problems)
    return run_checks(case, CHECKS["dataset"], found)


def _check(case: Case, problems: Iterable[tuple[str, Problem]]) -> list[Finding]:
    from mmflowers.engine import configuration
    from mmflowers.engine.training import needs_download

    found = [finding for where, problem in problems for finding in from_problems(where, [problem])]
    roots = {str(dataset.get("data_root")) for dataset in configuration.datasets(case.config)}
    if len(roots) == 1:
        case.root = Path(roots.pop())
        with contextlib.suppress(InputError):  # said in problems
            case.folder = read_dataset_folder(case.root, (case.split,) if case.testing else ("train", "val"))
    try:
        case.model = _build_model(case.config)
    except InputError as problem:
        found += from_problems("model", problem.problems)
    case.source = str(case.config.get("load_from") or "")
    checks = [*CHECKS["config"], *CHECKS["dataset"]]
    if not needs_download(case.source):
        found += _load(case)
        return run_checks(case, checks, found)
    findings = run_checks(case, checks, found)
    if any(finding.level == "error" for finding in findings):
        return findings  # a download can wait until the rest is in order
    return run_checks(case, checks, findings + _load(case))


def _build_model(config: Any) -> Any:
    """The network of a config, on the meta device where its code allows: names and shapes are all that is needed.

    Raises:
        InputError: It can't be built.
    """
    import torch
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    model = config.get("model")
    if not isinstance(model, dict):
        return None  # said by the check of kinds
    model = copy.deepcopy(dict(model))
    if isinstance(backbone := model.get("backbone"), dict) and backbone.get("pretrained"):
        backbone["pretrained"] = False  # timm would download at once
    model.setdefault("data_preprocessor", copy.deepcopy(config.get("data_preprocessor")))
    reason = None
    with DefaultScope.overwrite_default_scope(keys.scope(config)):
        for device in ("meta", "cpu"):
            logging.disable(logging.WARNING)  # what it says while it is built, it says again in the run
            try:
                with torch.device(device):
                    return MODELS.build(copy.deepcopy(model))
            except Exception as bug:  # constructors check their arguments in every way there is
                reason = f"{type(bug).__name__}: {bug}"
            finally:
                logging.disable(logging.NOTSET)
    raise InputError(f"can't be built: {reason}", "mend the config's model")


def _load(case: Case) -> list[Finding]:
    """Load the checkpoint; what is wrong with it is returned."""
    from mmflowers.engine.loading import load_checkpoint_file
    from mmflowers.engine.weights import fetch_weights

    if case.source:
        try:
            case.checkpoint = load_checkpoint_file(fetch_weights(case.source))
        except InputError as problem:
            return from_problems("weights", problem.problems)
    return []
