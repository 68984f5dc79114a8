"""What a training would crash on, or do nothing about, and what is known of it before the first iteration."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import NARROW
from mmengine.device import get_device
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS, TRANSFORMS
from torch.utils.data import get_worker_info

from mmflowers.checks.findings import CHECKS
from mmflowers.checks.run import check_config
from mmflowers.datasets import wrappers
from mmflowers.engine.training import TrainOptions, configure, train
from mmflowers.utils import files
from mmflowers.utils.errors import InputError, is_own

Check = Callable[..., list[str]]
STOP = "custom_hooks = [dict(type='EarlyStoppingHook', monitor='{}', rule='greater')]"
PLATEAU = "param_scheduler = dict(_delete_=True, type='ReduceOnPlateauLR', by_epoch=True{})"
BEST = "default_hooks = dict(checkpoint=dict(save_best={}))"
OTHER_METRIC = "val_evaluator = dict(_delete_=True, type='SingleLabelMetric')"


@pytest.fixture
def check(dataset: Path, tiny_config: Path, tmp_path: Path) -> Check:
    """The findings about the tiny config with some lines more, as ``level: where: what``."""

    def check(lines: str = "", *options: str, narrow: tuple[str, ...] = NARROW) -> list[str]:
        path = tmp_path / "mine.py"
        path.write_text(f"_base_ = {str(tiny_config)!r}\n{lines}\n", encoding="utf-8")
        findings = check_config(path, data=dataset, weights="none", cfg_options=[*narrow, *options])
        return [f"{finding.level}: {finding.where}: {finding.what}" for finding in findings]

    return check


@pytest.mark.parametrize(
    ("lines", "key", "metric", "given"),
    [
        (STOP.format("accuracy/top5"), "custom_hooks.0.monitor", "accuracy/top5", "accuracy/top1"),
        (PLATEAU.format(", monitor='acc'"), "param_scheduler.monitor", "acc", "accuracy/top1"),
        (PLATEAU.format(""), "param_scheduler.monitor", "loss", "accuracy/top1"),
        (BEST.format("'acc'"), "default_hooks.checkpoint.save_best", "acc", "accuracy/top1"),
        (OTHER_METRIC, "default_hooks.checkpoint.save_best", "accuracy/top1", "single-label/f1-score, single"),
    ],
    ids=["early stopping", "plateau", "plateau's default", "save_best", "save_best's default"],
)
def test_a_metric_that_no_evaluator_gives_is_an_error(
    lines: str, key: str, metric: str, given: str, check: Check
) -> None:
    (finding,) = [line for line in check(lines) if line.startswith("error")]
    assert finding.startswith(f"error: {key}: no evaluator computes {metric}; val_evaluator computes {given}")


def test_metrics_that_an_evaluator_gives_are_no_finding(check: Check) -> None:
    assert check(f"{STOP.format('accuracy/top1')}\n{PLATEAU.format(', monitor={!r}'.format('accuracy/top1'))}") == []
    f1 = f"{OTHER_METRIC}\ntest_evaluator = val_evaluator\n{BEST.format(repr('single-label/f1-score'))}"
    assert check(f1) == []


def test_early_stopping_without_a_rule_or_a_validation_is_told(check: Check) -> None:
    no_rule = "custom_hooks = [dict(type='EarlyStoppingHook', monitor='accuracy')]"
    assert any("custom_hooks.0.rule: Cannot infer the rule" in line for line in check(no_rule.replace("accuracy", "x")))
    no_validation = "val_dataloader = None\nval_cfg = None\nval_evaluator = None\n"
    (finding,) = check(no_validation + STOP.format("accuracy/top1"))
    assert (
        finding
        == "warning: custom_hooks.0.monitor: monitors accuracy/top1, but there is no validation, so it has no effect"
    )


@pytest.fixture
def run(check: Check, dataset: Path, tmp_path: Path) -> Callable[[], object]:
    """Train by what was checked last, without the checks."""

    def run() -> object:
        options = dict(data=dataset, weights="none", work_dir=tmp_path / "run", cfg_options=NARROW)
        return train(configure(TrainOptions(tmp_path / "mine.py", **options)))

    return run


@METRICS.register_module()
class OwnMetric(BaseMetric):
    """A user's metric, whose names are known when it is computed."""

    def process(self, data_batch, data_samples) -> None:
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list) -> dict:
        return {"own": len(results)}


