"""The best epoch by any metric: with the metric's own name and direction, in the run and in all that is made of it."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import NARROW
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub
from mmpretrain.registry import METRICS

from mmflowers.engine.progress import ProgressHook
from mmflowers.engine.testing import test as run_test
from mmflowers.engine.training import Outcome, TrainOptions, configure, train
from mmflowers.evaluation.history import read_history
from mmflowers.evaluation.metrics import rule_of
from mmflowers.evaluation.report import read_report_data
from mmflowers.utils.errors import InputError
from mmflowers.visualization.figures import curves_figure
from mmflowers.visualization.report import write_report

names = itertools.count()


@METRICS.register_module()
class LossesGiven(BaseMetric):
    """A validation loss that is the lowest after the second epoch."""

    default_prefix = "nll"
    losses = itertools.cycle([3.0, 0.03125, 2.0])

    def process(self, data_batch, data_samples) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results) -> dict[str, float]:
        return {"loss": next(self.losses)}


@pytest.fixture
def start(dataset: Path, tiny_config: Path, tmp_path: Path):
    def start_it(evaluator: str, save_best: str, *options: str, work_dir: str = "run", **more) -> Outcome:
        path = tmp_path / "own.py"
        path.write_text(
            f"_base_ = {str(tiny_config)!r}\nval_evaluator = dict(_delete_=True, {evaluator})\n"
            f"default_hooks = dict(checkpoint=dict(save_best={save_best!r}))\n"
        )
        options = (f"experiment_name=best{next(names)}", "train_cfg.max_epochs=3", *NARROW, *options)
        more = {"weights": "none", "data": dataset, **more}
        return train(configure(TrainOptions(path, work_dir=tmp_path / work_dir, cfg_options=options, **more)))

    return start_it


@pytest.mark.slow
def test_the_lowest_loss_is_the_best_epoch_everywhere(start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = start("type='LossesGiven'", "nll/loss")
    assert str(outcome) == "best nll/loss 0.0312 at epoch 2"
    best = torch.load(run / "best.pth", weights_only=True)["meta"]
    assert (best["epoch"], best["best"]) == (2, {"nll/loss": 0.03125})

    history = read_history(run)
    assert (history.metric, history.rule, history.scores) == ("nll/loss", "less", [3.0, 0.03125, 2.0])
    assert history.best == (2, 0.03125)
    axes = curves_figure({"run": history}).axes[0]
    assert axes.get_title() == "run: best val nll/loss 0.0312 at epoch 2"
    assert axes.get_ylabel() == "val nll/loss"

    run_test(None, run / "best.pth")
    page = write_report(read_report_data([run])).read_text(encoding="utf-8")
    assert "run nll/loss 0.0312 at epoch 2" in page and "best epoch by" in page and "the lowest nll/loss" in page
    with (run / "report" / "curves.csv").open(newline="") as file:
        assert [(row["val_metric"], row["val_score"]) for row in csv.DictReader(file)][1] == ("nll/loss", "0.03125")
    with (run / "report" / "runs.csv").open(newline="") as file:
        assert [row["best_epoch"] for row in csv.DictReader(file)] == ["2"]

    with pytest.raises(InputError, match=r'of another recipe: save_best\.rule was "less", now not set'):
        options = ("default_hooks.checkpoint.rule=greater",)
        start("type='LossesGiven'", "nll/loss", *options, weights=None, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("evaluator", "metric"),
    [
        ("type='SingleLabelMetric', items=('f1-score',)", "single-label/f1-score"),
        ("type='AveragePrecision'", "multi-label/mAP"),
    ],
)
def test_no_other_metric_is_called_top1(start, tmp_path: Path, evaluator: str, metric: str) -> None:
    outcome = start(evaluator, metric, "train_cfg.max_epochs=1")
    assert str(outcome).startswith(f"best {metric} ") and "%" not in str(outcome)
    assert read_history(tmp_path / "run").label == metric


def test_a_metric_of_each_class_can_not_choose_an_epoch(start) -> None:
    each = "type='SingleLabelMetric', items=('f1-score',), average=None"
    with pytest.raises(InputError, match="not one number") as caught:
        start(each, "single-label/f1-score_classwise", "train_cfg.max_epochs=1")
    assert "average=None" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("metric", "rule", "expected"),
    [
        ("accuracy/top1", None, "greater"),
        ("single-label/f1-score", None, "greater"),
        ("single-label/recall", None, "greater"),
        ("multi-label/mAP", None, "greater"),
        ("nll/loss", None, "less"),
        ("nll/loss", "greater", "greater"),
        ("own/gap", "less", "less"),
    ],
)
def test_the_direction_follows_from_the_rule_or_the_name(metric: str, rule: str | None, expected: str) -> None:
    assert rule_of(metric, rule) == expected


@pytest.mark.parametrize("rule", [None, "lower"])
def test_a_direction_that_nothing_tells_is_asked_for_before_the_training(tiny_config, dataset, tmp_path, rule) -> None:
    options = ["default_hooks.checkpoint.save_best=own/gap", f"default_hooks.checkpoint.rule={rule}"]
    with pytest.raises(InputError, match=r"checkpoint\.rule is .*own/gap") as caught:
        configure(
            TrainOptions(tiny_config, data=dataset, weights="none", work_dir=tmp_path / "run", cfg_options=options)
        )
    assert "rule='less'" in caught.value.problems[0].hint


def test_runs_of_different_metrics_are_named_apart_in_one_figure() -> None:
    from mmflowers.evaluation.history import History

    one = History([1], [1.0], [0.1], [1], [90.0])
    other = History([1], [1.0], [0.1], [1], [0.5], "nll/loss", "less")
    axes = curves_figure({"one": one, "other": other}).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one: top-1", "other: nll/loss"]
    assert axes.get_ylabel() == "validation metric"


def test_the_epochs_line_takes_metrics_of_each_class(capsys) -> None:
    runner = SimpleNamespace(epoch=1, max_epochs=2, message_hub=MessageHub.get_instance(f"line{next(names)}"))
    ProgressHook().after_val_epoch(runner, {"accuracy/top1": 50.0, "single-label/f1-score_classwise": [1.0, 2.0]})
    assert capsys.readouterr().err == "epoch 1/2  val top1 50.00\n"
