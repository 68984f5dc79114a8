"""Run the checks on a training, a test or a dataset folder."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
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
    """The training, test or dataset folder to check.

    Attributes:
        config: The final config of the run; empty if only a dataset folder is checked.
        root: The dataset folder, if the config names one.
        folder: Its content; None if it has errors.
        model: The network of the config, on the meta device if possible; None if it can't be built.
        checkpoint: The initial weights of a training, or the tested checkpoint; None if it isn't loaded.
        source: Its name.
        checkpoints: ``(name, checkpoint)`` of it and of each weight file that the model's config names.
        testing: Whether it is a test.
        split: The split of a test.
        tta: Whether the test uses test-time augmentation.
        resume: Whether the training is resumed.
        options: The values of ``--cfg-options``.
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
        """The initial weights: ``source``, else the first that the model's config names; "" if there are none."""
        from mmflowers.weights.sources import resolve_source, start_in_model

        start = self.source or start_in_model(self.config.get("model"))
        with contextlib.suppress(InputError):  # reported when it is loaded
            return resolve_source(start)
        return start

    @cached_property
    def lists(self) -> dict[str, list[tuple[str, int]]]:
        """``(path in the folder, label)`` of each list of the dataset folder, including a test list."""
        if self.folder is None:
            return {}
        lists = dict(self.folder.samples)
        for split in SPLITS:
            if split not in lists:
                with contextlib.suppress(InputError):  # of a split that isn't used
                    lists |= read_dataset_folder(self.folder.root, (split,), files_may_be_gone=True).samples
        return lists

    def path(self, name: str) -> Path:
        """Return the path of a photo of ``lists``."""
        assert self.folder is not None, "without a folder there are no lists"
        return self.folder.root / name

    @cached_property
    def photos(self) -> dict[str, PhotoSet]:
        """Identities of the photos of each list; for a test, only of the tested list."""
        from mmflowers.datasets.identity import read_photos

        return {
            split: read_photos([(self.path(name), label) for name, label in samples])
            for split, samples in self.lists.items()
            if not self.testing or split == self.split
        }

    @cached_property
    def features(self) -> dict[str, list[bytes]]:
        """Local features of the photos of each list, which find copies that are cropped, for example."""
        from mmflowers.datasets.identity import read_features

        return {split: read_features([self.path(name) for name, _ in self.lists[split]]) for split in self.photos}

    @cached_property
    def given_photos(self) -> dict[str, PhotoSet]:
        """Identities of the photos of the training and validation loaders."""
        from mmflowers.datasets.identity import read_photos

        return {side: read_photos(self.loaders[side].samples) for side in ("train", "val") if side in self.loaders}

    @cached_property
    def photo_size(self) -> tuple[int, int]:
        """(height, width) of a typical photo."""
        from mmflowers.datasets.views import usual_size

        return usual_size([self.path(name) for samples in self.lists.values() for name, _ in samples])

    @cached_property
    def unusual(self) -> list[str]:
        """Photos of unusual shapes, for which a pipeline may behave differently."""
        from mmflowers.datasets.views import unusual_photos

        own = self.lists.get(self.split if self.testing else "val", ())
        return unusual_photos([self.path(name) for name, _ in own])

    @property
    def sides(self) -> tuple[str, ...]:
        """The loaders of the config to check: "train", "val", "test"."""
        return ("test",) if self.testing else ("train", "val", "test")

    @property
    def reported_sides(self) -> tuple[str, ...]:
        """Those whose results are reported."""
        return tuple(side for side in self.sides if side != "train")

    @cached_property
    def pipelines(self) -> dict[str, list[dict]]:
        """The steps of each loader's pipeline, of those that have any."""
        found = {}
        for side in self.sides:
            dataset = innermost(self.config.get(f"{side}_dataloader")) or {}
            found[side] = [step for step in keys.as_list(dataset.get("pipeline")) if isinstance(step, dict)]
        return {side: steps for side, steps in found.items() if steps}

    @property
    def views(self) -> dict[str, View]:
        """The measured view of each loader's pipeline, if it can be measured."""
        return {side: view for side, view in self.measured.items() if not isinstance(view, InputError)}

    @cached_property
    def measured(self) -> dict[str, View | InputError]:
        """The measured view of each loader's pipeline, or the error."""
        from mmflowers.datasets.views import measure_view

        found: dict[str, View | InputError] = {}
        for side, steps in self.pipelines.items():
            same = next((other for other in found if self.pipelines[other] == steps), None)
            scope, photos = keys.scope(self.config), self.unusual if side != "train" else ()
            try:
                found[side] = found[same] if same else measure_view(steps, self.photo_size, scope, photos)
            except InputError as error:
                found[side] = error
        return found

    @cached_property
    def examples(self) -> dict[str, torch.Tensor]:
        """An output image of each loader's pipeline, of shape (channels, height, width), if it outputs one."""
        from mmflowers.datasets.views import example

        found = {}
        for side, steps in self.pipelines.items():
            with contextlib.suppress(InputError):  # reported by the check pipelines_can_be_measured
                image = example(steps, self.photo_size, keys.scope(self.config))
                if getattr(image, "ndim", 0) == 3:
                    found[side] = image
        return found

    @cached_property
    def real_model(self) -> Any:
        """The network with real tensors, on the device of the run.

        Raises:
            InputError: It can't be built.
        """
        from mmengine.device import get_device

        return _build_model(self.config, (get_device(),))

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The metadata of the checkpoint."""
        from mmflowers.weights.loading import meta_of

        return meta_of(self.checkpoint)

    @cached_property
    def trained_view(self) -> View | None:
        """The measured view of the tested run's validation pipeline, if its checkpoint has one."""
        from mmflowers.datasets.views import View
        from mmflowers.engine.record import VIEW

        return View.from_dict(self.meta.get(VIEW))

    @property
    def loaders(self) -> dict[str, Served]:
        """The photos of each loader that can be built."""
        return {side: loader for side, loader in self.built.items() if not isinstance(loader, InputError)}

    @cached_property
    def built(self) -> dict[str, Served | InputError]:
        """The photos of each loader, with absolute paths, or the error if it can't be built."""
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
                    loader = served(FlowersRunner.build_dataloader(without_decoding(config), seed=0))
                samples = [(os.path.abspath(path), label) for path, label in loader.samples]  # noqa: PTH100
                found[side] = loader._replace(samples=samples)
            except InputError as error:
                found[side] = error
            except Exception as error:  # constructors raise any type for invalid arguments
                if is_own(error):
                    raise
                what = f"can't be built: {type(error).__name__}: {error}"
                found[side] = InputError(what, keys.EXAMPLES)
        return found