@pytest.mark.slow
@pytest.mark.parametrize("lines", [STOP.format("foo"), PLATEAU.format(", monitor='foo'")], ids=["stop", "plateau"])
def test_a_metric_that_a_users_evaluator_does_not_give_ends_the_run_in_a_line(
    lines: str, check: Check, run: Callable
) -> None:
    best = BEST.format("'own', rule='greater'")
    own = f"val_evaluator = dict(_delete_=True, type='OwnMetric')\n{best}\n{lines}"
    assert not [line for line in check(own) if "no evaluator" in line]
    with pytest.raises(InputError, match="monitors foo, which no evaluator gives · hint: monitor one of own"):
        run()


SMALL = """
small_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=32),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size={}, drop_last={}, dataset=dict(pipeline=small_pipeline))
"""


def test_a_last_batch_of_one_photo_is_an_error_where_batchnorm_is_left_with_one_value(check: Check) -> None:
    (finding,) = check(SMALL.format(39, False))  # 32 px leave 1 x 1 of the last stage, of 40 photos
    assert finding.startswith("error: train_dataloader.batch_size: 40 photos leave a last batch of one photo")
    assert "Expected more than 1 value per channel" in finding
    (finding,) = check(SMALL.format(1, False))
    assert finding.startswith("error: train_dataloader.batch_size: 1 gives batches of one photo")


def test_a_frozen_training_is_tried_with_its_frozen_layers_in_evaluation_mode(check: Check) -> None:
    frozen = "train_cfg = dict(type='FrozenTrainLoop', freeze_to='{}')"
    assert check(frozen.format("layer3")) == []
    one = SMALL.format(39, False)
    assert check(f"{one}{frozen.format('backbone')}") == []  # no BatchNorm is trained
    (finding,) = check(f"{one}{frozen.format('layer3')}")
    assert "40 photos leave a last batch of one photo" in finding and "Expected more than 1 value" in finding
    (finding,) = check(frozen.format("layer9"))
    assert finding.startswith("error: model: fails on train images") and "no layer layer9 to freeze to" in finding


@pytest.mark.parametrize(
    "lines",
    [SMALL.format(39, True), SMALL.format(20, False), "train_dataloader = dict(batch_size=39)"],
    ids=["dropped", "two whole batches", "2 x 2 values a channel"],
)
def test_a_last_batch_that_the_network_can_be_trained_on_is_no_finding(lines: str, check: Check) -> None:
    assert check(lines) == []


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("class_weight=[1.0, 2.0, 3.0]", "CrossEntropyLoss fails on 5 classes: RuntimeError: weight tensor"),
        ("class_weight=[1.0, 2.0, 3.0, 4.0, 5.0]", ""),
        ("_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=1000", ""),  # set to 5
    ],
)
def test_a_loss_of_another_number_of_classes_is_an_error(loss: str, message: str, check: Check) -> None:
    found = check(f"model = dict(head=dict(loss=dict({loss})))")
    assert len(found) == bool(message) and all(f"error: model.head.loss: {message}" in line for line in found)


@pytest.mark.parametrize(
    ("backbone", "head", "message"),
    [
        (
            "type='SwinTransformer', arch=dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4)",
            "in_channels=64",
            "The input shape (6, 6) is smaller than the window size (7)",
        ),
        (
            "type='TIMMBackbone', model_name='vit_tiny_patch16_224', features_only=True, out_indices=(0,)",
            "in_channels=192",
            "Input height (48) doesn't match model (224)",
        ),
    ],
    ids=["Swin", "ViT"],
)
def test_images_of_a_size_that_the_network_cannot_take_are_an_error(
    backbone: str, head: str, message: str, check: Check
) -> None:
    found = check(f"model = dict(backbone=dict(_delete_=True, {backbone}), head=dict({head}))", narrow=())
    assert [line.split(" pixels: ")[0] for line in found] == [
        f"error: model: fails on {side} images of 48 × 48" for side in ("train", "val")
    ]
    assert all(message in line for line in found)


WORKERS = """
worker_pipeline = [
    dict(type='{}'),
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=48),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(num_workers=2, persistent_workers=False, dataset=dict(pipeline=worker_pipeline))
"""


