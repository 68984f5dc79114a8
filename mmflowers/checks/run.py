"""Runs the checks on a training, a test or a dataset folder."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmflowers.checks.data
import mmflowers.checks.machine
import mmflowers.checks.metrics
import mmflowers.checks.network
import mmflowers.checks.photos
import mmflowers.checks.recipe
import mmflowers.checks.views
import mmflowers.checks.weights  # noqa: F401  each registers its checks
from mmflowers.checks import keys
from mmflowers.checks.findings import CHECKS, Finding, from_problems, run_checks
from mmflowers.datasets.folder import DatasetFolder, read_dataset_folder
from mmflowers.datasets.wrappers import innermost
from mmflowers.utils.errors import InputError, Problem, is_own

if TYPE_CHECKING:
    import torch

    from mmflowers.datasets.identity import PhotoSet
    from mmflowers.datasets.served import Served
    from mmflowers.datasets.views import View

SPLITS = ("train", "val", "test")


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
        checkpoints: ``(name, checkpoint)`` of it and of each file of weights that the model's config names itself.
        testing: Whether it is a test.
        split: The list that a test is on.
        tta: Whether it is with test-time augmentation.
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
    checkpoints: list[tuple[str, dict]] = field(default_factory=list)
    testing: bool = False
    split: str = "val"
    tta: bool = False
    options: Sequence[str] = ()
    deep: bool = False

    @property
    def resume(self) -> bool:
        return bool(self.config.get("resume"))

    @cached_property
    def start(self) -> str:
        """The weights that the run starts from: ``source``, else what the model's config names first; or empty."""
        from mmflowers.weights.sources import resolve_source, start_in_model

        start = self.source or start_in_model(self.config.get("model"))
        with contextlib.suppress(InputError):  # said where it is loaded
            return resolve_source(start)
        return start

    @cached_property
    def lists(self) -> dict[str, list[tuple[str, int]]]:
        """``(path in the folder, label)`` of each list of the dataset folder, the test list too where there is one."""
        if self.folder is None:
            return {}
        lists = dict(self.folder.samples)
        for split in SPLITS:
            if split not in lists:
                with contextlib.suppress(InputError):  # of a split that this run doesn't use
                    lists |= read_dataset_folder(self.folder.root, (split,), files_may_be_gone=True).samples
        return lists

    def path(self, name: str) -> Path:
        """Where a photo of ``lists`` lies."""
        assert self.folder is not None, "without a folder there are no lists"
        return self.folder.root / name

    @cached_property
    def photos(self) -> dict[str, PhotoSet]:
        """Identities of the photos of each list; of a test, of the tested list alone."""
        from mmflowers.datasets.identity import read_photos

        return {
            split: read_photos([(self.path(name), label) for name, label in samples])
            for split, samples in self.lists.items()
            if not self.testing or split == self.split
        }

    @cached_property
    def given_photos(self) -> dict[str, PhotoSet]:
        """Identities of the photos that the loaders for training and validation read."""
        from mmflowers.datasets.identity import read_photos

        return {side: read_photos(self.loaders[side].samples) for side in ("train", "val") if side in self.loaders}

    @cached_property
    def photo_size(self) -> tuple[int, int]:
        """(height, width) of a photo of the usual shape."""
        from mmflowers.datasets.views import usual_size

        return usual_size([self.path(name) for samples in self.lists.values() for name, _ in samples])

    @cached_property
    def unusual(self) -> list[str]:
        """Photos of unusual shapes, on which a pipeline may do what it doesn't on others."""
        from mmflowers.datasets.views import unusual_photos

        own = self.lists.get(self.split if self.testing else "val", ())
        return unusual_photos([self.path(name) for name, _ in own])

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides of the config that this run uses."""
        return ("test",) if self.testing else ("train", "val", "test")

    @property
    def reported_sides(self) -> tuple[str, ...]:
        """Those of them whose numbers are reported."""
        return tuple(side for side in self.sides if side != "train")

    @property
    def views(self) -> dict[str, View]:
        """The view of each side's pipeline, where it can be measured."""
        return {side: view for side, view in self.measured.items() if not isinstance(view, InputError)}

    @cached_property
    def measured(self) -> dict[str, View | InputError]:
        """The view of each side's pipeline, or why it can't be measured."""
        from mmflowers.datasets.views import measure_view

        found: dict[str, View | InputError] = {}
        pipelines: dict[str, list] = {}
        for side in self.sides:
            dataset = innermost(self.config.get(f"{side}_dataloader")) or {}
            steps = [step for step in keys.as_list(dataset.get("pipeline")) if isinstance(step, dict)]
            same = next((other for other, its_steps in pipelines.items() if its_steps == steps), None)
            if not steps:
                continue
            pipelines[side] = steps
            try:
                photos = self.unusual if side != "train" else ()
                found[side] = (
                    found[same] if same else measure_view(steps, self.photo_size, keys.scope(self.config), photos)
                )
            except InputError as error:
                found[side] = error
        return found

    @cached_property
    def examples(self) -> dict[str, torch.Tensor]:
        """The image that each side's pipeline makes of a photo, (channels, height, width), where it makes one."""
        from mmflowers.datasets.views import example

        found = {}
        for side in self.sides:
            dataset = innermost(self.config.get(f"{side}_dataloader")) or {}
            steps = [step for step in keys.as_list(dataset.get("pipeline")) if isinstance(step, dict)]
            with contextlib.suppress(InputError):  # reported by the check of what can be measured
                image = example(steps, self.photo_size, keys.scope(self.config)) if steps else None
                if image is not None and getattr(image, "ndim", 0) == 3:
                    found[side] = image
        return found

    @cached_property
    def real_model(self) -> Any:
        """The network with numbers in it, on the device of the run: what doubt about ``model`` is settled by.

        Raises:
            InputError: It can't be built.
        """
        from mmengine.device import get_device

        return _build_model(self.config, (get_device(),))

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What the checkpoint says about itself."""
        from mmflowers.weights.loading import meta_of

        return meta_of(self.checkpoint)

    @cached_property
    def trained_view(self) -> View | None:
        """The view of the tested run's validation, if its checkpoint has one."""
        from mmflowers.datasets.views import View
        from mmflowers.engine.record import VIEW

        return View.from_dict(self.meta.get(VIEW))

    @property
    def loaders(self) -> dict[str, Served]:
        """The photos that each loader gives, of those that can be built."""
        return {side: loader for side, loader in self.built.items() if not isinstance(loader, InputError)}

    @cached_property
    def built(self) -> dict[str, Served | InputError]:
        """The photos that each loader gives, or why it can't be built."""
        from mmengine.registry import DefaultScope

        from mmflowers.datasets.served import served, without_decoding
        from mmflowers.engine.runner import FlowersRunner

        found: dict[str, Served | InputError] = {}
        for side in self.sides:
            config = self.config.get(f"{side}_dataloader")
            if not isinstance(config, dict):
                continue
            try:
                with DefaultScope.overwrite_default_scope(keys.scope(self.config)):
                    found[side] = served(FlowersRunner.build_dataloader(without_decoding(config), seed=0))
            except InputError as error:
                found[side] = error
            except Exception as error:  # constructors check their arguments in every way there is
                if is_own(error):
                    raise
                what = f"can't be built: {type(error).__name__}: {error}"
                found[side] = InputError(what, "compare it with the dataloaders in configs/")
        return found


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
    from mmflowers.engine.training import TrainOptions, configure

    problems: list[tuple[str, Problem]] = []
    with tempfile.TemporaryDirectory() as unused:
        config = configure(
            TrainOptions(config_path, data=data, weights=weights, work_dir=unused, cfg_options=cfg_options), problems
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
    config: Any,
    problems: Iterable[tuple[str, Problem]] = (),
    *,
    split: str = "val",
    tta: bool = False,
    options: Sequence[str] = (),
) -> list[Finding]:
    """Everything that can be known to be wrong with a test, given the config that ``test`` settled."""
    return _check(Case(config, testing=True, split=split, tta=tta, options=options), problems)


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
    from mmflowers.weights.sources import needs_download

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
    if not any(needs_download(source) for source in _sources(case)):
        found += _load(case)
        return run_checks(case, checks, found)
    findings = run_checks(case, checks, found)
    if any(finding.level == "error" for finding in findings):
        return findings  # a download can wait until the rest is in order
    return run_checks(case, checks, findings + _load(case))


