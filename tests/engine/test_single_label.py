"""Heads for several labels a photo: refused in one line, before a training and wherever a checkpoint is used."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import DefaultScope

from mmflowers import FlowerClassifier
from mmflowers.checks.run import check_config
from mmflowers.engine.single_label import require_single_label
from mmflowers.evaluation.metrics import CollectPredictions
from mmflowers.registry import MODELS
from mmflowers.utils.errors import InputError

SIZES = dict(num_classes=5, in_channels=8)
SIGMOID = dict(type="CrossEntropyLoss", use_sigmoid=True)


@pytest.mark.parametrize(
    "head",
    [
        dict(type="MultiLabelLinearClsHead", **SIZES),
        dict(type="MultiLabelLinearClsHead", topk=1, **SIZES),
        dict(type="MultiLabelLinearClsHead", topk=(1,), **SIZES),  # inherited from a LinearClsHead: it can't predict
        dict(type="CSRAClsHead", num_heads=1, lam=0.1, **SIZES),
    ],
    ids=lambda head: f"{head['type']} {head.get('topk', '')}",
)
def test_a_head_that_scores_each_class_by_itself_is_refused(head: dict) -> None:
    with DefaultScope.overwrite_default_scope("mmflowers"), pytest.raises(InputError) as caught:
        require_single_label(SimpleNamespace(head=MODELS.build(head)))
    (problem,) = caught.value.problems
    assert head["type"] in problem.what and "LinearClsHead" in problem.hint


@pytest.mark.parametrize(
    "head",
    [
        dict(type="LinearClsHead", **SIZES),
        dict(type="LinearClsHead", loss=SIGMOID, **SIZES),  # trains class by class, predicts one
        dict(type="VisionTransformerClsHead", **SIZES),
        dict(type="ArcFaceClsHead", **SIZES),
        dict(type="ConformerHead", num_classes=5, in_channels=[8, 8]),
    ],
    ids=lambda head: f"{head['type']} {'loss' in head}",
)
def test_a_head_that_predicts_one_class_passes_with_any_loss(head: dict) -> None:
    with DefaultScope.overwrite_default_scope("mmflowers"):
        require_single_label(SimpleNamespace(head=MODELS.build(head)))


@pytest.mark.slow
def test_the_checks_refuse_it_before_the_training(tiny_config: Path, dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(f"_base_ = {str(tiny_config)!r}\nmodel = dict(head=dict(type='MultiLabelLinearClsHead'))\n")
    found = [f for f in check_config(path, data=dataset, weights="none") if f.level == "error"]
    assert [finding.where for finding in found] == ["model.head"]
    assert "MultiLabelLinearClsHead predicts any number of classes" in found[0].what


@pytest.mark.slow
def test_a_checkpoint_that_has_one_predicts_and_exports_nothing(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (config,) = run.glob("*.py")
    text = config.read_text()
    assert "type='LinearClsHead'" in text
    config.write_text(text.replace("type='LinearClsHead'", "type='MultiLabelLinearClsHead'"))
    with pytest.raises(InputError, match="MultiLabelLinearClsHead predicts any number of classes"):
        FlowerClassifier.from_run(run)


def test_a_test_refuses_scores_that_are_not_of_one_class(tmp_path: Path) -> None:
    collect = CollectPredictions(data_root=str(tmp_path))
    sample = {"img_path": "val/rose/x.jpg", "gt_label": torch.tensor([1])}
    collect.process({}, [{**sample, "pred_score": torch.tensor([0.25, 0.75]).bfloat16()}])
    with pytest.raises(InputError, match=r"val/rose/x\.jpg sum to 1\.5, not to 1"):
        collect.process({}, [{**sample, "pred_score": torch.tensor([0.75, 0.75])}])
    assert len(collect.results) == 1
