"""What a training would crash on, or do nothing about, and what is known of it before the first iteration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import NARROW
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS

from mmflowers.checks.run import check_config
from mmflowers.engine.training import configure, train
from mmflowers.errors import InputError

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
        (OTHER_METRIC, "default_hooks.checkpoint.save_best", "accuracy/top1", "single-label/f1-score, single-label/pre"),
    ],
    ids=["early stopping", "plateau", "plateau's default", "save_best", "save_best's default"],
)
def test_a_metric_that_no_evaluator_gives_is_an_error(
    lines: str, key: str, metric: str, given: str, check: Check
) -> None:
    (finding,) = [line for line in check(lines) if line.startswith("error")]
    assert finding.startswith(f"error: {key}: no evaluator gives {metric}; val_evaluator gives {given}")


def test_metrics_that_an_evaluator_gives_are_no_finding(check: Check) -> None:
    assert check(f"{STOP.format('accuracy/top1')}\n{PLATEAU.format(', monitor={!r}'.format('accuracy/top1'))}") == []
    f1 = f"{OTHER_METRIC}\ntest_evaluator = val_evaluator\n{BEST.format(repr('single-label/f1-score'))}"
    assert check(f1) == []


def test_early_stopping_without_a_rule_or_a_validation_is_told(check: Check) -> None:
    no_rule = "custom_hooks = [dict(type='EarlyStoppingHook', monitor='accuracy')]"
    assert any("custom_hooks.0.rule: Cannot infer the rule" in line for line in check(no_rule.replace("accuracy", "x")))
    no_validation = "val_dataloader = None\nval_cfg = None\nval_evaluator = None\n"
    (finding,) = check(no_validation + STOP.format("accuracy/top1"))
    assert finding == "warning: custom_hooks.0.monitor: accuracy/top1, but there is no validation, so this never acts"


@METRICS.register_module()
class OwnMetric(BaseMetric):
    """A user's metric, whose names are known when it is computed."""

    def process(self, data_batch, data_samples) -> None:
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list) -> dict:
        return {"own": len(results)}


@pytest.mark.parametrize("lines", [STOP.format("foo"), PLATEAU.format(", monitor='foo'")], ids=["stop", "plateau"])
def test_a_metric_that_a_users_evaluator_does_not_give_ends_the_run_in_a_line(
    lines: str, check: Check, dataset: Path, tmp_path: Path
) -> None:
    own = f"val_evaluator = dict(_delete_=True, type='OwnMetric')\n{BEST.format(repr('own'))}\n{lines}"
    assert not [line for line in check(own) if "no evaluator" in line]
    config = configure(
        tmp_path / "mine.py", data=dataset, weights="none", work_dir=tmp_path / "run", cfg_options=NARROW
    )
    with pytest.raises(InputError, match="monitors foo, which no evaluator gives · hint: monitor one of own"):
        train(config)