def _build_model(config: Any, devices: Sequence[str] = ("meta", "cpu")) -> Any:
    """The network of a config, on the meta device where its code allows: names and shapes are all that is needed.

    Raises:
        InputError: It can't be built.
    """
    import torch
    from mmengine.registry import DefaultScope

    from mmflowers.registry import MODELS

    model = config.get("model")
    if not isinstance(model, dict):
        return None  # said by the check of kinds
    model = copy.deepcopy(dict(model))
    for part in (model, model.get("backbone")):
        if isinstance(part, dict) and part.get("pretrained") is True:
            part["pretrained"] = False  # timm would download at once
    model.setdefault("data_preprocessor", copy.deepcopy(config.get("data_preprocessor")))
    reason = None
    with DefaultScope.overwrite_default_scope(keys.scope(config)):
        for device in devices:
            logging.disable(logging.WARNING)  # what it says while it is built, it says again in the run
            try:
                with torch.device(device):
                    return MODELS.build(copy.deepcopy(model))
            except Exception as error:  # as above
                if is_own(error):
                    raise
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"  # Hugging Face's have several lines
            finally:
                logging.disable(logging.NOTSET)
    raise InputError(f"can't be built: {reason}", "mend the config's model")


def _with_record(checkpoint: dict, path: Path) -> dict:
    """A checkpoint with the record of its photos: weights of ``tools/train_torch.py`` have it in their last.pth."""
    from mmflowers.datasets.identity import TRAINED_ON
    from mmflowers.weights.loading import load_checkpoint_file, meta_of

    if meta_of(checkpoint) or not path.with_name("last.pth").is_file():
        return checkpoint
    try:
        beside = load_checkpoint_file(path.with_name("last.pth"))
    except InputError:  # of something else
        return checkpoint
    return {**checkpoint, "meta": {TRAINED_ON: beside.get(TRAINED_ON)}} if TRAINED_ON in beside else checkpoint


def _sources(case: Case) -> list[str]:
    """All files of weights that a run names."""
    from mmflowers.weights.sources import sources_in_model

    return [source for source in dict.fromkeys([case.source, *sources_in_model(case.config.get("model"))]) if source]


def _load(case: Case) -> list[Finding]:
    """Load the checkpoint and what the model's config names; what is wrong with them is returned."""
    from mmflowers.weights.loading import load_checkpoint_file
    from mmflowers.weights.sources import fetch_weights

    problems = []
    for source in _sources(case):
        try:
            path = fetch_weights(source)
            checkpoint = load_checkpoint_file(path)
        except InputError as problem:
            problems += from_problems("weights", problem.problems)
            continue
        case.checkpoints.append((source, _with_record(checkpoint, path)))
        if source == case.source:
            case.checkpoint = checkpoint
    return problems