def check_config(
    config_path: str | Path,
    *,
    data: str | Path | None = None,
    weights: str | None = None,
    cfg_options: Sequence[str] = (),
    deep: bool = False,
) -> list[Finding]:
    """Check a training with a config; the content of its work dir is ignored.

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
    """Check a training.

    Args:
        config: From ``mmflowers.engine.training.configure``.
        problems: Those that ``configure`` found.
        options: The values of ``--cfg-options``.
        deep: Whether to decode every photo.
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
    """Check a test, given its final config from ``mmflowers.engine.testing``."""
    return _check(Case(config, testing=True, split=split, tta=tta, options=options), problems)


def check_dataset(root: str | Path, *, deep: bool = False) -> list[Finding]:
    """Check a dataset folder."""
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
        with contextlib.suppress(InputError):  # it is in problems
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
        return findings  # download only if there are no other errors
    return run_checks(case, checks, findings + _load(case))


def _build_model(config: Any, devices: Sequence[str] = ("meta", "cpu")) -> Any:
    """Build the network of a config on the first possible device; on "meta", it has only names and shapes.

    Raises:
        InputError: It can't be built.
    """
    import torch

    model = config.get("model")
    if not isinstance(model, dict):
        return None  # reported by the check parts_are_there
    model = copy.deepcopy(dict(model))
    for part in (model, model.get("backbone")):
        if isinstance(part, dict) and part.get("pretrained") is True:
            part["pretrained"] = False  # timm would download weights
    model.setdefault("data_preprocessor", copy.deepcopy(config.get("data_preprocessor")))
    reason = None
    for device in devices:
        logging.disable(logging.WARNING)  # its messages appear again in the run
        try:
            with torch.device(device):
                return keys.build(config, model, "MODELS")
        except Exception as error:  # as above
            if is_own(error):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"  # may have several lines
        finally:
            logging.disable(logging.NOTSET)
    raise InputError(f"can't be built: {reason}", "fix the config's model")


def _with_record(checkpoint: dict, path: Path) -> dict:
    """Add the record of the training photos to weights of ``tools/train_torch.py``, which is in their last.pth."""
    from mmflowers.datasets.identity import TRAINED_ON
    from mmflowers.weights.loading import load_checkpoint_file, meta_of

    if meta_of(checkpoint) or not path.with_name("last.pth").is_file():
        return checkpoint
    try:
        beside = load_checkpoint_file(path.with_name("last.pth"))
    except InputError:  # of another program
        return checkpoint
    return {**checkpoint, "meta": {TRAINED_ON: beside.get(TRAINED_ON)}} if TRAINED_ON in beside else checkpoint


def _sources(case: Case) -> list[str]:
    """Return all weight files of a run."""
    from mmflowers.weights.sources import sources_in_model

    return [source for source in dict.fromkeys([case.source, *sources_in_model(case.config.get("model"))]) if source]


def _load(case: Case) -> list[Finding]:
    """Load the checkpoint and the weight files of the model's config; return their problems."""
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
