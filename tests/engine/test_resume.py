"""Interrupted and gone on with: the same weights to the last bit, whatever the interruption."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import NARROW
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmpretrain.registry import HOOKS
from torch.utils.data import DataLoader

from mmflowers.datasets.seeded import SEEDING_VERSION
from mmflowers.engine.runner import FlowersRunner
from mmflowers.engine.signals import ONE_SIGNAL
from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.utils.errors import InputError
from mmflowers.utils.terminal import Stopped

BATCHES = 5  # an epoch: 40 photos in batches of 8
names = itertools.count()


@HOOKS.register_module()
class SignalHook(Hook):
    """Sends the process a signal at a place of the training, as a scheduler or a user would."""

    def __init__(self, at: str, number: int, signum: int = signal.SIGTERM, after: float = 0.0) -> None:
        self.at, self.number, self.signum, self.after = at, number, signum, after

    def _count(self, at: str) -> None:
        if at == self.at:
            self.number -= 1
            if not self.number:
                time.sleep(self.after)
                os.kill(os.getpid(), self.signum)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._count("iteration")

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._count("validation")


Run = Callable[..., dict]


@pytest.fixture
def run(dataset: Path, tiny_config: Path, tmp_path: Path) -> Run:
    """Train in ``work_dir``, go on where there is something to go on with, and return ``last.pth``."""
    return runner_in(tmp_path, dataset, tiny_config)


@pytest.fixture(scope="module")
def ended_once(dataset: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ended")
    runner_in(folder, dataset, tiny_config)("ended")
    return folder / "ended"


@pytest.fixture
def ended(ended_once: Path, tmp_path: Path) -> Path:
    """The work dir of a training that has come to its end."""
    return shutil.copytree(ended_once, tmp_path / "ended")


def runner_in(parent: Path, dataset: Path, tiny_config: Path) -> Run:
    def train_it(
        work_dir: str, options: Sequence[str] = (), hooks: Sequence[dict] = (), extra: str = "", **arguments
    ) -> dict:
        folder, path = parent / work_dir, tiny_config
        if extra:
            path = parent / "tiny.py"
            path.write_text(f"_base_ = {str(tiny_config)!r}\n{extra}\n", encoding="utf-8")
        resume = (folder / "last.pth").exists()
        weights = None if resume else "none"
        # MMEngine keeps a run's state under its name, which by default differs by the second only.
        name = f"experiment_name=test{next(names)}"
        config = configure(
            TrainOptions(
                path,
                data=dataset,
                weights=weights,
                work_dir=folder,
                resume=resume,
                cfg_options=[name, *NARROW, *options],
                **arguments,
            )
        )
        config.custom_hooks = [*config.custom_hooks, *hooks]
        train(config)
        return torch.load(folder / "last.pth", weights_only=True)

    return train_it


def stopped(run: Run, work_dir: str, *stops: tuple[str, int], **arguments) -> dict:
    """A run that is stopped again and again, ``stops`` counting from each start, and then comes to its end."""
    for at, number in stops:
        with pytest.raises(Stopped):
            run(
                work_dir,
                hooks=[*arguments.get("hooks", ()), dict(type="SignalHook", at=at, number=number)],
                **{key: value for key, value in arguments.items() if key != "hooks"},
            )
    return run(work_dir, **arguments)


def assert_equal(one: object, other: object, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{number}]")
    else:
        assert one == other, where


EMA = dict(type="EMAHook", momentum=0.1, update_buffers=True)
WORKERS = ["train_dataloader.persistent_workers=True"]
LATE_VALIDATION = ["train_cfg.max_epochs=4", "train_cfg.val_interval=4", "train_cfg.dynamic_intervals=[(2,1)]"]
ACCUMULATION = ["optim_wrapper.accumulative_counts=2"]
MIXUP = [
    "train_dataloader.num_workers=1",  # loading in the main process would seed what is drawn in it
    "model.train_cfg.augments.type=Mixup",
    "model.train_cfg.augments.alpha=1.0",
    "model.head.loss.use_soft=True",
]


@pytest.mark.parametrize(
    ("stops", "arguments"),
    [
        ([("iteration", 2)], {}),
        pytest.param([("iteration", 5)], {}, marks=pytest.mark.slow),
        pytest.param([("validation", 1)], {}, marks=pytest.mark.slow),
        pytest.param([("validation", 2), ("iteration", 2), ("iteration", 1)], {}, marks=pytest.mark.slow),
        pytest.param([("iteration", 3), ("iteration", 4)], {"amp": True}, marks=pytest.mark.slow),
        pytest.param([("iteration", 3)], {"hooks": [EMA]}, marks=pytest.mark.slow),
        pytest.param([("validation", 1), ("iteration", 1)], {"hooks": [EMA]}, marks=pytest.mark.slow),
        pytest.param([("iteration", 3)], {"options": MIXUP}, marks=pytest.mark.slow),
        pytest.param([("iteration", 3), ("iteration", 4)], {"options": ACCUMULATION}, marks=pytest.mark.slow),
        pytest.param(
            [("iteration", 3)], {"options": [*WORKERS, "train_dataloader.num_workers=2"]}, marks=pytest.mark.slow
        ),
        pytest.param([("iteration", 7)], {"options": ["train_dataloader.num_workers=1"]}, marks=pytest.mark.slow),
        pytest.param([("validation", 1)], {"options": LATE_VALIDATION}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_chain_of_stopped_pieces_ends_in_the_weights_of_a_run_never_stopped(
    stops: list, arguments: dict, run: Run
) -> None:
    straight = run("straight", **arguments)
    pieces = stopped(run, "pieces", *stops, **arguments)
    for part in straight.keys() - {"meta", "message_hub"}:
        assert_equal(straight[part], pieces[part], part)
    assert straight["meta"]["iter"] == pieces["meta"]["iter"]
    for key in ("best_score", "best_epoch"):
        assert straight["message_hub"]["runtime_info"][key] == pieces["message_hub"]["runtime_info"][key]


@pytest.mark.slow
def test_a_run_of_another_seeding_goes_on_and_never_claims_to_be_the_uninterrupted_one(run, tmp_path):
    with pytest.raises(Stopped):
        run("run", hooks=[dict(type="SignalHook", at="iteration", number=2)])
    last = tmp_path / "run" / "last.pth"
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["meta"].pop("seeding") == SEEDING_VERSION
    torch.save(checkpoint, last)  # as those were that didn't say
    assert run("run")["meta"]["seeding"] == 1
    (_, resumed) = sorted((tmp_path / "run").glob("*/*.log"))
    assert "weights will not be those of an uninterrupted run" in resumed.read_text()


@pytest.mark.slow
def test_ctrl_c_is_answered_like_sigterm_and_a_second_one_at_once(run: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("a", hooks=[dict(type="SignalHook", at="iteration", number=2, signum=signal.SIGINT)])
    last = torch.load(tmp_path / "a" / "last.pth", weights_only=True)
    assert (last["meta"]["epoch"], last["meta"]["iter"], last["meta"]["epoch_iter"]) == (0, 2, 2)
    before = signal.getsignal(signal.SIGINT)
    first = dict(type="SignalHook", at="iteration", number=2, signum=signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run("b", hooks=[first, {**first, "after": ONE_SIGNAL + 0.1}])
    assert not (tmp_path / "b" / "last.pth").exists()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.parametrize("stop", [("iteration", 2), ("iteration", 5), ("validation", 1)])
def test_a_run_goes_on_with_smaller_batches_where_it_stood(stop: tuple[str, int], run: Run) -> None:
    at, number = stop
    with pytest.raises(Stopped):
        run("a", hooks=[dict(type="SignalHook", at=at, number=number)])
    smaller = ["train_dataloader.batch_size=4"]
    last = run("a", options=smaller)
    whole = run("whole", options=smaller)
    assert last["meta"]["iter"] == whole["meta"]["iter"] == 20
    # The schedules stand where they would stand had the batches been small from the start.
    assert_equal(last["optimizer"]["param_groups"], whole["optimizer"]["param_groups"])
    for one, other in zip(last["param_schedulers"], whole["param_schedulers"], strict=True):
        assert one["_last_value"] == pytest.approx(other["_last_value"])


@pytest.mark.slow
def test_a_run_stopped_within_an_epoch_refuses_batches_that_have_no_such_place(run: Run) -> None:
    with pytest.raises(Stopped):
        run("a", hooks=[dict(type="SignalHook", at="iteration", number=2)])
    with pytest.raises(InputError, match="within an epoch of batches of 8 in 1 processes; here they are batches of 3"):
        run("a", options=["train_dataloader.batch_size=3"])


@pytest.mark.slow
def test_a_resumed_run_keeps_its_seed(run: Run) -> None:
    straight = run("straight", seed=5)
    with pytest.raises(Stopped):
        run("a", seed=5, hooks=[dict(type="SignalHook", at="iteration", number=3)])
    with pytest.raises(InputError, match=r"seed 6, but .* is of a run with seed 5"):
        run("a", seed=6)
    assert_equal(straight["state_dict"], run("a")["state_dict"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (dict(laptop=True), r"train_dataloader\.dataset\.pipeline\.1\.scale was \d+, now \d+"),
        (dict(freeze_to="layer3", views=1), r'train_cfg\.freeze_to was "layer3", now not set; train_cfg\.views was 1'),
        (dict(probe=True), r'train_cfg\.type was "LinearProbeLoop", now not set'),
    ],
)
def test_a_run_is_not_resumed_by_another_recipe(run: Run, flags: dict, told: str) -> None:
    command = "python tools/train.py mine.py --flag"
    run("a", command=command, **flags)
    with pytest.raises(InputError, match=told) as caught:
        run("a")
    (problem,) = caught.value.problems
    assert f"started with: {command};" in problem.hint
    run("a", **flags)


@pytest.mark.slow
def test_what_makes_a_run_quicker_or_is_changed_on_purpose_is_the_same_recipe(run: Run) -> None:
    run("a", fast=True, options=["optim_wrapper.optimizer.lr=0.03"])
    with pytest.raises(InputError, match=r"of another recipe: optim_wrapper\.optimizer\.lr was 0\.03, now 0\.\d+"):
        run("a")
    run("a", amp=True, options=["optim_wrapper.optimizer.lr=0.03", "optim_wrapper.clip_grad.max_norm=1.0"])


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("optim_wrapper.optimizer.lr=0.04", r"optim_wrapper\.optimizer\.lr was 0\.\d+, now 0\.04"),
        ("optim_wrapper.optimizer.momentum=0.8", r"optim_wrapper\.optimizer\.momentum was 0\.9, now 0\.8"),
        ("optim_wrapper.optimizer.weight_decay=0.1", r"optimizer\.weight_decay was not set, now 0\.1"),
        ("optim_wrapper.paramwise_cfg.bias_lr_mult=2", r"paramwise_cfg\.bias_lr_mult was not set, now 2"),
        ("param_scheduler.1.eta_min=0.001", r"param_scheduler\.1\.eta_min was not set, now 0\.001"),
        ("auto_scale_lr.base_batch_size=4", r"auto_scale_lr\.base_batch_size was not set, now 4"),
        ("train_cfg.max_epochs=4", r"train_cfg\.max_epochs was 2, now 4, and param_scheduler ends at epoch 2"),
        ("train_cfg.max_epochs=1", r"train_cfg\.max_epochs is 1, and .*last\.pth has come to epoch 2 already"),
        ("randomness.seed=7", r"seed 7, but .*last\.pth is of a run with seed 0"),
    ],
)
def test_what_a_resumed_run_would_not_use_is_refused_and_not_recorded(
    option: str, told: str, run: Run, ended: Path
) -> None:
    before = (ended / "tiny.py").read_bytes(), (ended / "last.pth").read_bytes()
    with pytest.raises(InputError, match=told) as caught:
        run("ended", options=[option])
    (problem,) = caught.value.problems
    assert "--cfg-options changes on purpose" not in problem.hint
    assert ((ended / "tiny.py").read_bytes(), (ended / "last.pth").read_bytes()) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    ["dict(type='MultiStepLR', milestones=[1, 3], by_epoch=True)", "dict(type='ConstantLR', factor=1.0)"],
)
def test_a_longer_training_goes_on_as_if_it_had_been_that_long_from_the_start(schedule: str, run: Run) -> None:
    extra = f"param_scheduler = [{schedule}]"
    run("a", extra=extra)
    longer, straight = (run(folder, ["train_cfg.max_epochs=5"], extra=extra) for folder in ("a", "straight"))
    for part in ("state_dict", "optimizer", "param_schedulers"):
        assert_equal(longer[part], straight[part], part)


def test_a_schedule_whose_rates_follow_from_the_length_keeps_its_length(run: Run) -> None:
    extra = "param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True)]"
    run("a", extra=extra)
    with pytest.raises(InputError, match="was 2, now 3, and CosineAnnealingLR names no end"):
        run("a", ["train_cfg.max_epochs=3"], extra=extra)


def test_a_checkpoint_without_a_record_of_its_recipe_is_not_resumed(run: Run, ended: Path) -> None:
    checkpoint = torch.load(ended / "last.pth", weights_only=True)
    del checkpoint["meta"]["recipe"]
    torch.save(checkpoint, ended / "last.pth")
    with pytest.raises(InputError, match="has no record of its recipe"):
        run("ended")


def build_loader(config: Config, **changes) -> DataLoader:
    """The config's training loader, as a runner builds it."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return FlowersRunner.build_dataloader({**config.train_dataloader, **changes}, seed=3)