def test_too_little_shared_memory_for_the_workers_is_a_warning(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "train_dataloader = dict(num_workers=2)"
    usage, needed = shutil.disk_usage("/"), 8 * 2 * 2 * 3 * 48 * 48  # batch, workers, prefetched, bytes of an image
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert check(lines) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    found = check(lines)
    told = (
        "warning: train_dataloader.num_workers: prefetched batches need up to 0 MB of shared memory, but /dev/shm has "
    )
    assert len(found) == Path("/dev/shm").is_dir() and all(line.startswith(told) for line in found)


@TRANSFORMS.register_module()
class NoSharedMemory:
    """Leaves a loader worker with no room: its files, which shared memory is made of, may not be larger."""

    def __call__(self, results: dict) -> dict:
        if get_worker_info() is not None:  # the checks run it here
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return results


@TRANSFORMS.register_module()
class BusError:
    """Ends a loader worker as a page of shared memory that the system can't give does."""

    def __call__(self, results: dict) -> dict:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGBUS)
        return results


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGBUS and no limit on file sizes")
@pytest.mark.parametrize(
    ("step", "message"),
    [("NoSharedMemory", "can't share its batch: unable to "), ("BusError", "died: DataLoader worker .* Bus error")],
)
def test_shared_memory_that_runs_out_ends_the_run_in_a_line(
    step: str, message: str, check: Check, run: Callable
) -> None:
    assert check(WORKERS.format(step)) == []
    with pytest.raises(InputError, match=f"a loader worker {message}") as caught:
        run()
    (problem,) = caught.value.problems
    assert "--shm-size" in problem.hint and "\n" not in str(problem)


AMP = "optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')"


@pytest.mark.skipif(get_device() != "cpu", reason="AmpOptimWrapper works on this machine's GPU")
def test_an_amp_optim_wrapper_without_a_gpu_is_an_error(check: Check) -> None:
    (finding,) = check(AMP)
    assert finding.startswith(
        "error: optim_wrapper: fails on this machine's cpu: AssertionError: ``AmpOptimizerWrapper`"
    )


def test_options_that_an_optimizer_refuses_are_an_error(check: Check) -> None:
    (finding,) = check("optim_wrapper = dict(optimizer=dict(nesterov=True, momentum=0))")
    assert finding.startswith("error: optim_wrapper: fails") and "Nesterov momentum requires a momentum" in finding


@pytest.mark.parametrize("options", [{"amp": True}, {"fast": True}], ids=["amp", "fast"])
def test_bfloat16_takes_the_place_of_an_amp_optim_wrapper(
    options: dict, check: Check, dataset: Path, tmp_path: Path
) -> None:
    check(AMP)
    config = configure(
        TrainOptions(tmp_path / "mine.py", data=dataset, weights="none", work_dir=tmp_path / "run", **options)
    )
    kept = {key for key in config.optim_wrapper if key not in ("optimizer", "paramwise_cfg")}
    assert config.optim_wrapper.type == "BFloat16OptimWrapper" and kept <= {"type", "where_fast"}


@pytest.mark.parametrize(
    ("lines", "option", "message"),
    [
        ("custom_hooks = None", "custom_hooks.0.x=1", "custom_hooks is None, not a dict"),
        ("custom_hooks = []", "custom_hooks.0.x=1", "custom_hooks has 0 items, counted from 0, and no 0"),
        ("", "custom_hooks.1.command=x", "custom_hooks has 1 item, counted from 0, and no 1"),  # not the record's hook
        ("", "custom_hooks.type=x", "custom_hooks has 1 item, counted from 0, and no type"),
        (
            "param_scheduler = dict(_delete_=True, type='StepLR', step_size=9)",
            "param_scheduler.0.gamma=1",
            "is a dict, n",
        ),
        ("default_hooks = None", "default_hooks.logger.interval=1", "default_hooks is None, not a dict"),
        ("", "train_cfg.max_epochs.x=1", "train_cfg.max_epochs is 2, not a dict"),
        ("", "default_hooks.foo.x=1", "error: default_hooks.foo: has no valid type"),
        ("", "custom_hooks=[dict(type='EMAHook')]", "error: custom_hooks: a list of dicts is needed"),
    ],
)
def test_an_option_that_reaches_what_the_config_does_not_have_is_an_error(
    lines: str, option: str, message: str, check: Check
) -> None:
    (finding,) = [line for line in check(lines, option) if line.startswith("error")]
    assert message in finding and ("--cfg-options" in finding or message.startswith("error"))


def test_options_reach_the_configs_own_hooks_and_new_keys(check: Check) -> None:
    sizes = "custom_hooks = [dict(type='ProgressiveResizeHook', sizes={})]"
    assert check(sizes, "custom_hooks.0.sizes.2=48", "default_hooks.early.type=EmptyCacheHook") == []