@pytest.mark.parametrize("sampler", ["InfiniteSampler", "RepeatAugSampler"])
def test_a_photo_that_a_sampler_gives_again_is_augmented_anew(sampler: str, dataset: Path, tiny_config: Path) -> None:
    config = configure(TrainOptions(tiny_config, data=dataset, weights="none"))
    loader = build_loader(config, sampler=dict(type=sampler))
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in itertools.islice(loader, 3 * BATCHES):
        for sample, pixels in zip(batch["data_samples"], batch["inputs"], strict=True):
            seen.setdefault(sample.img_path, []).append(pixels)
    pairs = [pair for pixels in seen.values() for pair in itertools.combinations(pixels, 2)]
    assert len(pairs) > BATCHES and not any(torch.equal(*pair) for pair in pairs)


@pytest.mark.slow
def test_a_run_that_has_ended_is_resumed_to_no_effect(run: Run) -> None:
    ended = run("a")
    assert_equal(ended["state_dict"], run("a")["state_dict"])


LOADERS = [
    dict(num_workers=0, persistent_workers=False),
    dict(num_workers=1, persistent_workers=False),
    dict(num_workers=2, persistent_workers=True),
    dict(num_workers=3, persistent_workers=False, prefetch_factor=1),
]


@pytest.mark.slow
def test_augmentation_differs_every_epoch_and_is_the_same_in_all_loader_settings(
    dataset: Path, tiny_config: Path
) -> None:
    config = configure(TrainOptions(tiny_config, data=dataset, weights="none"))
    seen = []
    for loader in LOADERS:
        built = build_loader(config, **loader)
        epochs = []
        for epoch in (0, 1, 0):
            built.sampler.set_epoch(epoch)
            samples = [
                (sample.img_path, pixels)
                for batch in built
                for sample, pixels in zip(batch["data_samples"], batch["inputs"], strict=True)
            ]
            epochs.append(dict(samples))
        seen.append(epochs)
    first, second, again = seen[0]
    assert first.keys() == second.keys() and len(first) == 8 * BATCHES
    assert all(torch.equal(first[path], again[path]) for path in first)
    assert sum(torch.equal(first[path], second[path]) for path in first) == 0
    for epochs in seen[1:]:
        for epoch, others in zip((first, second, again), epochs, strict=True):
            assert list(others) == list(epoch)
            assert all(torch.equal(epoch[path], others[path]) for path in epoch)