def test_flags_work_on_a_config_without_what_they_change(check: Check, dataset: Path, tmp_path: Path) -> None:
    check("default_hooks = None\nenv_cfg = None\nrandomness = None\nparam_scheduler = None\ncustom_hooks = None")
    options = dict(data=dataset, weights="none", work_dir=tmp_path / "run")
    config = configure(
        TrainOptions(tmp_path / "mine.py", laptop=True, fast=True, amp=True, freeze_to="layer3", seed=3, **options)
    )
    assert config.default_hooks.logger == dict(type="LoggerHook", interval=50)
    assert config.env_cfg.cudnn_benchmark and config.randomness.seed == 3
    assert configure(TrainOptions(tmp_path / "mine.py", probe=True, **options)).train_cfg.type == "LinearProbeLoop"


@pytest.mark.parametrize("option", [{"laptop": True}, {"freeze_to": "layer3"}], ids=["--laptop", "--freeze-to"])
def test_flags_that_count_epochs_refuse_a_training_by_iterations(
    option: dict, check: Check, dataset: Path, tmp_path: Path
) -> None:
    check("train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4, val_interval=2)")
    with pytest.raises(InputError, match=r"needs train_cfg\.max_epochs, an integer from 1; the config has None"):
        configure(TrainOptions(tmp_path / "mine.py", data=dataset, weights="none", work_dir=tmp_path / "run", **option))


def bug(*arguments: object, **options: object) -> None:
    """A mistake of ours."""
    raise TypeError("planted")


@pytest.mark.parametrize("place", ["options._scale_images", "configuration.set_classes", "starting.set_weights"])
def test_a_bug_in_a_step_of_the_configuration_is_not_put_down_to_the_config(
    place: str, tiny_config: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"mmflowers.engine.{place}", bug)
    with pytest.raises(TypeError, match="planted"):
        configure(TrainOptions(tiny_config, data=dataset, weights="none", work_dir=tmp_path / "run", laptop=True))


@pytest.mark.parametrize(
    "place",
    ["mmflowers.datasets.flowers.FlowersDataset.load_data_list", "mmflowers.datasets.seeded.SeededSampler.__init__"],
)
def test_a_bug_in_what_the_checks_build_is_not_put_down_to_the_config(
    place: str, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, bug)
    monkeypatch.setattr("mmflowers.utils.errors.PACKAGE", Path(__file__).parent)  # where the bug is
    with pytest.raises(TypeError, match="planted"):
        check()


def test_a_check_that_fails_hides_no_error_and_is_no_error(monkeypatch: pytest.MonkeyPatch, check: Check) -> None:
    monkeypatch.setitem(CHECKS, "config", [bug, *CHECKS["config"]])
    with pytest.raises(TypeError, match="planted"):
        check()
    error, failed = check("train_cgf = dict()")
    assert error == "error: train_cgf: unknown key, which is ignored"
    assert failed.startswith(f"warning: {Path(__file__).name}:") and "a check crashed: TypeError: planted" in failed


def test_an_error_is_our_own_where_it_arose_in_the_package() -> None:
    def error_of(step: Callable[[], object]) -> Exception:
        with pytest.raises(Exception) as caught:
            step()
        return caught.value

    assert is_own(error_of(lambda: wrappers.get({"a": 1}, None)))  # in a frame of ours
    assert is_own(error_of(lambda: files.write_text(None, "x")))  # in the standard library, asked by ours
    assert not is_own(error_of(lambda: METRICS.build(dict(type="none of that name"))))
    assert not is_own(error_of(lambda: wrappers.all_innermost({"dataset": {}}).throw(InputError("x"))))
    assert not is_own(error_of(lambda: int("x")))


def test_a_malformed_config_is_told_by_its_keys(dataset: Path, tmp_path: Path, check: Check) -> None:
    check("default_hooks = dict(_delete_=True, logger=3)\nmodel = dict(head='LinearClsHead')")
    with pytest.raises(InputError) as caught:
        configure(
            TrainOptions(tmp_path / "mine.py", data=dataset, weights="none", work_dir=tmp_path / "run", fast=True)
        )
    told = {problem.what for problem in caught.value.problems}
    assert "default_hooks.logger: a dict is needed, not 3 in the config" in told
    assert "model.head: a dict is needed, not 'LinearClsHead' in the config" in told
